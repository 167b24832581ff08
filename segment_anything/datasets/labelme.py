"""labelme: one JSON file an image with polygons, rectangles, circles or masks, each with a label.

Shapes that share a label and a `group_id` are one object, as labelme itself means it. Points and lines enclose nothing
and are left out. An image embedded in the JSON file (`imageData`) is not read: the file that `imagePath` names must be
there, at that path or beside the JSON file.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from segment_anything.datasets.base import Dataset, Sample, SampleError, Skipped, found_images, normal_split
from segment_anything.datasets.jsonfile import read_json_object
from segment_anything.datasets.objects import check_size, draw

Shape = Mapping[str, Any]
_ENCLOSING = ("polygon", "rectangle", "circle", "mask")


@dataclass(frozen=True)
class LabelmeShapes:
    """The shapes of one image, grouped to objects."""

    objects: tuple[tuple[Shape, ...], ...]
    labels: tuple[int, ...]
    size_hw: tuple[int, int] | None

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,)."""
        if self.size_hw is not None:
            check_size(self.size_hw, size_hw, "the annotation")
        masks = np.zeros((len(self.objects), *size_hw), dtype=bool)
        for mask, shapes in zip(masks, self.objects, strict=True):
            for shape in shapes:
                mask |= draw_shape(shape, size_hw)
        return masks, np.asarray(self.labels, dtype=np.int64)


def open_labelme(path: Path) -> Dataset:
    """The data set of a folder (and its subfolders) of labelme files; classes in alphabetical order."""
    contents: dict[Path, dict[str, Any]] = {}
    skipped: list[Skipped] = []
    for file in sorted(path.rglob("*.json")):
        try:
            content = read_json_object(file)
            _check(content, file)
            content.pop("imageData", None)  # megabytes, not needed
            contents[file] = content
        except ValueError as error:
            skipped.append(Skipped(str(file.relative_to(path)), str(error)))
    names = sorted({str(s["label"]) for content in contents.values() for s in content["shapes"] if _encloses(s)})
    index_of = {name: index for index, name in enumerate(names)}
    samples, missing = found_images(
        (_sample(file, content, index_of, path) for file, content in contents.items()), skipped
    )
    return Dataset(path, "labelme", samples, tuple(names) or ("object",), missing)


def looks_like_labelme(path: Path) -> bool:
    """Whether a JSON file has the form of labelme."""
    try:
        content = read_json_object(path)
    except ValueError:
        return False
    return "shapes" in content and "imagePath" in content


def draw_shape(shape: Shape, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of one labelme shape.

    Raises:
        SampleError: if it has too few points, or its mask does not decode.
    """
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
    if kind == "mask":
        return _draw_mask(shape, points, size_hw)
    if kind in ("rectangle", "circle") and len(points) != 2:
        raise SampleError(f"a {kind} of label {shape['label']!r} has {len(points)} points instead of 2.")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if kind == "circle":
        angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if len(points) < 3:
        raise SampleError(f"a polygon of label {shape['label']!r} has {len(points)} points instead of 3 or more.")
    return draw([points], size_hw)


def _draw_mask(shape: Shape, points: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A small PNG, and the box (two points) where it lies."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            small = np.asarray(image.convert("L")) > 0
    except (KeyError, TypeError, binascii.Error, UnidentifiedImageError, OSError) as error:
        raise SampleError(f"the mask of label {shape['label']!r} does not decode ({error}).") from error
    mask = np.zeros(size_hw, dtype=bool)
    x0, y0 = (round(value) for value in points.min(axis=0))
    top, left = max(0, -y0), max(0, -x0)
    visible = small[top : max(0, size_hw[0] - y0), left : max(0, size_hw[1] - x0)]
    mask[max(0, y0) : max(0, y0) + visible.shape[0], max(0, x0) : max(0, x0) + visible.shape[1]] = visible
    return mask


def _check(content: dict[str, Any], file: Path) -> None:
    if not isinstance(content.get("shapes"), list) or not isinstance(content.get("imagePath"), str):
        raise ValueError(f"{file}: no labelme file, it needs shapes and imagePath; found the keys {sorted(content)}.")
    for shape in content["shapes"]:
        if "label" not in shape or "points" not in shape:
            raise ValueError(f"{file}: a shape without label or points.")


def _encloses(shape: Shape) -> bool:
    return (shape.get("shape_type") or "polygon") in _ENCLOSING


def _sample(file: Path, content: Mapping[str, Any], index_of: Mapping[str, int], root: Path) -> Sample:
    groups: dict[object, list[Shape]] = {}
    for number, shape in enumerate(filter(_encloses, content["shapes"])):
        group = shape.get("group_id")
        groups.setdefault((shape["label"], group) if group is not None else number, []).append(shape)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    image = file.parent / content["imagePath"].replace("\\", "/")
    if not image.is_file():  # folders are moved, and the image moves with its JSON file
        image = file.parent / image.name
    shapes = LabelmeShapes(
        objects=tuple(tuple(group) for group in groups.values()),
        labels=tuple(index_of[str(group[0]["label"])] for group in groups.values()),
        size_hw=(int(height), int(width)) if height and width else None,
    )
    return Sample(image, shapes, str(file.relative_to(root)), normal_split(file.parent.name))
