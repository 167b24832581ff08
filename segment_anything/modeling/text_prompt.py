"""Text as a prompt: one more token for the mask decoder, projected from the vector of a text encoder.

Segment Anything (https://arxiv.org/abs/2304.02643), appendix D.5: unit vectors of CLIP's image encoder prompt the model
in training, those of its text encoder afterwards. The projection hangs on a prompt encoder only where it is asked for,
as `text_projection`; without it the parameter names are those of the published checkpoints.

Letters: N objects, D width of the text encoder's vectors, C width of prompt tokens, T tokens, g embedding cells a side.
"""

import torch
from torch import nn

from segment_anything.modeling.prompt_encoder import Points, PromptEncoder

ATTRIBUTE = "text_projection"


class TextProjection(nn.Module):
    """A vector of a text or image encoder -> one prompt token."""

    def __init__(self, text_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.linear = nn.Linear(text_dim, embed_dim)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, D) vectors of any length -> (N, 1, C) tokens."""
        unit = nn.functional.normalize(vectors.to(self.linear.weight.dtype), dim=1)
        token: torch.Tensor = self.linear(unit * self.text_dim**0.5)  # entries near 1, as other tokens have
        return token[:, None]


def attach_text(prompt_encoder: PromptEncoder, text_dim: int) -> TextProjection:
    """Give a prompt encoder a projection for text vectors, with fresh weights.

    Args:
        prompt_encoder: of a `Sam`; one that has a projection of this width already keeps it.
        text_dim: D.

    Raises:
        ValueError: if it has a projection of another width.
    """
    present = text_projection(prompt_encoder)
    if present is not None and present.text_dim != text_dim:
        raise ValueError(f"text_dim: this model takes text vectors of width {present.text_dim}; got {text_dim}.")
    if present is not None:
        return present
    weight = prompt_encoder.no_mask_embed.weight
    projection = TextProjection(text_dim, prompt_encoder.embed_dim).to(weight.device, weight.dtype)
    setattr(prompt_encoder, ATTRIBUTE, projection)
    return projection


def detach_text(prompt_encoder: PromptEncoder) -> None:
    """Take the projection off again, which restores the published parameter names."""
    if text_projection(prompt_encoder) is not None:
        delattr(prompt_encoder, ATTRIBUTE)


def text_projection(prompt_encoder: PromptEncoder) -> TextProjection | None:
    """The projection of a prompt encoder, or None."""
    found = getattr(prompt_encoder, ATTRIBUTE, None)
    return found if isinstance(found, TextProjection) else None


def encode_text_prompts(
    prompt_encoder: PromptEncoder,
    vectors: torch.Tensor,
    points: Points | None = None,
    boxes: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode N objects named by a vector each, and by whatever else is known of them.

    Args:
        prompt_encoder: with a projection.
        vectors: (N, D).
        points, boxes, masks: as in `PromptEncoder.forward`, of the same N objects.

    Returns:
        Tokens (N, T, C), the text's last, and the dense map (N, C, g, g).

    Raises:
        ValueError: if there is no projection, or the vectors have another width.
    """
    projection = text_projection(prompt_encoder)
    if projection is None:
        raise ValueError("this model takes no text: call attach_text and train it, or load weights trained with text.")
    if vectors.ndim != 2 or vectors.shape[1] != projection.text_dim:
        raise ValueError(
            f"vectors must have shape (N, {projection.text_dim}), the width this model was trained with; got "
            f"{tuple(vectors.shape)}. Use the text encoder that it was trained with."
        )
    sparse, dense = prompt_encoder(points, boxes, masks)
    count = vectors.shape[0]
    tokens = projection(vectors.to(dense.device))
    return torch.cat([sparse.expand(count, -1, -1), tokens], dim=1), dense.expand(count, -1, -1, -1)
