"""The images of a data set as items that a protocol measures one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

from segment_anything.datasets import Dataset, SegmentationSample
from segment_anything.datasets.base import Sample


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
