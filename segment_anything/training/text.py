"""Train a SAM to take text, without text: the picture of an object is its prompt, and later a phrase takes its place.

The recipe of Segment Anything (https://arxiv.org/abs/2304.02643), appendix D.5. For masks larger than 100 x 100 pixels
the box is expanded by a random factor from 1 to 2 and cut out square; in half of the crops what is outside the mask is
set to zero; CLIP's image encoder, whose output token attends in the last layer only to the mask, turns the crop into a
vector. The model is prompted with it first, then with points where it was wrong. As CLIP's vectors of texts and of
pictures are aligned, phrases prompt it afterwards (`text.TextPrompter`).

Letters: N objects, D width of the encoder's vectors, g embedding cells a side.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from segment_anything.checkpoints import save_checkpoint
from segment_anything.datasets import SegmentationSample
from segment_anything.embedding import ImageEmbedding
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Sam
from segment_anything.modeling.text_prompt import attach_text, encode_text_prompts
from segment_anything.simulate import random_error_points
from segment_anything.text import Crop, TextImageEncoder, TransformersEncoder, apply_style, square_crop
from segment_anything.text.prompting import decode_text
from segment_anything.training.augment import AugmentOptions, augment
from segment_anything.training.losses import MaskLoss, interactive_loss, true_iou
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
    rounds: int = 8
    """Points after the first prompt."""
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
        if self.rounds < 0:
            raise ValueError(f"rounds must not be negative; got {self.rounds}.")
        if self.max_objects < 1:
            raise ValueError(f"max_objects must be at least 1; got {self.max_objects}.")


class Readable(Protocol):
    """One image of a data set, such as `datasets.Sample`."""

    name: str

    def read(self) -> SegmentationSample:
        """Its pixels and masks."""
        ...


@dataclass(frozen=True)
class TextSample:
    """One image with the crops that prompt for its objects."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    masks: np.ndarray
    """(N, H, W) bool; N may be 0."""
    crops: tuple[Crop, ...]
    """The picture of each object, already styled, and the mask in it."""


class TextSource:
    """Reads, augments and cuts: a training source for `Loop`."""

    def __init__(self, samples: Sequence[Readable], options: TextOptions, augmentation: AugmentOptions | None) -> None:
        self.samples, self.options, self.augmentation = samples, options, augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The image's name."""
        return self.samples[index].name

    def load(self, index: int, epoch: int) -> TextSample:
        """One image; what is drawn depends only on the seed, the epoch and the index."""
        generator = np.random.default_rng((self.options.seed, epoch, index))
        sample = self.samples[index].read()
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
    return TextSample(sample.image, masks, tuple(crops))


class TextTask:
    """The task of `Loop` that trains a `Sam` to take vectors of an encoder as prompts."""

    metrics = ("loss", "iou_text", "iou_last")
    default_lr = 1e-4

    def __init__(
        self,
        sam: Sam,
        encoder: TextImageEncoder,
        train: Sequence[Readable],
        held_out: Sequence[Readable],
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
        self.module = self.sam = sam
        self.source = TextSource(train, self.options, augmentation)
        self.held_out = TextSource(held_out, self.options, None)
        self._points = torch.Generator().manual_seed(self.options.seed)

    def learn(self, batch: Sequence[TextSample]) -> Learned:
        """Forward and backward of every image, gradients of sums over objects."""
        sums = dict.fromkeys(self.metrics, 0.0)
        usable = [sample for sample in batch if len(sample.masks)]
        if not usable:
            return Learned(0.0, sums)
        total: torch.Tensor = torch.zeros((), device=self.sam.device)
        embeddings = self.sam.encode_batch([sample.image for sample in usable])
        for sample, embedding in zip(usable, embeddings, strict=True):
            count = len(sample.masks)
            first, last, mean = self._rounds(sample, embedding)
            total = total + mean * count
            sums["iou_text"] += float(first.iou.amax(dim=1).sum())
            sums["iou_last"] += float(last.iou.amax(dim=1).sum())
        total.backward()  # type: ignore[no-untyped-call]
        sums["loss"] = float(total.detach())
        return Learned(float(sum(len(sample.masks) for sample in usable)), sums)

    def _rounds(self, sample: TextSample, embedding: ImageEmbedding) -> tuple[MaskLoss, MaskLoss, torch.Tensor]:
        """The loss of the first and of the last round, and the mean over all: text alone, then text and points."""
        sam, vectors = self.sam, self._vectors(sample.crops)
        truth = low_res_truth(sample.masks, embedding.geometry, sam.mask_input_size).to(sam.device)
        position = sam.prompt_encoder.get_dense_pe()
        points: tuple[torch.Tensor, torch.Tensor] | None = None
        previous: torch.Tensor | None = None
        losses: list[MaskLoss] = []
        for turn in range(1 + self.options.rounds):
            sparse, dense = encode_text_prompts(sam.prompt_encoder, vectors, points, None, previous)
            logits, quality = sam.mask_decoder(embedding.features, position, sparse, dense, turn == 0)
            losses.append(interactive_loss(logits, quality, truth))
            best = quality.detach().argmax(dim=1)
            previous = logits.detach()[torch.arange(len(best)), best][:, None]
            points = self._add_points(points, previous[:, 0] > sam.mask_threshold, truth[:, 0] > 0.5)
        return losses[0], losses[-1], torch.stack([loss.total for loss in losses]).mean()

    def _add_points(
        self, points: tuple[torch.Tensor, torch.Tensor] | None, predicted: torch.Tensor, truth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One more click an object where the mask is wrong, in input pixels."""
        where, label = random_error_points(predicted.cpu(), truth.cpu(), self._points)
        pixels = self.sam.image_size / self.sam.mask_input_size
        new = ((where[:, None] + 0.5) * pixels - 0.5).to(self.sam.device), label[:, None].to(self.sam.device)
        return new if points is None else (torch.cat([points[0], new[0]], 1), torch.cat([points[1], new[1]], 1))

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
        self.sam.eval()
        values, losses = [], []
        for index in range(len(self.held_out)):
            sample = self.held_out.load(index, epoch=0)
            if not len(sample.masks):
                continue
            embedding = self.sam.encode(sample.image)
            decoded = decode_text(self.sam, embedding, self._vectors(sample.crops))
            truth = low_res_truth(sample.masks, embedding.geometry, self.sam.mask_input_size).to(self.sam.device)
            losses.append(float(interactive_loss(decoded.low_res_logits, decoded.iou_predictions, truth).total))
            values.extend(true_iou(decoded.best().low_res_logits, truth)[:, 0].tolist())
        self.sam.train()
        score = float(np.mean(values)) if values else 0.0
        return {"loss": float(np.mean(losses)) if losses else 0.0, "iou_text": score, "score": score}

    def save(self, folder: Path, stem: str) -> None:
        """Write the model with its text projection, which `text.load_text_sam` reads."""
        save_checkpoint(self.sam, folder / f"{stem}.safetensors")

    def identity(self) -> dict[str, Any]:
        """The options and the model."""
        return {"task": "text", "model": self.sam.name, **asdict(self.options)}


def low_res_truth(masks: np.ndarray, geometry: ImageGeometry, side: int) -> torch.Tensor:
    """Masks as the network draws them: (N, H, W) bool -> (N, 1, side, side) float 0 or 1, zero in the padding."""
    height, width = (max(1, round(length * side / geometry.image_size)) for length in geometry.input_size_hw)
    small = F.interpolate(torch.from_numpy(masks)[:, None].float(), size=(height, width), mode="area")
    return F.pad((small >= 0.5).float(), (0, side - width, 0, side - height))
