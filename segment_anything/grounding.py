"""What is it? Named boxes or phrases -> masks with names, behind one call.

`segment_detections` asks a detector, `segment` takes a phrase by one of three routes: boxes of an open-vocabulary
detector, ranking of automatic masks by CLIP, or a SAM trained with text. The networks are elsewhere; here is what is
kept and how it is returned.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from segment_anything._amg_options import OUTPUT_MODES
from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from segment_anything.detectors import (
    BoxFile,
    Detection,
    Detector,
    OpenVocabularyDetector,
    check_classes,
    class_names_of,
    select_detections,
)
from segment_anything.detectors.hub import load_pretrained, transformers
from segment_anything.images import check_image_array
from segment_anything.masks import encode_rles, rle_to_coco
from segment_anything.modeling import Decoded, Sam
from segment_anything.prompts import Prompts
from segment_anything.record_formats import to_coco, to_labelme, to_yolo
from segment_anything.records import MaskRecord, make_record
from segment_anything.text import (
    TextImageEncoder,
    TextScorer,
    TransformersEncoder,
    check_phrases,
    rank_records,
    warn_of_relations,
)
from segment_anything.text.prompting import TextPrompter
from segment_anything.utils.amg import calculate_stability_score

_FULL_SIZE_AT_ONCE = 16  # masks held at the image's size before they are run-length encoded


@dataclass(frozen=True, kw_only=True)
class GroundingOptions:
    """Which detections become masks, and which masks are kept."""

    classes: tuple[str, ...] | None = None
    """The detector's class names to keep, letter case aside; None keeps all."""
    class_map: Mapping[str, str] = field(default_factory=dict)
    """Detector's name -> name in the result; names not in it stay."""
    min_score: float = 0.0
    """Lowest score of a detection, on top of the detector's own threshold."""
    min_predicted_iou: float = 0.0
    """Lowest predicted quality of a mask; 0 keeps all."""
    max_count: int = 300
    """Most masks an image."""
    boxes_at_once: int = 300
    """Boxes decoded together."""
    output_mode: str = "binary_mask"
    """How masks are returned: binary_mask, uncompressed_rle or coco_rle (least memory)."""

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ValueError(f"classes must be a list of names; got {self.classes!r}. Write [{self.classes!r}].")
        for name in ("max_count", "boxes_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode must be one of {', '.join(OUTPUT_MODES)}; got {self.output_mode!r}.")


@dataclass(frozen=True)
class Seconds:
    """Where the time went."""

    find: float = 0.0
    """Detector, or automatic masks and their ranking."""
    encode: float = 0.0
    """Image encoder, once an image."""
    masks: float = 0.0
    """Mask decoder, enlarging and encoding of masks."""


@dataclass(frozen=True)
class Grounded:
    """Masks with names of one image."""

    size_hw: tuple[int, int]
    """The image's height and width."""
    records: tuple[MaskRecord, ...] = ()
    """Masks with "category" and "category_score", surest first."""
    detections: tuple[Detection, ...] = ()
    """The detection behind each record, in the same order; empty where no detector was asked."""
    seconds: Seconds = field(default_factory=Seconds)

    def __len__(self) -> int:
        return len(self.records)

    def to_coco(self, **options: Any) -> list[dict[str, Any]]:
        """COCO annotations (see `record_formats.to_coco`), each with the detector's box as `detection_box` XYWH."""
        annotations = to_coco(list(self.records), **options)
        for annotation, detection in zip(annotations, self.detections, strict=False):
            x0, y0, x1, y1 = detection.box_xyxy
            annotation["detection_box"] = [x0, y0, x1 - x0, y1 - y0]
        return annotations

    def to_yolo(self, names: Sequence[str] | None = None) -> list[str]:
        """Lines of a YOLO segmentation label file; class numbers are places in `names`, by default `self.names`."""
        return to_yolo(list(self.records), names=list(self.names if names is None else names))

    def to_labelme(self, file_name: str) -> dict[str, Any]:
        """A labelme document for the image of that name."""
        return to_labelme(list(self.records), file_name=file_name, size_hw=self.size_hw)

    def overlay(self, image: np.ndarray) -> np.ndarray:
        """The image with masks, boxes, names and scores drawn over it: (H, W, 3) uint8."""
        from segment_anything.visualize import overlay

        return overlay(
            image,
            list(self.records),
            boxes_xyxy=[d.box_xyxy for d in self.detections] or None,
            names=[f"{r['category']} {r['category_score']:.2f}" for r in self.records] or None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names that occur, in alphabetical order."""
        return tuple(sorted({record["category"] for record in self.records}))


@runtime_checkable
class PhraseFinder(Protocol):
    """A detector that is told in words what to find."""

    def for_phrases(self, phrases: Sequence[str]) -> Detector:
        """A detector of these phrases."""
        ...


def segment_detections(
    sam: Sam,
    image: np.ndarray,
    detector: Detector | BoxFile,
    options: GroundingOptions | None = None,
    *,
    name: str | Path | None = None,
) -> Grounded:
    """Detect objects and cut each one out by its box: one encoder run an image, all boxes in one decoder run.

    Args:
        sam: the network.
        image: (H, W, 3) uint8 RGB.
        detector: anything with `detect(image)`.
        options: filters and limits.
        name: the image's file name, for a box file with several images.

    Returns:
        The masks; none, if nothing was detected.

    Raises:
        ValueError: for a class name that the detector does not have; the message lists near ones.
    """
    options = options or GroundingOptions()
    check_image_array(image)
    names = class_names_of(detector)
    if options.classes is not None and names is not None:
        check_classes(options.classes, names)
    start = time.perf_counter()
    bound = detector.for_image(name) if isinstance(detector, BoxFile) and name is not None else detector
    detections = select_detections(
        bound.detect(image),
        classes=options.classes,
        class_map=options.class_map,
        min_score=options.min_score,
        max_count=options.max_count,
    )
    detections = [d for d in detections if _has_pixels(_clipped(d.box_xyxy, image.shape))]
    found = time.perf_counter() - start
    if not detections:
        return Grounded((image.shape[0], image.shape[1]), seconds=Seconds(find=found))
    return _cut_out(sam, image, detections, options, found)


@torch.inference_mode()
def _cut_out(
    sam: Sam, image: np.ndarray, detections: list[Detection], options: GroundingOptions, seconds_found: float
) -> Grounded:
    """A mask for every detection, both dropped where the mask is empty or poor."""
    start = time.perf_counter()
    embedding = sam.encode(image)
    encoded = time.perf_counter()
    boxes = np.array([_clipped(d.box_xyxy, image.shape) for d in detections], dtype=np.float32)
    decoded = sam.decode(embedding, Prompts.from_boxes(boxes), multimask_output=False, batch_size=options.boxes_at_once)
    records = _records(sam, decoded, options.output_mode)
    kept = [
        ({**record, "category": d.label, "category_score": d.score}, d)
        for record, d in zip(records, detections, strict=True)
        if record["area"] and _at_least(record["predicted_iou"], options.min_predicted_iou)
    ]
    done = time.perf_counter()
    return Grounded(
        (image.shape[0], image.shape[1]),
        tuple(record for record, _ in kept),  # type: ignore[misc]
        tuple(detection for _, detection in kept),
        Seconds(seconds_found, encoded - start, done - encoded),
    )


def _clipped(box_xyxy: Sequence[float], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """A box cut off at the image's edges."""
    x0, y0, x1, y1 = box_xyxy
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(shape[1])), min(y1, float(shape[0]))


def _has_pixels(box_xyxy: Sequence[float]) -> bool:
    x0, y0, x1, y1 = np.asarray(box_xyxy, dtype=np.float32)
    return bool(x1 > x0 and y1 > y0)


def _records(sam: Sam, decoded: Decoded, output_mode: str) -> list[MaskRecord]:
    """Records of (N, 1) masks, enlarged a few at a time."""
    records: list[MaskRecord] = []
    height, width = decoded.geometry.original_size_hw
    for start in range(0, len(decoded.low_res_logits), _FULL_SIZE_AT_ONCE):
        part = slice(start, start + _FULL_SIZE_AT_ONCE)
        chunk = Decoded(decoded.low_res_logits[part], decoded.iou_predictions[part], decoded.geometry)
        logits = chunk.logits()[:, 0]
        stability = calculate_stability_score(logits, sam.mask_threshold, 1.0).tolist()
        masks = (logits > sam.mask_threshold).cpu()
        rles = encode_rles(masks)
        for i, quality in enumerate(chunk.iou_predictions[:, 0].float().tolist()):
            segmentation: Any = rles[i]
            if output_mode == "binary_mask":
                segmentation = masks[i].numpy()
            elif output_mode == "coco_rle":
                segmentation = {"size": [height, width], "counts": rle_to_coco(rles[i])}
            measured = make_record(rles[i], predicted_iou=quality, stability_score=float(stability[i]))
            records.append({**measured, "segmentation": segmentation, "crop_box": [0, 0, width, height]})
    return records


Route = PhraseFinder | TextScorer | TextImageEncoder | TextPrompter


def segment(
    image: np.ndarray,
    phrases: str | Sequence[str],
    by: Route,
    *,
    sam: Sam | None = None,
    generator: Any = None,
    options: GroundingOptions | None = None,
) -> Grounded:
    """Masks of what a phrase names.

    Args:
        image: (H, W, 3) uint8 RGB.
        phrases: one or several, such as "a red car".
        by: how. An `OpenVocabularyDetector` (its boxes become masks of `sam`); a `TextScorer`, or an encoder with
            `encode_text` and `encode_image` (automatic masks are ranked); or a `TextPrompter` (SAM trained with text).
        sam: for boxes, and for automatic masks unless there is a `generator`.
        generator: anything with `generate(image)` that returns records, such as `SamAutomaticMaskGenerator` or
            `FastSam`; None makes one of `sam`.
        options: filters and limits; `classes` and `class_map` name phrases here. With ranking, `min_score` 0 means the
            scorer's calibrated cut-off.

    Returns:
        The masks; none, if nothing fits.

    Raises:
        ValueError: for an empty phrase, or if `by` or `sam` does not fit.
    """
    names = check_phrases(phrases)
    warn_of_relations(names)
    options = options or GroundingOptions()
    check_image_array(image)
    if isinstance(by, TextPrompter):
        return _by_prompt(image, names, by, options)
    if isinstance(by, PhraseFinder):
        if sam is None:
            raise ValueError("sam is needed to turn the detector's boxes into masks: segment(..., sam=load_sam()).")
        return segment_detections(sam, image, by.for_phrases(names), options)
    if isinstance(by, TextScorer | TextImageEncoder):
        scorer = by if isinstance(by, TextScorer) else TextScorer(by)
        return _by_ranking(image, names, scorer, _generator(sam, generator, options), options)
    raise ValueError(
        f"by must be an open-vocabulary detector (for_phrases), a TextScorer or an encoder (encode_text, "
        f"encode_image), or a TextPrompter; got {type(by).__name__}."
    )


def load_phrase_model(name_or_folder: str | Path, device: str = "cpu") -> OpenVocabularyDetector | TransformersEncoder:
    """An open-vocabulary detector, or an encoder for ranking, as the model's own configuration says.

    Args:
        name_or_folder: a local folder or a hub name, of Grounding DINO, OWLv2, CLIP, SigLIP, ...
        device: where it runs.

    Raises:
        ValueError: if the model is not there, saying what to download.
    """
    config = load_pretrained(transformers().AutoConfig.from_pretrained, name_or_folder)
    detects = any(word in str(config.model_type) for word in ("dino", "owl", "omdet"))
    kind = OpenVocabularyDetector if detects else TransformersEncoder
    return kind(name_or_folder, device=device)


def _generator(sam: Sam | None, generator: Any, options: GroundingOptions) -> Any:
    if generator is not None:
        return generator
    if sam is None:
        raise ValueError("sam or generator is needed to make the masks that are ranked: segment(..., sam=load_sam()).")
    return SamAutomaticMaskGenerator(sam, output_mode=options.output_mode)


def _by_ranking(
    image: np.ndarray, names: list[str], scorer: TextScorer, generator: Any, options: GroundingOptions
) -> Grounded:
    start = time.perf_counter()
    least = options.min_predicted_iou
    records = [record for record in generator.generate(image) if _at_least(record["predicted_iou"], least)]
    made = time.perf_counter()
    ranked = rank_records(
        records, image, names, scorer, min_score=options.min_score or None, max_count=options.max_count
    )
    renamed = [_renamed(record, options.class_map) for record in ranked]
    seconds = Seconds(find=time.perf_counter() - made, masks=made - start)
    return Grounded((image.shape[0], image.shape[1]), tuple(renamed), seconds=seconds)


def _by_prompt(image: np.ndarray, names: list[str], prompter: TextPrompter, options: GroundingOptions) -> Grounded:
    start = time.perf_counter()
    with torch.inference_mode():
        embedding = prompter.sam.encode(image)
        encoded = time.perf_counter()
        records = _records(prompter.sam, prompter.decode(embedding, names).best(), options.output_mode)
    least = max(options.min_score, options.min_predicted_iou)
    named: list[MaskRecord] = [
        {**record, "category": options.class_map.get(name, name), "category_score": _share(record["predicted_iou"])}
        for record, name in zip(records, names, strict=True)
        if record["area"] and _at_least(record["predicted_iou"], least)
    ]
    named.sort(key=lambda record: -record["category_score"])
    seconds = Seconds(encode=encoded - start, masks=time.perf_counter() - encoded)
    return Grounded((image.shape[0], image.shape[1]), tuple(named[: options.max_count]), seconds=seconds)


def _at_least(quality: float, least: float) -> bool:
    """Whether a predicted IoU is good enough; it is not bounded below, so 0 must let everything pass."""
    return least <= 0 or quality >= least


def _share(quality: float) -> float:
    """A predicted IoU, which is not bounded, as a score in [0, 1]."""
    return min(1.0, max(0.0, quality))


def _renamed(record: MaskRecord, class_map: Mapping[str, str]) -> MaskRecord:
    return {**record, "category": class_map.get(record["category"], record["category"])}
