"""Triton kernel: size, stability and box of masks at full size, of which nothing is written to memory.

Imports Triton, so this module is loaded on use only (`mask_measures`). A logit in original pixels is a bilinear mean of
four input pixels, each of which is one of four low-resolution logits. Means lie between what they are made of, so a
tile of pixels whose low-resolution logits are all above, or all below, the thresholds is known without any.
"""

import triton
import triton.language as tl


@triton.jit
def _source(i, ratio, last):
    """Where pixels `i` of a resized axis come from: first old pixel, distance to the second (0 or 1), its share."""
    place = tl.maximum((i.to(tl.float32) + 0.5) * ratio - 0.5, 0.0)
    low = place.to(tl.int32)
    return low, tl.where(low < last, 1, 0), place - low.to(tl.float32)


@triton.jit
def _input_logits(mask, y, x, side, ratio, wanted):
    """Logits at input pixels y (h, 1) and x (1, w), from low resolution."""
    row, down, bottom = _source(y, ratio, side - 1)
    column, right, far = _source(x, ratio, side - 1)
    first = mask + row * side + column
    upper = (1.0 - far) * tl.load(first, mask=wanted, other=0.0)
    upper += far * tl.load(first + right, mask=wanted, other=0.0)
    lower = (1.0 - far) * tl.load(first + down * side, mask=wanted, other=0.0)
    lower += far * tl.load(first + down * side + right, mask=wanted, other=0.0)
    return (1.0 - bottom) * upper + bottom * lower


@triton.jit
def _bounds(mask, top, bottom, left, right, side, input_h, input_w, ratio_input, ratio_y, ratio_x, PATCH: tl.constexpr):
    """Lowest and highest low-resolution logit that pixels of a tile are made of, and whether PATCH x PATCH held all."""
    y_low, _, _ = _source(top, ratio_y, input_h - 1)
    x_low, _, _ = _source(left, ratio_x, input_w - 1)
    y_high, y_step, _ = _source(bottom, ratio_y, input_h - 1)
    x_high, x_step, _ = _source(right, ratio_x, input_w - 1)
    first_row, _, _ = _source(y_low, ratio_input, side - 1)
    first_column, _, _ = _source(x_low, ratio_input, side - 1)
    last_row, row_step, _ = _source(y_high + y_step, ratio_input, side - 1)
    last_column, column_step, _ = _source(x_high + x_step, ratio_input, side - 1)
    p = tl.arange(0, PATCH)
    rows = first_row + p
    columns = first_column + p
    there = (rows <= last_row + row_step)[:, None] & (columns <= last_column + column_step)[None, :]
    patch = tl.load(mask + rows[:, None] * side + columns[None, :], mask=there, other=0.0)
    lowest = tl.min(tl.min(tl.where(there, patch, float("inf")), 1), 0)
    highest = tl.max(tl.max(tl.where(there, patch, float("-inf")), 1), 0)
    is_seen = (last_row + row_step - first_row < PATCH) & (last_column + column_step - first_column < PATCH)
    return lowest, highest, is_seen


@triton.jit
def _widen(box, left, top, right, bottom):
    """Make a box hold these columns and rows."""
    tl.atomic_min(box, left)
    tl.atomic_min(box + 1, top)
    tl.atomic_max(box + 2, right)
    tl.atomic_max(box + 3, bottom)


@triton.jit
def measure_kernel(
    logits,
    areas,
    boxes,
    side,
    input_h,
    input_w,
    height,
    width,
    ratio_input,
    ratio_y,
    ratio_x,
    threshold,
    offset,
    count,
    tiles_x,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ROWS: tl.constexpr,
    PATCH: tl.constexpr,
):
    """One tile of one of `count` masks. Neighbouring programs have different masks, so that they add to other numbers.

    Args:
        logits: (N, side, side) float32.
        areas: (N, 3) int32, added to: pixels above threshold + offset, threshold, threshold - offset.
        boxes: (N, 4) int32, made smaller or larger: first column and row, last column and row above the threshold.
        input_h, input_w: the image in input pixels.
        height, width: in original pixels.
        ratio_input, ratio_y, ratio_x: low-resolution pixels an input pixel, input pixels an original pixel.
        ROWS: of a tile computed at once: few, as registers limit how many programs run.
        PATCH: a tile of more low-resolution logits along an axis is computed in any case.
    """
    n = (tl.program_id(0) % count).to(tl.int64)
    tile = tl.program_id(0) // count
    top = tile // tiles_x * TILE_H
    left = tile % tiles_x * TILE_W
    bottom = tl.minimum(top + TILE_H, height) - 1
    right = tl.minimum(left + TILE_W, width) - 1
    mask = logits + n * side * side

    lowest, highest, is_seen = _bounds(
        mask, top, bottom, left, right, side, input_h, input_w, ratio_input, ratio_y, ratio_x, PATCH
    )
    rounding = 1e-5 * tl.maximum(tl.abs(highest), tl.abs(lowest))
    is_empty = is_seen & (highest + rounding <= threshold - offset)
    is_full = is_seen & (lowest - rounding > threshold + offset)

    if is_full:
        area = (bottom - top + 1) * (right - left + 1)
        for level in tl.static_range(3):
            tl.atomic_add(areas + n * 3 + level, area)
        _widen(boxes + n * 4, left, top, right, bottom)
    elif is_empty == 0:
        x = left + tl.arange(0, TILE_W)[None, :]
        column, far, share_x = _source(x, ratio_x, input_w - 1)
        strict = tl.zeros([ROWS, TILE_W], tl.int32)
        area = tl.zeros([ROWS, TILE_W], tl.int32)
        loose = tl.zeros([ROWS, TILE_W], tl.int32)
        first_x = tl.zeros([ROWS, TILE_W], tl.int32) + width
        first_y = tl.zeros([ROWS, TILE_W], tl.int32) + height
        last_x = tl.zeros([ROWS, TILE_W], tl.int32) - 1
        last_y = tl.zeros([ROWS, TILE_W], tl.int32) - 1
        for start in range(0, TILE_H, ROWS):
            y = top + start + tl.arange(0, ROWS)[:, None]
            wanted = (y < height) & (x < width)
            row, down, share_y = _source(y, ratio_y, input_h - 1)
            upper = (1.0 - share_x) * _input_logits(mask, row, column, side, ratio_input, wanted)
            upper += share_x * _input_logits(mask, row, column + far, side, ratio_input, wanted)
            lower = (1.0 - share_x) * _input_logits(mask, row + down, column, side, ratio_input, wanted)
            lower += share_x * _input_logits(mask, row + down, column + far, side, ratio_input, wanted)
            value = (1.0 - share_y) * upper + share_y * lower
            inside = wanted & (value > threshold)
            strict += (wanted & (value > threshold + offset)).to(tl.int32)
            area += inside.to(tl.int32)
            loose += (wanted & (value > threshold - offset)).to(tl.int32)
            first_x = tl.minimum(first_x, tl.where(inside, x, width))
            first_y = tl.minimum(first_y, tl.where(inside, y, height))
            last_x = tl.maximum(last_x, tl.where(inside, x, -1))
            last_y = tl.maximum(last_y, tl.where(inside, y, -1))
        tl.atomic_add(areas + n * 3, tl.sum(tl.sum(strict, 1), 0))
        tl.atomic_add(areas + n * 3 + 1, tl.sum(tl.sum(area, 1), 0))
        tl.atomic_add(areas + n * 3 + 2, tl.sum(tl.sum(loose, 1), 0))
        ends = tl.max(tl.max(last_x, 1), 0), tl.max(tl.max(last_y, 1), 0)
        _widen(boxes + n * 4, tl.min(tl.min(first_x, 1), 0), tl.min(tl.min(first_y, 1), 0), ends[0], ends[1])
