"""Class names of detectors: from a file, or by the number of classes of two well-known data sets.

COCO: the 80 names of https://cocodataset.org in the order of their ids. Open Images V7: its 601 boxable names
(https://storage.googleapis.com/openimages/web/index.html) in alphabetical order, as YOLO models trained on it use them.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path


@cache
def known_names(count: int) -> tuple[str, ...] | None:
    """The names of the data set with `count` classes (1, 80 or 601), or None."""
    if count == 1:
        return ("object",)
    file = {80: "coco.txt", 601: "open_images.txt"}.get(count)
    if file is None:
        return None
    return tuple((resources.files(__name__) / file).read_text(encoding="utf-8").split("\n")[:count])


def names_for(count: int) -> tuple[str, ...]:
    """`known_names(count)`, or "class 0", "class 1", ... where no data set of that many classes is known."""
    return known_names(count) or tuple(f"class {index}" for index in range(count))


def read_names(source: str | Path | Sequence[str] | Mapping[int, str]) -> tuple[str, ...]:
    """Class names in the order of their ids.

    Args:
        source: the names; a mapping id -> name; a text file, one name a line; or a JSON file with a list or mapping.

    Raises:
        ValueError: if the file is missing or holds something else, or the ids of a mapping are not 0, 1, 2, ...
    """
    if isinstance(source, str | Path):
        return _read_names_file(Path(source))
    if isinstance(source, Mapping):
        by_id = {int(key): str(name) for key, name in source.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(
                f"class_names: the ids must be 0 to {len(by_id) - 1} without gaps; got {sorted(by_id)[:10]}."
            )
        return tuple(by_id[index] for index in range(len(by_id)))
    return tuple(str(name) for name in source)


def _read_names_file(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"class_names: no such file: {path}. Give a text file with one class name a line.")
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    content = json.loads(text)
    if not isinstance(content, list | dict):
        raise ValueError(f"class_names: {path} must hold a JSON list of names or an object id -> name.")
    return read_names(content)
