"""From a margin to a probability, and the probability below which a mask is not shown.

Platt scaling: a logistic curve fitted to examples whose answer is known. Without examples the encoder's own scale is
taken, which for CLIP is the softmax of the phrase against the background phrases.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope * margin + offset)."""

    slope: float = 1.0
    offset: float = 0.0
    cutoff: float = 0.5
    """Lowest probability of a mask that is shown."""

    def __post_init__(self) -> None:
        if self.slope <= 0:
            raise ValueError(f"slope must be positive, or better matches would score lower; got {self.slope}.")
        if not 0.0 <= self.cutoff <= 1.0:
            raise ValueError(f"cutoff must lie in [0, 1]; got {self.cutoff}.")

    def probability(self, margins: np.ndarray) -> np.ndarray:
        """Probabilities of margins of any shape; float64."""
        logits = self.slope * np.asarray(margins, dtype=np.float64) + self.offset
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))  # the sigmoid without overflow


def fit_calibration(margins: Any, hits: Any, *, ridge: float = 1e-3) -> Calibration:
    """Fit the curve to examples, and choose the cut-off with the best F1.

    Args:
        margins: (N,) margins of masks (`TextScorer.margins`).
        hits: (N,) whether each mask shows what its phrase says.
        ridge: keeps the curve finite where the examples separate perfectly.

    Raises:
        ValueError: if there is not at least one example of each kind, or larger margins do not mean more hits.
    """
    x = torch.as_tensor(np.asarray(margins, dtype=np.float64).ravel())
    y = torch.as_tensor(np.asarray(hits, dtype=np.float64).ravel())
    if len(x) != len(y):
        raise ValueError(f"margins and hits must be of one length; got {len(x)} and {len(y)}.")
    if not 0 < float(y.sum()) < len(y):
        raise ValueError(f"hits must hold examples of both kinds; got {int(y.sum())} hits among {len(y)}.")
    spread = float(x.std()) or 1.0
    z = x / spread
    weights = torch.zeros(2, dtype=torch.float64)
    design = torch.stack([z, torch.ones_like(z)], dim=1)
    penalty = ridge * len(y) * torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    for _ in range(50):  # Newton's method; a logistic fit with two unknowns settles in under ten rounds
        p = torch.sigmoid(design @ weights)
        gradient = design.T @ (p - y) + penalty @ weights
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + penalty + 1e-9 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        weights = weights - step
        if float(step.abs().max()) < 1e-9:
            break
    slope, offset = float(weights[0]) / spread, float(weights[1])
    if slope <= 0:
        raise ValueError("margins: masks with larger margins are no likelier to be hits; this encoder is no help.")
    unset = Calibration(slope, offset)
    return Calibration(slope, offset, best_cutoff(unset.probability(x.numpy()), y.numpy() > 0.5))


def best_cutoff(scores: np.ndarray, hits: np.ndarray) -> float:
    """The cut-off with the best F1: half-way between the lowest score kept and the highest one dropped."""
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(ranked) + 1) + hits.sum())
    # A cut between equal scores is none.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0
    last = int(f1.argmax())
    below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return float((ranked[last] + below) / 2)
