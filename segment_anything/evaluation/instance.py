"""Instance segmentation: a detector's boxes -> masks -> COCO or LVIS average precision (Segment Anything, 7.4).

Ground truth and detections are the official files (https://cocodataset.org/#format-data and #format-results), and the
official rules apply: crowd regions are neither hit nor missed, LVIS counts a category only where an image is verified
for it. Each detection keeps its score and its category; its mask is the single one (`multimask_output=False`), or the
best of three by predicted IoU.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment_anything._optional import require
from segment_anything.datasets import SampleError
from segment_anything.datasets.objects import check_size
from segment_anything.evaluation.detected import DetectedImage, DetectedSet, Entry, boxes_xyxy_of
from segment_anything.evaluation.interact import Encoded, usable_boxes, weights_of
from segment_anything.evaluation.options import InstanceOptions
from segment_anything.evaluation.runs import Row, Value, median_times
from segment_anything.images import ImageReadError, read_image
from segment_anything.masks import encode_rles, rle_to_coco
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt

Floats = NDArray[np.float64]


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
        if item.size_hw is not None:  # run lengths of two sizes cannot be compared
            try:
                check_size(item.size_hw, image.shape[:2], "its ground truth")
            except SampleError as error:
                raise SampleError(f"{item.name}: {error}") from error
        chosen = item.detections[: self.options.max_detections]
        if not chosen:
            return {"results": []}
        encoded = Encoded(self.sam, image)
        masks = boxes_to_rles(encoded, boxes_xyxy_of(chosen), best_of_three=self.options.masks == "best")
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
        yield from median_times(rows, "encode_ms", "decode_ms")

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
