"""What a data set is: lazily read samples, each an image with one mask and one class per object.

A reader (one file a format) only lists where things are; pixels are read when a sample is asked for, so that a set of
100 000 images opens in seconds. A sample that cannot be used raises `SampleError` with one line that names it; whoever
reads a whole set collects those in `SkippedSamples`, which fails only when they are many.

Letters: N objects, H and W in original pixels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from segment_anything.images import ImageReadError, read_image

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train2017", "train2014"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev", "val2017", "val2014"), "valid"),
    **dict.fromkeys(("test", "testing", "test2017"), "test"),
}
ONE_CLASS = ("object",)
"""The classes of a data set that names none."""
MAX_SKIPPED = 0.1
"""A data set of which more than this fraction cannot be read is refused: something is wrong with all of it."""


class SampleError(ValueError):
    """One sample cannot be used; the message says which and why in one line."""


class Objects(Protocol):
    """Where the objects of one image are kept."""

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,) int64 for an image of `size_hw`; raises SampleError."""
        ...


@dataclass(frozen=True)
class SegmentationSample:
    """One image with its objects, read."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    masks: np.ndarray
    """(N, H, W) bool; N may be 0; objects may overlap; none is empty."""
    labels: np.ndarray
    """(N,) int64, index into the classes of the data set."""
    name: str
    """The image's path inside the data set."""

    def __post_init__(self) -> None:
        count = len(self.masks)
        if self.masks.dtype != bool or self.masks.shape != (count, *self.image.shape[:2]):
            raise ValueError(
                f"masks must be bool of shape (N, {self.image.shape[0]}, {self.image.shape[1]}) like the image, "
                f"got {self.masks.dtype} of shape {self.masks.shape} for {self.name}."
            )
        if self.labels.shape != (count,):
            raise ValueError(f"labels must be of shape ({count},), one per mask, got {self.labels.shape}.")


@dataclass(frozen=True)
class Sample:
    """One image of a data set, not yet read."""

    image_path: Path
    objects: Objects
    name: str
    split: str | None = None

    def read(self, class_count: int = 1) -> SegmentationSample:
        """Read image and masks; objects without a single pixel in the image are left out.

        Raises:
            SampleError: if a file is missing or damaged, sizes differ, or a class is out of range.
        """
        try:
            image = read_image(self.image_path)
        except FileNotFoundError as error:
            raise SampleError(f"{self.name}: {error.filename} is missing.") from error
        except (ImageReadError, OSError) as error:
            raise SampleError(f"{self.name}: {error}") from error
        masks, labels = self.read_objects((image.shape[0], image.shape[1]), class_count)
        return SegmentationSample(image, masks, labels, self.name)

    def read_objects(self, size_hw: tuple[int, int], class_count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) and classes (N,) as `read` gives them, for an image whose size is known.

        Raises:
            SampleError: as `read`.
        """
        try:
            masks, labels = self.objects.read(size_hw)
        except FileNotFoundError as error:
            raise SampleError(f"{self.name}: {error.filename} is missing.") from error
        except SampleError as error:
            raise SampleError(f"{self.name}: {error}") from error
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:  # whatever a tool wrote in there
            raise SampleError(f"{self.name}: its annotation cannot be read ({error!r}).") from error
        wrong = labels[(labels < 0) | (labels >= class_count)]
        if len(wrong):
            raise SampleError(
                f"{self.name}: class id {int(wrong[0])} is out of range, the data set names {class_count} classes "
                f"(0 to {class_count - 1})."
            )
        present = masks.any(axis=(1, 2))
        return masks[present], labels[present]


@dataclass(frozen=True)
class Skipped:
    """One sample that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Samples of one data set. `dataset[i]` reads a sample; everything else costs no pixels."""

    path: Path
    format: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ONE_CLASS
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    """What was found unusable while listing."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> SegmentationSample:
        return self.samples[index].read(len(self.classes))

    def __iter__(self) -> Iterator[SegmentationSample]:
        return (self[index] for index in range(len(self)))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the data set itself names, in the order train, valid, test."""
        present = {sample.split for sample in self.samples}
        return tuple(split for split in SPLITS if split in present)

    def subset(self, split: str) -> "Dataset":
        """The samples of one split.

        Raises:
            ValueError: if the data set has no such split.
        """
        chosen = tuple(sample for sample in self.samples if sample.split == split)
        if not chosen:
            have = ", ".join(self.splits) or "none"
            raise ValueError(f"{self.path}: no samples in split {split!r}; the data set has: {have}.")
        return replace(self, samples=chosen)

    def divide(self, valid_fraction: float) -> tuple["Dataset", "Dataset"]:
        """Training and validation part: the data set's own splits, else the last names in order of file name.

        By name and not at random: frames of one film and tiles of one slide, which lie side by side, stay together.

        Raises:
            ValueError: if one part would be empty.
        """
        if "train" in self.splits and "valid" in self.splits:
            return self.subset("train"), self.subset("valid")
        if "train" in self.splits and "test" in self.splits:
            return self.subset("train"), self.subset("test")
        ordered = sorted(self.samples, key=lambda sample: sample.name)
        count = max(1, round(len(ordered) * valid_fraction))
        if not 0 < valid_fraction < 1 or count >= len(ordered):
            raise ValueError(
                f"valid_fraction must leave images on both sides, got {valid_fraction} of {len(ordered)} images in "
                f"{self.path}."
            )
        return replace(self, samples=tuple(ordered[:-count])), replace(self, samples=tuple(ordered[-count:]))


class SkippedSamples:
    """The samples that could not be used while a whole data set was read."""

    def __init__(self, total: int, skipped: Iterable[Skipped] = (), max_fraction: float = MAX_SKIPPED) -> None:
        self._reasons = {item.name: item.reason for item in skipped}
        self._total = total + len(self._reasons)
        self._max_fraction = max_fraction

    def __len__(self) -> int:
        return len(self._reasons)

    def items(self) -> tuple[Skipped, ...]:
        """Every skipped sample once, in order of name."""
        return tuple(Skipped(name, reason) for name, reason in sorted(self._reasons.items()))

    def add(self, name: str, reason: str) -> None:
        """Note one sample.

        Raises:
            ValueError: as `check`.
        """
        self._reasons[name] = reason
        self.check()

    def check(self) -> None:
        """Fail if too much was skipped.

        Raises:
            ValueError: if more than the allowed fraction of the data set was skipped; the first reasons are named.
        """
        if len(self) <= self._max_fraction * self._total:
            return
        first = "\n".join(f"  {item.reason}" for item in self.items()[:5])
        raise ValueError(
            f"{len(self)} of {self._total} samples cannot be used, more than {self._max_fraction:.0%}. The first:\n"
            f"{first}"
        )

    def summary(self) -> str:
        """One line for each skipped sample, after a line with their number; "" if there is none."""
        if not len(self):
            return ""
        lines = [f"{len(self)} of {self._total} samples were skipped:"]
        return "\n".join(lines + [f"  {item.reason}" for item in self.items()])


def normal_split(name: str | None) -> str | None:
    """ "val", "validation", "train2017", ... as one of train, valid, test; None for anything else."""
    return _SPLIT_NAMES.get((name or "").strip().lower())


def found_images(
    samples: Iterable[Sample], skipped: Iterable[Skipped] = ()
) -> tuple[tuple[Sample, ...], tuple[Skipped, ...]]:
    """Part the samples whose image file is there from those whose annotations name a missing file."""
    present: list[Sample] = []
    missing = list(skipped)
    for sample in samples:
        if sample.image_path.is_file():
            present.append(sample)
        else:
            missing.append(Skipped(sample.name, f"{sample.name}: the image {sample.image_path} is missing."))
    return tuple(present), tuple(missing)
