"""`predict` with names: objects found by a detector or by phrases, instead of by clicks and boxes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segment_anything.cli._console import complaints, print_table
from segment_anything.cli._model import ModelOptions

if TYPE_CHECKING:
    from segment_anything.grounding import Grounded, Route
    from segment_anything.modeling import Sam


@dataclass(frozen=True, kw_only=True)
class NamingOptions:
    """What finds the objects, and which are kept."""

    detector: str | None = None
    """Find objects with a detector: an .onnx file (YOLOX, YOLOv5 to v11, RT-DETR), boxes (COCO .json, YOLO .txt, .csv),
    or a transformers model (folder or hub name)."""
    text_model: str = "IDEA-Research/grounding-dino-tiny"
    """Model behind --text: Grounding DINO or OWLv2 (boxes), CLIP or SigLIP (ranks automatic masks, or the encoder of
    a --checkpoint trained with text); folder or hub name."""
    class_names: str | None = None
    """File with the detector's class names, one a line, if it does not bring its own."""
    min_score: float | None = None
    """Lowest score of an object; by default the detector's own threshold."""
    max_count: int = 300
    """Most objects."""


def find_named(
    image: Path, pixels: np.ndarray, model: ModelOptions, naming: NamingOptions, texts: list[str], classes: list[str]
) -> Grounded:
    """The named masks of an image.

    Raises:
        ValueError: if a file, a model or a class is not there; the message says what to do.
    """
    from segment_anything.detectors import load_detector
    from segment_anything.grounding import GroundingOptions, segment, segment_detections
    from segment_anything.text import RelationWarning, check_phrases, warn_of_relations

    options = GroundingOptions(
        classes=tuple(classes) or None, max_count=naming.max_count, min_score=naming.min_score or 0.0
    )
    if naming.detector is not None:
        detector = load_detector(
            naming.detector, class_names=naming.class_names, min_score=naming.min_score, device=_device(model)
        )
        return segment_detections(model.load(), pixels, detector, options, name=image)
    phrases = check_phrases(texts)  # before a large model is loaded
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RelationWarning)
        warn_of_relations(phrases)
    for one in told:
        complaints().print(f"Warning: {one.message}")
    sam, by = text_route(model, naming.text_model, naming.min_score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelationWarning)  # told already, without the line of code
        return segment(pixels, phrases, by, sam=sam, options=options)


def named_report(image: Path, named: Grounded) -> dict[str, Any]:
    """The masks in the form of SA-1B, with names, the detector's boxes, and seconds told apart."""
    from segment_anything.record_formats import to_sa1b

    report = to_sa1b(list(named.records), image_id=1, file_name=image.name, size_hw=named.size_hw)
    for number, annotation in enumerate(report["annotations"]):
        annotation["object"] = number
        if named.detections:
            x0, y0, x1, y1 = named.detections[number].box_xyxy
            annotation["detection_box"] = [x0, y0, x1 - x0, y1 - y0]
    seconds = named.seconds
    report["seconds_find"], report["seconds_encode"] = round(seconds.find, 3), round(seconds.encode, 3)
    report["seconds_masks"] = round(seconds.masks, 3)
    if named.compared is not None:
        report["masks_compared"] = named.compared
    return report


def _device(model: ModelOptions) -> str:
    return "cpu" if model.device == "mps" else model.device


def text_route(model: ModelOptions, text_model: str, min_score: float | None = None) -> tuple[Sam, Route]:
    """The network and what understands the phrase; a checkpoint trained with text understands it itself."""
    from segment_anything.detectors.hub import pick_device
    from segment_anything.grounding import load_phrase_model
    from segment_anything.text import TextImageEncoder
    from segment_anything.text.prompting import TextPrompter, load_text_sam, takes_text

    by = load_phrase_model(text_model, device=_device(model), min_score=min_score)
    if model.checkpoint not in (None, "random") and takes_text(str(model.checkpoint)):
        if not isinstance(by, TextImageEncoder):
            raise ValueError(
                f"--checkpoint {model.checkpoint} was trained with text: give the encoder it was trained with as "
                f"--text-model (a CLIP), not a detector."
            )
        sam = load_text_sam(model.model, str(model.checkpoint), pick_device(model.device), model.image_size)
        return sam, TextPrompter(sam, by)
    return model.load(), by


def print_named(report: dict[str, Any]) -> None:
    """Show `named_report` to people."""
    rows = [
        (
            str(record["id"]),
            record["category"],
            f"{record['category_score']:.2f}",
            f"{record['predicted_iou']:.3f}",
            f"{record['area']:,} px",
            record["file"],
        )
        for record in report["annotations"]
    ]
    if rows:
        print_table(("mask", "name", "score", "predicted IoU", "area", "file"), rows)
    else:
        among = f" among {report['masks_compared']} automatic masks" if "masks_compared" in report else ""
        print(f"Nothing was found{among}.")
    parts = ", ".join(f"{name} {report[f'seconds_{name}']:.2f} s" for name in ("find", "encode", "masks"))
    print(f"{parts} with {report['model']}; picture: {report['overlay']}")
