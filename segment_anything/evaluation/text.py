"""Text -> mask: does the best mask for a phrase hit an object that the phrase names?

Phrases are the class names of a data set, each asked for in every image that holds the class (and, for false alarms, in
some that do not). Anything with `segment(image, phrase)` can be measured; `Grounder` is the package's own way.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from segment_anything.datasets.base import ONE_CLASS
from segment_anything.evaluation.data import Image
from segment_anything.evaluation.metrics import Bool, iou
from segment_anything.evaluation.options import TextOptions
from segment_anything.evaluation.runs import Row, Value, median_times
from segment_anything.grounding import GroundingOptions, Route, segment
from segment_anything.modeling import Sam
from segment_anything.records import MaskRecord, record_mask


class TextSegmenter(Protocol):
    """Anything that finds what a phrase names."""

    def segment(self, image: NDArray[np.uint8], phrase: str) -> Sequence[MaskRecord]:
        """Masks in `image`, (H, W, 3) uint8 RGB, the best first; none found is an empty list."""
        ...


class Grounder:
    """`grounding.segment` as a `TextSegmenter`; the automatic masks that a ranking needs are made once an image."""

    def __init__(self, sam: Sam, by: Route, options: GroundingOptions | None = None, generator: Any = None) -> None:
        """Answer by a detector, a ranking, or a SAM trained with text (`by`), with masks of `sam` (or `generator`)."""
        self.sam, self.by, self.options = sam, by, options
        self.generator = _Remembered(generator or SamAutomaticMaskGenerator(sam))

    def segment(self, image: NDArray[np.uint8], phrase: str) -> Sequence[MaskRecord]:
        """Masks of what `phrase` names in `image`, the surest first."""
        return segment(image, phrase, self.by, sam=self.sam, generator=self.generator, options=self.options).records


class _Remembered:
    """A mask generator that keeps the records of the last image."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._image: NDArray[np.uint8] | None = None
        self._records: list[Any] = []

    def generate(self, image: NDArray[np.uint8]) -> list[Any]:
        if self._image is not image:
            self._image, self._records = image, self._generator.generate(image)
        return self._records


class TextToMask:
    """The protocol (see `runs.EvaluationProtocol`)."""

    name = "text"

    def __init__(
        self,
        segmenter: TextSegmenter,
        classes: Sequence[str],
        origin: Mapping[str, Any],
        options: TextOptions | None = None,
    ) -> None:
        """Ask `segmenter` for the `classes` of a data set; `origin` says what it is.

        Raises:
            ValueError: if the data set names no classes.
        """
        if tuple(classes) == ONE_CLASS:
            raise ValueError(
                "the data set names no classes, so there is nothing to ask for: text needs a format with class names "
                "(COCO, YOLO, VOC, labelme, a label map with classes.txt, a CSV list with the column label)."
            )
        self.segmenter = segmenter
        self.classes = tuple(classes)
        self.origin = origin
        self.options = options or TextOptions()

    def settings(self) -> Mapping[str, Any]:
        """Options, and what answers."""
        return {**asdict(self.options), **self.origin}

    def measure(self, item: Image) -> Row:
        """Of each phrase: is it in the image, how many masks came, IoU of the first and of the best one."""
        sample = item.read()
        present = sorted(set(sample.labels.tolist()))
        answers: list[Row] = []
        seconds = 0.0
        for label in [*present, *self._absent(item.name, present)]:
            started = perf_counter()
            records = self.segmenter.segment(sample.image, self.classes[label])
            seconds += perf_counter() - started
            truths = sample.masks[sample.labels == label]
            ious = [_best_overlap(record_mask(record), truths) for record in records]
            answers.append(
                {
                    "phrase": self.classes[label],
                    "present": label in present,
                    "masks": len(records),
                    "first_iou": ious[0] if ious else 0.0,
                    "best_iou": max(ious, default=0.0),
                }
            )
        return {"answers": answers, **({"phrase_ms": seconds / len(answers) * 1e3} if answers else {})}

    def _absent(self, name: str, present: Sequence[int]) -> list[int]:
        """Classes to ask for although the image does not hold them; drawn anew for every image, by its name."""
        others = [label for label in range(len(self.classes)) if label not in present]
        generator = np.random.default_rng(zlib.crc32(f"{self.options.seed}:{name}".encode()))
        count = min(self.options.absent, len(others))
        return [others[index] for index in generator.choice(len(others), count, replace=False)] if count else []

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        """Hit rates over all phrases that are in their image, and false alarms over those that are not."""
        answers = [answer for row in rows for answer in row["answers"]]
        there, absent = ([a for a in answers if a["present"] is wanted] for wanted in (True, False))
        yield "images", len(rows)
        yield "phrases", len(there)
        if there:
            for key, name in (("first_iou", "hit_rate"), ("best_iou", "hit_rate_any")):
                yield name, float(np.mean([answer[key] >= self.options.hit_iou for answer in there]))
            yield "miou", float(np.mean([answer["first_iou"] for answer in there]))
            yield "no_answer_rate", float(np.mean([answer["masks"] == 0 for answer in there]))
        if absent:
            yield "false_alarm_rate", float(np.mean([answer["masks"] > 0 for answer in absent]))
        yield from median_times(rows, "phrase_ms")


def _best_overlap(mask: Bool, truths: Bool) -> float:
    """IoU of a mask (H, W) with the one of `truths` (N, H, W) that it overlaps most; 0 without any."""
    return max((iou(mask, truth) for truth in truths), default=0.0)
