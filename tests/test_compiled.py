"""`compile=True`: block by block, with equal results, and a reason where there is no compiler."""

import os
import subprocess
import sys

import pytest
import torch
from toy import toy_sam, vit_sam

from segment_anything import load_sam
from segment_anything.modeling.compiled import check_compiler, compile_encoder


def compiler_works() -> bool:
    try:
        check_compiler(torch.device("cpu"))
    except ValueError:
        return False
    return True


@torch.no_grad()
def test_a_vit_is_compiled_as_two_kinds_of_blocks_whatever_its_depth() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.manual_seed(0)
    sam = vit_sam(64, width=16, depth=5, heads=2, window=3, global_blocks=(1, 3), channels=32)
    plain = vit_sam(64, width=16, depth=5, heads=2, window=3, global_blocks=(1, 3), channels=32)
    plain.load_state_dict(sam.state_dict())
    image = torch.randn(1, 3, 64, 64)
    names = list(sam.state_dict())
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compile_encoder(sam.image_encoder, backend=counter)
    torch.testing.assert_close(sam.image_encoder(image), plain.image_encoder(image), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2
    assert list(sam.state_dict()) == names


@torch.no_grad()
def test_other_encoders_are_compiled_as_a_whole() -> None:
    sam = load_sam("nano", checkpoint="random", device="cpu", image_size=64)
    image = torch.randn(1, 3, 64, 64)
    expected = sam.image_encoder(image)
    torch._dynamo.reset()
    compile_encoder(sam.image_encoder, backend="eager")
    torch.testing.assert_close(sam.image_encoder(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's, about itself
@torch.no_grad()
def test_compiled_by_the_default_compiler_the_results_agree() -> None:
    if not compiler_works():
        pytest.skip("no C++ compiler")
    sam, image = toy_sam(), torch.randn(1, 3, 64, 64)
    expected = sam.image_encoder(image)
    torch._dynamo.reset()
    compile_encoder(sam.image_encoder)
    torch.testing.assert_close(sam.image_encoder(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_a_compiler_the_error_says_what_is_missing() -> None:
    code = "from segment_anything import load_sam; load_sam('nano', checkpoint='random', device='cpu', compile=True)"
    environment = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: compile=True does not work here: ")
    assert last.endswith("It needs a C++ compiler (g++ or clang++). Leave compile out: nothing else needs it.")


def test_nothing_is_compiled_by_default() -> None:
    sam = load_sam("nano", checkpoint="random", device="cpu", image_size=64)
    assert all(module._compiled_call_impl is None for module in sam.modules())
