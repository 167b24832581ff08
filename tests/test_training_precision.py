"""Which precision a machine trains in fastest."""

import sys
from pathlib import Path

import pytest
import torch

from segment_anything.training.precision import Precision, fastest_precision


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_processor_trains_in_bf16_only_where_the_kernel_says_that_it_multiplies_in_it() -> None:
    has_bf16 = {"avx512_bf16", "amx_tile"} & set(Path("/proc/cpuinfo").read_text().split())
    assert fastest_precision() == ("bf16" if has_bf16 else "fp32")


def test_a_gpu_trains_in_bf16() -> None:
    assert fastest_precision("cuda") == fastest_precision(torch.device("cuda", 1)) == "bf16"


def test_bf16_is_used_inside_and_fp32_leaves_numbers_alone() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with Precision("bf16", torch.device("cpu"))():
        assert layer(x).dtype == torch.bfloat16
    with Precision("fp32", torch.device("cpu"))():
        assert layer(x).dtype == torch.float32
