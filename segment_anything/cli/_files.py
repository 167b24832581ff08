"""Pictures and JSON that appear whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segment_anything._whole_file import whole


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Save (H, W) bool or uint8, (H, W, 3) RGB or (H, W, 4) RGBA as PNG; true is white."""
    with whole(path) as temporary:
        Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(temporary, format="PNG")


def write_json(path: Path, value: Any) -> None:
    """Save a JSON file on one line."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value), "utf-8")
