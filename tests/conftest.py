"""Fixtures for all tests: the shared data folder (skipped where it is missing) and one thread a test process."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which PyTorch does now and then

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data beside the repository; tests that ask for it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this repository")
    return SHARED
