"""Two processes train as one process that accumulates twice."""

import socket
import subprocess
import sys
from pathlib import Path

import torch
from toy_task import Wave, WaveTask

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
        [*command, str(PROGRAM), *map(str, arguments)], env=environment, timeout=180, capture_output=True, text=True
    )


def test_two_processes_equal_one_that_accumulates(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    result = torchrun(tmp_path / "two", "--dropout", 0)
    assert result.returncode == 0, result.stderr
    first = torch.load(tmp_path / "two/last.pt", weights_only=True)
    second = torch.load(tmp_path / "two/rank1.pt", weights_only=True)
    options = LoopOptions(epochs=3, batch_size=4, accumulate=2, tensorboard=False, progress=False)
    Loop(WaveTask(Wave(), dropout=0.0), options, tmp_path / "one").run()
    alone = torch.load(tmp_path / "one/last.pt", weights_only=True)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6)


def test_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    result = torchrun(tmp_path, "--term-at", 2)
    assert "143" in result.stderr
    saved = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert saved["position"]["step"] == 3
    assert torch.equal(torch.load(tmp_path / "rank1.pt", weights_only=True)["0.weight"], saved["weights"]["0.weight"])
