"""Triton compiles the kernels for data-centre GPUs, in the shapes of the published models; that needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_kernels import needs_triton

HERE = Path(__file__).resolve().parent
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""On-chip memory of one program at most (CUDA C++ programming guide, table of compute capabilities)."""


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux")
@pytest.mark.parametrize(("capability", "kinds"), [(90, ["bf16"]), (80, ["fp16"])], ids=["H100", "A100"])
def test_kernels_compile_onto_tensor_cores_and_fit_the_chip(capability: int, kinds: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(HERE.parent)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(HERE / "compile_kernels.py"), str(capability), *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 9
    for kernel in found:
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability], kernel
        if kernel["kernel"].startswith("attention"):
            assert kernel["tensor_cores"] == ("wgmma" if capability == 90 else "mma"), kernel
