"""PASCAL VOC: JPEGImages, SegmentationObject, SegmentationClass and lists of names for each split.

Value 255 is drawn around objects and belongs to none. Class values start at 1; a file `labels.txt` (one name a line,
without the background) names them, otherwise they are VOC's own twenty (http://host.robots.ox.ac.uk/pascal/VOC).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segment_anything.datasets.base import Dataset, Sample, SampleError, found_images, normal_split
from segment_anything.datasets.objects import VOID, LabelMap, read_label_image
from segment_anything.images import list_images

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class VocObjects:
    """Objects from one image of instances and one of classes."""

    objects_path: Path
    classes_path: Path

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,)."""
        masks, labels = LabelMap(self.objects_path, void=VOID).read(size_hw)
        if not self.classes_path.is_file():
            return masks, labels
        classes = read_label_image(self.classes_path, size_hw)
        for index, mask in enumerate(masks):
            inside = classes[mask & (classes != VOID) & (classes != 0)]
            if not len(inside):
                raise SampleError(
                    f"object {index + 1} of {self.objects_path.name} has no class in {self.classes_path}."
                )
            labels[index] = np.bincount(inside).argmax() - 1
        return masks, labels


def open_voc(path: Path) -> Dataset:
    """The data set of a VOC folder (the one that holds JPEGImages), or of a VOCdevkit that holds one.

    Raises:
        ValueError: if it holds no segmentation masks.
    """
    root = voc_root(path)
    if root is None:
        raise ValueError(f"{path}: no VOC data set, it needs JPEGImages and SegmentationObject or SegmentationClass.")
    images = {image.stem: image for image in list_images(root / "JPEGImages")}
    names = root / "labels.txt"
    with_objects = (root / "SegmentationObject").is_dir()
    has_classes = (root / "SegmentationClass").is_dir()
    listed = names.read_text().split("\n") if names.is_file() else VOC_CLASSES if has_classes else ("object",)
    classes = tuple(name.strip() for name in listed if name.strip())
    samples, skipped = found_images(
        Sample(
            images.get(stem, root / "JPEGImages" / f"{stem}.jpg"),
            _voc_objects(root, stem) if with_objects else _class_map(root, stem),
            f"JPEGImages/{images[stem].name if stem in images else stem}",
            split,
        )
        for stem, split in _listed_names(root)
    )
    return Dataset(path, "voc", samples, classes, skipped)


def voc_root(path: Path) -> Path | None:
    """The folder with JPEGImages and masks: the path itself, or the first such folder one or two levels below."""
    for folder in (path, *sorted(path.glob("*")), *sorted(path.glob("VOCdevkit/*"))):
        masks = folder / "SegmentationObject", folder / "SegmentationClass"
        if (folder / "JPEGImages").is_dir() and any(mask.is_dir() for mask in masks):
            return folder
    return None


def _voc_objects(root: Path, stem: str) -> VocObjects:
    return VocObjects(root / "SegmentationObject" / f"{stem}.png", root / "SegmentationClass" / f"{stem}.png")


def _class_map(root: Path, stem: str) -> LabelMap:
    """Without SegmentationObject each class present in an image is one object."""
    return LabelMap(root / "SegmentationClass" / f"{stem}.png", values_are_classes=True, void=VOID)


def _listed_names(root: Path) -> Iterator[tuple[str, str | None]]:
    """Image name and split: from ImageSets/Segmentation/*.txt, else every image that has a mask."""
    lists = root / "ImageSets" / "Segmentation"
    seen: set[str] = set()
    for file in sorted(lists.glob("*.txt"), key=lambda file: (normal_split(file.stem) is None, file.stem)):
        for stem in file.read_text().split():
            if stem not in seen:
                seen.add(stem)
                yield stem, normal_split(file.stem)
    if not seen:
        folder = root / ("SegmentationObject" if (root / "SegmentationObject").is_dir() else "SegmentationClass")
        yield from ((mask.stem, None) for mask in sorted(folder.glob("*.png")))
