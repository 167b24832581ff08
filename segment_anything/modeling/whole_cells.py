"""The cells of objects, each made whole, without gradients: for mask prompts, many tokens, half precision and GPUs.

The image-side weights of an attention are carried over to the few tokens (`carried_attention`). What all objects of an
image share at the first block is computed once an image.

Letters: B objects, b of them together, T tokens, N = g * g image cells, C width, M heads, d head width.
"""

from collections.abc import Sequence
from functools import partial

import torch

from segment_anything.modeling.carried_attention import Heads, scores
from segment_anything.modeling.linear import linear
from segment_anything.modeling.once import Once
from segment_anything.modeling.prepared_attention import Block, Update
from segment_anything.modeling.prepared_upscaler import FirstLayer, Upscaler

First = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Keys (M, d, N), values (M, N, d) and queries (M, d, N) of the cells that all objects of an image begin with."""


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
        self.blocks, self.final, self.cells, self.code = blocks, final, cells, code
        self.first: Once[First | None] = Once(
            partial(_project_first, blocks[0], cells, code) if is_shared else _nothing
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
        first = image.first() if index == 0 else None
        if first is not None:
            keys, values, _ = first
            q = heads.split(heads.module.q_proj(tokens)) * heads.scale  # M BT d
            return heads.output(torch.bmm(torch.bmm(q, keys).softmax(dim=-1), values), len(tokens))
        carried = heads.carried_queries(tokens)
        pooled = torch.cat([self._pool(i, carried[part]) for i, part in enumerate(self.parts)])
        self._told = None
        return heads.pooled(pooled)

    def tell(self, index: int, queries: torch.Tensor, tokens: torch.Tensor) -> None:
        """What the queries (B, T, C) of block `index` tell the cells; tokens: as they came."""
        first = self.image.first() if index == 0 else None
        self._told = Update.of(self.image.blocks[index], queries, tokens, None if first is None else first[2])

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
        return torch.bmm(scores(carried, coded).softmax(dim=-1), cells)


def _first_layer(cells: torch.Tensor, upscaler: Upscaler, rows: slice, columns: slice) -> torch.Tensor:
    return linear(cells.view(*upscaler.size_hw, -1)[rows, columns].flatten(0, 1), *upscaler.first)


def _project_first(block: Block, cells: torch.Tensor, code: torch.Tensor) -> First:
    coded, look, tell = cells + code, block.to_image, block.to_tokens
    return (
        look.split(linear(coded, look.module.k_proj.weight, None)).transpose(1, 2),
        look.split(linear(cells, look.module.v_proj.weight, None)),
        tell.split(tell.module.q_proj(coded)).transpose(1, 2) * tell.scale,
    )


def _nothing() -> None:
    return None
