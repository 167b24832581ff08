"""Masks at full size by tiles along their outlines, without the logits at full size.

Upsampling by two bilinear steps (to the input square, cropped, then to the original) is linear in each axis, and every
pixel is an average of a few low-resolution logits around it. So the image is cut into tiles: where all logits that a
tile is made from lie on one side of a threshold, so do all its pixels, and nothing is computed. The other tiles, along
the outlines, are two small matrix products each, thresholded, and kept as one bit a pixel. Where masks are
drawn that are outlines all over, whole rows of tiles are computed instead. Knows numpy alone.

Letters: n masks, L their low-resolution side, t tiles, S logits that a tile is made from along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from segment_anything._side_by_side import side_by_side
from segment_anything.geometry import ImageGeometry

TILE_HW = (32, 64)
"""Rows and columns of a tile. A row of bits is one 64-bit word."""
TILES_AT_ONCE = 256
"""Tiles computed together: 2 MiB of float32, so that their thresholds are counted while they are in the cache."""
CROWDED = 0.7
"""Share of a row of tiles above which all of it is drawn: many small products cost more than a long one."""
PIXELS_FOR_THREADS = 2**26
"""Masks of more pixels are drawn by several threads: to begin with them takes a millisecond or two."""
MARGIN = 1e-5
"""Logits this close to a threshold, as a share of their size, are computed rather than judged by their neighbours."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Values = TypeVar("Values", Floats, Flags)


@dataclass(frozen=True, eq=False)
class Axis:
    """How the pixels along one axis come from low-resolution logits, tile by tile."""

    first: Ints
    """(t,) the first logit of each tile."""
    weights: Floats
    """(t, pixels of a tile, S): rows sum to 1; rows outside the image are 0."""
    lengths: Ints
    """(t,) pixels of each tile inside the image."""

    @property
    def reach(self) -> int:
        return int(self.weights.shape[2])

    @property
    def end(self) -> int:
        """Logits that lie before the padding."""
        return int(self.first[-1]) + self.reach

    @property
    def size(self) -> int:
        """Pixels along the axis."""
        return int(self.lengths.sum())


def _bilinear(inside: int, out: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Where each of `out` pixels lies between `inside` ones: left neighbours (out, 2) and weights (out, 2).

    In float32, as torch computes it (no corner alignment).
    """
    scale = np.float32(inside) / np.float32(out)
    at = np.maximum(scale * (np.arange(out, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    left = np.minimum(at.astype(np.int64), inside - 1)
    right = np.minimum(left + 1, inside - 1)
    share = (at - left.astype(np.float32)).astype(np.float64)
    return np.stack([left, right], axis=1), np.stack([1 - share, share], axis=1)


def _make_axis(low: int, side: int, inside: int, out: int, tile: int) -> Axis:
    """`low` logits -> `side` pixels of the square input, of which the first `inside` -> `out` pixels."""
    near, near_share = _bilinear(inside, out)  # (out, 2)
    coarse, coarse_share = _bilinear(low, side)  # (side, 2)
    used = coarse[near].reshape(out, 4)
    share = (coarse_share[near] * near_share[:, :, None]).reshape(out, 4)
    starts = np.arange(0, out, tile)
    lowest = np.minimum.reduceat(used.min(axis=1), starts)
    reach = int((np.maximum.reduceat(used.max(axis=1), starts) - lowest).max()) + 1
    first = np.minimum(lowest, low - reach)
    weights = np.zeros((len(starts), tile, reach))  # float64, rounded once at the end
    pixel = np.repeat(np.arange(out), 4)
    np.add.at(weights, (pixel // tile, pixel % tile, used.ravel() - first[pixel // tile]), share.ravel())
    lengths = np.diff(np.append(starts, out))
    return Axis(first, weights.astype(np.float32), lengths)


@dataclass(frozen=True, eq=False)
class TileGrid:
    """The tiles of an image."""

    y: Axis
    x: Axis
    x_weights: Floats
    """(t, S, 64): those of `x`, transposed in memory."""
    inside: Words
    """(t, 32) the bits of each tile, row by row of tiles, that lie inside the image."""

    @staticmethod
    @lru_cache(maxsize=8)
    def of(geometry: ImageGeometry, low: int) -> TileGrid:
        axes = [
            _make_axis(low, geometry.image_size, inside, out, tile)
            for inside, out, tile in zip(geometry.input_size_hw, geometry.original_size_hw, TILE_HW, strict=True)
        ]
        rows = np.arange(TILE_HW[0]) < axes[0].lengths[:, None]  # (tiles down, 32)
        columns = np.packbits(np.arange(TILE_HW[1]) < axes[1].lengths[:, None], axis=1, bitorder="little")
        words = columns.view(np.uint64)[:, 0]  # (tiles across,)
        inside = np.where(rows[:, None, :], words[None, :, None], np.uint64(0)).reshape(-1, TILE_HW[0])
        return TileGrid(axes[0], axes[1], np.ascontiguousarray(axes[1].weights.swapaxes(1, 2)), inside)

    @property
    def areas(self) -> Ints:
        """(tiles down, tiles across) pixels of each tile."""
        return self.y.lengths[:, None] * self.x.lengths[None, :]

    def extremes(self, logits: Floats) -> tuple[Floats, Floats]:
        """The least and the greatest logit that each tile of each mask is made from: (n, L, L) -> (n, down, across)."""
        logits = logits[:, : self.y.end, : self.x.end]
        return self._reduced_both(logits, np.minimum), self._reduced_both(logits, np.maximum)

    def _reduced_both(self, values: Values, extreme: np.ufunc) -> Values:
        """(n, L, L) -> (n, down, across)."""
        return _reduced(_reduced(values, self.y, extreme).swapaxes(1, 2), self.x, extreme).swapaxes(1, 2)

    def values(self, logits: Floats, mask: Ints, tile_y: Ints, tile_x: Ints) -> Floats:
        """Pixels (t, 32, 64) of tiles of the masks (n, L, L) that `mask` (t,) names."""
        patches = sliding_window_view(logits, (self.y.reach, self.x.reach), axis=(1, 2))
        across = patches[mask, self.y.first[tile_y], self.x.first[tile_x]] @ self.x_weights.take(tile_x, axis=0)
        return np.asarray(self.y.weights.take(tile_y, axis=0) @ across, dtype=np.float32)

    def judge(self, logits: Floats, threshold: float) -> tuple[Flags, Flags]:
        """Which tiles of the masks (n, L, L) are full, and which have to be computed: (n, down, across) each."""
        logits = logits[:, : self.y.end, : self.x.end]
        margin = np.float32(MARGIN) * np.abs(logits).max(axis=(1, 2), keepdims=True)
        kinds: Flags = np.concatenate([logits > threshold + margin, logits <= threshold - margin])
        judged: Flags = self._reduced_both(kinds, np.logical_and)
        full, empty = judged[: len(logits)], judged[len(logits) :]
        return full, ~(full | empty)

    def draw_rows(self, logits: Floats, wanted: Flags, threshold: float, masks: npt.NDArray[np.bool_]) -> None:
        """Whole rows of tiles of the masks (n, L, L): those that are wanted (n, tiles down), into `masks` (n, H, W)."""
        across = np.empty((logits.shape[1], len(self.x.first), TILE_HW[1]), dtype=np.float32)
        pixels = np.empty((TILE_HW[0], self.x.size), dtype=np.float32)
        windows = sliding_window_view(logits, self.x.reach, axis=2)
        level, reach, (height, _) = np.float32(threshold), self.y.reach, TILE_HW
        for mask in np.flatnonzero(wanted.any(axis=1)).tolist():
            tiles = np.flatnonzero(wanted[mask])
            lowest, end = self.y.first[tiles[0]], self.y.first[tiles[-1]] + reach
            patches = windows[mask, lowest:end][:, self.x.first]
            lines = across[: end - lowest]  # by logit row, tile and column
            np.matmul(patches.swapaxes(0, 1), self.x_weights, out=lines.swapaxes(0, 1))
            lines, drawn = lines.reshape(len(lines), -1)[:, : self.x.size], masks[mask]
            for tile, first in zip(tiles.tolist(), (self.y.first[tiles] - lowest).tolist(), strict=True):
                np.matmul(self.y.weights[tile], lines[first : first + reach], out=pixels)
                rows = drawn[tile * height : (tile + 1) * height]
                np.greater(pixels[: len(rows)], level, out=rows)

    def rows(self, kinds: npt.NDArray[np.uint8], bits: Words) -> Words:
        """(H, words) the pixels of one mask as bits, bit j of word i for column 64 i + j; see `MeasuredTiles`."""
        tiles = np.where(kinds.reshape(-1, 1) == 1, self.inside, np.uint64(0))
        tiles[kinds.ravel() == 2] = bits
        down, across = kinds.shape
        rows = tiles.reshape(down, across, TILE_HW[0]).swapaxes(1, 2).reshape(-1, across)
        return np.ascontiguousarray(rows[: self.y.size])


def _reduced(values: Values, axis: Axis, extreme: np.ufunc) -> Values:
    """(n, L, c) -> (n, tiles, c): least or greatest of the logits that each tile is made from."""
    by_logit = np.ascontiguousarray(values.swapaxes(0, 1))  # one reduction along the first axis is many lanes wide
    if axis.reach >= len(axis.first):
        return np.stack([extreme.reduce(by_logit[start : start + axis.reach], axis=0) for start in axis.first], axis=1)
    reduced = by_logit[axis.first]  # all tiles at once, logit by logit
    for i in range(1, axis.reach):
        extreme(reduced, by_logit[axis.first + i], out=reduced)
    return np.ascontiguousarray(reduced.swapaxes(0, 1))


@dataclass(frozen=True, eq=False)
class MeasuredTiles:
    """What is known of n masks."""

    strict: Ints
    """(n,) pixels above the raised threshold, and so on for the lowered one and the threshold itself."""
    loose: Ints
    areas: Ints
    kinds: npt.NDArray[np.uint8]
    """(n, tiles down, tiles across), 0 empty, 1 full, 2 bits."""
    bits: Words
    """(k, 32) of all tiles of kind 2, in order."""


def measure_tiles(logits: Floats, grid: TileGrid, threshold: float, offset: float) -> MeasuredTiles:
    """Judge every tile of n masks (n, L, L), and compute those that cannot be judged by their extremes."""
    least, greatest = grid.extremes(logits)
    margin = np.float32(MARGIN) * np.maximum(np.abs(least), np.abs(greatest))
    np.subtract(least, margin, out=least)
    np.add(greatest, margin, out=greatest)
    levels = (threshold + offset, threshold - offset, threshold)
    full, mixed = zip(*(((least > level), ~((least > level) | (greatest <= level))) for level in levels), strict=True)
    totals = [(grid.areas * flags).sum(axis=(1, 2)) for flags in full]  # (n,) each
    mask, tile_y, tile_x = np.nonzero(mixed[0] | mixed[1] | mixed[2])
    kinds = (full[2] + 2 * mixed[2]).astype(np.uint8)
    kept = [np.zeros((0, TILE_HW[0]), dtype=np.uint64)]
    for start in range(0, len(mask), TILES_AT_ONCE):
        part = slice(start, start + TILES_AT_ONCE)
        at = mask[part], tile_y[part], tile_x[part]
        values = grid.values(logits, *at)
        inside = grid.inside[at[1] * len(grid.x.first) + at[2]]
        for total, level, unsure in zip(totals, levels, mixed, strict=True):
            bits = np.packbits(values > level, bitorder="little").view(np.uint64).reshape(inside.shape) & inside
            counted = np.bitwise_count(bits).sum(axis=1, dtype=np.int64) * unsure[at]
            np.add.at(total, at[0], counted)
        kept.append(bits[mixed[2][at]])
    return MeasuredTiles(totals[0], totals[1], totals[2], kinds, np.concatenate(kept))


def full_size_masks(
    logits: Floats, geometry: ImageGeometry, threshold: float, threads: int = 1
) -> npt.NDArray[np.bool_]:
    """Masks (n, H, W) in original pixels of low-resolution logits (n, L, L)."""
    grid = TileGrid.of(geometry, logits.shape[-1])
    full, mixed = grid.judge(logits, threshold)
    crowded = np.count_nonzero(mixed, axis=2) > CROWDED * mixed.shape[2]
    full[crowded] = mixed[crowded] = False
    shape = len(logits), *geometry.original_size_hw
    masks = np.empty(shape, dtype=np.bool_) if crowded.all() else np.zeros(shape, dtype=np.bool_)

    def draw(part: slice | None) -> None:
        if part is None:
            _paint(masks, np.nonzero(full), np.broadcast_to(np.True_, (1, *TILE_HW)))
        else:
            at = single[0][part], single[1][part], single[2][part]
            _paint(masks, at, grid.values(logits, *at) > threshold)

    single = np.nonzero(mixed)
    parts = [slice(start, start + TILES_AT_ONCE) for start in range(0, len(single[0]), TILES_AT_ONCE)]
    side_by_side(draw, [None, *parts], threads if masks.size > PIXELS_FOR_THREADS else 1)
    grid.draw_rows(logits, crowded, threshold, masks)
    return masks


def _paint(masks: npt.NDArray[np.bool_], at: tuple[Ints, ...], pixels: npt.NDArray[np.bool_]) -> None:
    """Write tiles into masks (n, H, W).

    Args:
        masks: to write into, without gaps in memory.
        at: mask, tile row and tile column of t tiles, (t,) each.
        pixels: (t, 32, 64), or (1, 32, 64) for all of them; what lies outside the image is left out.
    """
    mask, tile_y, tile_x = at
    count, down, across = masks.shape
    for rows, height, top in _runs(down, TILE_HW[0], tile_y):
        for columns, width, left in _runs(across, TILE_HW[1], tile_x):
            chosen = np.flatnonzero(rows & columns)
            if len(chosen):
                row = np.dtype((np.void, width))  # of a tile, moved as one value: twice as fast as pixel by pixel
                first = top * TILE_HW[0], left * TILE_HW[1]
                shape = count, (down - first[0]) // height, (across - first[1]) // width, height
                strides = masks.strides[0], TILE_HW[0] * masks.strides[1], TILE_HW[1], masks.strides[1]
                tiles = np.ndarray(shape, row, masks, first[0] * masks.strides[1] + first[1], strides)
                drawn = (pixels if len(pixels) == 1 else pixels[chosen])[:, :height, :width]
                places = mask[chosen], tile_y[chosen] - top, tile_x[chosen] - left
                tiles[places] = np.ascontiguousarray(drawn).view(row)[..., 0]


def _runs(size: int, tile: int, index: Ints) -> list[tuple[npt.NDArray[np.bool_], int, int]]:
    """Whole tiles along an axis, then the rest at its end: which of `index` they are, their size, and the first."""
    whole = size // tile
    return [(index < whole, tile, 0), (index >= whole, max(1, size - whole * tile), whole)]
