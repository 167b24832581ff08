"""A SAM trained with text: a phrase as its prompt, alone or beside points and boxes.

The encoder must be the one the model was trained with; `training/text.py` is the training.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from segment_anything.architectures import assemble
from segment_anything.checkpoints import load_checkpoint, read_checkpoint
from segment_anything.embedding import ImageEmbedding
from segment_anything.modeling import Decoded, Sam
from segment_anything.modeling.text_prompt import ATTRIBUTE, attach_text, encode_text_prompts, text_projection
from segment_anything.text.encoders import TextImageEncoder

_WEIGHT = f"prompt_encoder.{ATTRIBUTE}.linear.weight"


def takes_text(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether the weights in a file were trained with text."""
    return _WEIGHT in read_checkpoint(checkpoint).tensors


def load_text_sam(
    name: str,
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    image_size: int | None = None,
) -> Sam:
    """A model with weights that were trained with text (`save_checkpoint` of such a model), in eval mode.

    Args:
        name: of the architecture, such as "vit_b" or "nano".
        checkpoint: path of the weights.
        device: where it goes.
        image_size: side of the square input in pixels; None for the architecture's own.

    Raises:
        ValueError: if the weights take no text, or are for another model.
    """
    file = read_checkpoint(checkpoint)
    if _WEIGHT not in file.tensors:
        raise ValueError(f"{file.path} was not trained with text: it has no {_WEIGHT}. Load it with load_sam.")
    sam = assemble(name, image_size)
    attach_text(sam.prompt_encoder, file.tensors[_WEIGHT].shape[1])
    load_checkpoint(sam, file)
    return sam.to(device).eval()


def decode_text(
    sam: Sam, embedding: ImageEmbedding, vectors: Any, *, multimask_output: bool = True, batch_size: int = 64
) -> Decoded:
    """Masks of one image for N vectors of the text encoder.

    Args:
        sam: a model trained with text.
        embedding: of the image.
        vectors: (N, D), array or tensor.
        multimask_output: three masks a phrase, or one.
        batch_size: phrases decoded at once.

    Raises:
        ValueError: if the model takes no text, or vectors of another width.
    """
    rows = torch.as_tensor(np.asarray(vectors) if not isinstance(vectors, torch.Tensor) else vectors).to(sam.device)
    position = sam.prompt_encoder.get_dense_pe()
    features = embedding.features.to(sam.device, sam.dtype)
    masks, qualities = [], []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        sparse, dense = encode_text_prompts(sam.prompt_encoder, part)
        dense = sam.prompt_encoder.ground(dense, features)
        low_res, quality = sam.mask_decoder(features, position, sparse, dense, multimask_output)
        masks.append(low_res)
        qualities.append(quality)
    return Decoded(torch.cat(masks), torch.cat(qualities), embedding.geometry)


class TextPrompter:
    """A SAM trained with text and the encoder it was trained with."""

    def __init__(self, sam: Sam, encoder: TextImageEncoder) -> None:
        """Pair them.

        Raises:
            ValueError: if the model takes no text, or the encoder's vectors have another width.
        """
        projection = text_projection(sam.prompt_encoder)
        if projection is None:
            raise ValueError("sam takes no text: load it with text.load_text_sam, or train it (training.text).")
        self.sam, self.encoder = sam, encoder
        width = int(np.shape(encoder.encode_text(["object"]))[1])
        if width != projection.text_dim:
            raise ValueError(
                f"encoder gives vectors of width {width}, and the model was trained with {projection.text_dim}. "
                f"Use the encoder it was trained with."
            )

    @torch.inference_mode()
    def decode(self, embedding: ImageEmbedding, phrases: Sequence[str]) -> Decoded:
        """Three masks a phrase; `grounding.segment(image, phrase, by=...)` makes records of them."""
        return decode_text(self.sam, embedding, self.encoder.encode_text(list(phrases)))
