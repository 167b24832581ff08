"""How a run ended, for people: the plot, and `summary.txt` with date, figures and the samples that were left out."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from segment_anything.datasets import SkippedSamples
from segment_anything.training.loop import Loop, Outcome
from segment_anything.training.report import PLOT, SUMMARY, plot_if_possible, write_summary


def figures(row: Mapping[str, float]) -> dict[str, float]:
    """What was measured on held-out images in one row of the history."""
    return {key.removeprefix("valid_"): value for key, value in row.items() if key.startswith("valid_")}


def summarise(
    run: Loop,
    outcome: Outcome,
    title: str,
    about: Mapping[str, object],
    ending: Mapping[str, object],
    skipped: SkippedSamples,
) -> str:
    """Draw the plot, write the summary, and return its text.

    Args:
        run, outcome: the run.
        title: of the plot.
        about: lines on model and data, which come first.
        ending: lines that come last.
        skipped: samples that could not be used.
    """
    history, out = outcome.history, Path(run.out)
    plot_if_possible(out / PLOT, history, title)
    before, after = figures(history[0]), figures(history[outcome.best_epoch])
    best = str(outcome.best_epoch) if outcome.best_epoch else "0, as it came: no epoch was better"
    entries: dict[str, object] = {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "state": "finished" if outcome.finished else "stopped by a signal; the same command goes on",
        **about,
        "epochs": f"{int(history[-1]['epoch'])} of {run.options.epochs}, best {best}",
        "batch size": f"{run.batch_size} x {run.accumulate} x {run.workers.count} processes",
        "learning rate": run.lr,
        "minutes": round(outcome.seconds / 60, 1),
        **{name.replace("_", " "): f"{before[name]:.4f} -> {after[name]:.4f}" for name in after if name in before},
        **ending,
    }
    return write_summary(out / SUMMARY, entries, skipped.summary())
