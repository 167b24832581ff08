"""What the commands that train have in common: the model to start from, and how a run ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

STOPPED = 143
"""Exit status after SIGTERM (or Ctrl-C): the state is saved, and the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The model that training starts from."""

    model: str = "nano"
    """The network: nano (comes with the package), vit_t (MobileSAM), vit_b, vit_l or vit_h (fetched once)."""
    checkpoint: str | None = None
    """Other weights for it: a file, or "random" for none."""
    image_size: int | None = None
    """Side of the network's square input in pixels; smaller is faster and coarser. By default as it was trained."""
    device: str = "auto"
    """Where to run: auto, cpu, cuda, cuda:1, ... Under torchrun each process takes a GPU of its own."""

    def load(self, keep_freed: bool = True) -> Sam:
        """The model in float32; see `load_on_own_device`.

        Raises:
            ValueError: if it cannot be had; the message says why and what to do.
        """
        return load_on_own_device(self.model, self.checkpoint, self.device, self.image_size, keep_freed)


def load_on_own_device(
    name: str, checkpoint: str | None, device: str, image_size: int | None, keep_freed: bool = True
) -> Sam:
    """`load_sam` on the device of this process, which is made ready to train there.

    With `keep_freed` this process gives no memory back once it trains on a CPU: faster, but not where memory is scarce.
    """
    from segment_anything.build_sam import load_sam  # imports torch
    from segment_anything.training.allocator import keep_freed_memory
    from segment_anything.training.distributed import local_device

    sam = load_sam(name, checkpoint, local_device(device), "float32", image_size)
    if sam.device.type == "cpu" and keep_freed:
        keep_freed_memory()
    return sam


@contextmanager
def reported() -> Iterator[None]:
    """Turn a run that cannot go on into one line and exit status 1."""
    from segment_anything.training.task import TrainingError

    try:
        yield
    except TrainingError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def end(finished: bool, say: Callable[[], None]) -> None:
    """Report, and tell by the exit status whether there is more to do."""
    say()
    if not finished:
        print("Stopped by a signal; everything is saved. The same command goes on.", file=sys.stderr)
        raise typer.Exit(STOPPED)
