"""`predict` with the classes that fine-tuning learned (`best.classes.safetensors` beside a checkpoint)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

if TYPE_CHECKING:
    import torch

    from segment_anything.embedding import ImageEmbedding
    from segment_anything.grounding import Grounded
    from segment_anything.modeling import Decoded, Sam
    from segment_anything.training.classes import ClassHead, ClassPrompts


def load_learned(file: Path, sam: Sam) -> ClassHead | ClassPrompts:
    """The classes in a file, on the device of the model that they were learned with.

    Raises:
        ValueError: if the file holds none, or those of a model of another width.
    """
    from segment_anything.training.classes import load_classes

    learned = load_classes(file)
    if learned.channels != sam.prompt_encoder.embed_dim:
        raise ValueError(
            f"{file} was learned with a model of {learned.channels} channels, {sam.name} has "
            f"{sam.prompt_encoder.embed_dim}: give the --model and --checkpoint that it lies beside."
        )
    return learned.to(sam.device, sam.dtype)


def draws_whole_image(learned: ClassHead | ClassPrompts, *, pointed: bool) -> bool:
    """Whether the classes are drawn without being pointed at; a usage error if that is not what was asked."""
    from segment_anything.training.classes import ClassPrompts

    whole = isinstance(learned, ClassPrompts)
    if whole and pointed:
        raise typer.BadParameter("these --classes draw the whole image: give no --point, --box or --mask.")
    if not whole and not pointed:
        raise typer.BadParameter("these --classes name masks: point at objects with --point, --box or --mask.")
    return whole


def segment_learned(sam: Sam, pixels: np.ndarray, learned: ClassPrompts) -> Grounded:
    """One mask for each class that is in the image; no pixel is in two."""
    import torch

    from segment_anything.grounding import Grounded, Seconds
    from segment_anything.masks import encode_rle
    from segment_anything.records import make_record

    start = time.perf_counter()
    with torch.inference_mode():
        embedding = sam.encode(pixels)
        encoded = time.perf_counter()
        labels = learned.segment(sam, embedding).cpu().numpy()
        quality = learned(sam, embedding.features)[1][:, 0].float().tolist()
    records = tuple(
        {
            **make_record(encode_rle(labels == index + 1), predicted_iou=quality[index]),
            "category": name,
            "category_score": min(1.0, max(0.0, quality[index])),
        }
        for index, name in enumerate(learned.classes)
        if (labels == index + 1).any()
    )
    seconds = Seconds(encode=encoded - start, masks=time.perf_counter() - encoded)
    return Grounded((pixels.shape[0], pixels.shape[1]), records, seconds=seconds)  # type: ignore[arg-type]


def names_of(learned: ClassHead, embedding: ImageEmbedding, decoded: Decoded) -> list[tuple[str, float]]:
    """Class and probability of every mask of `decoded`, object by object."""
    from segment_anything.modeling import Decoded

    named: list[tuple[str, float]] = []
    for low_res, quality in zip(decoded.low_res_logits, decoded.iou_predictions, strict=True):
        masks: torch.Tensor = low_res[:, None]  # each mask of the object as an object of its own
        found = learned.classify(embedding, Decoded(masks, quality[:, None], decoded.geometry))
        named += [(learned.classes[int(index)], float(share)) for index, share in zip(*found, strict=True)]
    return named
