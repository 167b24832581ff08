"""Images without masks, for pre-training and distillation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segment_anything.datasets import SampleError, open_dataset
from segment_anything.images import SUFFIXES, ImageReadError, read_image


@dataclass(frozen=True)
class Photo:
    """One image, ready for a network."""

    name: str
    image: torch.Tensor
    """(3, S, S) uint8, or (3, h, w) with the longest side S."""


@dataclass(frozen=True)
class Crops:
    """Square crops of random place and size, mirrored by chance; with `fixed` the whole image, always the same."""

    paths: tuple[Path, ...]
    side: int
    seed: int
    fixed: bool = False
    smallest: float = 0.2
    """Area of the smallest crop, as a share of the image."""

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[index])

    def load(self, index: int, epoch: int) -> Photo:
        """One crop, another in every epoch."""
        image = read_photo(self.paths[index])
        height, width = image.shape[:2]
        box, mirrored = (0.0, 0.0, float(width), float(height)), False
        if not self.fixed:
            generator = np.random.default_rng((self.seed, epoch, index))
            side = min(height, width, (generator.uniform(self.smallest, 1.0) * height * width) ** 0.5)
            x, y = generator.random(2) * (width - side, height - side)
            box, mirrored = (float(x), float(y), float(x + side), float(y + side)), bool(generator.random() < 0.5)
        resized = np.asarray(Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BILINEAR, box=box))
        return Photo(self.name(index), as_tensor(resized[:, ::-1] if mirrored else resized))


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """(h, w, 3) uint8 -> (3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def read_photo(path: Path) -> np.ndarray:
    """(H, W, 3) uint8.

    Raises:
        SampleError: if it cannot be read.
    """
    try:
        return read_image(path)
    except (ImageReadError, OSError) as error:
        raise SampleError(f"{path.name}: {error}") from error


def find_photos(path: Path) -> tuple[Path, ...]:
    """The images of a data set of any format (not its masks), else all images in a folder and below, in order.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if no image is there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    try:
        found = tuple(sample.image_path for sample in open_dataset(path).samples)
    except ValueError:  # no data set, or one without masks: then all its images
        found = tuple(sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()))
    if not found:
        raise ValueError(f"{path}: no images found in this folder or below.")
    return found


def hold_out(paths: Sequence[Path], share: float) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Training and validation images: the last by name are held out, at most 200.

    Raises:
        ValueError: if one part would be empty.
    """
    count = min(200, max(1, round(len(paths) * share)))
    if len(paths) <= count:
        raise ValueError(f"at least 2 images are needed, one to validate on; found {len(paths)}.")
    ordered = sorted(paths)
    return tuple(ordered[:-count]), tuple(ordered[-count:])
