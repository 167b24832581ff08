"""Data sets of images and masks in the formats that people have, behind one lazily read `Dataset`."""

from segment_anything.datasets.base import (
    Dataset,
    Sample,
    SampleError,
    SegmentationSample,
    Skipped,
    SkippedSamples,
)
from segment_anything.datasets.detect import FORMATS, detect_format, open_dataset

__all__ = [
    "FORMATS",
    "Dataset",
    "Sample",
    "SampleError",
    "SegmentationSample",
    "Skipped",
    "SkippedSamples",
    "detect_format",
    "open_dataset",
]
