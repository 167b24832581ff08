"""What a run leaves for people: a CSV row an epoch, a TensorBoard log, a plot with four panels, a text summary."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segment_anything._optional import require
from segment_anything.training.files import write_whole

CSV = "metrics.csv"
PLOT = "plot.png"
SUMMARY = "summary.txt"

_PANELS = ("train_miou", "valid_miou", "train_loss", "valid_loss")
_TITLES = {"miou": "mean IoU", "loss": "loss"}

Row = Mapping[str, float]


class Report:
    """Writes while a run goes on; use as a context."""

    def __init__(self, out: Path, tensorboard: bool, step: int = 0) -> None:
        self._out = out
        self._writer: Any = _tensorboard(out / "tensorboard", step) if tensorboard else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, step: int, values: Row) -> None:
        """Log what one step of training gave."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, history: Sequence[Row]) -> None:
        """Log the last row and write the CSV of all rows."""
        write_csv(self._out / CSV, history)
        if self._writer is not None:
            for name, value in history[-1].items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(f"epoch/{name}", value, int(history[-1]["step"]))
            self._writer.flush()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a row, with the columns of all rows; what a row lacks is empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def plot_history(path: Path, history: Sequence[Row], title: str = "") -> None:
    """Four panels over the epochs: mean IoU and loss, in training and in validation; those that were measured.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", extra="train")
    names = [name for name in _PANELS if any(name in row for row in history)]
    figure = figure_module.Figure(figsize=(9, 3.2 * -(-len(names) // 2)), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(-(-len(names) // 2), 2, number)
        points = [(row["epoch"], row[name]) for row in history if name in row]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
        part, _, metric = name.partition("_")
        axes.set_title(f"{part}: {_TITLES[metric]}")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def plot_if_possible(path: Path, history: Sequence[Row], title: str) -> None:
    """`plot_history`, or a line that says what to install: hours of training must not end in an error for a picture."""
    try:
        plot_history(path, history, title)
    except ImportError as error:
        print(f"No plot: {error}", file=sys.stderr)


def write_summary(path: Path, entries: Mapping[str, object], appendix: str = "") -> str:
    """Write `name: value` lines, and return them."""
    width = max(len(name) for name in entries) + 2
    lines = [f"{name + ':':<{width}}{_short(value)}" for name, value in entries.items()]
    text = "\n".join([*lines, *([appendix] if appendix else [])]) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return text


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _tensorboard(folder: Path, step: int) -> Any:
    """A SummaryWriter that drops what an interrupted run logged after `step`; None if TensorBoard is not installed."""
    try:
        module = require("torch.utils.tensorboard", extra="train")
    except ImportError as error:
        print(f"No TensorBoard log: {error}", file=sys.stderr)
        return None
    return module.SummaryWriter(log_dir=str(folder), purge_step=step)
