"""Stability, area, box and run lengths of masks at full size, without making masks at full size.

Upsampling by two bilinear steps (to the input square, cropped, then to the original) is linear in each axis, and every
pixel is an average of a few low-resolution logits around it. So the image is cut into tiles: where all logits that a
tile is made from lie on one side of a threshold, so do all its pixels, and nothing is computed. The other tiles, along
the outlines, are two small matrix products each, thresholded, and kept as one bit a pixel. Only masks that survive
non-maximum suppression are turned into run lengths, from those bits. `_amg_filters.measure_plain` is the same thing the
plain way, and the tests hold the two together.

Letters: n masks, L their low-resolution side, t tiles, S logits that a tile is made from along an axis.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from segment_anything._amg_clicks import near_crop_edge
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Proposals
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import RLE
from segment_anything.masks._arrays import to_numpy

if TYPE_CHECKING:
    from segment_anything.modeling import Decoded
    from segment_anything.onnx.decoded import OnnxDecoded

TILE_HW = (32, 64)
"""Rows and columns of a tile. A row of bits is one 64-bit word."""
TILES_AT_ONCE = 256
"""Tiles computed together: 2 MiB of float32, so that their thresholds are counted while they are in the cache."""
MARGIN = 1e-5
"""Logits this close to a threshold, as a share of their size, are computed rather than judged by their neighbours."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class _Axis:
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


def _make_axis(low: int, side: int, inside: int, out: int, tile: int) -> _Axis:
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
    return _Axis(first, weights.astype(np.float32), lengths)


@dataclass(frozen=True, eq=False)
class _Grid:
    """The tiles of an image."""

    y: _Axis
    x: _Axis
    x_weights: Floats
    """(t, S, 64): those of `x`, transposed in memory."""
    inside: Words
    """(t, 32) the bits of each tile, row by row of tiles, that lie inside the image."""

    @staticmethod
    @lru_cache(maxsize=8)
    def of(geometry: ImageGeometry, low: int) -> _Grid:
        axes = [
            _make_axis(low, geometry.image_size, inside, out, tile)
            for inside, out, tile in zip(geometry.input_size_hw, geometry.original_size_hw, TILE_HW, strict=True)
        ]
        rows = np.arange(TILE_HW[0]) < axes[0].lengths[:, None]  # (tiles down, 32)
        columns = np.packbits(np.arange(TILE_HW[1]) < axes[1].lengths[:, None], axis=1, bitorder="little")
        words = columns.view(np.uint64)[:, 0]  # (tiles across,)
        inside = np.where(rows[:, None, :], words[None, :, None], np.uint64(0)).reshape(-1, TILE_HW[0])
        return _Grid(axes[0], axes[1], np.ascontiguousarray(axes[1].weights.swapaxes(1, 2)), inside)

    @property
    def areas(self) -> Ints:
        """(tiles down, tiles across) pixels of each tile."""
        return self.y.lengths[:, None] * self.x.lengths[None, :]

    def extremes(self, logits: Floats) -> tuple[Floats, Floats]:
        """The least and the greatest logit that each tile of each mask is made from: (n, L, L) -> (n, down, across)."""
        least, greatest = (
            _reduced(_reduced(logits, self.y, reduce).swapaxes(1, 2), self.x, reduce).swapaxes(1, 2)
            for reduce in (np.minimum.reduce, np.maximum.reduce)
        )
        return least, greatest

    def values(self, logits: Floats, mask: Ints, tile_y: Ints, tile_x: Ints) -> Floats:
        """Pixels (t, 32, 64) of tiles of the masks (n, L, L) that `mask` (t,) names."""
        patches = sliding_window_view(logits, (self.y.reach, self.x.reach), axis=(1, 2))
        across = patches[mask, self.y.first[tile_y], self.x.first[tile_x]] @ self.x_weights.take(tile_x, axis=0)
        return np.asarray(self.y.weights.take(tile_y, axis=0) @ across, dtype=np.float32)


def _reduced(values: Floats, axis: _Axis, reduce: Any) -> Floats:
    """(n, L, c) -> (n, tiles, c): least or greatest of the logits that each tile is made from."""
    by_logit = np.ascontiguousarray(values.swapaxes(0, 1))  # one reduction along the first axis is many lanes wide
    return np.stack([reduce(by_logit[start : start + axis.reach], axis=0) for start in axis.first], axis=1)


class PackedMask:
    """One mask as tiles that are empty, full, or held bit by bit. `np.asarray` gives its COCO run lengths."""

    def __init__(
        self,
        grid: _Grid,
        kinds: npt.NDArray[np.uint8],
        bits: Words,
        corner_xy: tuple[int, int],
        size_hw: tuple[int, int],
    ) -> None:
        """
        Args:
            grid: of the crop that the mask was found in.
            kinds: (tiles down, tiles across), 0 empty, 1 full, 2 bits.
            bits: (k, 32) of the tiles of kind 2 in their order.
            corner_xy: of the crop in the image.
            size_hw: of the image.
        """
        self._grid, self._kinds, self._bits = grid, kinds, bits
        self._corner_xy, self._size_hw = corner_xy, size_hw
        self._runs: Ints | None = None

    def _rows(self) -> Words:
        """(rows, words): the crop's pixels as bits, bit j of word i for column 64 i + j."""
        tiles = np.where(self._kinds.reshape(-1, 1) == 1, self._grid.inside, np.uint64(0))
        tiles[self._kinds.ravel() == 2] = self._bits
        down, across = self._kinds.shape
        rows = tiles.reshape(down, across, TILE_HW[0]).swapaxes(1, 2).reshape(-1, across)
        return rows[: self._grid.y.size]

    def box(self) -> tuple[int, int, int, int]:
        """First and last column and row, x0, y0, x1, y1 in the crop; zeros for an empty mask."""
        rows = self._rows()
        ys = np.flatnonzero(np.bitwise_or.reduce(rows, axis=1))
        if len(ys) == 0:
            return 0, 0, 0, 0
        columns = np.bitwise_or.reduce(rows, axis=0)
        xs = np.flatnonzero(np.unpackbits(columns.view(np.uint8), bitorder="little"))
        return int(xs[0]), int(ys[0]), int(xs[-1]), int(ys[-1])

    def run_lengths(self) -> Ints:
        """Runs down the columns of the whole image, background first; kept once computed."""
        if self._runs is None:
            self._runs = self._find_runs()
        return self._runs

    def _find_runs(self) -> Ints:
        rows = self._rows()
        height, width = self._size_hw
        edges = np.zeros(
            (len(rows) + 1, rows.shape[1]), dtype=np.uint64
        )  # bits that differ from those of the row above
        edges[:-1] = rows
        edges[1:] ^= rows
        row, word = np.nonzero(edges)
        which, bit = np.nonzero(np.unpackbits(edges[row, word][:, None].view(np.uint8), axis=1, bitorder="little"))
        x, y = word[which] * 64 + bit + self._corner_xy[0], row[which] + self._corner_xy[1]
        ends = np.sort(x * height + y)
        meets = np.flatnonzero(ends[1:] == ends[:-1])  # a run over the foot of a column goes on at the next one's head
        ends = np.delete(ends, np.concatenate([meets, meets + 1]))
        runs = np.diff(ends, prepend=0, append=height * width)
        return runs[:-1] if len(ends) and ends[-1] == height * width else runs

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.run_lengths().astype(dtype or np.int64, copy=bool(copy))


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is known of n masks."""

    strict: Ints
    """(n,) pixels above the raised threshold, and so on for the lowered one and the threshold itself."""
    loose: Ints
    areas: Ints
    kinds: npt.NDArray[np.uint8]
    """(n, tiles down, tiles across), see `PackedMask`."""
    bits: Words
    """(k, 32) of all tiles of kind 2, in order."""

    def packed(self, chosen: Ints, grid: _Grid, batch: Proposals) -> list[PackedMask]:
        """The masks that are chosen."""
        ends = np.cumsum((self.kinds == 2).sum(axis=(1, 2)))
        starts = np.append(0, ends[:-1])
        corner_xy = batch.crop_box_xyxy[0], batch.crop_box_xyxy[1]
        return [
            # copies: a view would keep alive what belongs to masks that are dropped
            PackedMask(
                grid, self.kinds[i].copy(), self.bits[starts[i] : ends[i]].copy(), corner_xy, batch.image_size_hw
            )
            for i in chosen
        ]


def _measure_tiles(logits: Floats, grid: _Grid, threshold: float, offset: float) -> _Measured:
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
    return _Measured(totals[0], totals[1], totals[2], kinds, np.concatenate(kept))


def measure_tiled(
    decoded: Decoded | OnnxDecoded,
    points_xy: npt.NDArray[np.float64],
    batch: Proposals,
    options: AutomaticMaskOptions,
    mask_threshold: float,
    counts: Counter[str],
) -> Candidates:
    """As `_amg_filters.measure_plain`, on a CPU, for torch's or ONNX Runtime's answers.

    The run lengths in the result are computed when they are asked for.
    """
    if len(decoded) == 0:
        return Candidates.join([])
    logits = to_numpy(decoded.low_res_logits[:, 0])
    grid = _Grid.of(decoded.geometry, logits.shape[-1])
    found = _measure_tiles(logits, grid, mask_threshold, options.stability_score_offset)
    stability: Floats = np.divide(found.strict, np.maximum(found.loose, 1), dtype=np.float32, casting="unsafe")
    stable = stability >= np.float32(max(options.stability_score_thresh, 0))
    passed = np.flatnonzero(stable)
    masks = found.packed(passed, grid, batch)
    boxes = np.array([mask.box() for mask in masks], dtype=np.int64).reshape(-1, 4)
    height, width = batch.image_size_hw
    crop = batch.crop_box_xyxy
    whole = ~near_crop_edge(boxes, crop, (height, width))
    counts["unstable"] += len(stable) - len(passed)
    counts["at_crop_edge"] += len(passed) - int(whole.sum())
    largest = np.inf if options.max_mask_area is None else options.max_mask_area
    areas = found.areas[passed]
    fits = (areas >= options.min_mask_area) & (areas <= largest)
    counts["outside_area_range"] += int((whole & ~fits).sum())
    kept = np.flatnonzero(whole & fits)
    passed = passed[kept]
    return Candidates(
        [RLE(size=[height, width], counts=masks[i]) for i in kept],
        boxes[kept] + np.array([*crop[:2], *crop[:2]]),
        to_numpy(decoded.iou_predictions[:, 0]).astype(np.float32)[passed],
        stability[passed],
        points_xy[passed],
        np.tile(np.array(crop, dtype=np.int64), (len(passed), 1)),
    )
