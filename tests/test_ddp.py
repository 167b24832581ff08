"""Two processes train as one process that accumulates twice."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_shapes import write_shapes
from toy_task import Wave, WaveTask

from segment_anything.build_sam import load_sam
from segment_anything.training.finetune import finetune
from segment_anything.training.finetune_options import DataOptions, FinetuneOptions
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions

PROGRAM = Path(__file__).with_name("toy_task.py")


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    environment = {"PYTHONPATH": str(PROGRAM.parent.parent), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, timeout=180, capture_output=True, text=True
    )


def test_two_processes_equal_one_that_accumulates(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    result = torchrun(PROGRAM, tmp_path / "two", "--dropout", 0)
    assert result.returncode == 0, result.stderr
    first = torch.load(tmp_path / "two/last.pt", weights_only=True)
    second = torch.load(tmp_path / "two/rank1.pt", weights_only=True)
    options = LoopOptions(epochs=3, batch_size=4, accumulate=2, tensorboard=False, progress=False)
    Loop(WaveTask(Wave(), dropout=0.0), options, tmp_path / "one").run()
    alone = torch.load(tmp_path / "one/last.pt", weights_only=True)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6)


def test_threads_of_the_group_end_with_it_and_never_meet_the_end_of_the_interpreter(tmp_path: Path) -> None:
    result = torchrun(PROGRAM, tmp_path)
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        threads = (tmp_path / f"threads{rank}.txt").read_text()
        assert "gloo" not in threads, threads


def test_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    result = torchrun(PROGRAM, tmp_path, "--term-at", 2)
    assert "143" in result.stderr
    saved = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert saved["position"]["step"] == 3
    assert torch.equal(torch.load(tmp_path / "rank1.pt", weights_only=True)["0.weight"], saved["weights"]["0.weight"])


def test_fine_tuning_by_torchrun_equals_one_process_that_accumulates(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data", count=8)
    common = ["--model", "nano", "--checkpoint", "random", "--image-size", "64", "--data", data, "--epochs", 1]
    common += ["--batch-size", 2, "--rounds", 2, "--views", 1, "--lr", 1e-3, "--no-progress", "--no-tensorboard"]
    result = torchrun("-m", "segment_anything", "finetune", *common, "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert "x 2 processes" in result.stdout
    torch.set_num_threads(1)
    finetune(
        load_sam("nano", checkpoint="random", image_size=64),
        DataOptions(data=data),
        tmp_path / "one",
        FinetuneOptions(rounds=2, views=1),
        LoopOptions(epochs=1, batch_size=2, accumulate=2, lr=1e-3, tensorboard=False, progress=False),
    )
    two, one = (load_file(tmp_path / name / "last.safetensors") for name in ("two", "one"))
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=2e-5)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",") for name in ("two", "one")]
    assert [float(value or 0) for value in rows[0][4:]] == pytest.approx([float(v or 0) for v in rows[1][4:]], rel=1e-4)
