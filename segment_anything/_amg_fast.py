"""Stability, area, box and run lengths of proposed masks, without making them at full size.

Masks are measured by tiles (`_tiles`). Only those that survive non-maximum suppression are turned into run lengths,
from the tiles' bits. `_amg_filters.measure_plain` is the same thing the plain way, and the tests hold the two together.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segment_anything._amg_clicks import near_crop_edge
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Proposals
from segment_anything._tiles import Floats, Ints, MeasuredTiles, TileGrid, Words, measure_tiles
from segment_anything.masks import RLE
from segment_anything.masks._arrays import to_numpy

if TYPE_CHECKING:
    from segment_anything.modeling import Decoded
    from segment_anything.onnx.decoded import OnnxDecoded


class PackedMask:
    """One mask as tiles that are empty, full, or held bit by bit. `np.asarray` gives its COCO run lengths."""

    def __init__(
        self,
        grid: TileGrid,
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

    def box(self) -> tuple[int, int, int, int]:
        """First and last column and row, x0, y0, x1, y1 in the crop; zeros for an empty mask."""
        rows = self._grid.rows(self._kinds, self._bits)
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
        rows = self._grid.rows(self._kinds, self._bits)
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


def _packed(found: MeasuredTiles, chosen: Ints, grid: TileGrid, batch: Proposals) -> list[PackedMask]:
    """The masks that are chosen."""
    ends = np.append(0, np.cumsum((found.kinds == 2).sum(axis=(1, 2))))
    corner_xy = batch.crop_box_xyxy[0], batch.crop_box_xyxy[1]
    return [
        # copies: a view would keep alive what belongs to masks that are dropped
        PackedMask(
            grid, found.kinds[i].copy(), found.bits[ends[i] : ends[i + 1]].copy(), corner_xy, batch.image_size_hw
        )
        for i in chosen
    ]


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
    grid = TileGrid.of(decoded.geometry, logits.shape[-1])
    found = measure_tiles(logits, grid, mask_threshold, options.stability_score_offset)
    stability: Floats = np.divide(found.strict, np.maximum(found.loose, 1), dtype=np.float32, casting="unsafe")
    stable = stability >= np.float32(max(options.stability_score_thresh, 0))
    passed = np.flatnonzero(stable)
    masks = _packed(found, passed, grid, batch)
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
