"""Points and boxes -> masks: IoU over clicks, number of clicks, boxes, calibration (Segment Anything, section 7.1).

Which mask is scored:

- boxes: the single mask (`multimask_output=False`);
- clicks: of the three masks the one with the highest predicted IoU ("top 1"; the next click corrects it, and its low
  resolution logits are fed back), and the best of the three ("oracle"). With `click_masks="paper"` three masks are
  asked for after the first click only, and the single mask after later ones.

Means are over objects, not over images.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segment_anything.detectors import BoxFile
from segment_anything.evaluation.data import Image
from segment_anything.evaluation.interact import Encoded, boxes_to_masks, click_through, weights_of
from segment_anything.evaluation.metrics import AREA_RANGES, Bool, calibration, clicks_needed
from segment_anything.evaluation.options import PointsBoxesOptions
from segment_anything.evaluation.runs import Row, Value, median_times
from segment_anything.masks import box_iou
from segment_anything.modeling import Sam
from segment_anything.simulate import mask_boxes, noisy_boxes

FOUND_IOU = 0.5
"""A detector's box belongs to the object whose box it overlaps by at least this."""


class PointsBoxes:
    """The protocol (see `runs.EvaluationProtocol`)."""

    name = "points-boxes"

    def __init__(self, sam: Sam, options: PointsBoxesOptions | None = None, detections: BoxFile | None = None) -> None:
        """Measure `sam`; `detections` adds the kind of boxes "detected"."""
        self.sam = sam
        self.options = options or PointsBoxesOptions()
        self.detections = detections

    def settings(self) -> Mapping[str, Any]:
        """Options and weights."""
        file = None if self.detections is None else str(self.detections.path)
        return {**asdict(self.options), "detections": file, "weights": weights_of(self.sam)}

    def measure(self, item: Image) -> Row:
        """IoU of every object of one image for every prompt, and the time it took."""
        options = self.options
        sample = item.read()
        chosen = chosen_objects(sample.masks, options, item.name)
        truths: Bool = sample.masks[chosen]
        area_px = np.count_nonzero(truths, axis=(1, 2)).tolist()
        row: Row = {"size_hw": list(sample.image.shape[:2]), "objects": chosen.tolist(), "area_px": area_px}
        if not len(truths):
            return row
        encoded = Encoded(self.sam, sample.image)
        row["boxes"] = self._boxes(item.name, sample.image, encoded, truths)
        row["clicks"] = self._clicks(encoded, truths)
        row["encode_ms"] = encoded.encode_seconds * 1e3
        row["decode_ms"] = encoded.decode_seconds / max(encoded.prompts, 1) * 1e3
        return row

    def _boxes(self, name: str, image: NDArray[np.uint8], encoded: Encoded, truths: Bool) -> Row:
        """Of each kind of box, [IoU, predicted IoU, boundary IoU] of each object; None where a detector found none."""
        tight = mask_boxes(torch.from_numpy(truths))
        kinds: dict[str, NDArray[np.float64]] = {}
        if "truth" in self.options.boxes:
            kinds["truth"] = tight.double().numpy()
        if "noisy" in self.options.boxes:
            generator = torch.Generator().manual_seed(image_seed(name, self.options.seed))
            kinds["noisy"] = noisy_boxes(tight, truths.shape[1:], generator).double().numpy()
        if self.detections is not None:
            found = [d.box_xyxy for d in self.detections.for_image(name).detect(image)]
            kinds["detected"] = match_boxes(np.array(found).reshape(-1, 4), tight.double().numpy())
        scores: Row = {}
        for kind, boxes in kinds.items():
            there = np.isfinite(boxes).all(axis=1)
            entries: list[list[float] | None] = [None] * len(truths)
            results = boxes_to_masks(encoded, truths[there], boxes[there])
            for index, result in zip(np.flatnonzero(there), results, strict=True):
                entries[index] = [result.iou, result.predicted, result.boundary_iou]
            scores[kind] = entries
        return scores

    def _clicks(self, encoded: Encoded, truths: Bool) -> list[Row]:
        options = self.options
        if not options.clicks and not options.noc_limit:
            return []
        traces = click_through(
            encoded,
            truths,
            clicks=max(options.clicks, default=1),
            click_masks=options.click_masks,
            limit=options.noc_limit,
            target=max(options.noc_targets, default=1.0),
        )
        return [asdict(trace) for trace in traces]

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        """Means over all objects; nothing but the counts where there is no object."""
        used = [row for row in rows if row["area_px"]]
        area_px = np.concatenate([np.asarray(row["area_px"], np.float64) for row in used] or [np.zeros(0)])
        yield "images", len(rows)
        yield "objects", len(area_px)
        if not used:
            return
        yield from self._box_values(used, area_px)
        yield from self._click_values(used, area_px)
        predicted, actual = predicted_and_actual(used, self.options.clicks)
        if len(predicted):
            trust = calibration(predicted, actual)
            yield "predicted_iou_mae", trust.mean_absolute_error
            yield "predicted_iou_ece", trust.expected_calibration_error
            yield "predicted_iou_bias", trust.bias
            yield from self._errors_of_prompts(used)
        yield from median_times(used, "encode_ms", "decode_ms")

    def _errors_of_prompts(self, rows: Sequence[Row]) -> Iterator[Value]:
        """The mean absolute error of the predicted IoU again, apart for boxes and for each number of clicks."""
        for kind in rows[0]["boxes"]:
            pairs = [score[:2] for row in rows for score in row["boxes"][kind] if score is not None]
            if pairs:
                yield f"predicted_iou_mae_box_{kind}", float(np.abs(np.diff(pairs)).mean())
        traces = [trace for row in rows for trace in row["clicks"]]
        for count in self.options.clicks if traces else ():
            errors = [abs(trace["chosen"][count - 1] - trace["predicted"][count - 1]) for trace in traces]
            yield f"predicted_iou_mae_click{count}", float(np.mean(errors))

    def _box_values(self, rows: Sequence[Row], area_px: NDArray[np.float64]) -> Iterator[Value]:
        for kind in rows[0]["boxes"]:
            scores = [score for row in rows for score in row["boxes"][kind]]
            found = np.array([score is not None for score in scores])
            if kind == "detected":
                yield "box_detected_found", float(found.mean())
            if not found.any():
                continue
            iou, _, boundary = np.array([score for score in scores if score is not None], np.float64).T
            yield f"box_{kind}_miou", float(iou.mean())
            yield f"box_{kind}_boundary_iou", float(boundary.mean())
            yield from by_size(f"box_{kind}_miou", iou, area_px[found])

    def _click_values(self, rows: Sequence[Row], area_px: NDArray[np.float64]) -> Iterator[Value]:
        traces = [trace for row in rows for trace in row["clicks"]]
        if not traces:
            return
        for count in self.options.clicks:
            chosen, oracle = (np.array([trace[key][count - 1] for trace in traces]) for key in ("chosen", "oracle"))
            yield f"click{count}_miou", float(chosen.mean())
            yield f"click{count}_oracle_miou", float(oracle.mean())
            if count == 1:
                yield from by_size("click1_oracle_miou", oracle, area_px)
        for target in self.options.noc_targets if self.options.noc_limit else ():
            needed = [clicks_needed(trace["chosen"], target, self.options.noc_limit) for trace in traces]
            yield f"noc{round(target * 100)}", float(np.mean([count for count, _ in needed]))
            yield f"noc{round(target * 100)}_failures", float(np.mean([not reached for _, reached in needed]))


def chosen_objects(masks: Bool, options: PointsBoxesOptions, name: str) -> NDArray[np.intp]:
    """Indices of the masks (N, H, W) of an image that are measured, in order."""
    area_px = np.count_nonzero(masks, axis=(1, 2))
    large = np.flatnonzero((area_px >= options.min_area_px) & (area_px > 0))
    if options.max_objects is None or len(large) <= options.max_objects:
        return large
    generator = np.random.default_rng(image_seed(name, options.seed))
    return np.sort(generator.choice(large, options.max_objects, replace=False))


def by_size(name: str, values: NDArray[np.float64], area_px: NDArray[np.float64]) -> Iterator[Value]:
    """The mean of each of COCO's sizes that occurs."""
    for size in ("small", "medium", "large"):
        low, high = AREA_RANGES[size]
        inside = (area_px >= low) & (area_px < high)
        if inside.any():
            yield f"{name}_{size}", float(values[inside].mean())


def predicted_and_actual(rows: Sequence[Row], clicks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and true IoU of all scored masks: every box, and every reported number of clicks (top 1)."""
    pairs = [score[:2] for row in rows for kind in row["boxes"].values() for score in kind if score is not None]
    for row in rows:
        for trace in row["clicks"]:
            pairs += [[trace["chosen"][k - 1], trace["predicted"][k - 1]] for k in clicks]
    actual, predicted = np.array(pairs, np.float64).reshape(-1, 2).T
    return predicted, actual


def match_boxes(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each wanted box (N, 4) the found box (M, 4) that overlaps it most, NaN where none reaches `FOUND_IOU`."""
    matched = np.full(wanted.shape, np.nan)
    if not len(found) or not len(wanted):
        return matched
    overlap = box_iou(found, wanted)
    best = overlap.argmax(axis=0)
    reached = overlap.max(axis=0) >= FOUND_IOU
    matched[reached] = found[best[reached]]
    return matched


def image_seed(name: str, seed: int) -> int:
    """A seed of its own for every image, the same in every order and split of the data set."""
    return zlib.crc32(f"{seed}:{name}".encode())
