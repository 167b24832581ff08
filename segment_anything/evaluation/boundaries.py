"""Boundary pixels: thinning to one pixel, boundaries of a label map, and one-to-one matching of two boundary maps.

This is the geometry under the BSDS500 boundary benchmark (Arbelaez et al., TPAMI 2011; Martin et al., TPAMI 2004,
appendix B). It knows no thresholds and no scores: those are in `edge_scores.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment_anything._optional import require
from segment_anything.evaluation.options import TOLERANCE

Bool = NDArray[np.bool_]
Indices = NDArray[np.intp]

OUTLIER_COST = 100.0
"""What leaving one pixel unmatched costs, in tolerances: so high that matching more pixels always pays."""


def thin(mask: Bool) -> Bool:
    """Thin a boundary map to lines one pixel wide that keep their connections (Guo and Hall, CACM 1989).

    Two alternating sub-iterations are repeated until nothing changes, as "thin, infinite times" of the benchmark does.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool, a subset of `mask`.
    """
    table = _thinning_tables()
    thinned = np.pad(mask.astype(bool), 1)
    while True:
        before = np.count_nonzero(thinned)
        for removable in table:
            rows, columns = np.nonzero(thinned)
            delete = removable[_neighbour_codes(thinned, rows, columns)]
            thinned[rows[delete], columns[delete]] = False
        if np.count_nonzero(thinned) == before:
            return thinned[1:-1, 1:-1].copy()


# The eight neighbours as (row, column) steps: east first, then counter-clockwise. Bit k of a code is neighbour k.
_STEPS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def _neighbour_codes(padded: Bool, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.intp]:
    """The eight neighbours of each pixel as a number from 0 to 255; (N,)."""
    codes = np.zeros(len(rows), dtype=np.intp)
    for bit, (down, right) in enumerate(_STEPS):
        codes |= padded[rows + down, columns + right].astype(np.intp) << bit
    return codes


def _thinning_tables() -> tuple[Bool, Bool]:
    """For each of the 256 neighbourhoods: may the centre go, in the first and in the second sub-iteration."""
    x = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)  # (256, 8); x[:, k] is neighbour k
    after = np.roll(x, -1, axis=1)
    even = range(0, 8, 2)
    # One crossing: removing the centre does not cut the line.
    crossings = sum(((~x[:, k]) & (x[:, k + 1] | x[:, (k + 2) % 8])).astype(int) for k in even)
    pairs_a = sum((x[:, k] | after[:, k]).astype(int) for k in even)
    pairs_b = sum((x[:, k] | x[:, k - 1]).astype(int) for k in even)
    fewer = np.minimum(pairs_a, pairs_b)
    removable = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    first = removable & ~((x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0])
    second = removable & ~((x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4])
    return first, second


def label_boundaries(labels: NDArray[np.integer]) -> Bool:
    """Pixels whose right, lower or lower-right neighbour bears another label; (H, W) int in, (H, W) bool out.

    This is the benchmark's boundary of a segmentation: the crack between two regions is given to the pixel above and
    left of it.
    """
    boundary = np.zeros(labels.shape, dtype=bool)
    boundary[:-1] |= labels[:-1] != labels[1:]
    boundary[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    boundary[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return boundary


@dataclass(frozen=True)
class BoundaryMatch:
    """A one-to-one matching between the pixels of two boundary maps of one size."""

    in_first: Bool
    """(H, W): pixels of the first map that have a partner."""
    in_second: Bool
    """(H, W): pixels of the second map that have a partner; as many as in the first."""
    total_distance_px: float
    """Sum of the distances of all pairs."""


def match_boundaries(first: Bool, second: Bool, tolerance: float = TOLERANCE) -> BoundaryMatch:
    """Match boundary pixels one to one, at the least total cost.

    A pair no farther apart than `tolerance` diagonals costs its distance, an unmatched pixel `OUTLIER_COST` tolerances.

    Args:
        first: (H, W) bool.
        second: (H, W) bool of the same size.
        tolerance: farthest distance of a pair, as a fraction of the image diagonal.

    Raises:
        ValueError: if the sizes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one size (H, W), got {first.shape} and {second.shape}")
    radius_px = tolerance * float(np.hypot(*first.shape))
    a, b = np.argwhere(first), np.argwhere(second)
    left, right = _assign(*_pairs_within(a, b, radius_px), outlier=OUTLIER_COST * radius_px)
    in_first, in_second = np.zeros(first.shape, dtype=bool), np.zeros(first.shape, dtype=bool)
    in_first[tuple(a[left].T)] = True
    in_second[tuple(b[right].T)] = True
    return BoundaryMatch(in_first, in_second, float(np.hypot(*(a[left] - b[right]).T).sum()))


def _pairs_within(a: Indices, b: Indices, radius_px: float) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """All pairs of rows of `a` (N, 2) and `b` (M, 2) no farther apart than the radius: both indices, the distance."""
    spatial = require("scipy.spatial", extra="eval")
    if not len(a) or not len(b):
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    pairs = spatial.cKDTree(a).sparse_distance_matrix(spatial.cKDTree(b), radius_px, output_type="ndarray")
    return pairs["i"], pairs["j"], pairs["v"]


def _assign(rows: Indices, columns: Indices, costs: NDArray[np.float64], *, outlier: float) -> tuple[Indices, Indices]:
    """The exact minimum-cost matching over the given pairs, as two index arrays.

    With k pairs of n + m nodes there are n + m - 2k outliers: the cost is that of an assignment in which each left node
    may take an outlier of its own for twice the price and right outliers are free. This shape, with the fewer nodes on
    the left and without those that have no partner in reach, is hundreds of times faster for the shortest-path solver
    than one with outliers on both sides.
    """
    if not len(rows):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    a, i = np.unique(rows, return_inverse=True)
    b, j = np.unique(columns, return_inverse=True)
    if len(a) > len(b):
        right, left = _assign(columns, rows, costs, outlier=outlier)
        return left, right
    sparse = require("scipy.sparse", extra="eval")
    csgraph = require("scipy.sparse.csgraph", extra="eval")
    own = np.arange(len(a))
    # Costs are shifted by one, because a sparse matrix would drop pairs of distance 0. Every row has exactly one
    # partner, so the shift adds one for each and changes nothing.
    cost = np.concatenate([costs, np.full(len(a), 2 * outlier)]) + 1.0
    entries = (np.concatenate([i, own]), np.concatenate([j, len(b) + own]))
    graph = sparse.csr_array((cost, entries), shape=(len(a), len(a) + len(b)))
    left, right = csgraph.min_weight_full_bipartite_matching(graph)
    real = right < len(b)
    return a[left[real]], b[right[real]]
