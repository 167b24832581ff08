"""Measure a model: the bundled one's bars, and the protocols of the paper on any data set.

segment-anything evaluate bars --data evaluation-sets
segment-anything evaluate points-boxes coco/annotations.json --model vit_b --out report
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything.cli._evaluation import (
    RunOptions,
    measure,
    numbers,
    print_figures,
    progress_bar,
    short_name,
    warn,
    words,
)
from segment_anything.cli._model import ModelOptions
from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.evaluation.options import (
    ClickMasks,
    EdgeMapOptions,
    EdgeOptions,
    InstanceOptions,
    PointsBoxesOptions,
    TextOptions,
)

app = typer.Typer(
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
    add_completion=False,
    help=__doc__,
)


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder or file of the data set.")]
Format = Annotated[str, typer.Option("--format", help="Format of the data set; found out by default.")]
Split = Annotated[str | None, typer.Option("--split", help="train, valid or test; everything by default.")]


@app.command()
@expand_dataclasses
def bars(
    data: Annotated[Path, typer.Option("--data", help="Folder with coco_nc, feral_cats, dsb2018 and bsds500.")],
    model: Annotated[ModelOptions, Panel("Model")],
    run: Annotated[RunOptions, Panel("Run")],
    only: Annotated[list[str] | None, typer.Option("--only", metavar="SET", help="This data set only; repeat.")] = None,
    click_masks: Annotated[ClickMasks, typer.Option(help="Masks asked for after a click, see points-boxes.")] = "three",
    edge_images: Annotated[int, typer.Option(help="Photographs of BSDS500, evenly spaced; 200 is all.")] = 20,
    max_objects: Annotated[int | None, typer.Option(help="Of each image only this many, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.")] = 0,
) -> None:
    """Measure what the bundled model must reach, and print it beside the bars.

    Objects of 400 pixels and more. Boxes: the single mask. Clicks: three masks; the best of them (oracle), or the one
    with the highest predicted IoU (top 1), which the next click corrects.
    """
    from segment_anything.evaluation.bars import DATA, bars_report, measure_bars
    from segment_anything.evaluation.reported import provenance_of
    from segment_anything.evaluation.runs import Shard

    sam = model.load()
    measured = []
    for one in measure_bars(
        sam,
        data,
        data=only or DATA,
        edge_images=edge_images,
        limit=run.limit,
        max_objects=max_objects,
        seed=seed,
        click_masks=click_masks,
        out=run.out,
        shard=Shard.parse(run.shard),
        track=progress_bar(),
    ):
        measured.append(one)
        warn(one.skipped)
    report = bars_report(measured, provenance_of(sam, short_name(data), seed))
    if run.out is not None:
        report.write(run.out)
    if run.json:
        print(report.json())
        return
    print_figures(("figure", "value", "bar", "goal", ""), report.rows)
    for line in report.incomplete:
        print(line)
    origin = report.origin
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
    detections: Annotated[Path | None, typer.Option(help="A detector's boxes: COCO results, CSV, YOLO files.")] = None,
    format: Format = "auto",
    split: Split = None,
) -> None:
    """IoU of masks after simulated clicks and for boxes, number of clicks, calibration of the predicted IoU."""
    from dataclasses import replace

    from segment_anything.evaluation.data import open_boxes, open_images
    from segment_anything.evaluation.pictures import draw_points_boxes
    from segment_anything.evaluation.points_boxes import PointsBoxes

    chosen = replace(options, clicks=numbers(clicks), boxes=words(boxes))
    items = open_images(data, format, split)
    found = None if detections is None else open_boxes(detections, data, items)
    protocol = PointsBoxes(model.load(), chosen, found)
    measure(protocol, items, run, protocol.sam, short_name(data), options.seed, draw_points_boxes)


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
    from segment_anything.evaluation.detected import open_detected
    from segment_anything.evaluation.instance import Instance
    from segment_anything.evaluation.pictures import draw_instance

    detected = open_detected(truth, detections, images)
    protocol = Instance(model.load(), detected, options)
    measure(
        protocol,
        detected.images,
        run,
        protocol.sam,
        f"{short_name(truth)}, {short_name(detections)}",
        0,
        draw_instance,
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
    from segment_anything.evaluation.pictures import draw_proposals
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
    measure(protocol, items, run, sam, short_name(data), 0, draw_proposals)


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
    measure(protocol, items, run, sam, short_name(data), 0, draw_edges)


@app.command()
@expand_dataclasses
def text(
    data: Data,
    model: Annotated[ModelOptions, Panel("Model")],
    run: Annotated[RunOptions, Panel("Run")],
    options: Annotated[TextOptions, Panel("Protocol")],
    text_model: Annotated[
        str,
        typer.Option(
            help="What understands phrases: Grounding DINO or OWLv2 (boxes), CLIP or SigLIP (ranks automatic masks, or "
            "the encoder of a --checkpoint trained with text); folder or hub name."
        ),
    ] = "IDEA-Research/grounding-dino-tiny",
    min_score: Annotated[float, typer.Option(help="Lowest score of a mask; by default the text model's own.")] = 0.0,
    format: Format = "auto",
    split: Split = None,
) -> None:
    """Hit rate of masks for phrases: the class names of a data set, asked for in every image that shows the class."""
    from segment_anything.cli._named import text_route
    from segment_anything.datasets import open_dataset
    from segment_anything.evaluation.data import images_of
    from segment_anything.evaluation.interact import weights_of
    from segment_anything.evaluation.pictures import draw_text
    from segment_anything.evaluation.text import Grounder, TextToMask
    from segment_anything.grounding import GroundingOptions

    dataset = open_dataset(data, format, split)
    sam, by = text_route(model, text_model, min_score or None)
    origin = {"text_model": Path(text_model).name, "min_score": min_score, "weights": weights_of(sam)}
    grounder = Grounder(sam, by, GroundingOptions(min_score=min_score))
    protocol = TextToMask(grounder, dataset.classes, origin, options)
    measure(
        protocol,
        images_of(dataset),
        run,
        sam,
        short_name(data),
        options.seed,
        draw_text,
    )
