"""The cells of objects as what an image shares and a low rank of their own, without gradients: no object's are made.

What tokens tell the cells is attention weights times values, of rank M * T. A normalisation is linear but for one
factor a cell. So before any block, the N x C cells of an object that has no mask prompt are

    r * (Y + S' D)

with Y the image's, r a factor a cell, S the attention weights of all blocks so far, D what they carry. One block on:

    x       = r * (Y + S' D) + A' V = r * (Y + [S; A / r]' [D; V])      weights A, values V
    1 / r^2 = variance(Y + [S; A / r]' [D; V]) + epsilon / r^2          r as it was; epsilon the norm's
    S       = [S; A / r; 1 / r]                                         r as it was, then as it is
    Y, D    = g * centred(Y), [g * centred(D); g * centred(V); b]       g, b: the norm's weight and bias

The last row of S is 1 / r: what it carries is told to all cells alike. The weights of a head sum to 1, so its last
token needs no row: V of the others becomes what they differ from it, and the last row carries the rest. V and D are
linear in the few values of each head and token, with weights that are known once the model is (`Carried`).

Every product of the cells with weights, W' x, is then a product with W' Y, which is computed once an image, and one
with S, which has 49 rows for each block of the published decoder (8 heads, 7 tokens) instead of 256 columns. The
deviation needs no cells either: it is made of |Y|^2, Y V' and V V'. Exact in real arithmetic; `TwoWayTransformer` is
the definition (Segment Anything, https://arxiv.org/abs/2304.02643, appendix A "Lightweight mask decoder").

Letters: B objects, T tokens, N image cells, C width, M heads, d head width, R rows of S, L blocks so far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from segment_anything.modeling.carried_attention import Heads
from segment_anything.modeling.linear import linear
from segment_anything.modeling.prepared_attention import Block
from segment_anything.modeling.prepared_upscaler import FirstLayer, Upscaler

GAP = 16
"""Numbers between the rows of S: rows that lie a power of two apart take each other's place in the cache."""
PIECES = 8
"""Of the cells, for the one product whose factors are both of R rows: each stays in a core's cache (docs/log.md)."""


def most_tokens(blocks: Sequence[Block]) -> int:
    """With more tokens, of prompts and of the decoder's own, cells made whole take less time (docs/log.md)."""
    heads, _, width = blocks[0].to_image.q.shape
    return 3 * width // (4 * heads * len(blocks))


@dataclass(frozen=True, eq=False)
class Scores:
    """The image's side of the scores between tokens and cells, scaled."""

    heads: torch.Tensor
    """(M, d, C), the cells' projection."""
    shared: torch.Tensor
    """Y projected (M, d, N); at the first level, where r is 1, with the position code and the bias."""
    code: torch.Tensor | None
    """Position code and bias projected (M, d, N), at later levels."""

    @staticmethod
    def of(
        heads: torch.Tensor, bias: torch.Tensor | None, shared: torch.Tensor, code: torch.Tensor, is_first: bool
    ) -> "Scores":
        """Args: heads: (M, d, C); bias: (M * d,); shared: Y (N, C); code: (N, C)."""
        scale = 1 / math.sqrt(heads.shape[1])
        heads = heads * scale
        coded = _project(heads, shared + code if is_first else code)
        if bias is not None:
            coded.add_(bias.view(len(heads), -1, 1), alpha=scale)
        return Scores(heads, coded, None) if is_first else Scores(heads, _project(heads, shared), coded)

    def __call__(self, tokens: torch.Tensor, cells: "LowRankCells") -> torch.Tensor:
        """Tokens projected (M, T, d) -> (M, T, N)."""
        scores = torch.bmm(tokens, self.shared)
        if self.code is not None:
            own = torch.bmm(tokens, self.heads).view(-1, self.heads.shape[2])  # M T, C
            scores.view(len(own), -1).addmm_(own @ cells.carried.T, cells.rows)
            scores.mul_(cells.factors).baddbmm_(tokens, self.code)
        return scores


@dataclass(frozen=True, eq=False)
class Carried:
    """What the tokens of the blocks so far tell all cells, behind some weights: linear in their values."""

    weights: torch.Tensor
    """Of the values (L * M, d, W)."""
    constants: torch.Tensor
    """Of the output's bias, and that of the norm before each block (L, W)."""

    @staticmethod
    def of(told: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> "Carried":
        """Args: told: weights (M, d, W) and constant (W,) of each block."""
        return Carried(torch.cat([weights for weights, _ in told]), torch.stack([constant for _, constant in told]))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """All rows of D but the last (R - 1, W): of each block what it tells all cells alike, then what it tells each.

        Args:
            values: (L * M, T, d), as `LowRankObjects` has them.
        """
        told = torch.bmm(values, self.weights).unflatten(0, (len(self.constants), -1))  # L M T W
        alike = told[:, :, -1].sum(dim=1).add_(self.constants)
        return torch.cat([alike[:, None], told[:, :, :-1].flatten(1, 2)], dim=1).flatten(0, 1)

    def add_twice(self, index: int, values: torch.Tensor, out: torch.Tensor) -> None:
        """Twice the rows of one block, to be added to what is in `out`.

        Args:
            index: of the block.
            values: of all blocks (L * M, T, d).
            out: (pieces, 1 + M (T - 1), W / pieces).
        """
        (pieces, _, size), tokens = out.shape, values.shape[1]
        heads = len(values) // len(self.constants)
        own = slice(index * heads, (index + 1) * heads)
        told = torch.bmm(values[own], self.weights[own])  # M T W
        alike = told[:, -1].sum(dim=0).add_(self.constants[index])
        out[:, 0].add_(alike.view(pieces, size), alpha=2)
        others = told.view(heads, tokens, pieces, size)[:, :-1].permute(2, 0, 1, 3)
        out[:, 1:].view(others.shape).add_(others, alpha=2)


@dataclass(frozen=True, eq=False)
class Variance:
    """The image's side of a normalisation's variance: products of the centred Y (N, C)."""

    squares: torch.Tensor
    """|Y|^2 (N,)."""
    told: Carried
    """What is carried, centred, in products with Y: W = N."""

    def __call__(self, rows: torch.Tensor, values: torch.Tensor, carried: torch.Tensor) -> torch.Tensor:
        """The sum of the squares of Y + S' D over C (N,).

        Args:
            rows: S (R, N).
            values: (L * M, T, d).
            carried: D, centred (R, C).
        """
        pieces = rows.unflatten(1, (math.gcd(rows.shape[1], PIECES), -1)).transpose(0, 1)
        size = len(rows) // len(self.told.constants)
        total = self.squares.clone()
        for index, start in enumerate(range(0, len(rows), size)):
            weights = carried[start : start + size] @ carried[start:].T
            if start + size < len(rows):
                weights[:, size:] *= 2  # of two blocks each with the other
            products = torch.bmm(weights.expand(len(pieces), -1, -1), pieces[:, start:])
            self.told.add_twice(index, values, products)
            total += products.mul_(pieces[:, start : start + size]).sum(dim=1).flatten()
        return total.clamp_(min=0)  # rounding of a cell that is all one value


@dataclass(frozen=True, eq=False)
class Telling:
    """The second half of a block: the tokens tell the cells."""

    heads: Heads
    queries: Scores
    carried: Carried
    """D, centred: W = C."""
    variance: Variance
    norm: nn.LayerNorm


@dataclass(frozen=True, eq=False)
class Level:
    """What all objects of an image share before a block, or before the last look."""

    look: Heads
    keys: Scores
    values: torch.Tensor
    """(M, d, N), Y projected."""
    tell: Telling | None
    """None before the last look: nothing is told to the cells any more."""


class LowRankImage:
    """The levels of an image."""

    def __init__(
        self,
        blocks: Sequence[Block],
        final: Heads,
        cells: torch.Tensor,
        code: torch.Tensor,
        upscaling: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Prepare an image.

        Args:
            blocks: of the transformer.
            final: its last look at the image.
            cells: (N, C), with the dense prompt that all objects share.
            code: position code (N, C).
            upscaling: weight (C', C) and bias (C',) of the first linear layer behind the transformer.
        """
        shared, before = cells, torch.zeros_like(cells[0])
        told: list[tuple[torch.Tensor, torch.Tensor]] = []  # weights (M, d, C) and constant (C,) of each block
        self.levels: list[Level] = []
        for index, block in enumerate(blocks):
            look, tell, norm = block.to_image, block.to_tokens, block.module.norm4
            keys = Scores.of(look.k, None, shared, code, index == 0)
            queries = Scores.of(tell.q, tell.module.q_proj.bias, shared, code, index == 0)
            values = _project(look.v, shared)
            told.append((tell.o, before + tell.module.out_proj.bias))
            shared, told = _centred(shared), [(_centred(weights), _centred(constant)) for weights, constant in told]
            products = Carried.of([(_project(weights, shared), shared @ constant) for weights, constant in told])
            variance = Variance(shared.square().sum(dim=1), products)
            telling = Telling(tell, queries, Carried.of(told), variance, norm)
            self.levels.append(Level(look, keys, values, telling))
            shared, before = shared * norm.weight, norm.bias
            told = [(weights * norm.weight, constant * norm.weight) for weights, constant in told]
        values = _project(final.v, shared)
        keys = Scores.of(final.k, None, shared, code, not blocks)
        self.levels.append(Level(final, keys, values, None))
        weight, bias = upscaling
        self.upscaled = linear(shared, weight, None)
        """Y behind the first layer of the upscaling (N, C')."""
        self.carried = Carried.of([(weights @ weight.T, constant @ weight.T) for weights, constant in told])
        """What the rows of S carry behind that layer, but for the last, and of that (1, C')."""
        self.carried_last = (before @ weight.T + bias)[None]


class LowRankCells:
    """The cells of one object, before some block; `tell` moves them behind it."""

    def __init__(self, room: torch.Tensor, width: int) -> None:
        """Args: room: (R, N), for S as it will be behind all blocks; width: C."""
        self._room, self._filled = room, 1
        room[0] = 1
        self.factors = room[0]
        """r (N,)."""
        self._spread = room[0]
        """1 / r^2 (N,)."""
        self.carried = room.new_zeros((1, width))
        """D (R, C)."""

    @property
    def rows(self) -> torch.Tensor:
        """S (R, N), as it is so far."""
        return self._room[: self._filled]

    def pool(self, level: Level, queries: torch.Tensor) -> torch.Tensor:
        """Averages of the projected cells by queries (M, T, d) -> (M, T, d), without the values' bias."""
        weights = level.keys(queries, self).softmax(dim=2)
        if self._filled == 1:
            return torch.bmm(weights, level.values.transpose(1, 2))
        weights.mul_(self.factors)
        own = (weights.view(-1, weights.shape[2]) @ self.rows.T @ self.carried).view(*weights.shape[:2], -1)  # M T C
        return torch.bmm(weights, level.values.transpose(1, 2)).baddbmm_(own, level.look.v.transpose(1, 2))

    def tell(self, telling: Telling, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move behind a block whose tokens have keys (M, T, d); values (L * M, T, d) of all blocks so far."""
        weights = telling.queries(keys, self).softmax(dim=1)[:, :-1]
        before, self._filled = self._filled, self._filled + weights.shape[0] * weights.shape[1]
        told = self._room[before : self._filled].view(weights.shape)
        torch.mul(weights, self._room[before - 1], out=told)  # by 1 / r
        carried, norm = telling.carried(values), telling.norm
        variance = telling.variance(self.rows, values, carried).div_(carried.shape[1])
        self._spread = variance.add_(self._spread, alpha=norm.eps)
        last = torch.sqrt(self._spread, out=self._room[self._filled])
        self._filled += 1
        self.factors = last.reciprocal()
        self.carried = torch.cat([carried.mul_(norm.weight), norm.bias[None]])


class LowRankObjects:
    """Objects of an image that are decoded together."""

    def __init__(self, image: LowRankImage, count: int, tokens: int) -> None:
        """Nothing was told yet. Args: image: where they are; count: B; tokens: T."""
        self.image = image
        (heads, width, channels), blocks = image.levels[0].look.q.shape, len(image.levels) - 1
        rows, size = blocks * (1 + heads * (tokens - 1)) + 1, len(image.upscaled)
        room = image.upscaled.new_empty((count, rows, size + GAP))
        self.cells = [LowRankCells(own[:, :size], channels) for own in room]
        self._values = room.new_empty((count, blocks * heads, tokens, width))
        """Of each block's tokens and heads: of the last token, and how the others differ from it."""

    def look(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (B, T, C) look at the image before block `index` -> (B, T, C)."""
        level = self.image.levels[index]
        heads = level.look
        queries = heads.split(heads.module.q_proj(tokens)).unflatten(1, tokens.shape[:2])
        pooled = [cells.pool(level, queries[:, i]) for i, cells in enumerate(self.cells)]
        return heads.output(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1), len(tokens))

    def tell(self, index: int, queries: torch.Tensor, tokens: torch.Tensor) -> None:
        """What the tokens of block `index` (B, T, C) tell the cells, tokens with and without what they are."""
        telling = self.image.levels[index].tell
        assert telling is not None
        heads, shape = telling.heads, queries.shape[:2]
        keys = heads.split(heads.module.k_proj(queries + tokens)).unflatten(1, shape)
        start, end = (place * len(keys) for place in (index, index + 1))
        values = self._values[:, start:end]  # B M T d
        values.copy_(heads.split(heads.module.v_proj(queries)).unflatten(1, shape).transpose(0, 1))
        values[:, :, :-1] -= values[:, :, -1:]
        for i, cells in enumerate(self.cells):
            cells.tell(telling, keys[:, i], self._values[i, :end])

    def first_layer(self, index: int, upscaler: Upscaler) -> FirstLayer:
        """The upscaler's first layer of an object's cells."""
        image, cells = self.image, self.cells[index]
        carried = torch.cat([image.carried(self._values[index]), image.carried_last])  # the last row of S is 1 / r
        factors, shared = cells.factors.view(*upscaler.size_hw, 1), image.upscaled.view(*upscaler.size_hw, -1)
        rows = (cells.rows * cells.factors).unflatten(1, upscaler.size_hw)
        return partial(_first_layer, rows, carried, factors, shared)


def _first_layer(
    own: torch.Tensor, carried: torch.Tensor, factors: torch.Tensor, shared: torch.Tensor, rows: slice, columns: slice
) -> torch.Tensor:
    """Of r S (R, g, g), what its rows carry (R, C'), r (g, g, 1) and the image's part (g, g, C'): (n, C')."""
    part = (shared[rows, columns] * factors[rows, columns]).flatten(0, 1)
    return part.addmm_(own[:, rows, columns].flatten(1).T, carried)


def _project(heads: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """(M, d, C) of cells (N, C) -> (M, d, N)."""
    return (heads.flatten(0, 1) @ cells.T).view(*heads.shape[:2], -1)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=-1, keepdim=True)
