"""COCO instances: one JSON file for many images (https://cocodataset.org/#format-data).

Several files (`instances_train2017.json`, or one in each of the folders train, valid, test) make the splits.
Crowd regions (`iscrowd`) are left out: they outline no single object. LVIS (https://www.lvisdataset.org) is the same
form, but names its images by their address only.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything.datasets.base import ONE_CLASS, Dataset, Sample, Skipped, found_images, normal_split
from segment_anything.datasets.jsonfile import read_json_object
from segment_anything.datasets.objects import CodedObjects, Polygons, Rle

Entry = Mapping[str, Any]


def open_coco(path: Path) -> Dataset:
    """The data set of a COCO file, or of a folder that holds some.

    Raises:
        ValueError: if there is no such file, it is no COCO JSON, or files disagree about the classes.
    """
    files = coco_files(path)
    if not files:
        raise ValueError(f"{path}: no COCO JSON found (an object with the keys images and annotations).")
    contents = {file: _read(file) for file in files}
    classes = _classes(contents)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for file, content in contents.items():
        root = path if path.is_dir() else path.parent
        try:
            listed = _samples(file, content, {key: i for i, key in enumerate(classes)}, root)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: an image or annotation lacks what COCO needs, or has it wrong ({error!r})."
            ) from error
        present, missing = found_images(listed)
        samples += present
        skipped += missing
    return Dataset(path, "coco", tuple(samples), tuple(classes.values()) or ONE_CLASS, tuple(skipped))


def coco_files(path: Path) -> list[Path]:
    """The COCO files that a path means: itself, or those in a folder, its `annotations` and its split folders."""
    if path.is_file():
        return [path]
    for folder in (path, path / "annotations"):
        found = [file for file in sorted(folder.glob("*.json")) if looks_like_coco(file)]
        instances = [file for file in found if file.name.startswith("instances")]
        if found:
            return instances or found
    folders = (child for child in sorted(path.iterdir()) if child.is_dir() and normal_split(child.name))
    return [file for child in folders for file in sorted(child.glob("*.json")) if looks_like_coco(file)]


def looks_like_coco(path: Path, peek: int = 1 << 16) -> bool:
    """Whether a JSON file has COCO's keys; large files are judged by their first and last bytes."""
    with open(path, "rb") as file:
        start = file.read(peek)
        file.seek(max(0, path.stat().st_size - peek))
        text = start + file.read(peek)
    return b'"images"' in text and (b'"annotations"' in text or b'"segmentation"' in text)


def _read(path: Path) -> dict[str, Any]:
    content = read_json_object(path)
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{path}: a COCO file needs the list {key!r}; found the keys {sorted(content)}.")
    return content


def _classes(contents: Mapping[Path, Entry]) -> dict[int, str]:
    """Class name by category id, in order of id; a file without categories names them by their ids."""
    classes: dict[int, str] = {}
    for file, content in contents.items():
        listed = {int(entry["id"]): str(entry["name"]) for entry in content.get("categories") or []}
        if not listed:
            listed = {
                int(a["category_id"]): str(a["category_id"]) for a in content["annotations"] if "category_id" in a
            }
        for key, name in listed.items():
            if classes.setdefault(key, name) != name:
                raise ValueError(f"{file}: category {key} is {name!r} here and {classes[key]!r} in another split.")
    return dict(sorted(classes.items()))


def _samples(file: Path, content: Entry, index_of: Mapping[int, int], root: Path) -> list[Sample]:
    by_image: dict[Any, list[Entry]] = defaultdict(list)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            by_image[annotation.get("image_id")].append(annotation)
    split = split_of_file(file)
    folder = _ImageFolder(file, root)
    return [
        Sample(
            image_path=folder.find(*image_names(image)),
            objects=_objects(image, by_image.get(image["id"], []), index_of),
            name=image_names(image)[0],
            split=normal_split(image.get("split")) or split,
        )
        for image in content["images"]
    ]


def image_names(image: Entry) -> tuple[str, ...]:
    """The names under which the file of an image may lie in its folder, the likeliest first.

    Raises:
        KeyError: if the entry names no file.
    """
    if "file_name" in image or "coco_url" not in image:
        return (str(image["file_name"]),)
    # LVIS: http://images.cocodataset.org/val2017/000000397133.jpg; its val split holds images of train2017 too
    folder, name = str(image["coco_url"]).split("/")[-2:]
    return f"{folder}/{name}", name


def _objects(image: Entry, annotations: list[Entry], index_of: Mapping[int, int]) -> CodedObjects:
    drawn = [annotation for annotation in annotations if annotation.get("segmentation")]
    size_hw = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
    return CodedObjects(
        codes=tuple(mask_code(annotation["segmentation"]) for annotation in drawn),
        # -1, out of every range, becomes an error that names the image when it is read
        labels=tuple(index_of.get(int(a.get("category_id", 0)), -1) if index_of else 0 for a in drawn),
        size_hw=size_hw,
    )


def mask_code(segmentation: Any) -> Rle | Polygons:
    """The segmentation of an annotation, as `objects.draw` reads it."""
    if isinstance(segmentation, Mapping):
        return segmentation
    # fewer than three corners (some tools write boxes or points so) enclose nothing
    return [
        np.asarray(flat, np.float32).reshape(-1, 2) for flat in segmentation if len(flat) >= 6 and not len(flat) % 2
    ]


def split_of_file(file: Path) -> str | None:
    """The split that a file name (`instances_val2017.json`) or its folder (`valid/_annotations.coco.json`) tells."""
    words = file.stem.replace(".", "_").replace("-", "_").split("_")
    return next((split for word in [*words, file.parent.name] if (split := normal_split(word))), None)


class _ImageFolder:
    """Finds image files: beside the JSON, in `images`, or in folders as COCO names them."""

    def __init__(self, file: Path, root: Path) -> None:
        names = ["", "images"] + [word for word in file.stem.split("_") if normal_split(word)]
        bases = dict.fromkeys([file.parent, file.parent.parent, root])
        nested = [base / "images" / name for base in bases for name in names[2:]]
        self._folders = [base / name for base in bases for name in names] + nested
        self._last = self._folders[0]

    def find(self, *names: str) -> Path:
        """The file of one of the names, or where it was looked for first."""
        for folder in (self._last, *self._folders):
            for name in names:
                if (folder / name).is_file():
                    self._last = folder
                    return folder / name
        return self._folders[0] / names[0]
