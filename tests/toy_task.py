"""A task for the training loop without images or a SAM: a small network with dropout learns a wave.

As a program it trains in a folder: python toy_task.py OUT [--kill-at STEP] [--term-at STEP] [--nan-at STEP] ...
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segment_anything.datasets import SampleError
from segment_anything.training.distributed import join_workers
from segment_anything.training.files import save_tensors
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.task import Learned


@dataclass(frozen=True)
class Point:
    """One sample."""

    x: torch.Tensor
    y: torch.Tensor
    index: int


@dataclass(frozen=True)
class Wave:
    """Samples of a sine with noise that depends on the epoch; some may be unreadable."""

    count: int = 22
    unreadable: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"point {index}"

    def load(self, index: int, epoch: int) -> Point:
        if index in self.unreadable:
            raise SampleError(f"point {index}: unreadable")
        noise = np.random.default_rng((epoch, index)).normal() * 0.1
        x = torch.tensor([index / self.count])
        return Point(x, torch.sin(6 * x) + noise, index)


class WaveTask:
    """Regression of the wave; `do_at` maps a step to what happens in it."""

    metrics = ("loss",)
    default_lr = 0.05

    def __init__(self, source: Wave, do_at: dict[int, str] | None = None, dropout: float = 0.2) -> None:
        torch.manual_seed(3)
        self.module: nn.Module = nn.Sequential(
            nn.Linear(1, 16), nn.BatchNorm1d(16, momentum=0.5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        self.source = source
        self.do_at = do_at or {}
        self.steps = 0

    def learn(self, batch: Sequence[Point]) -> Learned:
        action = self.do_at.get(self.steps)
        self.steps += 1
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if not batch:
            return Learned(0.0, {"loss": 0.0})
        self.module[1].eval()  # statistics of a batch would depend on how it is divided
        predicted = self.module(torch.stack([point.x for point in batch]))
        loss = (predicted - torch.stack([point.y for point in batch])).square().sum()
        if action == "crash":
            raise KeyboardInterrupt
        if action == "nan":
            loss = loss * float("nan")
        loss.backward()
        return Learned(float(len(batch)), {"loss": float(loss.detach())})

    def validate(self) -> dict[str, float]:
        x = torch.linspace(0, 1, 20)[:, None]
        loss = float((self.module(x) - torch.sin(6 * x)).square().mean())
        return {"loss": loss, "score": -loss}

    def save(self, folder: Path, stem: str) -> None:
        save_tensors(folder / f"{stem}.pt", self.module.state_dict())

    def identity(self) -> dict[str, Any]:
        return {"task": "wave"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for action in ("kill", "term", "nan"):
        parser.add_argument(f"--{action}-at", type=int)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    actions = {
        step: action for action in ("kill", "term", "nan") if (step := getattr(given, f"{action}_at")) is not None
    }
    options = LoopOptions(
        epochs=3,
        batch_size=given.batch_size,
        accumulate=given.accumulate,
        save_every=4,
        tensorboard=False,
        progress=False,
    )
    with join_workers(torch.device("cpu")) as workers:
        task = WaveTask(Wave(), actions, given.dropout)
        outcome = Loop(task, options, given.out, workers).run()
        if workers.rank:  # the first process writes its weights by itself
            save_tensors(given.out / f"rank{workers.rank}.pt", task.module.state_dict())
    threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
    (given.out / f"threads{workers.rank}.txt").write_text("\n".join(threads))
    sys.exit(0 if outcome.finished else 143)


if __name__ == "__main__":
    main()
