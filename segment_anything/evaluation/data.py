"""The images of a data set as items that a protocol measures one by one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segment_anything.datasets import Dataset, Sample, SegmentationSample, open_dataset
from segment_anything.datasets.coco import coco_files, image_names
from segment_anything.detectors import BoxFile


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


def open_boxes(file: str | Path, data: str | Path, images: Sequence[Image]) -> BoxFile:
    """A detector's boxes for the images of a data set.

    COCO's list of results knows images by their ids only; their names come from the COCO JSON of the data set.

    Args:
        file: as `detectors.BoxFile` reads it.
        data: the data set, as `open_images` opens it.
        images: what is measured of it.

    Raises:
        ValueError: if a list of results is of an image that the data set does not list, or no box is of any image.
    """
    boxes = BoxFile(file)
    ids = _names_by_id(Path(data)) if Path(file).suffix.lower() == ".json" and not boxes.lists_every_image else {}
    if ids and not set(boxes.boxes) & set(ids.values()):
        unknown = [key for key in boxes.boxes if key not in ids]
        if unknown:
            raise ValueError(
                f"{file} has boxes of {len(unknown)} images that {data} does not list, such as image_id {unknown[0]} "
                "(are they of another data set or split?)"
            )
        boxes.boxes = {ids[key]: found for key, found in boxes.boxes.items()}
    stems = {Path(image.name).stem for image in images}
    if boxes.boxes and not stems & {Path(name).stem for name in boxes.boxes}:
        raise ValueError(
            f"{file} has no box of any image to be measured: it names {next(iter(boxes.boxes))!r}, "
            f"the data set {images[0].name!r}"
        )
    return boxes


def _names_by_id(data: Path) -> dict[str, str]:
    """Image names by id of a data set that is, or has, COCO files."""
    names: dict[str, str] = {}
    for file in coco_files(data) if data.is_dir() or data.suffix.lower() == ".json" else []:
        names |= {str(entry["id"]): image_names(entry)[0] for entry in json.loads(file.read_text("utf-8"))["images"]}
    return names
