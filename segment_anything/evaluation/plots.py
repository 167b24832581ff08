"""Plots of a run, as PNG files: IoU over clicks, precision over recall, hits by overlap, predicted and true IoU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment_anything._optional import require
from segment_anything.evaluation.metrics import Calibration

Floats = NDArray[np.float64]

_SIZE_INCHES = (5.0, 4.0)
_DPI = 120


def plot_clicks(curves: Mapping[str, Floats], file: Path) -> Path:
    """Mean IoU after 1, 2, ... clicks.

    Args:
        curves: name -> (K,) mean IoU after k + 1 clicks.
        file: PNG to write.
    """
    figure, axes = _axes("clicks", "mean IoU")
    for name, values in curves.items():
        axes.plot(np.arange(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set_xticks(np.arange(1, max((len(values) for values in curves.values()), default=1) + 1))
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right")
    return _save(figure, file)


def plot_precision_recall(
    curves: Mapping[str, tuple[Floats, Floats]], file: Path, best: tuple[float, float] | None = None
) -> Path:
    """Precision over recall, above lines of equal F-measure.

    Args:
        curves: name -> recall and precision, (T,) each.
        file: PNG to write.
        best: recall and precision of a point to mark with its F-measure.
    """
    figure, axes = _axes("recall", "precision")
    samples = np.linspace(0.01, 1, 100)
    for level in np.arange(0.1, 1.0, 0.1):
        reach = samples[2 * samples > level * 1.001]
        axes.plot(reach, np.minimum(level * reach / (2 * reach - level), 2), color="0.9", linewidth=0.8, zorder=0)
    for name, (recall, precision) in curves.items():
        order = np.argsort(recall, kind="stable")
        axes.plot(recall[order], precision[order], label=name)
    if best is not None:
        f = 2 * best[0] * best[1] / max(best[0] + best[1], 1e-12)
        axes.plot(*best, marker="o", linestyle="none", color="black", label=f"F = {f:.3f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="lower left")
    return _save(figure, file)


def plot_reliability(trust: Calibration, file: Path) -> Path:
    """True over predicted IoU, with the share of masks in each bin; on the diagonal the prediction is right."""
    figure, axes = _axes("predicted IoU", "true IoU")
    width = np.diff(trust.edges)
    axes.bar(
        trust.edges[:-1],
        trust.count / trust.count.sum(),
        width=width,
        align="edge",
        color="0.85",
        label="share of masks",
    )
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(trust.predicted, trust.actual, marker="o", label=f"mean absolute error {trust.mean_absolute_error:.3f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper left")
    return _save(figure, file)


def plot_hits(curves: Mapping[str, Floats], overlaps: Floats, file: Path) -> Path:
    """Share of what was looked for that was found, by the overlap that counts as found.

    Args:
        curves: name -> (T,) shares.
        overlaps: (T,) smallest IoU of a hit.
        file: PNG to write.
    """
    figure, axes = _axes("IoU of a hit, at least", "share found")
    for name, shares in curves.items():
        axes.plot(overlaps, shares, marker="o", markersize=3, label=name)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper right")
    return _save(figure, file)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    # Drawn without pyplot: it keeps figures alive and picks a window system.
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and version that matplotlib writes, equal figures are equal files.
    figure.savefig(file, dpi=_DPI, metadata={"Software": None})
    return file


def mean_curve(curves: Sequence[Sequence[float]], length: int) -> Floats:
    """(length,) mean over objects of values after each click; an object that needed no more clicks keeps its last."""
    if not curves:
        return np.zeros(0)
    padded = [[*values[:length], *[values[-1]] * (length - len(values))] for values in curves]
    return np.asarray(np.mean(padded, axis=0), dtype=np.float64)
