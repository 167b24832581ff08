"""Measure a model: the bundled one's bars, and the protocols of the paper on any data set.

segment-anything evaluate bars --data evaluation-sets
segment-anything evaluate points-boxes coco/annotations.json --model vit_b --out report
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything.cli._model import ModelOptions
from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.evaluation.options import (
    EdgeMapOptions,
    EdgeOptions,
    InstanceOptions,
    PointsBoxesOptions,
)

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

app = typer.Typer(
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
)


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


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder or file of the data set.")]
Format = Annotated[str, typer.Option("--format", help="Format of the data set; found out by default.")]
Split = Annotated[str | None, typer.Option("--split", help="train, valid or test; everything by default.")]


@app.command()
@expand_dataclasses
def bars(
    data: Annotated[Path, typer.Option("--data", help="Folder with coco_nc, feral_cats, dsb2018 and bsds500.")],
    model: Annotated[ModelOptions, Panel("Model")],
    only: Annotated[list[str] | None, typer.Option("--only", metavar="SET", help="This data set only; repeat.")] = None,
    click_masks: Annotated[str, typer.Option(help="Masks asked for after a click: three or paper.")] = "three",
    edge_images: Annotated[int, typer.Option(help="Photographs of BSDS500, evenly spaced; 200 is all.")] = 20,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images of each set.")] = None,
    max_objects: Annotated[int | None, typer.Option(help="Of each image only this many, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure what the bundled model must reach, and print it beside the bars.

    Objects of 400 pixels and more. Boxes: the single mask. Clicks: three masks; the best of them (oracle), or the one
    with the highest predicted IoU (top 1), which the next click corrects.
    """
    from segment_anything.evaluation.bars import DATA, bar_rows, measure_bars
    from segment_anything.evaluation.report import provenance

    sam = model.load()
    measured = []
    for one in measure_bars(
        sam,
        data,
        data=only or DATA,
        edge_images=edge_images,
        limit=limit,
        max_objects=max_objects,
        seed=seed,
        click_masks=click_masks,
        track=_track(),
    ):
        measured.append(one)
        _warn(one.skipped)
    rows = bar_rows(measured)
    origin = _provenance(provenance, sam, str(data), seed)
    if as_json:
        names = ("title", "value", "bar", "goal", "verdict")
        plain = [dict(zip(names, row, strict=True)) for row in rows]
        print(json.dumps({"bars": plain, "values": {o.data: o.values for o in measured}, "origin": asdict(origin)}))
        return
    _print_table(("figure", "value", "bar", "goal", ""), rows)
    print(f"{origin.model}, weights {origin.weights}, commit {origin.commit}, seed {origin.seed}, {origin.date}")


@app.command("points-boxes")
@expand_dataclasses
def points_boxes(
    data: Data,
    model: Annotated[ModelOptions, Panel("Model")],
    run: Annotated[RunOptions, Panel("Run")],
    options: Annotated[PointsBoxesOptions, Panel("Protocol", without=("clicks", "boxes", "noc_targets"))],
    clicks: Annotated[
        str, typer.Option(help="Numbers of clicks to report, with commas; empty for none.")
    ] = "1,2,3,5,9",
    boxes: Annotated[str, typer.Option(help="Kinds of boxes: truth, noisy; empty for none.")] = "truth,noisy",
    detections: Annotated[Path | None, typer.Option(help="A detector's boxes: COCO JSON, CSV or YOLO files.")] = None,
    format: Format = "auto",
    split: Split = None,
) -> None:
    """IoU of masks after simulated clicks and for boxes, number of clicks, calibration of the predicted IoU."""
    from dataclasses import replace

    from segment_anything.detectors import BoxFile
    from segment_anything.evaluation.data import open_images
    from segment_anything.evaluation.pictures import draw_points_boxes
    from segment_anything.evaluation.points_boxes import PointsBoxes

    chosen = replace(options, clicks=_numbers(clicks), boxes=_words(boxes))
    items = open_images(data, format, split)
    protocol = PointsBoxes(model.load(), chosen, None if detections is None else BoxFile(detections))
    _measure(protocol, items, run, protocol.sam, _named(data), options.seed, draw_points_boxes)


@app.command()
@expand_dataclasses
def instance(
    truth: Annotated[Path, typer.Argument(help="Ground truth: COCO or LVIS JSON.")],
    model: Annotated[ModelOptions, Panel("Model")],
    run: Annotated[RunOptions, Panel("Run")],
    options: Annotated[InstanceOptions, Panel("Protocol")],
    detections: Annotated[Path, typer.Option(help="The detector's boxes: a JSON list of COCO results.")],
    images: Annotated[Path, typer.Option(help="Folder of the image files.")],
) -> None:
    """Average precision of masks for a detector's boxes, by the rules of COCO or LVIS."""
    from segment_anything.evaluation.instance import Instance, open_detected
    from segment_anything.evaluation.pictures import draw_instance

    detected = open_detected(truth, detections, images)
    protocol = Instance(model.load(), detected, options)
    _measure(
        protocol,
        detected.images,
        run,
        protocol.sam,
        f"{_named(truth)}, {_named(detections)}",
        0,
        lambda p, rows, _, out: draw_instance(p, rows, out),
    )


@app.command()
@expand_dataclasses
def proposals(
    data: Data,
    model: Annotated[ModelOptions, Panel("Model")],
    run: Annotated[RunOptions, Panel("Run")],
    points_per_side: Annotated[int, typer.Option(help="Points along one side of the grid of clicks.")] = 64,
    box_nms_thresh: Annotated[
        float, typer.Option(help="Of two masks whose boxes overlap more, keep the better.")
    ] = 0.9,
    crop_n_layers: Annotated[int, typer.Option(help="Layers of crops for small objects.")] = 0,
    format: Format = "auto",
    split: Split = None,
) -> None:
    """Recall of automatic masks (AR@10, 100, 1000), without classes, by size."""
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
    from segment_anything.evaluation.data import open_images
    from segment_anything.evaluation.interact import weights_of
    from segment_anything.evaluation.proposals import PAPER_OPTIONS, Proposals

    settings = {
        **PAPER_OPTIONS,
        "points_per_side": points_per_side,
        "box_nms_thresh": box_nms_thresh,
        "crop_n_layers": crop_n_layers,
    }
    items = open_images(data, format, split)
    sam = model.load()
    full = asdict(AutomaticMaskOptions(**settings))
    generator: Any = SamAutomaticMaskGenerator(sam, **full)
    protocol = Proposals(generator.generate, {**full, "weights": weights_of(sam)})
    _measure(protocol, items, run, sam, _named(data), 0)


@app.command()
@expand_dataclasses
def edges(
    data: Annotated[Path, typer.Argument(help="Folder of BSDS500.")],
    model: Annotated[ModelOptions, Panel("Model")],
    run: Annotated[RunOptions, Panel("Run")],
    options: Annotated[EdgeOptions, Panel("Scores")],
    maps_options: Annotated[EdgeMapOptions, Panel("Edges")],
    maps: Annotated[Path | None, typer.Option(help="Score these edge maps (NUMBER.png) and run no model.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
) -> None:
    """Edges on BSDS500: ODS, OIS, AP and R50."""
    from segment_anything.evaluation.bsds import open_bsds
    from segment_anything.evaluation.edges import Edges
    from segment_anything.evaluation.pictures import draw_edges

    items = open_bsds(data, split)
    sam = None if maps else model.load()
    protocol = Edges.of_folder(maps, options) if maps else Edges.of_model(sam, options, maps_options)  # type: ignore[arg-type]
    _measure(protocol, items, run, sam, _named(data), 0, lambda p, rows, _, out: draw_edges(p, rows, out))


def _measure(
    protocol: Any,
    items: Sequence[Any],
    run: RunOptions,
    sam: Sam | None,
    data: str,
    seed: int,
    draw: Callable[..., list[Path]] | None = None,
) -> None:
    """Run a protocol, print its figures, and write its report."""
    from segment_anything.evaluation.report import Report, number, provenance
    from segment_anything.evaluation.runs import Shard
    from segment_anything.evaluation.runs import run as measure

    chosen = items[: run.limit]
    done = measure(protocol, chosen, folder=run.out, data=data, shard=Shard.parse(run.shard), track=_track())
    origin = _provenance(provenance, sam, data, seed)
    values = dict(protocol.values(done.rows))
    report = Report(protocol.name, values, origin, dict(protocol.settings()), done.skipped, done.total)
    _warn(done.skipped)
    if run.out is not None:
        report.write(run.out)
        if draw is not None and done.complete:
            draw(protocol, done.rows, chosen, run.out)
    if run.json:
        print(report.json())
        return
    _print_table((protocol.name, "value"), [(name, number(value)) for name, value in values.items()])
    if not done.complete:
        print(f"{len(done.rows) + len(done.skipped)} of {done.total} images: other shards are still to come.")


def _provenance(make: Callable[..., Any], sam: Sam | None, data: str, seed: int) -> Any:
    if sam is None:
        return make(model="none", weights="none", data=data, seed=seed)
    from segment_anything.evaluation.interact import weights_of

    return make(model=sam.name, weights=weights_of(sam), data=data, seed=seed, device=sam.device)


def _named(data: Path) -> str:
    """A data set as reports name it: the end of its path, which is the same on every machine that shares it."""
    return "/".join(data.resolve().parts[-2:])


def _track() -> Callable[[Sequence[Any]], Iterable[Any]]:
    """A progress bar on a terminal, nothing elsewhere."""
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal or "CI" in os.environ:
        return lambda items: items
    return lambda items: track(items, "images", console=console, transient=True)


def _warn(lines: Iterable[str]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"skipped: {line}", markup=False)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True).print(table)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in _words(text)}))
    except ValueError as error:
        raise ValueError(f"--clicks must be numbers with commas, such as 1,3,5; got {text!r}") from error
