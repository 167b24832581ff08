"""Connected regions of a mask: count them, fill small holes, drop small islands.

Works on the horizontal runs of a mask, not on its pixels: a run is joined to the runs it touches in the next row, and
joined runs are one region. Regions are 8-connected (pixels that touch at a corner belong together) unless said
otherwise.

Letters: H rows, W columns, R runs, E pairs of touching runs, K regions.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segment_anything.masks._arrays import ArrayLike, BoolArray, IntArray, as_bool


@dataclass(frozen=True)
class _Runs:
    """The horizontal runs of a mask in reading order, in flat positions of rows one pixel wider than the mask."""

    starts: IntArray  # (R,)
    stops: IntArray  # (R,) one past the last pixel
    size_hw: tuple[int, int]

    def paint(self, values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """(H, W) image with values[i] under run i and 0 elsewhere."""
        height, width = self.size_hw
        edges = np.stack([self.starts, self.stops], axis=1).reshape(-1)
        lengths = np.diff(edges, prepend=0, append=height * (width + 1))
        colours = np.zeros(len(lengths), dtype=np.int32)
        colours[1::2] = values
        return np.ascontiguousarray(np.repeat(colours, lengths).reshape(height, width + 1)[:, :width])


def connected_components(mask: ArrayLike, connectivity: int = 8) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Number the connected regions of a mask.

    Args:
        mask: (H, W) bool.
        connectivity: 8 (pixels touch at sides and corners) or 4 (at sides only).

    Returns:
        labels (H, W) int32, 0 outside the mask, regions 1..K in reading order of their first pixel; and their areas
        (K,) int64, areas[i] for label i + 1.

    Raises:
        ValueError: for another connectivity or a wrong shape.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, but is {connectivity!r}")
    runs = _find_runs(as_bool(mask, 2))
    region = _regions(runs, connectivity)
    return runs.paint((region + 1).astype(np.int32)), _areas(runs, region)


def fill_small_holes(mask: ArrayLike, min_area_px: float) -> BoolArray:
    """A copy of an (H, W) mask with regions of background (8-connected) smaller than `min_area_px` pixels filled."""
    array = as_bool(mask, 2)
    return ~drop_small_islands(~array, min_area_px)


def drop_small_islands(mask: ArrayLike, min_area_px: float) -> BoolArray:
    """A copy of an (H, W) mask without its regions smaller than `min_area_px` pixels: perhaps without any."""
    array = as_bool(mask, 2)
    runs = _find_runs(array)
    region = _regions(runs, 8)
    large = _areas(runs, region) >= min_area_px
    return array.copy() if large.all() else runs.paint(large[region].astype(np.int32)).astype(np.bool_)


def largest_component(mask: ArrayLike) -> BoolArray:
    """The largest region of an (H, W) mask, the first of equals; an empty mask stays empty."""
    array = as_bool(mask, 2)
    runs = _find_runs(array)
    region = _regions(runs, 8)
    areas = _areas(runs, region)
    if len(areas) <= 1:
        return array.copy()
    return runs.paint((region == areas.argmax()).astype(np.int32)).astype(np.bool_)


def remove_small_regions(
    mask: npt.NDArray[Any], area_thresh: float, mode: Literal["holes", "islands"]
) -> tuple[npt.NDArray[np.bool_], bool]:
    """Fill the holes, or remove the islands, of a mask smaller than `area_thresh` pixels; at least one island stays.

    Args:
        mask: (H, W) bool.
        area_thresh: least area of a region (8-connected) that is left alone.
        mode: "holes" or "islands".

    Returns:
        the mask, and whether there was a region to change.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f'mode must be "holes" or "islands", but is {mode!r}')
    before = np.asarray(mask) != 0
    if mode == "holes":
        after = fill_small_holes(before, area_thresh)
        return after, not np.array_equal(before, after)
    after = drop_small_islands(before, area_thresh)
    if before.any() and not after.any():
        return largest_component(before), True
    return after, not np.array_equal(before, after)


def _find_runs(mask: BoolArray) -> _Runs:
    height, width = mask.shape
    padded = np.zeros((height, width + 1), dtype=np.bool_)  # the spare column ends every row with background
    padded[:, :width] = mask
    flat = padded.reshape(-1)
    edges = np.flatnonzero(flat[1:] ^ flat[:-1]) + 1
    if flat.size and flat[0]:
        edges = np.concatenate([[0], edges])
    return _Runs(starts=edges[0::2], stops=edges[1::2], size_hw=(height, width))


def _regions(runs: _Runs, connectivity: int) -> IntArray:
    """Number of the region of every run, 0..K-1 in reading order: (R,)."""
    above, below = _touching(runs, connectivity)
    parent = np.arange(len(runs.starts))
    while len(above):
        # hang the later of two roots under the earlier, flatten the trees, go on with pairs not yet united
        low, high = np.minimum(parent[above], parent[below]), np.maximum(parent[above], parent[below])
        np.minimum.at(parent, high, low)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        open_pairs = parent[above] != parent[below]
        above, below = above[open_pairs], below[open_pairs]
    return np.unique(parent, return_inverse=True)[1].astype(np.int64)


def _touching(runs: _Runs, connectivity: int) -> tuple[IntArray, IntArray]:
    """Pairs (upper run, lower run) that touch: two (E,) index arrays.

    Shifted down by one row, a run meets a contiguous range of the next row's runs; the spare column keeps rows apart.
    """
    row = runs.size_hw[1] + 1
    side = "left" if connectivity == 8 else "right"
    other = "right" if connectivity == 8 else "left"
    first = np.searchsorted(runs.stops, runs.starts + row, side=side)  # type: ignore[call-overload]
    last = np.searchsorted(runs.starts, runs.stops + row, side=other)  # type: ignore[call-overload]
    counts = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return above, np.repeat(first, counts) + within


def _areas(runs: _Runs, region: IntArray) -> IntArray:
    return np.bincount(region, weights=runs.stops - runs.starts).astype(np.int64)
