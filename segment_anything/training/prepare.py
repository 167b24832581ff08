"""Makes a `Sam` ready to be trained: what learns, what stays, what is computed twice; and embeds the images once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from segment_anything.checkpoints import read_checkpoint
from segment_anything.datasets import Dataset, SampleError, SkippedSamples
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import Block
from segment_anything.modeling.lora import add_lora
from segment_anything.modeling.mae import load_mae_weights
from segment_anything.training.augment import AugmentOptions, augment
from segment_anything.training.distributed import Workers
from segment_anything.training.embedding_cache import EmbeddingCache, Manifest
from segment_anything.training.sources import View


def choose_trained(sam: Sam, train: str, lora_rank: int) -> None:
    """Set what requires a gradient: prompt encoder and decoder, low-rank changes of encoder and decoder, or all."""
    sam.requires_grad_(True)
    if train == "decoder":
        sam.image_encoder.requires_grad_(False)
    elif train == "lora":
        sam.prompt_encoder.requires_grad_(False)
        add_lora(sam.image_encoder, rank=lora_rank)
        add_lora(sam.mask_decoder, rank=lora_rank)


def load_encoder(sam: Sam, path: Path) -> None:
    """Start from the image encoder in a file that `pretrain` or `distill` wrote, or from published MAE weights.

    Raises:
        CheckpointError: if the file cannot be read.
        ValueError: if it is of another encoder.
    """
    tensors = read_checkpoint(path).tensors
    if isinstance(sam.image_encoder, ImageEncoderViT):
        load_mae_weights(sam.image_encoder, tensors)
        return
    own = {name.removeprefix("image_encoder."): tensor for name, tensor in tensors.items()}
    try:
        sam.image_encoder.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the image encoder of {sam.name}: {str(error).splitlines()[1].strip()}"
        ) from error


def checkpoint_blocks(encoder: nn.Module) -> int:
    """Let every block keep only its input and compute the rest again when gradients pass; returns how many blocks."""
    blocks = encoder_blocks(encoder)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)


def encoder_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The residual blocks of any of the image encoders, in order."""
    if isinstance(encoder, ImageEncoderViT):
        return list(encoder.blocks)
    stages = [*getattr(encoder, "layers", []), *getattr(encoder, "stages", [])]
    return [block for stage in stages for block in (stage.blocks if hasattr(stage, "blocks") else stage)]


def set_drop_path(encoder: nn.Module, rate: float) -> None:
    """Drop blocks of a ViT in training, the last with chance `rate`, the first never.

    Raises:
        ValueError: if the encoder is no ViT.
    """
    blocks = [block for block in encoder_blocks(encoder) if isinstance(block, Block)]
    if rate and not blocks:
        raise ValueError(f"drop_path is for the ViT encoders, not for {type(encoder).__name__}; leave it at 0.")
    for index, block in enumerate(blocks):
        block.drop_path = rate * index / max(1, len(blocks) - 1)


def embed_views(
    dataset: Dataset,
    cache: EmbeddingCache,
    views: int,
    augmentation: AugmentOptions,
    seed: int,
    skipped: SkippedSamples,
    workers: Workers,
    progress: bool,
) -> tuple[tuple[View, ...], ...]:
    """Embed every image as it is and `views` - 1 times augmented; processes share the work.

    Returns:
        For each usable sample its views, in the order of the data set.

    Raises:
        ValueError: if too many samples cannot be read.
        SaveError: if the disk is full.
    """
    cache.check_space(len(dataset) * views)
    manifest = Manifest(cache, workers.rank)
    mine: dict[int, tuple[View, ...]] = {}
    bar = tqdm(total=len(dataset), unit="image", desc="embedding", disable=not (progress and workers.first))
    for index in range(workers.rank, len(dataset), workers.count):
        try:
            mine[index] = _embed_sample(dataset, index, cache, manifest, views, augmentation, seed)
        except SampleError as error:
            skipped.add(dataset.samples[index].name, str(error))
        bar.update(workers.count)
    bar.close()
    everyone: Sequence[dict[int, tuple[View, ...]]] = workers.gather(mine)
    merged = {index: found for part in everyone for index, found in part.items()}
    return tuple(merged[index] for index in sorted(merged))


def _embed_sample(
    dataset: Dataset,
    index: int,
    cache: EmbeddingCache,
    manifest: Manifest,
    views: int,
    augmentation: AugmentOptions,
    seed: int,
) -> tuple[View, ...]:
    source = dataset.samples[index]
    known = manifest.find(source.image_path) if views == 1 else None
    if known is not None:
        source.read_objects(known[1], len(dataset.classes))  # raises if the masks cannot be used
        return (View(index, 0, known[1], str(known[0])),)
    sample = dataset[index]
    size_hw = (sample.image.shape[0], sample.image.shape[1])
    found = []
    for number in range(views):
        view = View(index, number, size_hw)
        shown = augment(sample, augmentation, view.generator(seed)) if number else sample
        found.append(replace(view, path=str(cache.ensure(shown.image))))
    manifest.note(source.image_path, Path(found[0].path), size_hw)
    return tuple(found)


def model_seed(seed: int) -> None:
    """Seed what is drawn when parts are added to a model."""
    torch.manual_seed(int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0]))
