"""Files that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or make a folder at; it becomes `path` if all goes well and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Save (H, W) bool or uint8, (H, W, 3) RGB or (H, W, 4) RGBA as PNG; true is white."""
    with whole(path) as temporary:
        Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(temporary, format="PNG")


def write_json(path: Path, value: Any) -> None:
    """Save a JSON file on one line."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value), "utf-8")
