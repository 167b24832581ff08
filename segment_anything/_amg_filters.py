"""From what the network proposes for a grid of clicks to the masks worth keeping: the fast half of automatic masks.

Knows thresholds and overlaps, and no network: proposals go in, candidates come out, so that the same proposals can be
judged again with other options. Only masks that passed the predicted IoU are ever made at full size, and only as many
at once as fit into a fixed number of bytes; a mask that passes every test of its own is kept as run lengths
(Segment Anything, https://arxiv.org/abs/2304.02643, section B "Automatic Mask Generation Details").

Letters: P clicks, N masks, H, W rows and columns of a crop of the image, g cells of the embedding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from segment_anything._amg_cuda import DeviceMeasure
from segment_anything._amg_fast import measure_tiled
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_selection import clean_small_regions, select, within_area_range
from segment_anything._amg_values import Candidates, Explanation, Proposals
from segment_anything._side_by_side import side_by_side
from segment_anything.masks import RLE, run_lengths
from segment_anything.modeling import Decoded
from segment_anything.utils.amg import (
    batched_mask_to_box,
    calculate_stability_score,
    is_box_near_crop_edge,
    uncrop_boxes_xyxy,
    uncrop_masks,
)

__all__ = ["clean_small_regions", "filter_proposals"]

CHUNK_BYTES = 2**28
"""About how much memory masks at full size may take at once; a single mask may take more."""

MASKS_AT_ONCE = 16
"""Masks measured together on a CPU: their logits, four megabytes, stay in its cache."""

Floats = npt.NDArray[np.float64]
Measure = Callable[[Decoded, Floats, Proposals, AutomaticMaskOptions, float, Counter[str]], Candidates]
"""Measures N masks (N, 1 in `Decoded`) with their clicks (N, 2), and drops those that fail a test of their own."""


def filter_proposals(
    batches: Iterable[Proposals],
    options: AutomaticMaskOptions,
    *,
    mask_threshold: float = 0.0,
    measure: Measure | None = None,
) -> tuple[Candidates, Explanation]:
    """Judge all proposals of one image.

    Args:
        batches: proposals in the order of the crops; each batch is dropped before the next is asked for.
        options: every threshold.
        mask_threshold: logit above which a pixel belongs to a mask (`Sam.mask_threshold`).
        measure: `measure_plain` or what equals it; None takes the faster of two where the proposals are.

    Returns:
        the masks to keep, and how many each filter took away; their order is that of `_amg_selection.select`.
    """
    fastest = measure_tiled, DeviceMeasure()
    return select(
        batches, options, lambda batch, counts: _judge(batch, options, mask_threshold, counts, measure, fastest)
    )


def _judge(
    batch: Proposals,
    options: AutomaticMaskOptions,
    mask_threshold: float,
    counts: Counter[str],
    measure: Measure | None,
    fastest: tuple[Measure, Measure],
) -> Candidates:
    """The masks of one batch that pass every test that looks at one mask alone.

    `measure` None takes the first of `fastest` on a CPU, the second on other devices.
    """
    decoded = batch.decoded
    assert isinstance(decoded, Decoded)
    low_res_logits = decoded.low_res_logits.flatten(0, 1)  # (N, 4g, 4g), in the order click, mask
    predicted_iou = decoded.iou_predictions.flatten().float()  # (N,)
    click = torch.arange(len(batch.points_xy)).repeat_interleave(decoded.iou_predictions.shape[1])
    counts["clicks"] += len(batch.points_xy) if batch.clicks is None else batch.clicks
    counts["proposed"] += len(predicted_iou) + batch.below_iou
    counts["low_predicted_iou"] += batch.below_iou
    if options.pred_iou_thresh > 0:
        good = torch.nonzero(predicted_iou > options.pred_iou_thresh).squeeze(1)
        counts["low_predicted_iou"] += len(predicted_iou) - len(good)
        low_res_logits, predicted_iou, click = low_res_logits[good], predicted_iou[good], click[good.cpu()]
    chosen = Decoded(low_res_logits[:, None], predicted_iou[:, None], decoded.geometry)
    points_xy = batch.points_xy[click.numpy()]
    if measure is None and low_res_logits.device.type == "cpu":
        return _measure_side_by_side(fastest[0], chosen, points_xy, batch, options, mask_threshold, counts)
    return (measure or fastest[1])(chosen, points_xy, batch, options, mask_threshold, counts)


def _measure_side_by_side(
    measure: Measure,
    decoded: Decoded,
    points_xy: Floats,
    batch: Proposals,
    options: AutomaticMaskOptions,
    mask_threshold: float,
    counts: Counter[str],
) -> Candidates:
    """As `measure`, a share of the masks in each of PyTorch's threads."""
    threads = torch.get_num_threads()
    step = max(1, min(MASKS_AT_ONCE, -(-len(decoded) // threads)))

    def work(start: int) -> tuple[Candidates, Counter[str]]:
        part, lost = slice(start, start + step), Counter[str]()
        few = Decoded(decoded.low_res_logits[part], decoded.iou_predictions[part], decoded.geometry)
        return measure(few, points_xy[part], batch, options, mask_threshold, lost), lost

    parts = side_by_side(work, range(0, len(decoded), step), threads)
    for _, lost in parts:
        counts.update(lost)
    return Candidates.join([found for found, _ in parts])


def measure_plain(
    decoded: Decoded,
    points_xy: Floats,
    batch: Proposals,
    options: AutomaticMaskOptions,
    mask_threshold: float,
    counts: Counter[str],
) -> Candidates:
    """Make N masks (N, 1 in `decoded`) at full size, a few at a time, test each, and encode those that pass."""
    parts = []
    for part in _chunks(len(decoded), batch):
        few = Decoded(decoded.low_res_logits[part], decoded.iou_predictions[part], decoded.geometry)
        parts.append(_measure_few(few, points_xy[part], batch, options, mask_threshold, counts))
    return Candidates.join(parts)


def _chunks(count: int, batch: Proposals) -> Iterator[slice]:
    """Slices of masks that fit into CHUNK_BYTES while they are upsampled, cut and encoded."""
    (height, width), (image_height, image_width) = batch.decoded.geometry.original_size_hw, batch.image_size_hw
    # float32 at the input's size and at the crop's, three bools of the crop, two of the image
    bytes_per_mask = 4 * batch.decoded.geometry.image_size**2 + 7 * height * width + 2 * image_height * image_width
    step = max(1, CHUNK_BYTES // bytes_per_mask)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _measure_few(
    decoded: Decoded,
    points_xy: Floats,
    batch: Proposals,
    options: AutomaticMaskOptions,
    mask_threshold: float,
    counts: Counter[str],
) -> Candidates:
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
    return within_area_range(found, options, counts)
