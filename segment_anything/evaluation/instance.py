"""Instance segmentation: a detector's boxes -> masks -> COCO or LVIS average precision (Segment Anything, 7.4).

Ground truth and detections are the official files (https://cocodataset.org/#format-data and #format-results), and the
official rules apply: crowd regions are neither hit nor missed, LVIS counts a category only where an image is verified
for it. Each detection keeps its score and its category; its mask is the single one (`multimask_output=False`), or the
best of three by predicted IoU.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment_anything._optional import require
from segment_anything.datasets import SampleError
from segment_anything.evaluation.interact import Encoded, usable_boxes, weights_of
from segment_anything.evaluation.options import InstanceOptions
from segment_anything.evaluation.runs import Row, Value
from segment_anything.images import ImageReadError, read_image
from segment_anything.masks import encode_rles, rle_to_coco
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt

Entry = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DetectedImage:
    """One image of the ground truth with the boxes that a detector found in it."""

    name: str
    image_id: int
    path: Path
    detections: tuple[Entry, ...]
    """COCO results with bbox (x, y, width, height), score and category_id; the best first."""


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
        images: folder of the image files.

    Raises:
        ValueError: if a file is not of its form, an image id is listed twice, or detections name images or categories
            that the truth has not.
    """
    content, results = _load(truth), _load(detections)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{truth}: a COCO file needs images, annotations and categories")
    if not content["annotations"]:
        raise ValueError(f"{truth}: the ground truth holds no objects, so that nothing can be measured")
    if not isinstance(results, list):
        raise ValueError(f"{detections}: detections are a JSON list of results, got {type(results).__name__}")
    ids = [entry["id"] for entry in content["images"]]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{truth}: two images have the id {next(i for i in ids if ids.count(i) > 1)}")
    _check_results(results, set(ids), {entry["id"] for entry in content["categories"]}, Path(detections))
    by_image: defaultdict[int, list[Entry]] = defaultdict(list)
    for result in sorted(results, key=lambda result: -float(result["score"])):
        by_image[result["image_id"]].append(result)
    found = (
        DetectedImage(_file_name(entry), entry["id"], Path(images) / _file_name(entry), tuple(by_image[entry["id"]]))
        for entry in content["images"]
    )
    return DetectedSet(content, tuple(found), lvis="neg_category_ids" in (content["images"] or [{}])[0])


def _load(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _file_name(entry: Entry) -> str:
    # LVIS names files by their address only: http://images.cocodataset.org/val2017/000000397133.jpg
    return str(entry["file_name"]) if "file_name" in entry else str(entry["coco_url"]).rpartition("/")[2]


def _check_results(results: Sequence[Entry], images: set[int], categories: set[int], path: Path) -> None:
    for number, result in enumerate(results):
        missing = {"image_id", "category_id", "bbox", "score"} - result.keys()
        if missing:
            raise ValueError(f"{path}: result {number} has no {sorted(missing)[0]}")
        numbers = [*result["bbox"], result["score"]]
        if len(numbers) != 5 or not np.isfinite(numbers).all() or min(numbers[2:4]) < 0:
            raise ValueError(
                f"{path}: result {number} needs a bbox of x, y, width, height and a score, all finite, "
                f"got {result['bbox']} and {result['score']}"
            )
        if result["image_id"] not in images:
            raise ValueError(f"{path}: result {number} is of image {result['image_id']}, which the truth does not list")
        if result["category_id"] not in categories:
            raise ValueError(
                f"{path}: result {number} is of category {result['category_id']}, which the truth does not list "
                "(are the ids those of another data set, or counted from 0?)"
            )


class Instance:
    """The protocol (see `runs.EvaluationProtocol`)."""

    name = "instance"

    def __init__(self, sam: Sam, data: DetectedSet, options: InstanceOptions | None = None) -> None:
        """Measure the masks that `sam` draws for the detections of `data`."""
        self.sam = sam
        self.data = data
        self.options = options or InstanceOptions()

    def settings(self) -> Mapping[str, Any]:
        """Options and weights."""
        return {**asdict(self.options), "weights": weights_of(self.sam)}

    def measure(self, item: DetectedImage) -> Row:
        """COCO results of one image."""
        try:
            image = read_image(item.path)
        except (OSError, ImageReadError) as error:
            raise SampleError(f"{item.name}: {error}") from error
        chosen = item.detections[: self.options.max_detections]
        boxes = np.array([result["bbox"] for result in chosen], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if not chosen:
            return {"results": []}
        encoded = Encoded(self.sam, image)
        masks = boxes_to_rles(encoded, boxes, best_of_three=self.options.masks == "best")
        keys = ("image_id", "category_id", "score")
        return {
            "encode_ms": encoded.encode_seconds * 1e3,
            "decode_ms": encoded.decode_seconds / len(chosen) * 1e3,
            "results": [
                {**{key: result[key] for key in keys}, "segmentation": mask}
                for result, mask in zip(chosen, masks, strict=True)
            ],
        }

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        """Average precision over the measured images."""
        yield "images", len(rows)
        truth, results = self.measured(rows)
        yield "detections", len(results)
        yield from average_precision(truth, results, lvis=self.data.lvis).items()
        for key in ("encode_ms", "decode_ms"):
            times = [row[key] for row in rows if key in row]
            if times:
                yield key, float(np.median(times))

    def measured(self, rows: Sequence[Row]) -> tuple[Entry, list[Entry]]:
        """Ground truth and COCO results of the images that have rows."""
        names = {row["image"] for row in rows}
        ids = {image.image_id for image in self.data.images if image.name in names}
        return only_images(self.data.truth, ids), [result for row in rows for result in row["results"]]


def boxes_to_rles(encoded: Encoded, boxes_xyxy: NDArray[np.float64], *, best_of_three: bool = False) -> list[Entry]:
    """COCO run lengths of the mask of each box (N, 4) in original pixels."""
    rles: list[Entry] = []
    size_hw = encoded.embedding.geometry.original_size_hw
    step = encoded.at_once(masks=3 if best_of_three else 1)
    for start in range(0, len(boxes_xyxy), step):
        boxes = usable_boxes(boxes_xyxy[start : start + step], size_hw)
        masks, predicted, _ = encoded.decode([Prompt.make(box=box) for box in boxes], three=best_of_three)
        best = masks[np.arange(len(masks)), predicted.argmax(axis=1)]
        rles += [{"size": list(rle["size"]), "counts": rle_to_coco(rle)} for rle in encode_rles(best)]
    return rles


def only_images(truth: Entry, ids: set[int]) -> Entry:
    """The part of a COCO ground truth that belongs to some images."""
    return {
        **truth,
        "images": [entry for entry in truth["images"] if entry["id"] in ids],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] in ids],
    }


def average_precision(truth: Entry, results: Sequence[Entry], *, lvis: bool = False) -> dict[str, float]:
    """AP over overlaps 0.50 to 0.95, at 0.50 and 0.75, by size, and recall; by faster-coco-eval.

    Args:
        truth: COCO or LVIS ground truth.
        results: COCO results with segmentation.
        lvis: score by the rules of LVIS (300 detections an image, federated categories, AP of rare, common, frequent).
    """
    if not truth["annotations"]:
        return {}
    if not results:
        return {"ap": 0.0}
    stats = _official(truth, results, lvis).stats_as_dict
    names = _LVIS_NAMES if lvis else _COCO_NAMES
    # The official tools give -1 where there is no object of a kind.
    return {ours: float(stats[theirs]) for ours, theirs in names.items() if stats.get(theirs, -1) >= 0}


def precision_over_recall(truth: Entry, results: Sequence[Entry], *, lvis: bool = False) -> dict[str, Floats]:
    """Precision at recall 0, 0.01 ... 1, mean over the categories, at the overlaps 0.50 and 0.75."""
    if not truth["annotations"] or not results:
        return {}
    precision = _official(truth, results, lvis).eval["precision"]  # overlap, recall, category, size, maximum count
    curves = {}
    for name, overlap in (("IoU 0.50", 0), ("IoU 0.75", 5)):
        values = np.asarray(precision[overlap, :, :, 0, -1], np.float64)
        known = values[:, (values >= 0).all(axis=0)]
        if known.shape[1]:
            curves[name] = known.mean(axis=1)
    return curves


def _official(truth: Entry, results: Sequence[Entry], lvis: bool) -> Any:
    coco_eval = require("faster_coco_eval", extra="eval")
    loaded = coco_eval.COCO({"info": {}, "licenses": [], **truth})
    found = loaded.loadRes([dict(result) for result in results])  # it writes into what it is given
    score = coco_eval.COCOeval_faster(loaded, found, "segm", lvis_style=lvis, print_function=lambda *_: None)
    if lvis:
        score.params.maxDets = [300]
    score.evaluate()
    score.accumulate()
    score.summarize()
    return score


_SIZES = {f"ap_{size}": f"AP_{size}" for size in ("small", "medium", "large")}
_COCO_NAMES = {"ap": "AP_all", "ap50": "AP_50", "ap75": "AP_75", **_SIZES, "ar@100": "AR_third"}
_LVIS_NAMES = {
    "ap": "AP_all",
    "ap50": "AP_50",
    "ap75": "AP_75",
    **_SIZES,
    "ap_rare": "APr",
    "ap_common": "APc",
    "ap_frequent": "APf",
}
