"""Files that appear whole or not at all, so that a kill or a full disk never costs the previous checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

_PART = ".part"


class SaveError(OSError):
    """A file could not be written; what was there before is unharmed."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path` and move it there once it is complete and on the disk.

    Raises:
        SaveError: if it could not be written (a full disk, a folder without write permission).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when a write fails
        part.unlink(missing_ok=True)
        raise SaveError(
            f"{path} could not be written ({error}). What was there before is unharmed: free some space, then run the "
            "same command again."
        ) from error


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        SaveError: as `write_whole`.
    """
    write_whole(path, lambda file: torch.save(content, file))


def remove_parts(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`."""
    for part in folder.glob(f".*{_PART}"):
        part.unlink(missing_ok=True)
