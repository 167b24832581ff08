"""Tiny models exported once for all tests of a run: exporting takes seconds, using the files milliseconds."""

import functools
import tempfile
from pathlib import Path

import numpy as np
from toy import toy_sam

from segment_anything import load_sam
from segment_anything.export import ExportOptions, export_model
from segment_anything.modeling import Sam

_folder = tempfile.TemporaryDirectory()  # removed when the process ends

OPTIONS = {
    "toy": ExportOptions(),
    "nano": ExportOptions(decoders="batched,prepared", precision="fp16", normalise=True),
}
"""How each is exported: all forms in full precision; what a browser would fetch of the bundled model."""


@functools.cache
def model(name: str) -> Sam:
    """`toy`, a ViT with all the published parts, or `nano`, which draws its prompts; both random, input 64."""
    return toy_sam() if name == "toy" else load_sam("nano", checkpoint="random", device="cpu", image_size=64)


@functools.cache
def export(name: str) -> Path:
    """The folder of the exported model."""
    folder = Path(_folder.name) / name
    export_model(model(name), folder, OPTIONS[name], weights_license="Apache-2.0")
    return folder


def photo(height: int = 45, width: int = 70, seed: int = 0) -> np.ndarray:
    """A disc and a bar on noise, (height, width, 3) uint8."""
    image = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    image[(x - 0.4 * width) ** 2 + (y - 0.5 * height) ** 2 < (0.25 * height) ** 2] = (220, 180, 40)
    image[int(0.8 * height) :, :] = (30, 60, 200)
    return image
