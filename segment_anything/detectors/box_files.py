"""Boxes that somebody or something drew before: a COCO JSON, YOLO text files or a CSV used as a detector.

A file holds the boxes of many images, and `detect(image)` sees pixels only: `BoxFile.for_image(name)` gives the
detector of one image.
"""

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything.detectors.base import Detection
from segment_anything.detectors.names import read_names
from segment_anything.images import check_image_array


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image: the detector that `BoxFile.for_image` gives."""

    detections: tuple[Detection, ...]
    """In the file's order; in fractions of the image's sides where `normalised`."""
    normalised: bool = False
    size_hw: tuple[int, int] | None = None
    """The image's size where the file states it."""
    class_names: tuple[str, ...] = field(default=())

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The boxes in original pixels, best first.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ValueError: if the file says the image has another size.
        """
        height, width = check_image_array(image).shape[:2]
        if self.size_hw is not None and self.size_hw != (height, width):
            raise ValueError(
                f"image is {width} x {height} pixels, and the box file says {self.size_hw[1]} x {self.size_hw[0]}. "
                f"Give the image the boxes were drawn on (turned as its EXIF says, not resized)."
            )
        boxes = sorted(self.detections, key=lambda d: -d.score)
        if not self.normalised:
            return boxes
        return [
            Detection((x0 * width, y0 * height, x1 * width, y1 * height), d.label, d.score)
            for d in boxes
            for x0, y0, x1, y1 in (d.box_xyxy,)
        ]


class BoxFile:
    """A file, or a folder of YOLO text files, with the boxes of many images."""

    def __init__(
        self, path: str | Path, class_names: str | Path | Sequence[str] | Mapping[int, str] | None = None
    ) -> None:
        """Read the file.

        Args:
            path: `.json` (COCO data set or COCO results), `.csv` with a header line, a YOLO `.txt` or a folder of them.
            class_names: names by class id, where the file holds numbers only; for YOLO a `classes.txt` beside the
                files is used if there is one.

        Raises:
            ValueError: if it is missing or its form is not understood.
        """
        self.path = Path(path)
        names = None if class_names is None else read_names(class_names)
        self.boxes, self.lists_every_image = _read(self.path, names)
        """Whether images without a box are listed too: a COCO data set does, a list of results does not."""
        labels = {d.label for image in self.boxes.values() for d in image.detections}
        declared = next(iter(self.boxes.values())).class_names if self.boxes else ()
        self.class_names = declared or tuple(sorted(labels))

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images the file speaks of (YOLO: without ending)."""
        return tuple(self.boxes)

    def for_image(self, name: str | Path) -> ImageBoxes:
        """The boxes of one image, found by its path, file name, or file name without ending, in this order.

        Raises:
            ValueError: if several images answer to the name, or the file lists every image and not this one.
        """
        key = Path(name).as_posix()
        if key in self.boxes:
            return self.boxes[key]
        for matches in (
            [image for image in self.boxes if Path(image).name == Path(key).name],
            [image for image in self.boxes if Path(image).stem == Path(key).stem],
        ):
            if len(matches) > 1:
                raise ValueError(f"{key!r} may be any of {matches[:5]} of {self.path}; give its path as written there.")
            if matches:
                return self.boxes[matches[0]]
        if not self.lists_every_image:
            return ImageBoxes(())  # such files are silent on images without a box
        near = difflib.get_close_matches(key, self.boxes, n=3) or list(self.boxes)[:3]
        raise ValueError(f"{self.path} does not list the image {key!r}. Near names: {', '.join(map(repr, near))}.")

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The boxes of the only image of the file.

        Raises:
            ValueError: if the file speaks of several images.
        """
        if len(self.boxes) > 1:
            raise ValueError(
                f"{self.path} holds boxes of {len(self.boxes)} images: say which with for_image(name).detect(image)."
            )
        only = next(iter(self.boxes.values()), ImageBoxes(()))
        return only.detect(image)


def _read(path: Path, names: tuple[str, ...] | None) -> tuple[dict[str, ImageBoxes], bool]:
    """Boxes by image, and whether the file lists images without boxes too."""
    if not path.exists():
        raise ValueError(f"No such box file: {path}.")
    if path.is_dir():
        return _read_yolo(path, sorted(path.glob("*.txt")), names), False
    kind = path.suffix.lower()
    if kind == ".txt":
        return _read_yolo(path.parent, [path], names), False
    if kind == ".csv":
        return _read_csv(path, names), False
    if kind == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from error
        if isinstance(content, dict):
            return _read_coco(path, content), True
        if isinstance(content, list):
            return _read_coco_results(path, content, names), False
    raise ValueError(
        f"{path} is not a box file this reads: a COCO .json, a .csv with a header, a YOLO .txt, or a folder "
        f"of YOLO .txt."
    )


def _detection(where: str, box_xyxy: tuple[float, float, float, float], label: str, score: float) -> Detection:
    """A detection, or an error that says where the impossible box stands."""
    try:
        return Detection(box_xyxy, label, score)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _xywh(box: Sequence[Any]) -> tuple[float, float, float, float]:
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _read_coco(path: Path, content: dict[str, Any]) -> dict[str, ImageBoxes]:
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise ValueError(f"{path} is not a COCO data set: it has no {missing[0]!r}. Found: {sorted(content)[:10]}.")
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    by_image: dict[Any, list[Detection]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation.get("bbox"):
            label = names.get(annotation.get("category_id"), f"class {annotation.get('category_id')}")
            where = f"{path}, annotation {annotation.get('id')}"
            detection = _detection(where, _xywh(annotation["bbox"]), label, annotation.get("score", 1.0))
            by_image.setdefault(annotation["image_id"], []).append(detection)
    return {
        str(image["file_name"]): ImageBoxes(
            tuple(by_image[image["id"]]),
            size_hw=(int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None,
            class_names=tuple(names.values()),
        )
        for image in content["images"]
    }


def _read_coco_results(path: Path, content: list[Any], names: tuple[str, ...] | None) -> dict[str, ImageBoxes]:
    """COCO's results format: a list of boxes with an image id and a category id, without names."""
    by_image: dict[str, list[Detection]] = {}
    for row in content:
        if not isinstance(row, dict) or not {"image_id", "bbox", "category_id"} <= row.keys():
            raise ValueError(f"{path}: every entry needs image_id, category_id and bbox; got {str(row)[:120]}.")
        label = _name(int(row["category_id"]), names)
        image = str(row.get("file_name", row["image_id"]))
        detection = _detection(f"{path}, image {image}", _xywh(row["bbox"]), label, row.get("score", 1.0))
        by_image.setdefault(image, []).append(detection)
    return {image: ImageBoxes(tuple(boxes), class_names=names or ()) for image, boxes in by_image.items()}


def _name(class_id: int, names: tuple[str, ...] | None) -> str:
    return names[class_id] if names is not None and 0 <= class_id < len(names) else f"class {class_id}"


def _read_yolo(folder: Path, files: Sequence[Path], names: tuple[str, ...] | None) -> dict[str, ImageBoxes]:
    if names is None and (folder / "classes.txt").is_file():
        names = read_names(folder / "classes.txt")
    files = [file for file in files if file.name != "classes.txt"]
    if not files:
        raise ValueError(f"{folder} holds no YOLO .txt file.")
    return {
        file.stem: ImageBoxes(
            tuple(
                _yolo_line(line, f"{file} line {number}", names)
                for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
                if line.strip()
            ),
            normalised=True,
            class_names=names or (),
        )
        for file in files
    }


def _yolo_line(line: str, where: str, names: tuple[str, ...] | None) -> Detection:
    """`class cx cy w h [score]`, or `class x y x y x y ...` (a polygon: its extent), in fractions of the image."""
    try:
        class_id, *numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = []
    if len(numbers) in (4, 5):
        cx, cy, width, height = numbers[:4]
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        return _detection(where, box, _name(int(class_id), names), numbers[4] if len(numbers) == 5 else 1.0)
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[0::2], numbers[1::2]
        return Detection((min(xs), min(ys), max(xs), max(ys)), _name(int(class_id), names))
    raise ValueError(f"{where}: expected `class cx cy w h [score]` or `class x1 y1 x2 y2 ...`; got {line.strip()!r}.")


_CSV_COLUMNS = {
    "image": ("image", "filename", "file_name", "file", "path", "image_id", "imageid"),
    "label": ("label", "class", "category", "name", "labelname"),
    "score": ("score", "confidence", "conf"),
    "x0": ("x0", "xmin", "x_min", "left"),
    "y0": ("y0", "ymin", "y_min", "top"),
    "x1": ("x1", "xmax", "x_max", "right"),
    "y1": ("y1", "ymax", "y_max", "bottom"),
    "x": ("x",),
    "y": ("y",),
    "width": ("w", "width", "box_width"),
    "height": ("h", "height", "box_height"),
}


def _read_csv(path: Path, names: tuple[str, ...] | None) -> dict[str, ImageBoxes]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        header = rows.fieldnames or []
        columns = _csv_columns(path, header)
        by_image: dict[str, list[Detection]] = {}
        for number, row in enumerate(rows, start=2):
            detection = _csv_row(row, columns, f"{path} line {number}", names)
            by_image.setdefault(str(row[columns["image"]]), []).append(detection)
    # Open Images writes fractions of the image's sides. No table of pixels has all its boxes in the first pixel.
    boxes = [value for detections in by_image.values() for d in detections for value in d.box_xyxy]
    fractions = bool(boxes) and max(boxes) <= 1
    return {image: ImageBoxes(tuple(found), fractions, class_names=names or ()) for image, found in by_image.items()}


def _csv_columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    lower = {name.strip().lower(): name for name in header}
    columns = {
        role: next(lower[name] for name in accepted if name in lower)
        for role, accepted in _CSV_COLUMNS.items()
        if any(name in lower for name in accepted)
    }
    corners = {"x0", "y0", "x1", "y1"} <= columns.keys()
    sized = {"x", "y", "width", "height"} <= columns.keys()
    if "image" not in columns or not (corners or sized):
        raise ValueError(
            f"{path}: the first line must name the columns: image, label, score (optional) and x0, y0, x1, y1 or "
            f"x, y, width, height. Found: {', '.join(header) or 'nothing'}."
        )
    return columns


def _csv_row(row: dict[str, Any], columns: dict[str, str], where: str, names: tuple[str, ...] | None) -> Detection:
    corner_roles, sized_roles = ("x0", "y0", "x1", "y1"), ("x", "y", "width", "height")
    corners = set(corner_roles) <= columns.keys()
    try:
        values = [float(row[columns[role]]) for role in (corner_roles if corners else sized_roles)]
        score = float(row[columns["score"]]) if "score" in columns else 1.0
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the box and the score must be numbers; got {row}.") from error
    label = str(row[columns["label"]]).strip() if "label" in columns else "object"
    label = _name(int(label), names) if label.isdigit() else label
    return _detection(where, (values[0], values[1], values[2], values[3]) if corners else _xywh(values), label, score)
