"""A CSV list with the columns image, mask, split (train, valid or test) and, if there are classes, label.

Paths are relative to the CSV file. Several rows may name the same image: one object a row. A row without a mask says
that the image shows none. A mask file with more than two values is a label map with one object a value.
"""

import csv
from pathlib import Path

from segment_anything.datasets.base import ONE_CLASS, Dataset, Objects, Sample, found_images, normal_split
from segment_anything.datasets.objects import MaskFiles, NoObjects

COLUMNS = ("image", "mask", "split")


def open_csv(path: Path) -> Dataset:
    """The data set of a CSV file, or of a folder with exactly one.

    Raises:
        ValueError: if columns are missing, a split is unknown, or one image is in two splits.
    """
    file = csv_file(path)
    if file is None:
        raise ValueError(f"{path}: expected one CSV file with the columns {', '.join(COLUMNS)}.")
    rows = _rows(file)
    names = sorted({row["label"] for row in rows if row.get("label")})
    index_of = {name: index for index, name in enumerate(names)}
    by_image: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    samples, skipped = found_images(
        Sample(file.parent / name, _objects(entries, index_of, file.parent), name, _split(entries, name, file))
        for name, entries in by_image.items()
    )
    return Dataset(path, "csv", samples, tuple(names) or ONE_CLASS, skipped)


def csv_file(path: Path) -> Path | None:
    """The CSV file that a path means, if there is exactly one."""
    if path.is_file():
        return path
    files = sorted(path.glob("*.csv"))
    return files[0] if len(files) == 1 else None


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened, skipinitialspace=True)
        found = [name.strip().lower() for name in reader.fieldnames or []]
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise ValueError(
                f"{file}: missing the column(s) {', '.join(missing)}; needs {', '.join(COLUMNS)}, found "
                f"{', '.join(found) or 'no header'}."
            )
        reader.fieldnames = found
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]


def _split(rows: list[dict[str, str]], image: str, file: Path) -> str | None:
    splits = {row["split"] for row in rows}
    if len(splits) > 1:
        raise ValueError(f"{file}: {image} is in the splits {', '.join(sorted(splits))}; an image belongs to one.")
    (text,) = splits
    split = normal_split(text)
    if text and split is None:
        raise ValueError(f"{file}: unknown split {text!r} of {image}; use train, valid or test.")
    return split


def _objects(rows: list[dict[str, str]], index_of: dict[str, int], folder: Path) -> Objects:
    rows = [row for row in rows if row["mask"]]
    if not rows:
        return NoObjects()
    labels = tuple(index_of.get(row.get("label", ""), -1) if index_of else 0 for row in rows)
    return MaskFiles(tuple(folder / row["mask"] for row in rows), labels)
