"""From what the network proposes for a grid of clicks to the masks worth keeping: the fast half of automatic masks.

Knows thresholds and overlaps, and no network: proposals go in, candidates come out, so that the same proposals can be
judged again with other options. Only masks that passed the predicted IoU are ever made at full size, and only as many
at once as fit into a fixed number of bytes; a mask that passes every test of its own is kept as run lengths
(Segment Anything, https://arxiv.org/abs/2304.02643, section B "Automatic Mask Generation Details").

Letters: P clicks, N masks, H, W rows and columns of a crop of the image, g cells of the embedding.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Explanation, Proposals
from segment_anything.masks import RLE, decode_rle, mask_nms, nms, rle_area, run_lengths
from segment_anything.modeling import Decoded
from segment_anything.utils.amg import (
    batched_mask_to_box,
    calculate_stability_score,
    is_box_near_crop_edge,
    remove_small_regions,
    uncrop_boxes_xyxy,
    uncrop_masks,
)

CHUNK_BYTES = 2**28
"""About how much memory masks at full size may take at once; a single mask may take more."""


def filter_proposals(
    batches: Iterable[Proposals], options: AutomaticMaskOptions, *, mask_threshold: float = 0.0
) -> tuple[Candidates, Explanation]:
    """Judge all proposals of one image.

    Args:
        batches: proposals in the order of the crops; each batch is dropped before the next is asked for.
        options: every threshold.
        mask_threshold: logit above which a pixel belongs to a mask (`Sam.mask_threshold`).

    Returns:
        the masks to keep, and how many each filter took away. Ordered by predicted IoU within a crop, masks of smaller
        crops first; after cleaning (`min_mask_region_area`), masks that needed none come first.
    """
    counts: Counter[str] = Counter()
    crops = []
    for _, group in groupby(batches, key=lambda batch: batch.crop_box_xyxy):
        found = Candidates.join([_judge(batch, options, mask_threshold, counts) for batch in group])
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


def _judge(batch: Proposals, options: AutomaticMaskOptions, mask_threshold: float, counts: Counter[str]) -> Candidates:
    """The masks of one batch that pass every test that looks at one mask alone."""
    low_res_logits = batch.decoded.low_res_logits.flatten(0, 1)  # (N, 4g, 4g), in the order click, mask
    predicted_iou = batch.decoded.iou_predictions.flatten().float()  # (N,)
    click = torch.arange(len(batch.points_xy)).repeat_interleave(batch.decoded.iou_predictions.shape[1])
    counts["clicks"] += len(batch.points_xy)
    counts["proposed"] += len(predicted_iou)
    if options.pred_iou_thresh > 0:
        good = torch.nonzero(predicted_iou > options.pred_iou_thresh).squeeze(1)
        counts["low_predicted_iou"] += len(predicted_iou) - len(good)
        low_res_logits, predicted_iou, click = low_res_logits[good], predicted_iou[good], click[good.cpu()]
    parts = []
    for part in _chunks(len(predicted_iou), batch):
        decoded = Decoded(low_res_logits[part, None], predicted_iou[part, None], batch.decoded.geometry)
        points_xy = batch.points_xy[click[part].numpy()]
        parts.append(_measure(decoded, points_xy, batch, options, mask_threshold, counts))
    return Candidates.join(parts)


def _chunks(count: int, batch: Proposals) -> Iterator[slice]:
    """Slices of masks that fit into CHUNK_BYTES while they are upsampled, cut and encoded."""
    (height, width), (image_height, image_width) = batch.decoded.geometry.original_size_hw, batch.image_size_hw
    # float32 at the input's size and at the crop's, three bools of the crop, two of the image
    bytes_per_mask = 4 * batch.decoded.geometry.image_size**2 + 7 * height * width + 2 * image_height * image_width
    step = max(1, CHUNK_BYTES // bytes_per_mask)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _measure(
    decoded: Decoded,
    points_xy: npt.NDArray[np.float64],
    batch: Proposals,
    options: AutomaticMaskOptions,
    mask_threshold: float,
    counts: Counter[str],
) -> Candidates:
    """Make a few masks (N, 1 in `decoded`) at full size, test each, and encode those that pass."""
    height, width = batch.image_size_hw
    crop = list(batch.crop_box_xyxy)
    logits = decoded.logits()[:, 0]  # (N, H, W)
    stability = calculate_stability_score(logits, mask_threshold, options.stability_score_offset)
    stable = stability >= (options.stability_score_thresh if options.stability_score_thresh > 0 else 0)
    masks = (logits > mask_threshold)[stable]
    del logits
    boxes = batched_mask_to_box(masks)
    whole = ~is_box_near_crop_edge(boxes, crop, [0, 0, width, height])
    counts["unstable"] += len(stable) - len(masks)
    counts["at_crop_edge"] += len(masks) - int(whole.sum())

    masks = uncrop_masks(masks[whole], crop, height, width)
    passed = np.flatnonzero(stable.cpu().numpy())[whole.cpu().numpy()]
    found = Candidates(
        [RLE(size=[height, width], counts=runs) for runs in run_lengths(masks)],
        uncrop_boxes_xyxy(boxes[whole], crop).cpu().numpy(),
        decoded.iou_predictions[:, 0].float().cpu().numpy()[passed],
        stability.float().cpu().numpy()[passed],
        points_xy[passed],
        np.tile(np.array(crop, dtype=np.int64), (len(passed), 1)),
    )
    return _within_area_range(found, options, counts)


def _within_area_range(found: Candidates, options: AutomaticMaskOptions, counts: Counter[str]) -> Candidates:
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
    return _within_area_range(found, options, counts)


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
            tensor = torch.from_numpy(mask)[None]
            cleaned[i] = RLE(size=list(rle["size"]), counts=run_lengths(tensor)[0])
            boxes[i] = batched_mask_to_box(tensor)[0].numpy()
    return cleaned, boxes, nms(boxes, was_clean, nms_threshold)
