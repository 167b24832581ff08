"""Which precision a machine trains in fastest."""

import pytest
import torch

from segment_anything.training.precision import Precision, fastest_precision


@pytest.mark.parametrize(("has_avx512_bf16", "has_amx", "expected"), [(0, 0, "fp32"), (1, 0, "bf16"), (0, 1, "bf16")])
def test_a_processor_trains_in_bf16_only_where_it_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, has_avx512_bf16: bool, has_amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(has_avx512_bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(has_amx))
    assert fastest_precision() == expected
    assert fastest_precision("cuda") == "bf16"


def test_bf16_is_used_inside_and_fp32_leaves_numbers_alone() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with Precision("bf16", torch.device("cpu"))():
        assert layer(x).dtype == torch.bfloat16
    with Precision("fp32", torch.device("cpu"))():
        assert layer(x).dtype == torch.float32
