"""Boxes of a detector -> masks with names: one encoder run an image, all boxes in one decoder call."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segment_anything.detectors import (
    BoxFile,
    Detection,
    Detector,
    check_classes,
    class_names_of,
    select_detections,
)
from segment_anything.grounding.values import Grounded, GroundingOptions, Seconds
from segment_anything.images import check_image_array
from segment_anything.masks import encode_rles, rle_to_coco
from segment_anything.modeling import Decoded, Sam
from segment_anything.prompts import Prompts
from segment_anything.records import MaskRecord, make_record
from segment_anything.utils.amg import calculate_stability_score

_FULL_SIZE_AT_ONCE = 16  # masks held at the image's size before they are run-length encoded


def segment_detections(
    sam: Sam,
    image: np.ndarray,
    detector: Detector | BoxFile,
    options: GroundingOptions | None = None,
    *,
    name: str | Path | None = None,
) -> Grounded:
    """Detect objects and cut each one out by its box: one encoder run an image, all boxes in one decoder call.

    On a CPU that call goes through them a few at a time, which is faster than all at once.

    Args:
        sam: the network.
        image: (H, W, 3) uint8 RGB.
        detector: anything with `detect(image)`.
        options: filters and limits.
        name: the image's file name, for a box file with several images.

    Returns:
        The masks; none, if nothing was detected.

    Raises:
        ValueError: for a class name that the detector does not have; the message lists near ones.
    """
    options = options or GroundingOptions()
    check_image_array(image)
    names = class_names_of(detector)
    if options.classes is not None and names is not None:
        check_classes(options.classes, names)
    start = time.perf_counter()
    bound = detector.for_image(name) if isinstance(detector, BoxFile) and name is not None else detector
    detections = select_detections(
        bound.detect(image),
        classes=options.classes,
        class_map=options.class_map,
        min_score=options.min_score,
        max_count=options.max_count,
    )
    detections = [d for d in detections if _has_pixels(_clipped(d.box_xyxy, image.shape))]
    found = time.perf_counter() - start
    if not detections:
        return Grounded((image.shape[0], image.shape[1]), seconds=Seconds(find=found))
    return _cut_out(sam, image, detections, options, found)


@torch.inference_mode()
def _cut_out(
    sam: Sam, image: np.ndarray, detections: list[Detection], options: GroundingOptions, seconds_found: float
) -> Grounded:
    """A mask for every detection, both dropped where the mask is empty or poor."""
    start = time.perf_counter()
    embedding = sam.encode(image)
    encoded = time.perf_counter()
    boxes = np.array([_clipped(d.box_xyxy, image.shape) for d in detections], dtype=np.float32)
    decoded = sam.decode(embedding, Prompts.from_boxes(boxes), multimask_output=False, batch_size=options.boxes_at_once)
    records = records_of(sam, decoded, options.output_mode)
    kept = [
        ({**record, "category": d.label, "category_score": d.score}, d)
        for record, d in zip(records, detections, strict=True)
        if record["area"] and at_least(record["predicted_iou"], options.min_predicted_iou)
    ]
    done = time.perf_counter()
    return Grounded(
        (image.shape[0], image.shape[1]),
        tuple(record for record, _ in kept),  # type: ignore[misc]
        tuple(detection for _, detection in kept),
        Seconds(seconds_found, encoded - start, done - encoded),
    )


def _clipped(box_xyxy: Sequence[float], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """A box cut off at the image's edges."""
    x0, y0, x1, y1 = box_xyxy
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(shape[1])), min(y1, float(shape[0]))


def _has_pixels(box_xyxy: Sequence[float]) -> bool:
    x0, y0, x1, y1 = np.asarray(box_xyxy, dtype=np.float32)
    return bool(x1 > x0 and y1 > y0)


def records_of(sam: Sam, decoded: Decoded, output_mode: str) -> list[MaskRecord]:
    """Records of (N, 1) masks, enlarged a few at a time."""
    records: list[MaskRecord] = []
    height, width = decoded.geometry.original_size_hw
    for start in range(0, len(decoded.low_res_logits), _FULL_SIZE_AT_ONCE):
        part = slice(start, start + _FULL_SIZE_AT_ONCE)
        chunk = Decoded(decoded.low_res_logits[part], decoded.iou_predictions[part], decoded.geometry)
        logits = chunk.logits()[:, 0]
        stability = calculate_stability_score(logits, sam.mask_threshold, 1.0).tolist()
        masks = (logits > sam.mask_threshold).cpu()
        rles = encode_rles(masks)
        for i, quality in enumerate(chunk.iou_predictions[:, 0].float().tolist()):
            segmentation: Any = rles[i]
            if output_mode == "binary_mask":
                segmentation = masks[i].numpy()
            elif output_mode == "coco_rle":
                segmentation = {"size": [height, width], "counts": rle_to_coco(rles[i])}
            measured = make_record(rles[i], predicted_iou=quality, stability_score=float(stability[i]))
            records.append({**measured, "segmentation": segmentation, "crop_box": [0, 0, width, height]})
    return records


def at_least(quality: float, least: float) -> bool:
    """Whether a predicted IoU is good enough; it is not bounded below, so 0 must let everything pass."""
    return least <= 0 or quality >= least
