"""Reads BSDS500: photographs, each segmented by several people (Arbelaez et al., TPAMI 2011)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment_anything._optional import require
from segment_anything.datasets import SampleError
from segment_anything.images import ImageReadError, list_images, read_image

Labels = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class HumanSegmentations:
    """What the people drew on one photograph."""

    segmentations: tuple[Labels, ...]
    """Label maps (H, W), one a person."""
    boundaries: tuple[Bool, ...]
    """Boundary maps (H, W), one pixel wide, one a person."""


@dataclass(frozen=True)
class BsdsImage:
    """One photograph of the benchmark, not yet read."""

    image_path: Path
    truth_path: Path

    @property
    def name(self) -> str:
        """The number of the photograph."""
        return self.image_path.stem

    def read(self) -> tuple[NDArray[np.uint8], HumanSegmentations]:
        """The photograph (H, W, 3) uint8 RGB and its human segmentations.

        Raises:
            SampleError: if either file is missing or damaged, or their sizes differ.
        """
        try:
            image = read_image(self.image_path)
        except (OSError, ImageReadError) as error:
            raise SampleError(f"{self.name}: {error}") from error
        truth = read_truth(self.truth_path)
        if truth.boundaries[0].shape != image.shape[:2]:
            raise SampleError(
                f"{self.name}: the photograph is {image.shape[1]} x {image.shape[0]} pixels, its ground truth "
                f"{truth.boundaries[0].shape[1]} x {truth.boundaries[0].shape[0]}"
            )
        return image, truth


def open_bsds(path: str | Path, split: str = "test") -> Sequence[BsdsImage]:
    """The photographs of one split of a BSDS500 folder, in order of name.

    Args:
        path: the folder that holds `images` and `groundTruth`, or one above (`BSDS500/data`); each of the two holds a
            folder for the split, or the files themselves.
        split: train, val or test.

    Raises:
        ValueError: if there is no such folder, or a photograph has no ground truth.
    """
    root = Path(path)
    homes = [home for home in (root, root / "data", root / "BSDS500" / "data") if (home / "groundTruth").is_dir()]
    if not homes:
        raise ValueError(f"{root}: not BSDS500, expected the folders images and groundTruth in it")
    images, truths = (_split(homes[0] / name, split) for name in ("images", "groundTruth"))
    items = [BsdsImage(file, truths / f"{file.stem}.mat") for file in list_images(images)]
    if not items:
        raise ValueError(f"{images} holds no photographs")
    missing = [item.truth_path.name for item in items if not item.truth_path.is_file()]
    if missing:
        raise ValueError(
            f"{truths}: {len(missing)} of {len(items)} photographs have no ground truth, such as {missing[0]}"
        )
    return items


def _split(folder: Path, split: str) -> Path:
    return folder / split if (folder / split).is_dir() else folder


def read_truth(path: str | Path) -> HumanSegmentations:
    """Read one of the benchmark's .mat files.

    Raises:
        SampleError: if it is missing, damaged, or holds no human segmentation.
    """
    io = require("scipy.io", extra="eval")
    if not Path(path).is_file():
        raise SampleError(f"{path} is missing")
    try:
        people = io.loadmat(path)["groundTruth"].ravel()
        entries = [person[0, 0] for person in people]
        segmentations = tuple(np.asarray(entry["Segmentation"], np.int64) for entry in entries)
        boundaries = tuple(np.asarray(entry["Boundaries"]) > 0 for entry in entries)
    except Exception as error:  # a damaged MATLAB file raises whatever its parser trips over
        raise SampleError(f"{path}: not a BSDS500 ground truth with Segmentation and Boundaries ({error})") from error
    if not boundaries:
        raise SampleError(f"{path} holds no human segmentation")
    return HumanSegmentations(segmentations, boundaries)


def read_mat(path: str | Path, name: str) -> Any:
    """One variable of a MATLAB file, such as `ucm2` or `segs` of the benchmark's own results."""
    return require("scipy.io", extra="eval").loadmat(path)[name]
