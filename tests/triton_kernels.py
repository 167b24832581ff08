"""Triton's kernels where the tests run: on a GPU, or on a CPU by its interpreter, one program after the other in numpy.

The interpreter has no arithmetic in bfloat16, so that type is left to a GPU.
"""

import importlib.util
import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where kernels run."""

if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which nothing does before a test

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (requirements/test.txt has it for Linux)",
)
"""For tests that run kernels."""
