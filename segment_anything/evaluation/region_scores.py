"""BSDS500 region scores: segmentation covering, probabilistic Rand index and variation of information.

Definitions: Arbelaez et al., TPAMI 2011, section 3.2. Every figure compares one segmentation with several human ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment_anything._optional import require

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class RegionCounts:
    """How well the segmentations of one image at T thresholds agree with its G human ones."""

    overlap: Floats
    """(T, R): best IoU of each of the R human regions, of all annotators, with a region of the segmentation."""
    area_px: Floats
    """(R,): size of each human region."""
    rand_index: Floats
    """(T,): mean over the annotators (the probabilistic Rand index)."""
    variation: Floats
    """(T,): variation of information in bits, mean over the annotators; lower is better."""

    @property
    def covering(self) -> Floats:
        """(T,): best overlap of the human regions, weighted by their area."""
        return np.asarray(self.overlap @ self.area_px / self.area_px.sum())


@dataclass(frozen=True)
class RegionScores:
    """Best threshold for the whole set (ods), best for each image (ois), and for each human region (best)."""

    covering_ods: float
    covering_ods_index: int
    covering_ois: float
    covering_best: float
    rand_ods: float
    rand_ods_index: int
    rand_ois: float
    variation_ods: float
    variation_ods_index: int
    variation_ois: float


def count_regions(segmentations: Sequence[Labels], truths: Sequence[Labels]) -> RegionCounts:
    """Compare segmentations of one image, one a threshold, with the human ones.

    Args:
        segmentations: T label maps (H, W).
        truths: G label maps (H, W).

    Raises:
        ValueError: if either list is empty or the sizes differ.
    """
    if not len(segmentations) or not len(truths):
        raise ValueError(f"need at least one segmentation and one truth, got {len(segmentations)} and {len(truths)}")
    tables = [[contingency(labels, truth) for truth in truths] for labels in segmentations]
    overlap = [np.concatenate([_best_iou(table) for table in row]) for row in tables]
    return RegionCounts(
        overlap=np.array(overlap),
        area_px=np.concatenate([table.sum(axis=0) for table in tables[0]]).astype(np.float64),
        rand_index=np.array([np.mean([rand_index(table) for table in row]) for row in tables]),
        variation=np.array([np.mean([variation_of_information(table) for table in row]) for row in tables]),
    )


def contingency(labels: Labels, truth: Labels) -> NDArray[np.int64]:
    """(A, B): how many pixels bear each pair of labels, for the A labels and B true labels that occur."""
    if labels.shape != truth.shape:
        raise ValueError(f"labels and truth must have one size (H, W), got {labels.shape} and {truth.shape}")
    names, a = np.unique(labels, return_inverse=True)
    true_names, b = np.unique(truth, return_inverse=True)
    pairs = np.bincount(a.ravel() * len(true_names) + b.ravel(), minlength=len(names) * len(true_names))
    return pairs.reshape(len(names), len(true_names))


def _best_iou(table: NDArray[np.int64]) -> Floats:
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    return np.asarray((table / union).max(axis=0), dtype=np.float64)


def rand_index(table: NDArray[np.int64]) -> float:
    """Share of the pairs of pixels on which two segmentations agree (together in both, or apart in both)."""
    counts = table.astype(np.float64)
    n = counts.sum()
    rows, columns = (counts.sum(axis=1) ** 2).sum(), (counts.sum(axis=0) ** 2).sum()
    return float(1 - (0.5 * (rows + columns) - (counts**2).sum()) / (n * (n - 1) / 2))


def variation_of_information(table: NDArray[np.int64]) -> float:
    """H(A|B) + H(B|A) in bits; 0 for equal segmentations."""
    joint = table / table.sum()
    return _entropy(joint) * 2 - _entropy(joint.sum(axis=0)) - _entropy(joint.sum(axis=1))


def _entropy(probabilities: Floats) -> float:
    p = probabilities[probabilities > 0]
    return float(-(p * np.log2(p)).sum())


def score_regions(counts: Sequence[RegionCounts]) -> RegionScores:
    """The benchmark's figures over a set of images, each compared at the same T thresholds."""
    if not counts:
        raise ValueError("counts must hold at least one image, got none")
    covering = np.array([one.covering for one in counts])  # (I, T)
    weight = np.array([one.area_px.sum() for one in counts])
    whole = weight @ covering / weight.sum()
    best = [(one.overlap.max(axis=0) * one.area_px).sum() for one in counts]
    rand, variation = np.array([c.rand_index for c in counts]), np.array([c.variation for c in counts])
    return RegionScores(
        covering_ods=float(whole.max()),
        covering_ods_index=int(whole.argmax()),
        covering_ois=float(weight @ covering.max(axis=1) / weight.sum()),
        covering_best=float(sum(best) / weight.sum()),
        rand_ods=float(rand.mean(axis=0).max()),
        rand_ods_index=int(rand.mean(axis=0).argmax()),
        rand_ois=float(rand.max(axis=1).mean()),
        variation_ods=float(variation.mean(axis=0).min()),
        variation_ods_index=int(variation.mean(axis=0).argmin()),
        variation_ois=float(variation.min(axis=1).mean()),
    )


def segmentation_from_ucm(ucm: Floats, threshold: float) -> NDArray[np.int32]:
    """Label map (H, W) of an ultrametric contour map of double size (2H+1, 2W+1) cut at `threshold`."""
    ndimage = require("scipy.ndimage", extra="eval")
    labels, _ = ndimage.label(ucm <= threshold, structure=np.ones((3, 3)))
    return np.asarray(labels[1::2, 1::2], dtype=np.int32)
