"""What the evaluations have in common: options of a run, its report, its table and its progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is kept and split."""

    out: Path | None = None
    """Folder for the report (JSON, Markdown, PNG) and for the rows that let a run go on where it stopped."""
    shard: str = "0/1"
    """Part i of n of the images, for several processes that share --out: 0/4, 1/4, 2/4, 3/4."""
    limit: int | None = None
    """Only the first so many images, for a quick look."""
    json: bool = False
    """Print JSON for machines."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be 1 or more, got {self.limit}.")


def measure(
    protocol: Any,
    items: Sequence[Any],
    run: RunOptions,
    sam: Sam | None,
    data: str,
    seed: int,
    draw: Callable[..., list[Path]] | None = None,
) -> None:
    """Run a protocol, print its figures, and write its report."""
    from segment_anything.evaluation.report import number
    from segment_anything.evaluation.reported import run_reported
    from segment_anything.evaluation.runs import Shard

    result = run_reported(
        protocol,
        items[: run.limit],
        sam=sam,
        data=data,
        seed=seed,
        out=run.out,
        shard=Shard.parse(run.shard),
        track=progress_bar(),
        draw=draw,
    )
    report, done = result.report, result.progress
    warn(done.skipped)
    if run.json:
        print(report.json())
        return
    print_figures((protocol.name, "value"), [(name, number(value)) for name, value in report.values.items()])
    if not done.complete:
        print(f"{len(done.rows) + len(done.skipped)} of {done.total} images: other shards are still to come.")


def short_name(data: Path) -> str:
    """A data set as reports name it: the end of its path, which is the same on every machine that shares it."""
    return "/".join(data.resolve().parts[-2:])


def progress_bar() -> Callable[[Sequence[Any]], Iterable[Any]]:
    """A progress bar on a terminal, nothing elsewhere."""
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal or "CI" in os.environ:
        return lambda items: items
    return lambda items: track(items, "images", console=console, transient=True)


def warn(lines: Iterable[str]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"skipped: {line}", markup=False)


def print_figures(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in words(text)}))
    except ValueError as error:
        raise ValueError(f"--clicks must be numbers with commas, such as 1,3,5; got {text!r}") from error
