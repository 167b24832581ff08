"""Runs a protocol over a data set: one JSON row an image, written as it is made, so that a run can stop, go on, and be
split over processes. It knows nothing of what a row holds.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

from segment_anything.datasets import SampleError, SkippedSamples

Row = dict[str, Any]
Value = tuple[str, float]


class Item(Protocol):
    """One image of a data set, not yet read."""

    @property
    def name(self) -> str:
        """Unique in the data set."""
        ...


ItemT = TypeVar("ItemT", bound=Item)
ItemT_contra = TypeVar("ItemT_contra", bound=Item, contravariant=True)


class EvaluationProtocol(Protocol[ItemT_contra]):
    """What every protocol is: a slow step for each image, and a fast one over the rows."""

    @property
    def name(self) -> str:
        """Short, for file names and tables."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """All that the rows depend on, as JSON; rows of other settings are never mixed in."""
        ...

    def measure(self, item: ItemT_contra) -> Row:
        """Run the model on one image; raises SampleError if it cannot be used."""
        ...

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        """The figures over the rows of all images, in the order to print them."""
        ...


@dataclass(frozen=True)
class Shard:
    """Which part of a data set a process measures: every `count`-th image from `index` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"shard must be i/n with 0 <= i < n (0/4, 1/4, 2/4, 3/4), got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "i/n".

        Raises:
            ValueError: if it is not of this form or out of range.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(f"shard must be i/n, such as 0/4, got {text!r}")
        return cls(int(index), int(count))

    def of(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """Its part of the items."""
        return items[self.index :: self.count]


@dataclass(frozen=True)
class Progress:
    """The rows of a run so far."""

    rows: tuple[Row, ...]
    """In order of the data set."""
    skipped: tuple[str, ...]
    """One line for each image that cannot be used."""
    total: int
    """Images of the data set."""

    @property
    def complete(self) -> bool:
        """Whether every image was measured or skipped."""
        return len(self.rows) + len(self.skipped) == self.total


def run(
    protocol: EvaluationProtocol[ItemT],
    items: Sequence[ItemT],
    *,
    folder: str | os.PathLike[str] | None = None,
    data: str = "",
    shard: Shard | None = None,
    track: Callable[[Sequence[ItemT]], Iterable[ItemT]] = lambda items: items,
) -> Progress:
    """Measure the images that are still missing, and give the rows of all that are done.

    Args:
        protocol: what to measure.
        items: the whole data set.
        folder: where rows are kept (`rows-<protocol>-<i>of<n>.jsonl`); images with rows there, of any shard, are not
            measured again. None keeps them in memory.
        data: name of the data set; rows of another one are not mixed in.
        shard: the part to measure here; the whole by default.
        track: wraps the loop, for a progress bar.

    Raises:
        ValueError: if the data set is empty or names an image twice, the folder holds rows of other settings or data,
            or more than a tenth of the images cannot be used.
    """
    names = [item.name for item in items]
    if not names:
        raise ValueError("the data set is empty: there is nothing to evaluate")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two images of the data set have the name {twice!r}; names must be unique to resume a run")
    part = shard or Shard()
    settings = _canonical({"data": data, **protocol.settings()})
    done = {} if folder is None else _read_rows(Path(folder), protocol.name, settings)
    writer = None if folder is None else _Writer(_rows_file(Path(folder), protocol.name, part), settings)
    skipped = SkippedSamples(len(items))
    # What could not be used is tried again: the file may be there by now, and too many are an error every time.
    missing = [item for item in part.of(items) if "skipped" in done.get(item.name, {"skipped": ""})]
    for item in track(missing):
        before = done.get(item.name)
        try:
            row = {"image": item.name, **protocol.measure(item)}
        except SampleError as error:
            row = {"image": item.name, "skipped": str(error)}
            skipped.add(item.name, str(error))
        done[item.name] = row
        if writer is not None and row != before:
            writer.write(row)
    here = [done[name] for name in names if name in done]
    return Progress(
        rows=tuple(row for row in here if "skipped" not in row),
        skipped=tuple(str(row["skipped"]) for row in here if "skipped" in row),
        total=len(items),
    )


def median_times(rows: Sequence[Row], *names: str) -> Iterator[Value]:
    """Median over the images of each named time, of the rows that hold it."""
    for name in names:
        times = [float(row[name]) for row in rows if name in row]
        if times:
            yield name, median(times)


def _rows_file(folder: Path, name: str, shard: Shard) -> Path:
    return folder / f"rows-{name}-{shard.index}of{shard.count}.jsonl"


def _read_rows(folder: Path, name: str, settings: Row) -> dict[str, Row]:
    """Rows by image, of every shard's file; a last line cut short by a crash is not a row."""
    rows: dict[str, Row] = {}
    for file in sorted(folder.glob(f"rows-{name}-*of*.jsonl")):
        lines = [row for line in file.read_text().splitlines() if (row := _parse(line)) is not None]
        if not lines:
            continue
        header = lines[0]
        if header.get("settings") != settings:
            raise ValueError(
                f"{file} holds rows of other settings ({_difference(header.get('settings') or {}, settings)}). "
                "Choose another output folder, or delete the file to start again."
            )
        for row in lines[1:]:
            if "skipped" not in row or "skipped" in rows.get(str(row["image"]), row):
                rows[str(row["image"])] = row
    return rows


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _canonical(settings: Mapping[str, Any]) -> Row:
    """As it comes back from a file: tuples as lists, keys as strings."""
    plain: Row = json.loads(json.dumps(settings))
    return plain


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: there {old.get(key)!r}, now {new.get(key)!r}" for key in keys)


class _Writer:
    """Appends rows to a file, each at once on the disk; the first line says what the rows are."""

    def __init__(self, file: Path, settings: Row) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        if file.exists() and _parse(file.read_text().partition("\n")[0]) is not None:
            _end_with_newline(file)
        else:  # a new file, or one whose first line a crash cut short
            file.write_text("")
            self.write({"settings": settings})

    def write(self, row: Mapping[str, Any]) -> None:
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _end_with_newline(file: Path) -> None:
    """Close a line that a crash cut short, so that the next row starts on its own."""
    with open(file, "rb+") as opened:
        opened.seek(-1, os.SEEK_END)
        if opened.read(1) != b"\n":
            opened.write(b"\n")
