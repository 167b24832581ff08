"""The cells of objects, each made whole, without gradients: for mask prompts, many tokens, half precision and GPUs.

The image-side weights of an attention are carried over to the few tokens (`carried_attention`). What all objects of an
image share at the first block is computed once an image.

Letters: B objects, b of them together, T tokens, N = g * g image cells, C width, M heads, d head width.
"""

from collections.abc import Sequence
from functools import cached_property, partial

import torch

from segment_anything.modeling.carried_attention import Heads
from segment_anything.modeling.linear import linear
from segment_anything.modeling.prepared_attention import Block, Update
from segment_anything.modeling.prepared_upscaler import FirstLayer, Upscaler


class WholeImage:
    """What the cells of an image's objects begin with."""

    def __init__(
        self, blocks: Sequence[Block], final: Heads, cells: torch.Tensor, code: torch.Tensor, is_shared: bool
    ) -> None:
        """Prepare an image.

        Args:
            blocks: of the transformer.
            final: its last look at the image.
            cells: (1, N, C).
            code: position code (1, N, C).
            is_shared: whether all objects begin with these cells; no dense prompt is to be added.
        """
        self.blocks, self.final, self.cells, self.code, self.is_shared = blocks, final, cells, code, is_shared

    @cached_property
    def first(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Keys (M, d, N), values (M, N, d) and queries (M, d, N) of the first cells, if all objects share them."""
        if not self.is_shared:
            return None
        coded, to_image, to_tokens = self.cells + self.code, self.blocks[0].to_image, self.blocks[0].to_tokens
        return (
            to_image.split(linear(coded, to_image.module.k_proj.weight, None)).transpose(1, 2),
            to_image.split(linear(self.cells, to_image.module.v_proj.weight, None)),
            to_tokens.split(to_tokens.module.q_proj(coded)).transpose(1, 2) * to_tokens.scale,
        )


class WholeObjects:
    """Objects of an image that are decoded together.

    What a block's tokens tell the cells changes no token, so it is put off until the next look at the image: each
    object's cells are then visited once a block.
    """

    def __init__(self, image: WholeImage, parts: Sequence[slice], cells: list[torch.Tensor]) -> None:
        """Args: parts: which objects to take together; cells: of each part (b or 1, N, C)."""
        self.image, self.parts, self.cells = image, parts, cells
        self._told: Update | None = None

    def look(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (B, T, C) look at the image before block `index`, or after all of them -> (B, T, C)."""
        image = self.image
        heads = image.blocks[index].to_image if index < len(image.blocks) else image.final
        if index == 0 and image.first is not None:
            keys, values, _ = image.first
            q = heads.split(heads.module.q_proj(tokens)) * heads.scale  # M BT d
            return heads.output(torch.bmm(torch.bmm(q, keys).softmax(dim=-1), values), len(tokens))
        carried = heads.carried_queries(tokens)
        pooled = torch.cat([self._pool(i, carried[part]) for i, part in enumerate(self.parts)])
        self._told = None
        return heads.pooled(pooled)

    def tell(self, index: int, queries: torch.Tensor, tokens: torch.Tensor) -> None:
        """What the queries (B, T, C) of block `index` tell the cells; tokens: as they came."""
        known = self.image.first[2] if self.image.first is not None and index == 0 else None
        self._told = Update.of(self.image.blocks[index], queries, tokens, known)

    def first_layer(self, index: int, upscaler: Upscaler) -> FirstLayer:
        """The upscaler's first layer of an object's cells."""
        return partial(_first_layer, self.each()[index], upscaler)

    def each(self) -> list[torch.Tensor]:
        """The cells (N, C) of every object."""
        return [one for part in self.cells for one in part.unbind(0)]

    def _pool(self, i: int, carried: torch.Tensor) -> torch.Tensor:
        """Each token's and head's average of the cells of part i, by carried queries (b, M * T, C)."""
        if self._told is not None:
            is_own = self.cells[i] is not self.image.cells
            self.cells[i] = self._told.apply(self.parts[i], self.cells[i], self.image.code, in_place=is_own)
        cells = self.cells[i]
        coded = cells + self.image.code
        return torch.bmm(torch.bmm(carried, coded.transpose(1, 2)).softmax(dim=-1), cells)


def _first_layer(cells: torch.Tensor, upscaler: Upscaler, part: slice) -> torch.Tensor:
    return linear(cells[part], *upscaler.first)
