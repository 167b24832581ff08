"""A phrase -> masks, by one of three routes: boxes, ranking of automatic masks, or a SAM trained with text."""

import copy
import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from segment_anything.build_sam import load_sam
from segment_anything.detectors import Detector, OpenVocabularyDetector
from segment_anything.detectors.hub import load_pretrained, transformers
from segment_anything.grounding.boxes import at_least, records_of, segment_detections
from segment_anything.grounding.values import Grounded, GroundingOptions, Seconds
from segment_anything.images import check_image_array
from segment_anything.modeling import Sam
from segment_anything.records import MaskRecord
from segment_anything.text import (
    TextImageEncoder,
    TextScorer,
    TransformersEncoder,
    check_phrases,
    rank_records,
    warn_of_relations,
)
from segment_anything.text.prompting import TextPrompter


@runtime_checkable
class PhraseFinder(Protocol):
    """A detector that is told in words what to find."""

    def for_phrases(self, phrases: Sequence[str]) -> Detector:
        """A detector of these phrases."""
        ...


Route = PhraseFinder | TextScorer | TextImageEncoder | TextPrompter

DEFAULT_PHRASE_MODEL = "IDEA-Research/grounding-dino-tiny"
"""What finds a phrase where nothing is said: the smallest of the published Grounding DINO models."""


def segment(
    image: np.ndarray,
    phrases: str | Sequence[str],
    by: Route | str | os.PathLike[str] | None = None,
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
            `encode_text` and `encode_image` (automatic masks are ranked); a `TextPrompter` (SAM trained with text); or
            the folder or hub name of a model, loaded once by `load_phrase_model`. None takes
            `DEFAULT_PHRASE_MODEL`, which transformers downloads at its first use.
        sam: for boxes, and for automatic masks unless there is a `generator`; None takes the bundled model.
        generator: of masks to rank: anything with `generate(image)` that returns records, such as
            `SamAutomaticMaskGenerator` or `FastSam`; None makes one of `sam`.
        options: filters and limits; `classes` and `class_map` name phrases here. With ranking, `min_score` 0 means the
            scorer's calibrated cut-off.

    Returns:
        The masks; none, if nothing fits.

    Raises:
        ValueError: for an empty phrase, a model that is not there, or if `by` does not fit.
    """
    names = check_phrases(phrases)
    warn_of_relations(names)
    options = options or GroundingOptions()
    check_image_array(image)
    route = by
    if by is None or isinstance(by, str | os.PathLike):
        route = _loaded(str(by or DEFAULT_PHRASE_MODEL))
        if options.min_score and isinstance(route, OpenVocabularyDetector):  # nobody could have given it another one
            route = _with_threshold(route, options.min_score)
    if isinstance(route, TextPrompter):
        return _by_prompt(image, names, route, options)
    if isinstance(route, PhraseFinder):
        return segment_detections(sam or _bundled(), image, route.for_phrases(names), options)
    if isinstance(route, TextScorer | TextImageEncoder):
        scorer = route if isinstance(route, TextScorer) else TextScorer(route)
        made_here = generator or SamAutomaticMaskGenerator(sam or _bundled(), output_mode=options.output_mode)
        return _by_ranking(image, names, scorer, made_here, options)
    raise ValueError(
        f"by must be an open-vocabulary detector (for_phrases), a TextScorer or an encoder (encode_text, "
        f"encode_image), a TextPrompter, or the folder or hub name of a model; got {type(by).__name__}."
    )


@lru_cache(maxsize=1)
def _loaded(name_or_folder: str) -> Route:
    """The model of the last name asked for, with the vectors it remembers: phrase after phrase loads it once."""
    model = load_phrase_model(name_or_folder, device="auto")
    return model if isinstance(model, OpenVocabularyDetector) else TextScorer(model)


@lru_cache(maxsize=1)
def _bundled() -> Sam:
    return load_sam()


def load_phrase_model(
    name_or_folder: str | Path, device: str = "cpu", *, min_score: float | None = None
) -> OpenVocabularyDetector | TransformersEncoder:
    """An open-vocabulary detector, or an encoder for ranking, as the model's own configuration says.

    Args:
        name_or_folder: a local folder or a hub name, of Grounding DINO, OWLv2, CLIP, SigLIP, ...
        device: where it runs.
        min_score: lowest score of a detection; None takes the detector's own default. Encoders have none.

    Raises:
        ValueError: if the model is not there, saying what to download.
    """
    config = load_pretrained(transformers().AutoConfig.from_pretrained, name_or_folder)
    detects = any(word in str(config.model_type) for word in ("dino", "owl", "omdet"))
    if not detects:
        return TransformersEncoder(name_or_folder, device=device)
    detector = OpenVocabularyDetector(name_or_folder, device=device)
    return detector if min_score is None else _with_threshold(detector, min_score)


def _with_threshold(detector: OpenVocabularyDetector, min_score: float) -> OpenVocabularyDetector:
    """The same weights with another threshold."""
    detector = copy.copy(detector)
    detector.min_score = min_score
    return detector


def _by_ranking(
    image: np.ndarray, names: list[str], scorer: TextScorer, generator: Any, options: GroundingOptions
) -> Grounded:
    start = time.perf_counter()
    least = options.min_predicted_iou
    records = [record for record in generator.generate(image) if at_least(record["predicted_iou"], least)]
    made = time.perf_counter()
    ranked = rank_records(
        records, image, names, scorer, min_score=options.min_score or None, max_count=options.max_count
    )
    renamed = [_renamed(record, options.class_map) for record in ranked]
    seconds = Seconds(find=time.perf_counter() - made, masks=made - start)
    return Grounded((image.shape[0], image.shape[1]), tuple(renamed), seconds=seconds, compared=len(records))


def _by_prompt(image: np.ndarray, names: list[str], prompter: TextPrompter, options: GroundingOptions) -> Grounded:
    start = time.perf_counter()
    with torch.inference_mode():
        embedding = prompter.sam.encode(image)
        encoded = time.perf_counter()
        records = records_of(prompter.sam, prompter.decode(embedding, names).best(), options.output_mode)
    least = max(options.min_score, options.min_predicted_iou)
    named: list[MaskRecord] = [
        {**record, "category": options.class_map.get(name, name), "category_score": _share(record["predicted_iou"])}
        for record, name in zip(records, names, strict=True)
        if record["area"] and at_least(record["predicted_iou"], least)
    ]
    named.sort(key=lambda record: -record["category_score"])
    seconds = Seconds(encode=encoded - start, masks=time.perf_counter() - encoded)
    return Grounded((image.shape[0], image.shape[1]), tuple(named[: options.max_count]), seconds=seconds)


def _share(quality: float) -> float:
    """A predicted IoU, which is not bounded, as a score in [0, 1]."""
    return min(1.0, max(0.0, quality))


def _renamed(record: MaskRecord, class_map: Mapping[str, str]) -> MaskRecord:
    return {**record, "category": class_map.get(record["category"], record["category"])}
