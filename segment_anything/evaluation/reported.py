"""Runs a protocol and leaves its report: figures, tables, and pictures once all images are done."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segment_anything.evaluation.interact import weights_of
from segment_anything.evaluation.report import Provenance, Report, provenance
from segment_anything.evaluation.runs import EvaluationProtocol, ItemT, Progress, Row, Shard, run
from segment_anything.modeling import Sam

Track = Callable[[Sequence[Any]], Iterable[Any]]
Draw = Callable[[Any, Sequence[Row], Sequence[Any], Path], list[Path]]
"""Makes the pictures of a report: protocol, rows, items, folder -> files."""


@dataclass(frozen=True)
class Reported:
    """What came of a run."""

    report: Report
    progress: Progress


def run_reported(
    protocol: EvaluationProtocol[ItemT],
    items: Sequence[ItemT],
    *,
    sam: Sam | None,
    data: str,
    seed: int = 0,
    out: Path | None = None,
    shard: Shard | None = None,
    track: Track = lambda items: items,
    draw: Draw | None = None,
) -> Reported:
    """Measure what is missing, as `runs.run`, and write the report of all that is there.

    Args:
        protocol: what to measure.
        items: the images.
        sam: the model, if one is measured.
        data: name of the data set.
        seed: of the run, for the report.
        out: folder of rows and report; None writes nothing.
        shard: the part to measure here.
        track: wraps the loop, for a progress bar.
        draw: makes pictures when all images are done.

    Raises:
        ValueError: as `runs.run`.
    """
    done = run(protocol, items, folder=out, data=data, shard=shard, track=track)
    values = dict(protocol.values(done.rows))
    origin = provenance_of(sam, data, seed)
    report = Report(protocol.name, values, origin, dict(protocol.settings()), done.skipped, done.total)
    if out is not None:
        report.write(out)
        if draw is not None and done.complete:
            draw(protocol, done.rows, items, out)
    return Reported(report, done)


def provenance_of(sam: Sam | None, data: str, seed: int) -> Provenance:
    """Where figures of a model (or of no model) come from."""
    if sam is None:
        return provenance(model="none", weights="none", data=data, seed=seed)
    return provenance(model=sam.name, weights=weights_of(sam), data=data, seed=seed, device=sam.device)
