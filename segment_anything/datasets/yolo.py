"""YOLO segmentation: `data.yaml`, folders `images` and `labels`, one text file an image.

Each line is a class id and a polygon, "3 0.12 0.40 0.15 0.46 ...", in fractions of width and height. Lines with a box
only (five numbers) have no outline and are an error: boxes trained as masks would teach the model rectangles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segment_anything.datasets.base import Dataset, Sample, SampleError, Skipped, found_images, normal_split
from segment_anything.datasets.objects import draw
from segment_anything.datasets.simple_yaml import read_simple_yaml
from segment_anything.images import list_images


@dataclass(frozen=True)
class YoloFile:
    """The polygons of one image; a missing file means that the image shows no object, as in YOLO itself."""

    path: Path

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,)."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        objects = [self._line(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        masks = np.zeros((len(objects), *size_hw), dtype=bool)
        for mask, (_, polygon) in zip(masks, objects, strict=True):
            mask[:] = draw([polygon * (size_hw[1], size_hw[0])], size_hw)
        return masks, np.array([label for label, _ in objects], dtype=np.int64)

    def _line(self, number: int, line: str) -> tuple[int, np.ndarray]:
        """Class id and polygon (P, 2) in fractions of one line."""
        where = f"{self.path.name} line {number}"
        try:
            label, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise SampleError(f"{where}: not a list of numbers ({error}).") from error
        if len(values) == 4:
            raise SampleError(f"{where}: a box, not a polygon; this format needs outlines (YOLO-seg).")
        if len(values) < 6 or len(values) % 2 or label != int(label):
            raise SampleError(f"{where}: expected a class id and 3 or more points, got {len(values) + 1} numbers.")
        return int(label), np.array(values).reshape(-1, 2)


def open_yolo(path: Path) -> Dataset:
    """The data set of a `data.yaml`, or of the folder that holds one.

    Raises:
        ValueError: if the file names no classes or no image folders.
    """
    file = yolo_file(path)
    if file is None:
        raise ValueError(
            f"{path}: no data.yaml found, which names the classes and the image folders of a YOLO data set."
        )
    content = read_simple_yaml(file)
    classes = _class_names(content.get("names"), file)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for key in ("train", "val", "valid", "test"):
        entry = content.get(key)
        if isinstance(entry, str) and entry:
            folder = _find_folder(file, content.get("path"), entry)
            if folder is None:
                skipped.append(Skipped(entry, f"{file.name}: the folder {entry} of split {key} is missing."))
                continue
            present, missing = found_images(_folder_samples(folder, file.parent, normal_split(key)))
            samples += present
            skipped += missing
    return Dataset(path, "yolo", tuple(samples), classes, tuple(skipped))


def yolo_file(path: Path) -> Path | None:
    """The YAML file that a path means, if there is one with the key `names`."""
    candidates = [path] if path.is_file() else [*sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))]
    candidates = [file for file in candidates if file.suffix in (".yaml", ".yml")]
    return next((file for file in candidates if "names:" in file.read_text(errors="replace")), None)


def _class_names(names: object, file: Path) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        try:
            by_id = {int(key): str(name) for key, name in names.items()}
        except ValueError as error:
            raise ValueError(f"{file}: the keys of names must be class ids, got {sorted(names)}.") from error
        names = [by_id.get(index, str(index)) for index in range(max(by_id, default=-1) + 1)]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file}: names must list the classes, got {names!r}.")
    return tuple(str(name) for name in names)


def _find_folder(file: Path, root: object, entry: str) -> Path | None:
    """Exports write the paths of the machine they came from, or `../train/images`: try what they may have meant."""
    bases = [file.parent / str(root), file.parent] if isinstance(root, str) and root else [file.parent]
    tails = [entry, entry.removeprefix("../"), f"{entry}/images"]
    candidates = (base / tail for base in bases for tail in tails)
    return next((folder.resolve() for folder in candidates if folder.is_dir()), None)


def _folder_samples(folder: Path, root: Path, split: str | None) -> list[Sample]:
    """YOLO's rule: the label file's path is the image's, with the last `images` folder named `labels`."""
    parts = list(folder.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    labels = Path(*parts)
    images = list_images(folder)
    return [Sample(image, YoloFile(labels / f"{image.stem}.txt"), _name(image, root), split) for image in images]


def _name(image: Path, root: Path) -> str:
    try:
        return str(image.relative_to(root.resolve()))
    except ValueError:
        return str(image)
