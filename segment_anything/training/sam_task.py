"""Fine-tuning a `Sam` as a task for the loop: what a batch teaches, how the model is validated and saved.

Gradients of the encoder: the rounds of prompts differentiate down to the embedding, a leaf, one after the other; then
one backward pass carries the sum through the encoder. That is the gradient of the sum of all rounds, in the memory of
one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from segment_anything.datasets import Skipped
from segment_anything.modeling import Sam
from segment_anything.modeling.lora import merged_copy
from segment_anything.training.classes import ClassHead, ClassPrompts, save_classes
from segment_anything.training.files import write_checkpoint
from segment_anything.training.finetune_options import FinetuneOptions
from segment_anything.training.losses import interactive_loss, true_iou
from segment_anything.training.precision import Precision
from segment_anything.training.rounds import Round, train_on_image
from segment_anything.training.sources import EmbeddingSource, ImageSource, TrainingItem
from segment_anything.training.targets import Targets
from segment_anything.training.task import Learned
from segment_anything.training.validation import Validation

CLASS_WEIGHT = 1.0
"""Of the cross-entropy of the class head, against 20 focal + dice of a mask."""

DEFAULT_LR = {"decoder": 2e-4, "lora": 5e-4, "all": 1e-4}
"""Learning rates that suit a trained model; the paper's 8e-4 is for batches of 256 images from nothing."""


class Trainee(nn.Module):
    """A `Sam` and what is learned beside it, as one module."""

    def __init__(self, sam: Sam, classes: ClassHead | ClassPrompts | None) -> None:
        super().__init__()
        self.sam = sam
        self.classes = classes

    def train(self, mode: bool = True) -> "Trainee":
        """As `nn.Module.train`, but batch normalisation keeps its statistics: small batches would spoil them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class SamTask:
    """See `task.Task`."""

    def __init__(
        self,
        trainee: Trainee,
        source: ImageSource | EmbeddingSource,
        validation: Validation,
        options: FinetuneOptions,
        identity: dict[str, Any],
    ) -> None:
        """Train `trainee` on `source`.

        Args:
            trainee: its parameters that require a gradient are trained.
            source: images where the encoder is trained, else embeddings.
            validation: on held-out images.
            options: filled (no `None` that the preset decides).
            identity: what makes two runs the same, beside the options.
        """
        self.module: nn.Module = trainee
        self.trainee, self.sam, self.classes = trainee, trainee.sam, trainee.classes
        self.source = source
        self.validation = validation
        self.options = options
        self.default_lr = DEFAULT_LR[str(options.train)]
        self.precision = Precision(str(options.precision), self.sam.device)
        self.metrics: tuple[str, ...] = ("loss", "miou")
        if isinstance(self.classes, ClassHead):
            self.metrics = ("loss", "miou", "class_accuracy")
        self.skipped_before: tuple[Skipped, ...] = ()
        """Samples that were left out when the source was made."""
        self._identity = identity

    def learn(self, batch: Sequence[TrainingItem]) -> Learned:
        """Run all rounds on every image, and add up gradients."""
        sums = dict.fromkeys(self.metrics, 0.0)
        if not batch:
            return Learned(0.0, sums)
        embeddings = self._embed(batch)
        leaves = [embedding.detach().requires_grad_(embedding.requires_grad) for embedding in embeddings]
        weight = 0
        for item, leaf in zip(batch, leaves, strict=True):
            targets = item.targets.to(self.sam.device)
            if self.options.prompts == "none":
                weight += self._learn_semantic(leaf, targets, sums)
            elif len(targets):
                weight += self._learn_rounds(leaf, targets, item.seed, sums)
        used = [(whole, leaf.grad) for whole, leaf in zip(embeddings, leaves, strict=True) if leaf.grad is not None]
        if used:
            torch.autograd.backward([whole for whole, _ in used], [gradient for _, gradient in used])
        return Learned(float(weight), sums)

    def _embed(self, batch: Sequence[TrainingItem]) -> list[torch.Tensor]:
        """One embedding (1, C, g, g) an image; with a graph where the encoder is trained."""
        device = self.sam.device
        if isinstance(self.source, EmbeddingSource):
            return [item.image.to(device) for item in batch]
        inputs = torch.cat([self.sam.preprocess(item.image.to(device).float())[None] for item in batch])
        with self.precision():
            features = self.sam.image_encoder(inputs)
        return list(features.float().split(1))

    def _learn_rounds(self, leaf: torch.Tensor, targets: Targets, seed: int, sums: dict[str, float]) -> int:
        """All rounds for the objects of one image; returns their number."""
        generator = torch.Generator(self.sam.device).manual_seed(seed)
        with self.precision():
            for index, result in train_on_image(
                self.sam.prompt_encoder,
                self.sam.mask_decoder,
                leaf,
                targets,
                generator,
                rounds=int(self.options.rounds or 1),
                prompts=self.options.prompts,
                paper_only=self.options.paper_only,
                near=self.options.loss == "near",
            ):
                result.loss.backward()
                sums["loss"] += float(result.loss.detach())
                if result.last:
                    sums["miou"] += float(result.iou.sum())
                    self._learn_classes(leaf, result, targets.labels[index], sums)
        return len(targets)

    def _learn_classes(self, leaf: torch.Tensor, result: Round, labels: torch.Tensor, sums: dict[str, float]) -> None:
        if isinstance(self.classes, ClassHead):
            logits = self.classes(leaf, result.logits)
            loss = CLASS_WEIGHT * cross_entropy(logits, labels, reduction="sum")
            loss.backward()
            sums["loss"] += float(loss.detach())
            sums["class_accuracy"] += float((logits.argmax(dim=1) == labels).sum())

    def _learn_semantic(self, leaf: torch.Tensor, targets: Targets, sums: dict[str, float]) -> int:
        """One mask for each class of the whole image; returns the number of classes."""
        assert isinstance(self.classes, ClassPrompts)
        truth = class_masks(targets, len(self.classes.classes))
        with self.precision():
            logits, iou = self.classes(self.sam, leaf)
            loss = interactive_loss(logits, iou, truth).total * len(truth)
        loss.backward()
        sums["loss"] += float(loss.detach())
        present = truth.flatten(1).any(dim=1)
        if present.any():  # an absent class has no IoU
            sums["miou"] += float(true_iou(logits.detach(), truth)[present].mean()) * len(truth)
        return len(truth)

    def validate(self) -> dict[str, float]:
        """Figures on the held-out images."""
        return self.validation(self.sam, self.classes, self.options)

    def save(self, folder: Path, stem: str) -> None:
        """Write `stem.safetensors`, a plain checkpoint with low-rank changes merged, and the classes beside it."""
        plain = merged_copy(self.sam)
        assert isinstance(plain, Sam)
        write_checkpoint(plain, folder / f"{stem}.safetensors")
        if self.classes is not None:
            save_classes(self.classes, folder / f"{stem}.classes.safetensors")

    def identity(self) -> dict[str, Any]:
        """Options and starting weights."""
        prompts = ("prompts", "rounds", "objects", "classes", "paper_only", "loss")
        images = ("augment", "flip_vertical", "views", "cache_half")
        network = ("train", "precision", "lora_rank", "drop_path")
        return {**self._identity, **{name: getattr(self.options, name) for name in (*prompts, *images, *network)}}


def class_masks(targets: Targets, count: int) -> torch.Tensor:
    """(K, 1, s, s): the union of the objects of each class."""
    union = targets.truth.new_zeros(count, *targets.truth.shape[1:])
    index = targets.labels[:, None, None, None].expand_as(targets.truth)
    return union.scatter_reduce(0, index, targets.truth, reduce="amax")
