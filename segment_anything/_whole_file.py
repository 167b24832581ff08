"""Files that appear whole or not at all: a kill or a full disk never costs what was there before."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PART = ".part"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or make a folder at; it becomes `path` if all goes well and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`; it is moved there once it is complete and on the disk."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def remove_parts(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)
