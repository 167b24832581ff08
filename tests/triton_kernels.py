"""Triton's kernels where the tests run: on a GPU, or on a CPU by its interpreter, one program after the other in numpy.

`conftest.py` chooses the interpreter, before anything imports Triton. It has no arithmetic in bfloat16, so that type is
left to a GPU.
"""

import importlib.util

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where kernels run."""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (requirements/test.txt has it for Linux)",
)
"""For tests that run kernels."""
