"""Which masks of an image stay: the part of the filters that looks at run lengths, boxes and scores, never at logits.

Knows no tensors, so that torch and ONNX Runtime share it: each brings a `judge`, which measures the masks of one batch
and drops those that fail a test of their own (Segment Anything, https://arxiv.org/abs/2304.02643, section B "Automatic
Mask Generation Details").

Letters: N masks, K of them kept, H, W rows and columns of the image.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Explanation, Proposals
from segment_anything.masks import RLE, decode_rle, mask_nms, mask_to_box, nms, rle_area, rle_to_coco, run_lengths
from segment_anything.masks.components import remove_small_regions
from segment_anything.records import MaskRecord, Segmentation

Judge = Callable[[Proposals, Counter[str]], Candidates]
"""The masks of one batch that pass every test that looks at one mask alone; it counts those that do not."""


def select(batches: Iterable[Proposals], options: AutomaticMaskOptions, judge: Judge) -> tuple[Candidates, Explanation]:
    """Judge all proposals of one image.

    Args:
        batches: proposals in the order of the crops; each batch is dropped before the next is asked for.
        options: every threshold.
        judge: measures a batch.

    Returns:
        the masks to keep, and how many each filter took away. Ordered by predicted IoU within a crop, masks of smaller
        crops first; after cleaning (`min_mask_region_area`), masks that needed none come first.
    """
    counts: Counter[str] = Counter()
    crops = []
    for _, group in groupby(batches, key=lambda batch: batch.crop_box_xyxy):
        found = Candidates.join([judge(batch, counts) for batch in group])
        kept = nms(found.boxes_xyxy, found.predicted_iou, options.box_nms_thresh)
        crops.append(_take(found, kept, "overlapping_in_crop", counts))
    found = Candidates.join(crops)
    if len(crops) > 1:
        x0, y0, x1, y1 = found.crop_boxes_xyxy.T
        kept = nms(found.boxes_xyxy, 1 / ((x1 - x0) * (y1 - y0)), options.crop_nms_thresh)
        found = _take(found, kept, "overlapping_across_crops", counts)
    if options.min_mask_region_area > 0:
        found = _clean(found, options, counts)
    if options.overlap == "iomin":
        kept = mask_nms(found.rles, found.predicted_iou, options.box_nms_thresh, overlap="iomin")
        found = _take(found, np.sort(kept), "inside_better", counts)
    return found, Explanation(**counts, kept=len(found))


def _take(found: Candidates, kept: npt.NDArray[np.int64], loss: str, counts: Counter[str]) -> Candidates:
    counts[loss] += len(found) - len(kept)
    return found.take(kept)


def within_area_range(found: Candidates, options: AutomaticMaskOptions, counts: Counter[str]) -> Candidates:
    """Those neither smaller than `min_mask_area` nor larger than `max_mask_area`."""
    if options.min_mask_area <= 0 and options.max_mask_area is None:
        return found
    areas = np.array([rle_area(rle) for rle in found.rles])
    largest = np.inf if options.max_mask_area is None else options.max_mask_area
    fits = np.flatnonzero((areas >= options.min_mask_area) & (areas <= largest))
    return _take(found, fits, "outside_area_range", counts)


def _clean(found: Candidates, options: AutomaticMaskOptions, counts: Counter[str]) -> Candidates:
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    rles, boxes, kept = clean_small_regions(found.rles, found.boxes_xyxy, options.min_mask_region_area, threshold)
    columns = {**found.__dict__, "rles": rles, "boxes_xyxy": boxes}
    found = _take(Candidates(**columns), kept, "overlapping_after_cleaning", counts)
    return within_area_range(found, options, counts)


def clean_small_regions(
    rles: Sequence[RLE], boxes_xyxy: npt.NDArray[Any], min_area_px: float, nms_threshold: float
) -> tuple[list[RLE], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Fill small holes and remove small islands of N masks, one at a time, then suppress those that became alike.

    Args:
        rles: N masks.
        boxes_xyxy: (N, 4), to the last pixel.
        min_area_px: regions below it go; of a mask with none as large, the largest stays.
        nms_threshold: box IoU above which of two masks one goes; a mask that needed no cleaning wins over one that did.

    Returns:
        N masks and N boxes after cleaning, and (K,) indices of those to keep, masks that needed none first.
    """
    cleaned, boxes = list(rles), np.array(boxes_xyxy)
    was_clean = np.ones(len(cleaned))
    for i, rle in enumerate(rles):
        mask, filled = remove_small_regions(decode_rle(rle), min_area_px, "holes")
        mask, removed = remove_small_regions(mask, min_area_px, "islands")
        if filled or removed:
            was_clean[i] = 0
            cleaned[i] = RLE(size=list(rle["size"]), counts=run_lengths(mask[None])[0])
            x0, y0, x1, y1 = mask_to_box(mask)
            boxes[i] = (x0, y0, max(x1 - 1, 0), max(y1 - 1, 0))
    return cleaned, boxes, nms(boxes, was_clean, nms_threshold)


def as_records(found: Candidates, output_mode: str) -> list[MaskRecord]:
    """What a caller gets, with the original package's keys."""
    records = []
    for i, rle in enumerate(found.rles):
        x0, y0, x1, y1 = (int(side) for side in found.boxes_xyxy[i])
        crop_x0, crop_y0, crop_x1, crop_y1 = (int(side) for side in found.crop_boxes_xyxy[i])
        records.append(
            MaskRecord(
                segmentation=_segmentation(rle, output_mode),
                area=rle_area(rle),
                bbox=[x0, y0, x1 - x0, y1 - y0],
                predicted_iou=float(found.predicted_iou[i]),
                point_coords=[found.points_xy[i].tolist()],
                stability_score=float(found.stability_score[i]),
                crop_box=[crop_x0, crop_y0, crop_x1 - crop_x0, crop_y1 - crop_y0],
            )
        )
    return records


def _segmentation(rle: RLE, output_mode: str) -> Segmentation:
    if output_mode == "binary_mask":
        return decode_rle(rle)
    counts = rle_to_coco(rle) if output_mode == "coco_rle" else np.asarray(rle["counts"]).tolist()
    return RLE(size=list(rle["size"]), counts=counts)
