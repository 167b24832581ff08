"""Figures that several protocols share: mask quality, clicks needed, calibration of the predicted IoU, average recall.

It knows numbers and masks, no model and no data set.

Letters: N objects or pairs, H and W pixels, D detections, G ground-truth masks, T overlap thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment_anything.masks import boundary, mask_to_box

Floats = NDArray[np.float64]
Bool = NDArray[np.bool_]

COCO_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""Overlaps over which COCO averages precision and recall."""
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's object sizes in square pixels; both ends count."""


def iou(a: Bool, b: Bool) -> float:
    """Intersection over union of two masks (H, W); two empty masks score 0."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 0.0


def boundary_iou(a: Bool, b: Bool, dilation_ratio: float = 0.02) -> float:
    """IoU of the bands inside the borders of two masks (H, W) (https://arxiv.org/abs/2103.16562).

    Args:
        a, b: (H, W) bool.
        dilation_ratio: width of the band as a share of the image's diagonal, at least one pixel.
    """
    width_px = max(1, round(dilation_ratio * float(np.hypot(*a.shape))))
    x0, y0, x1, y1 = (int(side) for side in mask_to_box(a | b))
    if x1 == 0:
        return 0.0
    # Around the masks there is background, as there is beyond the image's edge: the part around them is enough.
    part = (slice(y0, y1), slice(x0, x1))
    ratio = width_px / float(np.hypot(y1 - y0, x1 - x0))
    return iou(boundary(a[part], ratio), boundary(b[part], ratio))


def clicks_needed(ious: Sequence[float], target: float, limit: int) -> tuple[int, bool]:
    """Number of clicks until an object reaches the target IoU, and whether it did.

    Args:
        ious: IoU after 1, 2, ... clicks; a shorter list ends because the mask was perfect or the target reached.
        target: such as 0.9.
        limit: the most clicks allowed; an object that needs more counts as this many, and as a failure.
    """
    reached = next((k for k, value in enumerate(ious[:limit], 1) if value >= target), None)
    return (limit, False) if reached is None else (reached, True)


@dataclass(frozen=True)
class Calibration:
    """How far a predicted IoU can be believed."""

    mean_absolute_error: float
    expected_calibration_error: float
    """Mean over the bins of |mean predicted - mean actual|, weighted by the number of masks."""
    bias: float
    """Mean of predicted - actual: above 0 is over-confident."""
    edges: Floats
    """(B + 1,) of the bins of predicted IoU."""
    count: NDArray[np.int64]
    """(B,) masks in each bin."""
    predicted: Floats
    """(B,) mean prediction in each bin, NaN where it is empty."""
    actual: Floats
    """(B,) mean true IoU in each bin, NaN where it is empty."""


def calibration(predicted: Floats, actual: Floats, bins: int = 10) -> Calibration:
    """Compare predicted with true IoU, both (N,); predictions outside 0..1 count in the outermost bins.

    Raises:
        ValueError: if the lengths differ or there is nothing to compare.
    """
    if len(predicted) != len(actual) or not len(predicted):
        raise ValueError(f"predicted and actual must have one length above 0, got {len(predicted)} and {len(actual)}")
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.digitize(predicted, edges) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=values, minlength=bins) for values in (predicted, actual)]
    means = [np.divide(s, count, out=np.full(bins, np.nan), where=count > 0) for s in sums]
    return Calibration(
        mean_absolute_error=float(np.abs(predicted - actual).mean()),
        expected_calibration_error=float(np.abs(sums[0] - sums[1]).sum() / len(predicted)),
        bias=float((predicted - actual).mean()),
        edges=edges,
        count=count.astype(np.int64),
        predicted=means[0],
        actual=means[1],
    )


def recall_hits(overlap: Floats, thresholds: Floats = COCO_THRESHOLDS) -> NDArray[np.int64]:
    """How many ground-truth masks find a proposal, matching greedily as COCO does.

    Every proposal in turn, the best first, takes the free mask it overlaps most, if by at least the threshold. Masks
    that do not count (another size, crowds) can be left out: COCO gives them only proposals that could have no other.

    Args:
        overlap: (D, G) IoU, proposals in order of score.
        thresholds: (T,).

    Returns:
        (T,) number of masks that were taken.
    """
    return np.array([_taken(overlap, level) for level in thresholds], dtype=np.int64)


def _taken(overlap: Floats, level: float) -> int:
    floor = min(level, 1 - 1e-10)  # so that an exact copy reaches a threshold of 1
    free = np.ones(overlap.shape[1], dtype=bool)
    for row in overlap[(overlap >= floor).any(axis=1)]:
        possible = np.where(free & (row >= floor), row, -1.0)
        best = len(row) - 1 - int(np.argmax(possible[::-1]))  # COCO lets the last of equal overlaps win
        if possible[best] >= 0:
            free[best] = False
    return int(np.count_nonzero(~free))
