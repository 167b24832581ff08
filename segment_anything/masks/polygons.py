"""Polygons to masks, filled as COCO's own tools do: masks from COCO polygons agree with theirs pixel by pixel.

Pixel (x, y) covers the square [x, x+1) x [y, y+1).

Letters: H rows, W columns, V vertices, L columns crossed by lines.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from segment_anything.masks._arrays import BoolArray, FloatArray, IntArray, to_numpy
from segment_anything.masks.rle import RLE, decode_rle

FillRule = Literal["union", "even_odd"]

_SUB = 5  # COCO draws outlines on a grid of fifths of a pixel; a column's centre lies between fifths 2 and 3


def polygons_to_mask(polygons: Sequence[Any], height: int, width: int, *, rule: FillRule = "union") -> BoolArray:
    """Fill polygons.

    Args:
        polygons: each (V, 2) x, y or flat x0, y0, x1, y1, ... (as COCO files have them), in pixels.
        height: rows of the mask.
        width: columns of the mask.
        rule: "union" fills each polygon and joins them, as COCO; "even_odd" leaves out what an even number of polygons
            covers, which makes rings inside others holes (for `mask_to_polygons(..., holes="separate")`).

    Returns:
        (H, W) bool.

    Raises:
        ValueError: if a polygon has fewer than three points, an odd number of values or a value that is not finite.
    """
    if rule not in get_args(FillRule):
        raise ValueError(f'rule must be "union" or "even_odd", but is {rule!r}')
    mask = np.zeros((height, width), dtype=np.bool_)
    for polygon in polygons:
        filled = _fill(as_ring(polygon), height, width)
        mask = mask | filled if rule == "union" else mask ^ filled
    return mask


def as_ring(polygon: Any) -> FloatArray:
    """A polygon given as points or as flat coordinates, as (V, 2) float64."""
    values = to_numpy(polygon).astype(np.float64)
    if values.size % 2 or values.size < 6 or (values.ndim == 2 and values.shape[1] != 2) or values.ndim > 2:
        raise ValueError(
            f"a polygon must be (V, 2) points or flat x0, y0, x1, y1, ... with at least 3 points, but has shape "
            f"{values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("a polygon's coordinates must be finite, but some are NaN or infinite")
    return values.reshape(-1, 2)


def _fill(ring: FloatArray, height: int, width: int) -> BoolArray:
    """Toggle at every crossing of the outline with a column's centre; inside is after an odd number of toggles."""
    fifths = np.trunc(_SUB * ring + 0.5).astype(np.int64)
    x, y = _crossings(fifths, np.roll(fifths, -1, axis=0), width)
    row = np.clip(np.ceil((y + 0.5) / _SUB - 0.5).astype(np.int64), 0, height)
    toggles = np.sort(x * height + row)  # every column is crossed an even number of times: these are ends of runs
    runs = np.diff(toggles, prepend=0, append=height * width)
    return decode_rle(RLE(size=[height, width], counts=runs))


def _crossings(start: IntArray, stop: IntArray, width: int) -> tuple[IntArray, IntArray]:
    """Where drawn lines step over the centre of a column: column (L,), and the upper fifth of the step (L,)."""
    # draw every line from left to right, or from top to bottom if it is steeper, whichever way round it came
    delta = stop - start
    steep = np.abs(delta[:, 1]) > np.abs(delta[:, 0])
    flip = np.where(steep, delta[:, 1] < 0, delta[:, 0] < 0)[:, None]
    start, stop = np.where(flip, stop, start), np.where(flip, start, stop)

    first = np.maximum(-(-(np.minimum(start, stop)[:, 0] - 2) // _SUB), 0)  # least column with 5k + 2 >= left end
    last = np.minimum((np.maximum(start, stop)[:, 0] - 3) // _SUB, width - 1)  # greatest with 5k + 3 <= right end
    count = np.maximum(last - first + 1, 0)
    line = np.repeat(np.arange(len(count)), count)
    column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[line]

    dx, dy = (stop - start)[line].T
    x0, y0 = start[line].T
    steep = steep[line]
    with np.errstate(divide="ignore", invalid="ignore"):
        flat_y = np.minimum(*(np.trunc(y0 + dy / dx * (_SUB * column + k - x0) + 0.5) for k in (2, 3)))
        steep_y = y0 + _first_step(x0, dx / dy, _SUB * column + 2) - 1
    return column, np.where(steep, steep_y, flat_y).astype(np.int64)


def _first_step(x0: IntArray, slope: FloatArray, before: IntArray) -> FloatArray:
    """First t at which trunc(x0 + slope * t + 0.5) has gone from `before` to `before + 1`, or the other way."""
    guess = np.ceil((before + 0.5 - x0) / slope)
    passed = [
        np.where(slope > 0, np.trunc(x0 + slope * t + 0.5) > before, np.trunc(x0 + slope * t + 0.5) <= before)
        for t in (guess - 1, guess)  # the division above may round either way
    ]
    return np.asarray(np.where(passed[0], guess - 1, np.where(passed[1], guess, guess + 1)))
