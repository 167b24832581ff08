"""What `generate` writes for each image, and for all images together.

The records of an image (`NAME.json`, in the form of SA-1B) hold everything; whatever else is wanted is made from them.
"""

import csv
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from segment_anything._whole_file import whole
from segment_anything.cli._files import write_json, write_png
from segment_anything.cli._jobs import Job


@dataclass(frozen=True)
class Result:
    """One image and its records, as they come from the generator or from their file."""

    job: Job
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    records: Sequence[Any]


def _write_rle(path: Path, result: Result) -> None:
    from segment_anything.record_formats import to_sa1b

    image_id = zlib.crc32(result.job.name.encode())  # SA-1B numbers images; this number does not depend on the others
    size = result.pixels.shape[:2]
    write_json(path, to_sa1b(result.records, image_id=image_id, file_name=result.job.image.name, size_hw=size))


def _write_overlay(path: Path, result: Result) -> None:
    from segment_anything.visualize import overlay

    write_png(path, overlay(result.pixels, list(result.records)))


def _write_yolo(path: Path, result: Result) -> None:
    from segment_anything.record_formats import to_yolo

    with whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in to_yolo(result.records)), "utf-8")


def _write_labelme(path: Path, result: Result) -> None:
    from segment_anything.record_formats import to_labelme

    image = os.path.relpath(result.job.image, path.parent)
    write_json(path, to_labelme(result.records, file_name=image, size_hw=result.pixels.shape[:2]))


_COLUMNS = {
    "area": ("area",),
    "bbox": ("bbox_x0", "bbox_y0", "bbox_w", "bbox_h"),
    "point_coords": ("point_input_x", "point_input_y"),
    "predicted_iou": ("predicted_iou",),
    "stability_score": ("stability_score",),
    "crop_box": ("crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
}


def _write_masks(folder: Path, result: Result) -> None:
    """`0.png`, `1.png`, ... (object white) and `metadata.csv`, with the names and columns of the original package."""
    from segment_anything.records import record_mask

    with whole(folder) as temporary:
        temporary.mkdir()
        with open(temporary / "metadata.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", *(name for names in _COLUMNS.values() for name in names)])
            for number, record in enumerate(result.records):
                write_png(temporary / f"{number}.png", record_mask(record))
                table.writerow([number, *(value for key in _COLUMNS for value in np.ravel(record[key]).tolist())])


@dataclass(frozen=True)
class _Format:
    suffix: str
    write: Callable[[Path, Result], None]


PER_IMAGE = {
    "rle": _Format(".json", _write_rle),
    "png": _Format("_masks", _write_masks),
    "overlay": _Format("_overlay.png", _write_overlay),
    "yolo": _Format(".txt", _write_yolo),
    "labelme": _Format("_labelme.json", _write_labelme),
}
FORMATS = (*PER_IMAGE, "coco")


def check_formats(texts: Sequence[str]) -> tuple[str, ...]:
    """Formats from repeated or comma-separated words.

    Raises:
        ValueError: for an unknown one.
    """
    formats = tuple(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))
    for word in formats:
        if word not in FORMATS:
            raise ValueError(f"--format must be one or more of {', '.join(FORMATS)}, got {word!r}.")
    return formats or ("rle",)


def targets(job: Job, formats: Sequence[str], out: Path) -> dict[str, Path]:
    """The file or folder that each format makes of one image; `coco` is assembled from its records."""
    wanted = {"rle" if format == "coco" else format for format in formats}
    return {name: out / f"{job.name}{format.suffix}" for name, format in PER_IMAGE.items() if name in wanted}


def read_records(job: Job, out: Path) -> list[Any] | None:
    """The records that an earlier run left for an image, or None."""
    from segment_anything.record_formats import from_sa1b

    path = targets(job, ("rle",), out)["rle"]
    return [*from_sa1b(json.loads(path.read_text("utf-8")))] if path.exists() else None


def write_coco(path: Path, jobs: Sequence[Job], out: Path) -> None:
    """One COCO file (https://cocodataset.org/#format-data) of all images, without classes, written piece by piece."""
    from segment_anything.record_formats import NO_CLASS

    categories = [{"id": 1, "name": NO_CLASS}]
    with whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        _write_list(file, (_coco_image(job, number, out) for number, job in enumerate(jobs, start=1)))
        file.write('],\n"annotations": [')
        _write_list(file, _coco_annotations(jobs, out))
        file.write("]}\n")


def _coco_image(job: Job, number: int, out: Path) -> dict[str, Any]:
    image = json.loads(targets(job, ("rle",), out)["rle"].read_text("utf-8"))["image"]
    file_name = Path(job.name).with_name(job.image.name).as_posix()
    return {"id": number, "file_name": file_name, "width": image["width"], "height": image["height"]}


def _coco_annotations(jobs: Sequence[Job], out: Path) -> Iterator[dict[str, Any]]:
    from segment_anything.record_formats import NO_CLASS, to_coco

    first = 1
    for number, job in enumerate(jobs, start=1):
        annotations = to_coco(read_records(job, out) or [], image_id=number, first_id=first, categories={NO_CLASS: 1})
        first += len(annotations)
        yield from annotations


def _write_list(file: TextIO, items: Iterator[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write((",\n" if number else "\n") + json.dumps(item))
