"""How good a model is on held-out images while it is trained: 1 click, 3 clicks, a box; or one mask for each class.

Each process takes its share of the images.

Letters: N objects, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from segment_anything.datasets import Dataset, SampleError, SegmentationSample, SkippedSamples
from segment_anything.embedding import ImageEmbedding
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt
from segment_anything.training.classes import ClassHead, ClassPrompts
from segment_anything.training.distributed import Workers
from segment_anything.training.embedding_cache import EmbeddingCache
from segment_anything.training.finetune_options import FinetuneOptions
from segment_anything.training.measure import iou_of_boxes, iou_of_clicks
from segment_anything.training.rounds import train_on_image
from segment_anything.training.sources import Frame, prompt_seed, read_embedding
from segment_anything.training.targets import limit_objects

CLICKS = 3
SCORED = {
    "points": ("miou_1_click", "miou_3_clicks"),
    "boxes": ("miou_box",),
    "both": ("miou_1_click", "miou_3_clicks", "miou_box"),
}
"""Figures whose mean chooses the best epoch, by what the model is trained on."""


@dataclass
class Validation:
    """The held-out images, and what is known of them after the first look."""

    dataset: Dataset
    frame: Frame
    cache: EmbeddingCache | None = None
    """Of a frozen encoder."""
    workers: Workers = field(default_factory=Workers)
    _embedded: dict[int, Path] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.skipped = SkippedSamples(len(self.dataset))

    def __call__(
        self, sam: Sam, classes: ClassHead | ClassPrompts | None, options: FinetuneOptions
    ) -> dict[str, float]:
        """Mean figures over all objects: `loss`, `miou`, its parts, and `score`.

        Raises:
            ValueError: if no held-out image shows an object.
        """
        if isinstance(classes, ClassPrompts):
            return self._semantic(sam, classes)
        names = ("objects", "loss", "miou_1_click", "miou_3_clicks", "miou_box", "classified")
        sums = torch.zeros(len(names), dtype=torch.float64)
        for index, sample, embedding in self._images(sam):
            chosen = limit_objects(len(sample.masks), options.valid_objects, np.random.default_rng(index))
            if len(chosen):
                sums += torch.tensor(
                    _figures(sam, classes, options, index, embedding, _take(sample, chosen), self.frame)
                )
        values = dict(zip(names, self.workers.sum(sums).tolist(), strict=True))
        count = values.pop("objects")
        if not count:
            raise ValueError(f"{self.dataset.path}: no held-out image shows an object; nothing to validate on.")
        means = {name: value / count for name, value in values.items()}
        accuracy = means.pop("classified")
        if isinstance(classes, ClassHead):
            means["class_accuracy"] = accuracy
        miou = float(np.mean([means[name] for name in SCORED[options.prompts]]))
        # with a class head both count: else a run whose masks were good already would keep an untrained head as best
        score = (miou + accuracy) / 2 if isinstance(classes, ClassHead) else miou
        return {**means, "miou": miou, "score": score}

    def _semantic(self, sam: Sam, classes: ClassPrompts) -> dict[str, float]:
        """Mean over classes of the IoU of all pixels of the class, in original pixels."""
        count = len(classes.classes)
        overlap, union, absent = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
        for _, sample, embedding in self._images(sam):
            predicted = classes.segment(sam, embedding).cpu().numpy()
            for label in range(count):
                truth = sample.masks[sample.labels == label].any(axis=0)
                found = predicted == label + 1
                overlap[label] += int((truth & found).sum())
                union[label] += int((truth | found).sum())
                absent[label] += int(truth.sum())
        sums = self.workers.sum(torch.stack([overlap, union, absent]))
        present = sums[2] > 0
        if not present.any():
            raise ValueError(f"{self.dataset.path}: no held-out image shows an object; nothing to validate on.")
        miou = float((sums[0] / sums[1].clamp(min=1))[present].mean())
        return {"loss": 1 - miou, "miou": miou, "score": miou}

    def _images(self, sam: Sam) -> Iterator[tuple[int, SegmentationSample, ImageEmbedding]]:
        for index in range(self.workers.rank, len(self.dataset), self.workers.count):
            try:
                sample = self.dataset[index]
                yield index, sample, self._embed(sam, index, sample)
            except SampleError as error:
                self.skipped.add(self.dataset.samples[index].name, str(error))

    def _embed(self, sam: Sam, index: int, sample: SegmentationSample) -> ImageEmbedding:
        if self.cache is None:
            with torch.inference_mode():
                return sam.encode(sample.image)
        if index not in self._embedded:
            self._embedded[index] = self.cache.ensure(sample.image)
        return read_embedding(str(self._embedded[index])).to(sam.device)


def _take(sample: SegmentationSample, chosen: np.ndarray) -> SegmentationSample:
    return SegmentationSample(sample.image, sample.masks[chosen], sample.labels[chosen], sample.name)


def _figures(
    sam: Sam,
    classes: ClassHead | ClassPrompts | None,
    options: FinetuneOptions,
    index: int,
    embedding: ImageEmbedding,
    sample: SegmentationSample,
    frame: Frame,
) -> list[float]:
    """Sums over the objects of one image, in the order of the names in `Validation`."""
    clicked = iou_of_clicks(sam, embedding, sample.masks, CLICKS).sum(axis=1)
    boxed = iou_of_boxes(sam, embedding, sample.masks).sum()
    targets = frame.targets(sample.masks, sample.labels, len(sample.masks), (index,)).to(sam.device)
    generator = torch.Generator(sam.device).manual_seed(prompt_seed(index))
    played = train_on_image(
        sam.prompt_encoder, sam.mask_decoder, embedding.features, targets, generator, rounds=1, prompts=options.prompts
    )
    loss = sum(float(result.loss) for _, result in played)
    right = 0
    if isinstance(classes, ClassHead):
        prompts = [Prompt.make(box=mask_to_box(mask)) for mask in sample.masks]
        decoded = sam.decode(embedding, prompts, multimask_output=False)
        found, _ = classes.classify(embedding, decoded)
        right = int((found.cpu().numpy() == sample.labels).sum())
    return [len(sample.masks), loss, float(clicked[0]), float(clicked[-1]), float(boxed), right]
