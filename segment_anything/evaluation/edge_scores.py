"""BSDS500 boundary scores: ODS, OIS, AP and R50 from counts of matched boundary pixels at many thresholds.

The benchmark is described in Arbelaez et al., TPAMI 2011, section 3.1, and Martin et al., TPAMI 2004. Recall sums over
the human segmentations one by one; a detected pixel is correct if it has a partner in any of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment_anything.evaluation.boundaries import Bool, match_boundaries, thin
from segment_anything.evaluation.options import THRESHOLDS, TOLERANCE

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EdgeCounts:
    """Matched pixels of one image at every threshold; four (T,) integer arrays."""

    recall_hits: NDArray[np.int64]
    """Pixels of the human boundaries with a partner, summed over the annotators."""
    recall_total: NDArray[np.int64]
    precision_hits: NDArray[np.int64]
    """Detected pixels with a partner in at least one human boundary."""
    precision_total: NDArray[np.int64]

    def precision_recall(self) -> tuple[Floats, Floats]:
        """(T,) precision and (T,) recall; 0 where nothing is counted."""
        return _ratio(self.precision_hits, self.precision_total), _ratio(self.recall_hits, self.recall_total)

    def __add__(self, other: "EdgeCounts") -> "EdgeCounts":
        return EdgeCounts(
            self.recall_hits + other.recall_hits,
            self.recall_total + other.recall_total,
            self.precision_hits + other.precision_hits,
            self.precision_total + other.precision_total,
        )

    def at(self, index: int) -> "EdgeCounts":
        """The counts of one threshold, as arrays of one element."""
        one = slice(index, index + 1)
        return EdgeCounts(
            self.recall_hits[one], self.recall_total[one], self.precision_hits[one], self.precision_total[one]
        )


@dataclass(frozen=True)
class EdgeScores:
    """The figures of the benchmark over a set of images."""

    ods: float
    """F-measure at the best threshold for the whole set."""
    ods_threshold: float
    ods_precision: float
    ods_recall: float
    ois: float
    """F-measure with the best threshold for each image."""
    ois_precision: float
    ois_recall: float
    ap: float
    """Area under the precision-recall curve."""
    r50: float
    """Recall at 50 % precision."""


def default_thresholds(count: int = THRESHOLDS) -> Floats:
    """(count,) thresholds evenly spaced inside (0, 1)."""
    # The last digit matters for 8-bit maps (170/255 against 4/6): this spacing is the benchmark's own.
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)


def count_soft_edges(
    edges: Floats, truths: Sequence[Bool], thresholds: Floats | None = None, tolerance: float = TOLERANCE
) -> EdgeCounts:
    """Count the matched pixels of a soft edge map at every threshold.

    Args:
        edges: (H, W) in [0, 1].
        truths: the human boundary maps, each (H, W) bool.
        thresholds: (T,); `default_thresholds()` if None. A pixel is an edge if it reaches the threshold.
        tolerance: farthest distance of a match, as a fraction of the diagonal.
    """
    levels = default_thresholds() if thresholds is None else thresholds
    # Many neighbouring thresholds give the same map: each different map is matched once.
    return _count_maps(len(levels), lambda k: edges >= levels[k], truths, tolerance)


def count_boundary_maps(maps: Sequence[Bool], truths: Sequence[Bool], tolerance: float = TOLERANCE) -> EdgeCounts:
    """The same for a list of binary boundary maps (H, W), one for each "threshold"."""
    return _count_maps(len(maps), lambda k: maps[k], truths, tolerance)


def _count_maps(count: int, map_at: Callable[[int], Bool], truths: Sequence[Bool], tolerance: float) -> EdgeCounts:
    if not truths:
        raise ValueError("truths must hold at least one human boundary map, got none")
    rows: list[tuple[int, int, int, int]] = []
    previous: Bool | None = None
    for k in range(count):
        detected = map_at(k)
        if previous is None or not np.array_equal(previous, detected):
            row = _count_one(thin(detected), truths, tolerance)
        rows.append(row)
        previous = detected
    return EdgeCounts(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


def _count_one(detected: Bool, truths: Sequence[Bool], tolerance: float) -> tuple[int, int, int, int]:
    correct = np.zeros(detected.shape, dtype=bool)
    recall_hits = 0
    for truth in truths:
        match = match_boundaries(detected, truth, tolerance)
        correct |= match.in_first
        recall_hits += int(np.count_nonzero(match.in_second))
    recall_total = sum(int(np.count_nonzero(truth)) for truth in truths)
    return recall_hits, recall_total, int(np.count_nonzero(correct)), int(np.count_nonzero(detected))


def score_edges(counts: Sequence[EdgeCounts], thresholds: Floats) -> EdgeScores:
    """The benchmark's figures from the counts of all images, each over the same (T,) thresholds."""
    if not counts:
        raise ValueError("counts must hold at least one image, got none")
    whole = counts[0]
    for one in counts[1:]:
        whole = whole + one
    precision, recall = whole.precision_recall()
    threshold, best_precision, best_recall, ods = _best_f(thresholds, precision, recall)
    each = best_counts(counts)
    (ois_precision,), (ois_recall,) = each.precision_recall()
    return EdgeScores(
        ods=ods,
        ods_threshold=threshold,
        ods_precision=best_precision,
        ods_recall=best_recall,
        ois=float(f_measure(ois_precision, ois_recall)),
        ois_precision=float(ois_precision),
        ois_recall=float(ois_recall),
        ap=_area(precision, recall),
        r50=_recall_at(precision, recall, 0.5),
    )


def best_counts(counts: Sequence[EdgeCounts]) -> EdgeCounts:
    """Counts summed over the images, each at the threshold where its own F-measure is highest; arrays of one."""
    total: EdgeCounts | None = None
    for one in counts:
        precision, recall = one.precision_recall()
        best = one.at(int(np.argmax(f_measure(precision, recall))))
        total = best if total is None else total + best
    assert total is not None
    return total


def f_measure(precision: Floats, recall: Floats) -> Floats:
    """Harmonic mean of precision and recall, 0 where both are 0."""
    return _ratio(2 * precision * recall, precision + recall)


def _ratio(numerator: NDArray[np.generic], denominator: NDArray[np.generic]) -> Floats:
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _best_f(thresholds: Floats, precision: Floats, recall: Floats) -> tuple[float, float, float, float]:
    """Threshold, precision, recall and F where F is highest, linear in between neighbouring thresholds (101 steps)."""
    position = np.linspace(0, len(thresholds) - 1, 100 * max(len(thresholds) - 1, 0) + 1)
    index = np.arange(len(thresholds))
    t, p, r = (np.interp(position, index, values) for values in (thresholds, precision, recall))
    f = f_measure(p, r)
    best = int(np.argmax(f))
    return float(t[best]), float(p[best]), float(r[best]), float(f[best])


def _area(precision: Floats, recall: Floats) -> float:
    """Area under precision over recall, sampled at every percent of recall and 0 outside the recalls reached."""
    unique, first = np.unique(recall, return_index=True)
    samples = np.linspace(0, 1, 101)
    return float(np.interp(samples, unique, precision[first], left=0.0, right=0.0).sum() * 0.01)


def _recall_at(precision: Floats, recall: Floats, level: float) -> float:
    """Highest recall whose precision reaches `level`, linear in between; 0 if none does."""
    order = np.argsort(recall)
    p, r = precision[order], recall[order]
    reached = np.flatnonzero(p >= level)
    if not len(reached):
        return 0.0
    last = int(reached[-1])
    if last + 1 == len(p):
        return float(r[last])
    return float(r[last] + (r[last + 1] - r[last]) * (p[last] - level) / (p[last] - p[last + 1]))
