"""Ground truth and a detector's boxes in the official files, read and checked before anything runs.

COCO JSON (https://cocodataset.org/#format-data) or LVIS JSON, and a list of results (#format-results). What the
official tools would stumble over, or score in silence, is one line here.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment_anything.datasets.coco import image_names

Entry = dict[str, Any]


@dataclass(frozen=True)
class DetectedImage:
    """One image of the ground truth with the boxes that a detector found in it."""

    name: str
    image_id: int
    path: Path
    detections: tuple[Entry, ...]
    """COCO results with bbox (x, y, width, height), score and category_id; the best first."""
    size_hw: tuple[int, int] | None = None
    """Size that the truth states, if it does."""


@dataclass(frozen=True)
class DetectedSet:
    """Ground truth and detections."""

    truth: Entry
    """The COCO or LVIS JSON."""
    images: tuple[DetectedImage, ...]
    lvis: bool
    """Whether the truth has LVIS's lists of verified categories."""


def open_detected(truth: str | Path, detections: str | Path, images: str | Path) -> DetectedSet:
    """Read ground truth and detections.

    Args:
        truth: COCO or LVIS JSON.
        detections: JSON list of results with image_id, category_id, bbox and score.
        images: folder of the image files, or of the folders train2017 and val2017 that LVIS draws from.

    Raises:
        ValueError: if a file is not of its form, an id is listed twice, or detections name images or categories that
            the truth has not.
    """
    content, results = _load(truth), _load(detections)
    ids = _check_truth(content, truth)
    if not isinstance(results, list):
        raise ValueError(f"{detections}: detections are a JSON list of results, got {type(results).__name__}")
    _check_results(results, ids, {entry["id"] for entry in content["categories"]}, Path(detections))
    by_image: defaultdict[int, list[Entry]] = defaultdict(list)
    for result in sorted(results, key=lambda result: -float(result["score"])):
        by_image[result["image_id"]].append(result)
    found = (
        DetectedImage(
            image_names(entry)[-1],
            entry["id"],
            _file(Path(images), entry),
            tuple(by_image[entry["id"]]),
            (entry["height"], entry["width"]) if "height" in entry and "width" in entry else None,
        )
        for entry in content["images"]
    )
    return DetectedSet(content, tuple(found), lvis="neg_category_ids" in (content["images"] or [{}])[0])


def boxes_xyxy_of(detections: Sequence[Entry]) -> NDArray[np.float64]:
    """(N, 4) x0, y0, x1, y1 in original pixels, of the x, y, width and height of COCO results."""
    boxes = np.array([result["bbox"] for result in detections], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _load(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _file(folder: Path, entry: Entry) -> Path:
    """The file of an image, in the folder or in that of its split, such as val2017."""
    candidates = [folder / name for name in image_names(entry)]
    return next((file for file in candidates if file.is_file()), candidates[-1])


def _check_truth(content: Any, path: str | Path) -> set[int]:
    """Refuse what the official tools would stumble over or score in silence; the ids of the images."""
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{path}: a COCO file needs images, annotations and categories")
    if not content["annotations"]:
        raise ValueError(f"{path}: the ground truth holds no objects, so that nothing can be measured")
    for entry in content["images"]:
        if "id" not in entry or not entry.keys() & {"file_name", "coco_url"}:
            raise ValueError(f"{path}: an image needs an id and a file_name (LVIS: coco_url), got {str(entry)[:120]}")
    for entry in content["annotations"]:
        missing = [key for key in ("id", "image_id", "category_id", "area") if key not in entry]
        missing += [] if entry.get("segmentation") else ["segmentation"]
        if missing:
            raise ValueError(f"{path}: annotation {entry.get('id')} has no {missing[0]}; masks cannot be scored")
    for key in ("images", "annotations"):
        ids = [entry["id"] for entry in content[key]]
        if len(set(ids)) != len(ids):
            twice = next(number for number, count in Counter(ids).items() if count > 1)
            raise ValueError(f"{path}: two {key} have the id {twice}")
    return {entry["id"] for entry in content["images"]}


def _check_results(results: Sequence[Entry], images: set[int], categories: set[int], path: Path) -> None:
    for number, result in enumerate(results):
        if not isinstance(result, dict):
            raise ValueError(f"{path}: result {number} is no JSON object, got {str(result)[:80]}")
        missing = {"image_id", "category_id", "bbox", "score"} - result.keys()
        if missing:
            raise ValueError(f"{path}: result {number} has no {sorted(missing)[0]}")
        box, score = result["bbox"], result["score"]
        numbers = [*box, score] if isinstance(box, list) else []
        if len(numbers) != 5 or not all(_is_finite(value) for value in numbers) or min(numbers[2:4]) < 0:
            raise ValueError(
                f"{path}: result {number} needs a bbox of x, y, width, height and a score, all finite, "
                f"got {box} and {score}"
            )
        if result["image_id"] not in images:
            raise ValueError(
                f"{path}: result {number} is of image {result['image_id']!r}, which the truth does not list"
            )
        if result["category_id"] not in categories:
            raise ValueError(
                f"{path}: result {number} is of category {result['category_id']}, which the truth does not list "
                "(are the ids those of another data set, or counted from 0?)"
            )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
