"""Boxes, overlaps and non-maximum suppression of masks and boxes.

Letters: N, M masks or boxes, H rows, W columns.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from segment_anything.masks._arrays import ArrayLike, FloatArray, IntArray, as_bool, to_numpy
from segment_anything.masks.rle import RLE, rle_area, rle_intersections, rle_to_box

Overlap = Literal["iou", "iomin"]
"""Intersection over the union, or over the smaller of the two."""

_PIXELS_PER_PRODUCT = 1 << 20  # float32 sums of ones are exact up to 2**24


def mask_areas(masks: ArrayLike) -> IntArray:
    """Pixels of each of (N, H, W) bool masks: (N,) int64."""
    return np.asarray(np.count_nonzero(as_bool(masks, 3, "masks"), axis=(1, 2)), dtype=np.int64)


def mask_iou(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Intersection over union of every mask in `a` with every mask in `b`.

    Args:
        a: (N, H, W) bool.
        b: (M, H, W) bool, the same H and W.

    Returns:
        (N, M) float64 in [0, 1]. Two empty masks score 0.

    Raises:
        ValueError: if either is not three-dimensional, or their sizes differ.
    """
    left, right = as_bool(a, 3, "a"), as_bool(b, 3, "b")
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(f"a and b must have the same height and width, but have {left.shape[1:]}, {right.shape[1:]}")
    flat_a, flat_b = (masks.reshape(len(masks), masks.shape[1] * masks.shape[2]) for masks in (left, right))
    shared = np.zeros((len(left), len(right)))
    for start in range(0, flat_a.shape[1], _PIXELS_PER_PRODUCT):
        part = slice(start, start + _PIXELS_PER_PRODUCT)
        shared += flat_a[:, part].astype(np.float32) @ flat_b[:, part].astype(np.float32).T
    union = mask_areas(left)[:, None] + mask_areas(right)[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1), dtype=np.float64)


def mask_to_box(mask: ArrayLike) -> IntArray:
    """The box around a mask, as COCO counts it: x1 - x0 is the width in pixels.

    Args:
        mask: (H, W) bool.

    Returns:
        (4,) int64 x0, y0, x1, y1; x1 and y1 lie one past the last pixel (`utils.amg.batched_mask_to_box` gives the
        last pixel itself, as the original package). Zeros for an empty mask.

    Raises:
        ValueError: if `mask` is not two-dimensional or holds floats.
    """
    array = as_bool(mask, 2)
    columns, rows = np.flatnonzero(array.any(axis=0)), np.flatnonzero(array.any(axis=1))
    if len(columns) == 0:
        return np.zeros(4, dtype=np.int64)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.int64)


def box_iou(a: Any, b: Any) -> FloatArray:
    """Intersection over union of every box in `a` with every box in `b`: (N, 4), (M, 4) XYXY -> (N, M) float64."""
    boxes_a, boxes_b = _as_boxes(a, np.float64, "a"), _as_boxes(b, np.float64, "b")
    rows = [_box_overlap(box, boxes_b, "iou") for box in boxes_a]
    return np.asarray(np.stack(rows) if rows else np.zeros((0, len(boxes_b))), dtype=np.float64)


def nms(boxes: Any, scores: Any, threshold: float, *, classes: Any = None, overlap: Overlap = "iou") -> IntArray:
    """Greedy non-maximum suppression: the best box stays, those that overlap it by more than `threshold` go, and so on.

    Args:
        boxes: (N, 4) XYXY, array or tensor. Computed in float32, as detectors' libraries do.
        scores: (N,). Of equal scores the earlier box wins.
        threshold: a box goes if its overlap with a better one is strictly greater.
        classes: (N,) labels; boxes of different classes never suppress each other. None: one class.
        overlap: "iou", or "iomin", the intersection over the smaller box, which also removes a box inside another.

    Returns:
        (K,) int64 indices of the boxes that stay, best first.

    Raises:
        ValueError: for shapes that do not fit, NaN scores or an unknown `overlap`.
    """
    corners = _as_boxes(boxes, np.float32, "boxes")
    order = _best_first(scores, len(corners))
    _check_overlap(overlap)
    if classes is None:
        return _greedy(order, lambda i, rest: _box_overlap(corners[i], corners[rest], overlap), threshold)
    labels = to_numpy(classes)
    if labels.shape != (len(corners),):
        raise ValueError(f"classes must have shape ({len(corners)},), one label a box, but has shape {labels.shape}")
    stays = np.zeros(len(corners), dtype=np.bool_)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        stays[_greedy(members, lambda i, rest: _box_overlap(corners[i], corners[rest], overlap), threshold)] = True
    return order[stays[order]]


def mask_nms(rles: Sequence[RLE], scores: Any, threshold: float, *, overlap: Overlap = "iou") -> IntArray:
    """`nms` by the masks' own pixels instead of their boxes: (K,) int64 indices, best first.

    Only masks whose boxes meet are compared, on their runs; nothing is decoded.
    """
    order = _best_first(scores, len(rles))
    _check_overlap(overlap)
    boxes = np.stack([rle_to_box(rle) for rle in rles]) if rles else np.zeros((0, 4), dtype=np.int64)
    areas = np.array([rle_area(rle) for rle in rles], dtype=np.int64)

    def overlaps(i: int, rest: IntArray) -> FloatArray:
        values = np.zeros(len(rest))
        near = _intersections(boxes[i], boxes[rest]) > 0
        others = rest[near]
        shared = rle_intersections(rles[i], [rles[j] for j in others])
        values[near] = _ratio(shared, areas[i], areas[others], overlap)
        return values

    return _greedy(order, overlaps, threshold)


def _greedy(order: IntArray, overlaps: Callable[[int, IntArray], npt.NDArray[Any]], threshold: float) -> IntArray:
    """Keep the first of `order`, strike out what overlaps it too much, go on with what is left."""
    kept = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[~(overlaps(best, order) > threshold)]
    return np.array(kept, dtype=np.int64)


def _best_first(scores: Any, count: int) -> IntArray:
    values = to_numpy(scores)
    if values.shape != (count,):
        raise ValueError(f"scores must have shape ({count},), one score each, but has shape {values.shape}")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError(f"scores must be numbers, but {int(np.isnan(values).sum())} of {count} are NaN")
    return np.argsort(-values.astype(np.float64), kind="stable").astype(np.int64)


def _check_overlap(overlap: str) -> None:
    if overlap not in get_args(Overlap):
        raise ValueError(f'overlap must be "iou" or "iomin", but is {overlap!r}')


def _as_boxes(boxes: Any, dtype: type[np.floating[Any]], name: str) -> npt.NDArray[Any]:
    array = to_numpy(boxes)
    if array.size == 0:
        return np.zeros((0, 4), dtype=dtype)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name} must have shape (N, 4), x0, y0, x1, y1 each, but has shape {array.shape}")
    return array.astype(dtype)


def _box_overlap(box: npt.NDArray[Any], others: npt.NDArray[Any], overlap: Overlap) -> npt.NDArray[Any]:
    """Overlap of one (4,) box with (M, 4) boxes, in their own precision."""
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return _ratio(_intersections(box, others), (box[2] - box[0]) * (box[3] - box[1]), areas, overlap)


def _intersections(box: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[Any]:
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))


def _ratio(shared: npt.NDArray[Any], area: Any, areas: npt.NDArray[Any], overlap: Overlap) -> npt.NDArray[Any]:
    whole = area + areas - shared if overlap == "iou" else np.minimum(area, areas)
    # nothing shared is no overlap, also between boxes without area
    out = np.zeros(shared.shape, dtype=np.result_type(shared, np.float32))
    return np.asarray(np.divide(shared, whole, out=out, where=whole > 0))
