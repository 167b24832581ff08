"""Tells the format of a data set by looking at it, and opens it."""

from collections.abc import Callable
from itertools import islice
from os import PathLike
from pathlib import Path

from segment_anything.datasets.base import Dataset, SampleError, SkippedSamples
from segment_anything.datasets.coco import coco_files, open_coco
from segment_anything.datasets.csv_list import csv_file, open_csv
from segment_anything.datasets.davis import looks_like_davis, open_davis
from segment_anything.datasets.folders import folder_pairs, open_labelmap, open_pairs
from segment_anything.datasets.index_jsonl import INDEX, open_index
from segment_anything.datasets.labelme import looks_like_labelme, open_labelme
from segment_anything.datasets.objects import is_black_and_white, read_label_image
from segment_anything.datasets.sa1b import looks_like_sa1b, open_sa1b
from segment_anything.datasets.voc import open_voc, voc_root
from segment_anything.datasets.yolo import open_yolo, yolo_file
from segment_anything.images import list_images

FORMATS: dict[str, Callable[[Path], Dataset]] = {
    "coco": open_coco,
    "csv": open_csv,
    "davis": open_davis,
    "index": open_index,
    "labelmap": open_labelmap,
    "labelme": open_labelme,
    "pairs": open_pairs,
    "sa1b": open_sa1b,
    "voc": open_voc,
    "yolo": open_yolo,
}
"""What opens each format."""

_PEEK = 5


def open_dataset(path: str | PathLike[str], format: str = "auto", split: str | None = None) -> Dataset:
    """Open a data set; pixels are read later, sample by sample.

    Args:
        path: a folder, or the file that describes the data set (COCO JSON, data.yaml, CSV, index.jsonl).
        format: a key of `FORMATS`, or "auto".
        split: "train", "valid" or "test": that part only. None: everything.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if the format is unknown, the data set is empty or damaged, or more than a tenth of its images are
            missing.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder.")
    name = detect_format(root) if format == "auto" else format
    if name not in FORMATS:
        raise ValueError(f"format must be auto or one of {', '.join(sorted(FORMATS))}, got {format!r}.")
    dataset = FORMATS[name](root)
    SkippedSamples(len(dataset), dataset.skipped).check()
    if not dataset.samples:
        raise ValueError(f"{root}: the data set is empty, no image with annotations found (format {name}).")
    return dataset if split is None else dataset.subset(split)


def detect_format(path: str | PathLike[str]) -> str:
    """The format of a data set, a key of `FORMATS`, from names and from the first few files.

    Raises:
        ValueError: if it looks like none; the message lists what was looked for.
    """
    root = Path(path)
    name = _of_file(root) if root.is_file() else _of_folder(root)
    if name is None:
        raise ValueError(
            f"{root}: the format of this data set could not be told. Looked for index.jsonl, data.yaml (YOLO), "
            "JPEGImages with SegmentationObject (VOC) or films in Annotations (DAVIS), COCO, SA-1B or labelme JSON, a "
            "CSV list, and the folders images and masks. "
            f"Name it with format= (--format): {', '.join(sorted(FORMATS))}."
        )
    return name


def _of_file(path: Path) -> str | None:
    suffixes = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".csv": "csv", ".jsonl": "index"}
    return suffixes.get(path.suffix.lower())


def _of_folder(path: Path) -> str | None:
    if (path / INDEX).is_file():
        return "index"
    if yolo_file(path) is not None:
        return "yolo"
    if voc_root(path) is not None:
        return "voc"
    if looks_like_davis(path):
        return "davis"
    if coco_files(path):
        return "coco"
    for file in islice(path.rglob("*.json"), _PEEK):
        if looks_like_labelme(file):
            return "labelme"
        if looks_like_sa1b(file):
            return "sa1b"
    if csv_file(path) is not None:
        return "csv"
    pairs = folder_pairs(path)
    if not pairs:
        return None
    return "labelmap" if (path / "classes.txt").is_file() or _has_many_values(pairs[0][1]) else "pairs"


def _has_many_values(folder: Path) -> bool:
    """Whether one of the first mask files is a label map and not black and white."""
    return any(_is_label_map(file) for file in islice(list_images(folder), _PEEK))


def _is_label_map(file: Path) -> bool:
    try:
        return not is_black_and_white(read_label_image(file))
    except SampleError:
        return False
