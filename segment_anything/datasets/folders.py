"""Folders of images and mask files that share names: one mask, one label map, or a folder of masks an image.

    images/cat.jpg   masks/cat.png          black and white: one object; more values: one object a value
    images/cat.jpg   masks/cat_mask.png     the same
    images/cat.jpg   masks/cat/*.png        one file an object

Format "labelmap" takes every value as an object even where a file has only one; with a file `classes.txt` (one name a
line, the first for value 1) beside the folders the values are classes. Split folders (train/images, images/train) work.
"""

from collections.abc import Iterator
from pathlib import Path

from segment_anything.datasets.base import ONE_CLASS, Dataset, Objects, Sample, Skipped, normal_split
from segment_anything.datasets.objects import LabelMap, MaskFiles
from segment_anything.images import SUFFIXES, list_images

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
_MASK_FOLDERS = ("masks", "mask", "labels", "label", "labelmaps", "annotations", "gt")
_MASK_ENDINGS = ("", "_mask", "-mask", "_label", "_labels", "_labelmap", "_seg", "_segmentation", "_gt")


def open_pairs(path: Path) -> Dataset:
    """The data set of image and mask folders, one or more black and white masks an image.

    Raises:
        ValueError: if there are no two such folders.
    """
    return _open(path, "pairs", ONE_CLASS)


def open_labelmap(path: Path) -> Dataset:
    """The data set of image and label map folders: every value is an object (or a class, with `classes.txt`).

    Raises:
        ValueError: if there are no two such folders, or `classes.txt` is empty.
    """
    names = path / "classes.txt"
    if not names.is_file():
        return _open(path, "labelmap", ONE_CLASS)
    classes = tuple(name.strip() for name in names.read_text().splitlines() if name.strip())
    if not classes:
        raise ValueError(f"{names} is empty; write one class a line, the first for value 1.")
    return _open(path, "labelmap", classes, values_are_classes=True)


def folder_pairs(path: Path) -> list[tuple[Path, Path, str | None]]:
    """Image folder, mask folder and split of a data set."""
    found: list[tuple[Path, Path, str | None]] = []
    for base in (path, *_split_folders(path)):
        for images, masks in _image_and_masks(base):
            nested = [(folder, masks / folder.name) for folder in _split_folders(images)]
            nested = [(folder, other) for folder, other in nested if other.is_dir()]
            if nested:
                found += [(folder, other, normal_split(folder.name)) for folder, other in nested]
            else:
                found.append((images, masks, normal_split(base.name) if base != path else None))
    return found


def masks_of(stem: str, folder: Path) -> tuple[Path, ...]:
    """The mask files of an image by the file names in the mask folder; empty if there are none."""
    inside = folder / stem
    if inside.is_dir():
        return tuple(list_images(inside))
    for ending in _MASK_ENDINGS:
        for suffix in (".png", *SUFFIXES):
            candidate = folder / f"{stem}{ending}{suffix}"
            if candidate.is_file():
                return (candidate,)
    return ()


def _image_and_masks(base: Path) -> Iterator[tuple[Path, Path]]:
    images = next((base / name for name in _IMAGE_FOLDERS if (base / name).is_dir()), None)
    masks = next((base / name for name in _MASK_FOLDERS if (base / name).is_dir()), None)
    if images is not None and masks is not None:
        yield images, masks


def _split_folders(path: Path) -> list[Path]:
    return [child for child in sorted(path.iterdir()) if child.is_dir() and normal_split(child.name)]


def _open(path: Path, kind: str, classes: tuple[str, ...], values_are_classes: bool = False) -> Dataset:
    pairs = folder_pairs(path) if path.is_dir() else []
    if not pairs:
        raise ValueError(
            f"{path}: found no pair of folders such as images and masks "
            f"(image folders: {', '.join(_IMAGE_FOLDERS)}; mask folders: {', '.join(_MASK_FOLDERS)})."
        )
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for images, masks, split in pairs:
        for image in list_images(images):
            files = masks_of(image.stem, masks)
            name = str(image.relative_to(path))
            if files:
                samples.append(Sample(image, _objects(files, kind, values_are_classes), name, split))
            else:
                skipped.append(Skipped(name, f"{name}: no mask {masks.name}/{image.stem}.png."))
    return Dataset(path, kind, tuple(samples), classes, tuple(skipped))


def _objects(files: tuple[Path, ...], kind: str, values_are_classes: bool) -> Objects:
    if kind == "labelmap" and len(files) == 1:
        return LabelMap(files[0], values_are_classes)
    return MaskFiles(files, (0,) * len(files))
