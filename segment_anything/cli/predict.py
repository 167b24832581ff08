"""Cut out one object of an image, or several, by clicks, boxes, a rough mask, a detector or a phrase.

Clicks, one box and a mask together mean one object. Several boxes without clicks mean an object each.
A single click may mean a part or the whole: of the three masks for it the one with the best predicted quality is kept.

    segment-anything predict photo.jpg --point 320,200 --point 400,90,0
    segment-anything predict photo.jpg --box 40,60,300,280 --box 310,20,460,200
    segment-anything predict photo.jpg --detector yolox.onnx --class truck
    segment-anything predict photo.jpg --text "a red car"
    segment-anything predict photo.jpg --checkpoint run/best.safetensors --classes run/best.classes.safetensors
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from segment_anything.cli._console import print_table
from segment_anything.cli._files import write_json, write_png
from segment_anything.cli._learned import draws_whole_image, load_learned, names_of, segment_learned
from segment_anything.cli._model import ModelOptions
from segment_anything.cli._named import NamingOptions, find_named, named_report, print_named
from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.images import MAX_PIXELS, read_image

if TYPE_CHECKING:
    from segment_anything.grounding import Grounded
    from segment_anything.modeling import Sam
    from segment_anything.prompts import Prompts
    from segment_anything.training.classes import ClassHead

_NAMES = "Objects with names"
Point = tuple[float, float, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Asked:
    """What the caller pointed at, in original pixels."""

    points: list[Point]
    boxes: list[Box]
    mask: np.ndarray | None
    texts: list[str]
    named: bool
    """Whether a detector or phrases find the objects."""

    @property
    def pointed(self) -> bool:
        """Whether there is a click, a box or a mask."""
        return bool(self.points or self.boxes or self.mask is not None)

    def prompts(self) -> "Prompts":
        """One prompt for each object."""
        from segment_anything.prompts import Prompt, Prompts

        if len(self.boxes) > 1:
            return Prompts([Prompt.make(box=box) for box in self.boxes])
        given: dict[str, Any] = {}
        if self.points:
            given["points"] = [(x, y) for x, y, _ in self.points]
            given["labels"] = [label for _, _, label in self.points]
        if self.boxes:
            given["box"] = self.boxes[0]
        if self.mask is not None:
            given["mask"] = self.mask
        return Prompts([Prompt.make(**given)])


@dataclass(frozen=True)
class Found:
    """One mask."""

    number: int
    """Which object it is for, counted from 0."""
    mask: np.ndarray
    """(H, W) bool, original pixels."""
    predicted_iou: float
    category: tuple[str, float] | None = None
    """Class and its probability, where classes were learned."""


@expand_dataclasses
def command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image file.")],
    model: Annotated[ModelOptions, Panel("Model")],
    naming: Annotated[NamingOptions, Panel(_NAMES)],
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point", metavar="X,Y[,LABEL]", help="A click in pixels; label 1 (object) or 0 (not the object)."
        ),
    ] = None,
    boxes: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X0,Y0,X1,Y1", help="A box around an object: two corners, in pixels."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A rough mask: an image as large as IMAGE, the object white.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="PHRASE", help='What to find, such as "a red car".', rich_help_panel=_NAMES),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Keep this class of the detector only.", rich_help_panel=_NAMES),
    ] = None,
    learned: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="Classes that fine-tuning learned (best.classes.safetensors): names for what is pointed at, or the "
            "whole image, a mask for each class.",
            rich_help_panel=_NAMES,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("out"),
    all_masks: Annotated[bool, typer.Option("--all-masks", help="Keep all three masks of each object.")] = False,
    cutout: Annotated[bool, typer.Option("--cutout", help="Save each object with transparency around it.")] = False,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger images; 0 takes any.")] = MAX_PIXELS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    pixels = read_image(image, max_pixels=max_pixels or None)
    asked = Asked(
        points=[_point(text) for text in points or ()],
        boxes=[_box(text) for text in boxes or ()],
        mask=None if mask is None else read_image(mask, max_pixels=max_pixels or None)[..., 0] > 127,
        texts=texts or [],
        named=bool(texts) or naming.detector is not None,
    )
    _check(asked, naming, classes, learned)
    if learned is not None:
        found, report, picture, seconds = _recall(image, pixels, asked, model, learned, all_masks)
    elif asked.named:
        found, report, picture, seconds = _find(image, pixels, asked, model, naming, classes or [])
    else:
        found, seconds = _segment(model.load(), pixels, asked, all_masks)
        report, picture = _report(image, pixels, found), _draw(pixels, asked, found)
    stem = out / image.stem
    write_png(stem.with_name(f"{stem.name}_overlay.png"), picture)
    for annotation, one in zip(report["annotations"], found, strict=True):
        annotation["file"] = _save(pixels, one, stem, annotation["id"], cutout)
    report |= {"model": model.model, "seconds": round(seconds, 3), "overlay": f"{stem}_overlay.png"}
    write_json(stem.with_name(f"{stem.name}.json"), report)
    if as_json:
        print(json.dumps(report))
    else:
        _print_table(report)


def _numbers(text: str, option: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise typer.BadParameter(f"{option} must be {form} (numbers with commas and no spaces), got {text!r}.")
    return values


def _point(text: str) -> Point:
    x, y, *label = _numbers(text, "--point", "X,Y or X,Y,LABEL", (2, 3))
    if label and label[0] not in (0, 1):
        raise typer.BadParameter(f"--point: the label must be 1 (object) or 0 (not the object), got {text!r}.")
    return x, y, int(label[0]) if label else 1


def _box(text: str) -> Box:
    x0, y0, x1, y1 = _numbers(text, "--box", "X0,Y0,X1,Y1", (4,))
    return x0, y0, x1, y1


def _check(asked: Asked, naming: NamingOptions, classes: list[str] | None, learned: Path | None) -> None:
    pointed = asked.pointed
    if learned is not None and asked.named:
        raise typer.BadParameter(
            "give --classes, --detector or --text, not two of them (--class NAME chooses among a detector's classes)."
        )
    if asked.named and pointed:
        raise typer.BadParameter("--detector and --text find objects themselves: give no --point, --box or --mask.")
    if asked.texts and naming.detector is not None:
        raise typer.BadParameter("give --detector or --text, not both (--class chooses among a detector's classes).")
    if classes and naming.detector is None:
        raise typer.BadParameter("--class chooses among the classes of a --detector; for a phrase use --text.")
    if asked.named:
        return
    if not pointed and learned is None:
        raise typer.BadParameter(
            "nothing is asked for: give --point, --box or --mask, --detector or --text (or use the command generate)."
        )
    if len(asked.boxes) > 1 and (asked.points or asked.mask is not None):
        raise typer.BadParameter("with several --box, each is an object of its own: give no --point and no --mask.")


def _find(
    image: Path, pixels: np.ndarray, asked: Asked, model: ModelOptions, naming: NamingOptions, classes: list[str]
) -> tuple[list[Found], dict[str, Any], np.ndarray, float]:
    """The masks of a detector or of phrases, their report and picture, and the seconds in all."""
    return _named_masks(image, pixels, find_named(image, pixels, model, naming, asked.texts, classes))


def _named_masks(
    image: Path, pixels: np.ndarray, named: "Grounded"
) -> tuple[list[Found], dict[str, Any], np.ndarray, float]:
    from segment_anything.records import record_mask

    found = [Found(i, record_mask(one), one["predicted_iou"]) for i, one in enumerate(named.records)]
    seconds = named.seconds.find + named.seconds.encode + named.seconds.masks
    return found, named_report(image, named), named.overlay(pixels), seconds


def _recall(
    image: Path, pixels: np.ndarray, asked: Asked, model: ModelOptions, file: Path, all_masks: bool
) -> tuple[list[Found], dict[str, Any], np.ndarray, float]:
    """As `_find`, with classes that were learned by fine-tuning."""
    sam = model.load()
    learned = load_learned(file, sam)
    if draws_whole_image(learned, pointed=asked.pointed):
        return _named_masks(image, pixels, segment_learned(sam, pixels, learned))  # type: ignore[arg-type]
    found, seconds = _segment(sam, pixels, asked, all_masks, learned)  # type: ignore[arg-type]
    return found, _report(image, pixels, found), _draw(pixels, asked, found), seconds


def _segment(
    sam: "Sam", pixels: np.ndarray, asked: Asked, all_masks: bool, head: "ClassHead | None" = None
) -> tuple[list[Found], float]:
    """The masks, object by object, and the seconds that network and upsampling took."""
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
        embedding = sam.encode(pixels)
        decoded = sam.decode(embedding, asked.prompts(), multimask_output=True if all_masks else None)
        decoded = decoded if all_masks else decoded.best()
        masks = decoded.masks().flatten(0, 1).cpu().numpy()
        qualities = decoded.iou_predictions.float().flatten().tolist()
        named = names_of(head, embedding, decoded) if head is not None else [None] * len(masks)
    each = decoded.iou_predictions.shape[1]
    found = [
        Found(number // each, mask, quality, category)
        for number, (mask, quality, category) in enumerate(zip(masks, qualities, named, strict=True))
    ]
    return found, time.perf_counter() - start


def _report(image: Path, pixels: np.ndarray, found: list[Found]) -> dict[str, Any]:
    """The masks in the form of SA-1B, each with the number of its object."""
    from segment_anything.masks import encode_rle
    from segment_anything.record_formats import to_sa1b
    from segment_anything.records import make_record

    records = [make_record(encode_rle(one.mask), predicted_iou=one.predicted_iou) for one in found]
    report = to_sa1b(records, image_id=1, file_name=image.name, size_hw=pixels.shape[:2])
    for annotation, one in zip(report["annotations"], found, strict=True):
        annotation["object"] = one.number
        if one.category is not None:
            annotation["category"], annotation["category_score"] = one.category
    return report


def _save(pixels: np.ndarray, one: Found, stem: Path, number: int, cutout: bool) -> str:
    path = stem.with_name(f"{stem.name}_mask_{number}.png")
    write_png(path, one.mask)
    if cutout and one.mask.any():
        from segment_anything.visualize import cutout as cut_out

        write_png(stem.with_name(f"{stem.name}_cutout_{number}.png"), cut_out(pixels, one.mask))
    return str(path)


def _draw(pixels: np.ndarray, asked: Asked, found: list[Found]) -> np.ndarray:
    from segment_anything.visualize import overlay

    return overlay(
        pixels,
        [one.mask for one in found],
        points_xy=[(x, y) for x, y, _ in asked.points] or None,
        labels=[label for _, _, label in asked.points] or None,
        boxes_xyxy=asked.boxes or None,
        names=[f"{one.category[0]} {one.category[1]:.2f}" if one.category else "" for one in found]
        if any(one.category for one in found)
        else None,
    )


def _print_table(report: dict[str, Any]) -> None:
    if "seconds_find" in report:
        print_named(report)
        return
    named = any("category" in record for record in report["annotations"])
    rows = [
        (
            str(record["id"]),
            *((f"{record['category']} {record['category_score']:.2f}",) if named else ()),
            f"{record['predicted_iou']:.3f}",
            f"{record['area']:,} px",
            ", ".join(map(str, record["bbox"])),
            record["file"],
        )
        for record in report["annotations"]
    ]
    print_table(("mask", *(("class",) if named else ()), "predicted IoU", "area", "box x, y, w, h", "file"), rows)
    print(f"{report['seconds']:.2f} s with {report['model']}; picture: {report['overlay']}")
