"""Data-parallel training over processes that `torchrun` starts, on GPUs (nccl) or CPUs (gloo).

Gradients are summed by hand, once a step, and not by `DistributedDataParallel`: a step here runs one backward pass for
every round of clicks, and DDP's hooks would either sum after each of them or have to be held off; the arithmetic is the
same. Every process holds the whole model and all processes take the same decisions from the same reduced numbers.
"""

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist
from torch import nn


@dataclass(frozen=True)
class Workers:
    """The processes that train together; one process alone is the usual case."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; what no process used keeps none."""
        if self.count == 1:
            return
        chosen = list(parameters)
        device = chosen[0].device
        used = self.sum(torch.tensor([p.grad is not None for p in chosen], dtype=torch.float32, device=device))
        present = [parameter for parameter, flag in zip(chosen, used.tolist(), strict=True) if flag]
        for parameter in present:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._together([parameter.grad for parameter in present if parameter.grad is not None], divide=1)

    def average_buffers(self, module: nn.Module) -> None:
        """Average the running statistics (batch normalisation) that each process gathered on its own images."""
        if self.count > 1:
            self._together([b for b in module.buffers() if b.is_floating_point()], divide=self.count)

    def start_alike(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()

    def _together(self, tensors: list[torch.Tensor], divide: int) -> None:
        """Sum many tensors in one message, which is several times faster than one message each."""
        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_((part / divide).view_as(tensor))


@contextmanager
def join_workers(device: torch.device) -> Iterator[Workers]:
    """Join the other processes that `torchrun` started; alone where it did not.

    Args:
        device: where this process computes; decides between nccl and gloo.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield Workers()
        return
    # Its functions keep, as a default argument, the group there is when they are imported; the optimizer's first step
    # imports them. A group begun before would outlive its destruction, and its threads meet a dying interpreter.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> torch.device:
    """The device of this process: of several GPUs, the one that `torchrun` numbered for it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    return chosen
