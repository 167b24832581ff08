"""A folder with `index.jsonl`: one JSON object a line with image, mask and, if there are classes, labels.

`mask` is a label map (every value an object); `labels` lists the class names of values 1, 2, ... A line with a null
mask is an unlabelled image and is left out. Images that a COCO file `annotations.json` beside the index lists take
their masks from there, because polygons may overlap and the pixels of a label map may not; its classes count if it
lists all images.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segment_anything.datasets.base import ONE_CLASS, Dataset, Objects, Sample, found_images, normal_split
from segment_anything.datasets.coco import open_coco
from segment_anything.datasets.objects import CodedObjects, LabelMap

INDEX = "index.jsonl"


def open_index(path: Path) -> Dataset:
    """The data set of a folder with an index.

    Raises:
        ValueError: if a line is not a JSON object with the key image.
    """
    file = path / INDEX if path.is_dir() else path
    lines = [_line(text, number, file) for number, text in enumerate(file.read_text().splitlines(), 1) if text.strip()]
    lines = [entry for entry in lines if mask_path(entry) is not None]
    overlapping = file.parent / "annotations.json"
    coco = open_coco(overlapping) if overlapping.is_file() else None
    polygons = {sample.name: sample.objects for sample in coco.samples} if coco is not None else {}
    if coco is not None and all(entry["image"] in polygons for entry in lines):
        return Dataset(path, "index", coco.samples, coco.classes, coco.skipped)
    index_of = {name: index for index, name in enumerate(sorted({str(n) for entry in lines for n in _names(entry)}))}
    samples, skipped = found_images(
        Sample(
            image_path=file.parent / entry["image"],
            objects=_objects(entry, file.parent, index_of, polygons.get(entry["image"])),
            name=str(entry["image"]),
            split=normal_split(entry.get("split")),
        )
        for entry in lines
    )
    return Dataset(path, "index", samples, tuple(index_of) or ONE_CLASS, skipped)


def _objects(entry: Mapping[str, Any], folder: Path, index_of: Mapping[str, int], polygons: Objects | None) -> Objects:
    if isinstance(polygons, CodedObjects) and not index_of:
        return replace(polygons, labels=(0,) * len(polygons.labels))
    labels = {value: index_of[str(name)] for value, name in enumerate(_names(entry), 1)} if index_of else None
    return LabelMap(folder / str(mask_path(entry)), labels=labels)


def mask_path(entry: Mapping[str, Any]) -> str | None:
    """The label map of a line: under `mask`, or under `labels` where that is a path."""
    if isinstance(entry.get("mask"), str):
        return str(entry["mask"])
    return str(entry["labels"]) if isinstance(entry.get("labels"), str) else None


def _names(entry: Mapping[str, Any]) -> list[Any]:
    labels = entry.get("labels")
    return labels if isinstance(labels, list) else []


def _line(text: str, number: int, file: Path) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} line {number}: not valid JSON ({error}).") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise ValueError(f"{file} line {number}: expected an object with the key image, got {text[:80]!r}.")
    return entry
