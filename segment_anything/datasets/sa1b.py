"""SA-1B: beside each image a JSON file with its masks, without classes (https://ai.meta.com/datasets/segment-anything).

The masks, compressed run lengths, are read with the image and not when the folder is opened: a shard holds 10 000.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segment_anything.datasets.base import Dataset, Sample, SampleError, found_images, normal_split
from segment_anything.datasets.jsonfile import read_json_object
from segment_anything.datasets.objects import CodedObjects
from segment_anything.images import SUFFIXES


@dataclass(frozen=True)
class Sa1bFile:
    """The masks of one image, in a JSON file of its own."""

    path: Path

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool; classes are all 0."""
        try:
            codes = tuple(entry["segmentation"] for entry in read_json_object(self.path)["annotations"])
        except (KeyError, TypeError, ValueError) as error:
            raise SampleError(f"{self.path.name} is no SA-1B annotation ({error}).") from error
        return CodedObjects(codes, (0,) * len(codes)).read(size_hw)


def open_sa1b(path: Path) -> Dataset:
    """The data set of a folder (and its subfolders) of image and JSON pairs."""
    samples, skipped = found_images(
        Sample(_image_of(file), Sa1bFile(file), str(_image_of(file).relative_to(path)), normal_split(file.parent.name))
        for file in sorted(path.rglob("*.json"))
    )
    return Dataset(path, "sa1b", samples, skipped=skipped)


def looks_like_sa1b(path: Path) -> bool:
    """Whether a JSON file has the form of SA-1B."""
    try:
        content = read_json_object(path)
    except ValueError:
        return False
    return isinstance(content.get("image"), dict) and isinstance(content.get("annotations"), list)


def _image_of(annotation: Path) -> Path:
    candidates = (annotation.with_suffix(suffix) for suffix in SUFFIXES)
    return next((image for image in candidates if image.is_file()), annotation.with_suffix(".jpg"))
