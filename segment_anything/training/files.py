"""Saving while training: whole or not at all, and one line that says what to do when it fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from segment_anything import _whole_file
from segment_anything.checkpoints import save_checkpoint
from segment_anything.modeling import Sam

NOT_WRITTEN = (
    "{path} could not be written ({error}). What was there before is unharmed: free some space, then run the same "
    "command again."
)


class SaveError(OSError):
    """A file could not be written; what was there before is unharmed."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path` and move it there once it is complete and on the disk.

    Raises:
        SaveError: if it could not be written (a full disk, a folder without write permission).
    """
    try:
        _whole_file.write_whole(path, write)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when a write fails
        raise SaveError(NOT_WRITTEN.format(path=path, error=error)) from error


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        SaveError: as `write_whole`.
    """
    write_whole(path, lambda file: torch.save(content, file))


def write_checkpoint(sam: Sam, path: Path) -> None:
    """`save_checkpoint`, whole or not at all.

    Raises:
        SaveError: as `write_whole`.
    """
    try:
        save_checkpoint(sam, path)
    except (OSError, RuntimeError) as error:
        raise SaveError(NOT_WRITTEN.format(path=path, error=error)) from error
