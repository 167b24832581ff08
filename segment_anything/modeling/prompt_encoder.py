"""Points, boxes and masks -> the tokens and the dense map that the mask decoder reads.

Segment Anything (https://arxiv.org/abs/2304.02643), appendix A "Prompt encoder". Parameter names are those of the
published checkpoints. Coordinates here are input pixels; callers map original pixels with `ImageGeometry`.

Letters: N objects, P points of each, T tokens of each, C width, g embedding cells a side.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from segment_anything.modeling.common import LayerNorm2d

Points = tuple[torch.Tensor, torch.Tensor]
"""Coordinates (N, P, 2) in input pixels and labels (N, P): 1 foreground, 0 background, -1 padding."""


class PromptEncoder(nn.Module):
    """Encodes the prompts of N objects at once; every object has the same number of points."""

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        """Build the encoder.

        Args:
            embed_dim: C, the width of tokens and of the image embedding.
            image_embedding_size: (g, g).
            input_image_size: height and width of the model's input, padding included.
            mask_in_chans: hidden channels for mask prompts.
            activation: activation between the layers for mask prompts.
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.input_image_size = input_image_size
        self.image_embedding_size = image_embedding_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        # In this order: background point, foreground point, first and second box corner.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            activation(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            activation(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> torch.Tensor:
        """(1, C, g, g): the position code of every embedding cell."""
        pe: torch.Tensor = self.pe_layer(self.image_embedding_size)
        return pe[None].to(self.no_mask_embed.weight.dtype)

    def forward(
        self, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode the prompts of N objects.

        Args:
            points: coordinates (N, P, 2) in input pixels and labels (N, P), or None.
            boxes: (N, 4) XYXY in input pixels, or None.
            masks: (N, 1, 4g, 4g) logits, or None.

        Returns:
            Tokens (N, T, C), T may be 0, and the dense map (N, C, g, g).
        """
        count = self._count(points, boxes, masks)
        tokens = []
        if points is not None:
            tokens.append(self._embed_points(*points, pad=boxes is None))
        if boxes is not None:
            tokens.append(self._embed_boxes(boxes))
        dense = self._embed_masks(masks) if masks is not None else self._no_mask(count)
        if not tokens:
            return self.no_mask_embed.weight.new_empty((count, 0, self.embed_dim)), dense
        return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1), dense

    def ground(self, dense: torch.Tensor, image_embeddings: torch.Tensor) -> torch.Tensor:
        """What the dense prompt becomes when it meets an image; here it stays as it is.

        Args:
            dense: (N, C, g, g), from `forward`.
            image_embeddings: (1 or N, C, g, g).

        Returns:
            (N, C, g, g), which the mask decoder adds to the image embedding.
        """
        return dense

    def _count(self, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None) -> int:
        for tensor in (points[0] if points is not None else None, boxes, masks):
            if tensor is not None:
                return tensor.shape[0]
        return 1

    def _embed_points(self, coords: torch.Tensor, labels: torch.Tensor, pad: bool) -> torch.Tensor:
        centres = coords + 0.5  # of pixels
        code = self.pe_layer.forward_with_coords(centres, self.input_image_size).to(self.no_mask_embed.weight.dtype)
        role, none = labels[..., None], self.not_a_point_embed.weight
        code = torch.where(role == -1, none, code)
        code = torch.where(role == 0, code + self._role(0), code)
        code = torch.where(role == 1, code + self._role(1), code)
        # one that is none, so that a model sees the same number of tokens' roles with and without a box
        return torch.cat([code, none.expand(len(code), 1, -1)], dim=1) if pad else code

    def _role(self, index: int) -> torch.Tensor:
        weight: torch.Tensor = self.point_embeddings[index].weight  # type: ignore[assignment]
        return weight

    def _embed_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        corners = (boxes + 0.5).reshape(-1, 2, 2)
        code = self.pe_layer.forward_with_coords(corners, self.input_image_size).to(self.no_mask_embed.weight.dtype)
        return code + torch.cat([self._role(2), self._role(3)])

    def _embed_masks(self, masks: torch.Tensor) -> torch.Tensor:
        dense: torch.Tensor = self.mask_downscaling(masks)
        return dense

    def _no_mask(self, count: int) -> torch.Tensor:
        return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, *self.image_embedding_size)


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of a position (https://arxiv.org/abs/2006.10739).

    The frequencies and the arithmetic stay float32 in a half-precision model: an angle of many turns has no digits left
    in bfloat16.
    """

    def __init__(self, num_pos_feats: int = 64, scale: float | None = None) -> None:
        super().__init__()
        if scale is None or scale <= 0.0:
            scale = 1.0
        self.positional_encoding_gaussian_matrix: torch.Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", scale * torch.randn((2, num_pos_feats)))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        exact = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.positional_encoding_gaussian_matrix
        if moved.dtype in (torch.bfloat16, torch.float16):
            self.positional_encoding_gaussian_matrix = exact.to(moved.device)
        return self

    def _pe_encoding(self, coords: torch.Tensor) -> torch.Tensor:
        """(..., 2) positions in 0..1 -> (..., 2 * num_pos_feats)."""
        matrix = self.positional_encoding_gaussian_matrix
        angle = 2 * math.pi * ((2 * coords - 1).to(matrix.dtype) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def forward(self, size: tuple[int, int]) -> torch.Tensor:
        """The code (C, h, w) of every cell's centre of a grid of `size` = (h, w)."""
        (h, w), matrix = size, self.positional_encoding_gaussian_matrix
        y = (torch.arange(h, device=matrix.device, dtype=torch.float32) + 0.5) / h
        x = (torch.arange(w, device=matrix.device, dtype=torch.float32) + 0.5) / w
        grid = torch.stack([x[None, :].expand(h, w), y[:, None].expand(h, w)], dim=-1)
        return self._pe_encoding(grid).permute(2, 0, 1)

    def forward_with_coords(self, coords_input: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """The code (..., C) of points (..., 2) = (x, y) in pixels of an image of `image_size` = (h, w)."""
        coords, (height, width) = coords_input.to(torch.float32), image_size
        if height == width:
            return self._pe_encoding(coords / float(width))
        return self._pe_encoding(torch.stack([coords[..., 0] / float(width), coords[..., 1] / float(height)], dim=-1))
