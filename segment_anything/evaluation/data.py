"""The images of a data set as items that a protocol measures one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segment_anything.datasets import Dataset, Sample, SegmentationSample, open_dataset


@dataclass(frozen=True)
class Image:
    """One image with its true masks, not yet read."""

    sample: Sample
    class_count: int

    @property
    def name(self) -> str:
        """The image's path inside the data set."""
        return self.sample.name

    def read(self) -> SegmentationSample:
        """Image, masks and classes.

        Raises:
            SampleError: if it cannot be used.
        """
        return self.sample.read(self.class_count)


def images_of(dataset: Dataset) -> Sequence[Image]:
    """The items of a data set, in its order."""
    return [Image(sample, len(dataset.classes)) for sample in dataset.samples]


def open_images(path: str | Path, format: str = "auto", split: str | None = None) -> Sequence[Image]:
    """The images of a data set in any format that `datasets` reads.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if the format is unknown or the data set is empty.
    """
    return images_of(open_dataset(path, format, split))
