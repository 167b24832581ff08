"""Train a SAM to take text, without text: the picture of an object is its prompt, and later a phrase takes its place.

The recipe of Segment Anything (https://arxiv.org/abs/2304.02643), appendix D.5. For masks larger than 100 x 100 pixels
the box is expanded by a random factor from 1 to 2 and cut out square; in half of the crops what is outside the mask is
set to zero; CLIP's image encoder, whose output token attends in the last layer only to the mask, turns the crop into a
vector. The model is prompted with it first, then with points where it was wrong. As CLIP's vectors of texts and of
pictures are aligned, phrases prompt it afterwards (`text.TextPrompter`).

Letters: N objects, D width of the encoder's vectors.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from segment_anything.checkpoints import save_checkpoint
from segment_anything.datasets import Dataset, SegmentationSample
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Sam
from segment_anything.modeling.text_prompt import attach_text, encode_text_prompts
from segment_anything.simulate import random_error_points
from segment_anything.text import Crop, TextImageEncoder, TransformersEncoder, apply_style, square_crop
from segment_anything.text.prompting import decode_text
from segment_anything.training.augment import AugmentOptions, augment
from segment_anything.training.losses import interactive_loss, true_iou
from segment_anything.training.rounds import ROUNDS, plan_rounds, round_loss
from segment_anything.training.sam_task import Trainee
from segment_anything.training.targets import Targets, make_targets
from segment_anything.training.task import Learned


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How objects become prompts; the defaults are the paper's."""

    min_area_px: int = 100 * 100
    """Objects with fewer pixels are left out: their crops say too little."""
    expand: tuple[float, float] = (1.0, 2.0)
    """Range of the random factor that the box grows by."""
    masked: float = 0.5
    """Chance that what is outside the mask is set to zero."""
    attend_inside: bool = True
    """Let the encoder's output token see only the mask in the last layer (where the encoder can: CLIP models)."""
    rounds: int = ROUNDS
    """Rounds in all: the text alone, then points beside it (see `rounds`)."""
    max_objects: int = 32
    """Most objects of an image in one step."""
    train_image_encoder: bool = True
    """Train the whole model; False trains prompt encoder and mask decoder only."""
    seed: int = 0
    """Of the choice of objects, crops and points."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.expand[0] <= self.expand[1]:
            raise ValueError(f"expand must be (low, high) with 1 <= low <= high; got {self.expand}.")
        if not 0.0 <= self.masked <= 1.0:
            raise ValueError(f"masked must be a chance between 0 and 1; got {self.masked}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}.")
        if self.max_objects < 1:
            raise ValueError(f"max_objects must be at least 1; got {self.max_objects}.")


class Images(Protocol):
    """Images with masks, read one at a time: a `datasets.Dataset`, or a list of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> SegmentationSample: ...


@dataclass(frozen=True)
class TextSample:
    """One image with the crops that prompt for its objects."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    masks: np.ndarray
    """(N, H, W) bool; N may be 0."""
    crops: tuple[Crop, ...]
    """The picture of each object, already styled, and the mask in it."""
    seed: int
    """Of the points that are drawn for this image in this epoch."""


class TextSource:
    """Reads, augments and cuts: a training source for `Loop`."""

    def __init__(self, images: Images, options: TextOptions, augmentation: AugmentOptions | None) -> None:
        self.images, self.options, self.augmentation = images, options, augmentation

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The image's path in its data set, or its number."""
        return self.images.samples[index].name if isinstance(self.images, Dataset) else f"image {index}"

    def load(self, index: int, epoch: int) -> TextSample:
        """One image; what is drawn depends only on the seed, the epoch and the index."""
        generator = np.random.default_rng((self.options.seed, epoch, index))
        sample = self.images[index]
        if self.augmentation is not None:
            sample = augment(sample, self.augmentation, generator)
        return cut_objects(sample, self.options, generator)


def cut_objects(sample: SegmentationSample, options: TextOptions, generator: np.random.Generator) -> TextSample:
    """The objects that are large enough, at most `max_objects` drawn at random, and their crops."""
    large = np.flatnonzero(sample.masks.sum(axis=(1, 2)) >= options.min_area_px)
    if len(large) > options.max_objects:
        large = np.sort(generator.choice(large, options.max_objects, replace=False))
    masks = sample.masks[large]
    crops = []
    for mask in masks:
        x0, y0, x1, y1 = (float(side) for side in mask_to_box(mask))
        crop = square_crop(sample.image, mask, (x0, y0, x1, y1), expand=float(generator.uniform(*options.expand)))
        if generator.random() < options.masked:
            crop = Crop(apply_style(crop, "masked", fill=(0, 0, 0)), crop.mask)
        crops.append(crop)
    return TextSample(sample.image, masks, tuple(crops), int(generator.integers(2**62)))


class TextTask:
    """The task of `Loop` that trains a `Sam` to take vectors of an encoder as prompts."""

    metrics = ("loss", "iou_text", "iou_last")
    default_lr = 1e-4

    def __init__(
        self,
        sam: Sam,
        encoder: TextImageEncoder,
        train: Images,
        held_out: Images,
        options: TextOptions | None = None,
        augmentation: AugmentOptions | None = None,
    ) -> None:
        """Give the model a projection as wide as the encoder's vectors (one that is there is kept).

        Args:
            sam: the model; trained in place.
            encoder: stays as it is.
            train: images to learn from.
            held_out: images to judge by.
            options: how objects become prompts.
            augmentation: None leaves images as they are.

        Raises:
            ValueError: if there is no image to learn from, or the model's projection has another width.
        """
        if not len(train):
            raise ValueError("train must hold at least one image; got none.")
        self.options = options or TextOptions()
        self.encoder = encoder
        width = int(np.shape(encoder.encode_text(["object"]))[1])
        attach_text(sam.prompt_encoder, width)
        sam.image_encoder.requires_grad_(self.options.train_image_encoder)
        self.sam = sam
        self.module: nn.Module = Trainee(sam, None)
        self.source = TextSource(train, self.options, augmentation)
        self.held_out = TextSource(held_out, self.options, None)

    def learn(self, batch: Sequence[TextSample]) -> Learned:
        """Forward and backward of every image, gradients of sums over objects.

        The rounds differentiate down to the embedding, a leaf; one pass carries their sum through the encoder.
        """
        sums = dict.fromkeys(self.metrics, 0.0)
        usable = [sample for sample in batch if len(sample.masks)]
        embeddings = self.sam.encode_batch([sample.image for sample in usable])
        carried: list[tuple[torch.Tensor, torch.Tensor]] = []
        for sample, embedding in zip(usable, embeddings, strict=True):
            leaf = embedding.features.detach().requires_grad_(embedding.features.requires_grad)
            self._learn_rounds(sample, leaf, self._targets(sample, embedding.geometry), sums)
            if leaf.grad is not None:
                carried.append((embedding.features, leaf.grad))
        if carried:
            torch.autograd.backward([features for features, _ in carried], [gradient for _, gradient in carried])
        return Learned(float(sum(len(sample.masks) for sample in usable)), sums)

    def _learn_rounds(
        self, sample: TextSample, features: torch.Tensor, targets: Targets, sums: dict[str, float]
    ) -> None:
        """Text alone, then text and points; every round is differentiated by itself."""
        prompt_encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        generator = torch.Generator(features.device).manual_seed(sample.seed)
        vectors, count = self._vectors(sample.crops), len(targets)
        position = prompt_encoder.get_dense_pe()
        plan = [False, *plan_rounds(self.options.rounds, generator)]
        points: tuple[torch.Tensor, torch.Tensor] | None = None
        previous: torch.Tensor | None = None
        for number, new_point in enumerate(plan):
            if new_point and previous is not None:
                points = self._with_click(points, *random_error_points(previous[:, 0] > 0, targets.solid, generator))
            sparse, dense = encode_text_prompts(prompt_encoder, vectors, points, None, previous)
            dense = prompt_encoder.ground(dense, features)
            logits, quality = decoder.predict_masks(features, position, sparse, dense)
            first = "point" if number == 0 else None  # a phrase is as ambiguous as a click
            loss, chosen = round_loss(logits, quality, targets.truth, first, paper_only=False)
            (loss * count / len(plan)).backward()
            previous = logits.detach().float()[torch.arange(count), chosen][:, None]
            reached = float(true_iou(previous, targets.truth).sum())
            sums["loss"] += float(loss.detach()) * count / len(plan)
            sums["iou_text"] += reached if number == 0 else 0.0
            sums["iou_last"] += reached if number == len(plan) - 1 else 0.0

    def _with_click(
        self, points: tuple[torch.Tensor, torch.Tensor] | None, cells_xy: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One more click an object, in input pixels."""
        pixels = self.sam.image_size / self.sam.mask_input_size
        new = ((cells_xy[:, None] + 0.5) * pixels - 0.5), labels[:, None]
        return new if points is None else (torch.cat([points[0], new[0]], 1), torch.cat([points[1], new[1]], 1))

    def _targets(self, sample: TextSample, geometry: ImageGeometry) -> Targets:
        labels = np.zeros(len(sample.masks), dtype=np.int64)
        return make_targets(sample.masks, labels, geometry, self.sam.mask_input_size).to(self.sam.device)

    def _vectors(self, crops: Sequence[Crop]) -> torch.Tensor:
        """(N, D) of the objects' pictures."""
        images = [crop.image for crop in crops]
        with torch.no_grad():
            if self.options.attend_inside and isinstance(self.encoder, TransformersEncoder):
                vectors = self.encoder.encode_image(images, [crop.mask for crop in crops])
            else:
                vectors = torch.as_tensor(self.encoder.encode_image(images))
        return vectors.detach().clone().to(self.sam.device)  # leaves inference mode, if the encoder used it

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean IoU of the mask with the highest predicted IoU, prompted by the held-out objects' pictures alone."""
        values, losses = [], []
        for index in range(len(self.held_out)):
            sample = self.held_out.load(index, epoch=0)
            if not len(sample.masks):
                continue
            embedding = self.sam.encode(sample.image)
            decoded = decode_text(self.sam, embedding, self._vectors(sample.crops))
            truth = self._targets(sample, embedding.geometry).truth
            losses.append(float(interactive_loss(decoded.low_res_logits, decoded.iou_predictions, truth).total))
            values.extend(true_iou(decoded.best().low_res_logits, truth)[:, 0].tolist())
        score = float(np.mean(values)) if values else 0.0
        return {"loss": float(np.mean(losses)) if losses else 0.0, "iou_text": score, "score": score}

    def save(self, folder: Path, stem: str) -> None:
        """Write the model with its text projection, which `text.load_text_sam` reads."""
        save_checkpoint(self.sam, folder / f"{stem}.safetensors")

    def identity(self) -> dict[str, Any]:
        """The options and the model."""
        return {"task": "text", "model": self.sam.name, **asdict(self.options)}
