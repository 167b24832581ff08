"""`benchmarks/gpu.py`, as far as it goes without a GPU: its refusal, its drift and its table."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_one_line_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.py needs a CUDA device, and PyTorch sees none here.\n"
    assert done.stdout == ""


def answer(embedding: list[float], masks: list[str], records: int) -> dict[str, object]:
    drawn = torch.tensor([[pixel == "#" for pixel in mask] for mask in masks])
    return {"embedding": torch.tensor(embedding), "masks": drawn, "records": records}


def test_equal_answers_have_not_drifted(gpu: ModuleType) -> None:
    one = answer([1.0, 2.0, 3.0], ["##..", "...."], 5)
    assert gpu.drift(one, one) == {
        "embedding_rms_of_std": 0.0,
        "mask_iou_mean": 1.0,
        "mask_iou_least": 1.0,
        "records": 5,
        "records_reference": 5,
    }


def test_drift_is_counted_by_masks_and_against_the_spread_of_the_embedding(gpu: ModuleType) -> None:
    found = gpu.drift(answer([0.0, 2.0], ["##..", ".##."], 4), answer([0.1, 2.1], ["#...", ".##."], 3))
    assert found["embedding_rms_of_std"] == pytest.approx(0.1 / 2**0.5, rel=1e-5)
    assert (found["mask_iou_mean"], found["mask_iou_least"]) == (0.75, 0.5)
    assert (found["records"], found["records_reference"]) == (3, 4)


def test_the_table_has_a_row_a_task_and_the_drift(gpu: ModuleType) -> None:
    result = {
        "package": "ours",
        "dtype": "bfloat16",
        "seconds": {"encode": [0.004, 0.002, 0.003], "encode 8": [0.016], "masks": [0.05]},
        "first_seconds": {"encode": 1.5, "encode 8": 0.1, "masks": 0.2},
        "peak_bytes": {"encode": 2**20, "encode 8": 2**21, "masks": 2**22},
        "records": 120,
    }
    drift = gpu.drift(answer([0.0, 2.0], ["##.."], 4), answer([0.1, 2.1], ["#..."], 3))
    machine = {"device": "a GPU", "torch": "2", "cuda": "13", "triton": "3"}
    table = gpu.as_table(
        {
            "machine": machine,
            "image_hw": (1200, 1800),
            "weights": "none",
            "models": {"vit_b": {"results": [result], "drift": {"bfloat16": drift}}},
        }
    )
    rows = table.splitlines()
    assert "a GPU, PyTorch 2, CUDA 13, Triton 3; image of 1800 x 1200 pixels" in rows[0]
    assert "| vit_b | encode one image | 3 ms | ours | bfloat16 | 3.00 ms | 333 images | 1 | 1.50 s |" in rows
    assert "| vit_b | encode 8 images | 350 images/s | ours | bfloat16 | 16.00 ms | 500 images | 2 | 0.10 s |" in rows
    assert any("| 50.00 ms | 120 records | 4 | 0.20 s |" in row for row in rows)
    assert rows[-1] == "| vit_b | bfloat16 | 7.1e-02 | 0.5000 | 0.5000 | 3 of 4 |"
