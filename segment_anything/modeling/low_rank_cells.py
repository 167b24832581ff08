"""The cells of objects as what an image shares and a low rank of their own, without gradients: no object's are made.

What tokens tell the cells is attention weights times values, of rank M * T. A normalisation is linear but for one
factor a cell. So before any block, the N x C cells of an object that has no mask prompt are

    r * (Y + S' D)

with Y the image's, r a factor a cell, S the attention weights of all blocks so far, D what they carry. One block on:

    x    = r * (Y + S' D) + A' V = r * (Y + [S; A / r]' [D; V])         weights A, values V
    r    = f * r                                                        f: one over the deviation of each cell of x
    S    = [S; A / r; 1 / f r]                                          r as it was
    Y, D = g * centred(Y), [g * centred(D); g * centred(V); b]          g, b: the norm's weight and bias

The last row of S is 1 / r: what it carries is told to all cells alike. The weights of a head sum to 1, so its last
token needs no row: V of the others becomes what they differ from it, and the last row carries the rest.

Every product of the cells with weights, W' x, is then a product with W' Y, which is computed once an image, and one
with S, which has 49 rows for each block of the published decoder (8 heads, 7 tokens) instead of 256 columns. The
deviation needs no cells either: it is made of |Y|^2, Y V' and V V'. Exact in real arithmetic; `TwoWayTransformer` is
the definition (Segment Anything, https://arxiv.org/abs/2304.02643, appendix A "Lightweight mask decoder").

Letters: B objects, T tokens, N image cells, C width, M heads, d head width, R rows of S.
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
    """The image's side of the scores between tokens and cells."""

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
        coded = _project(heads, shared + code if is_first else code)
        if bias is not None:
            coded += bias.view(len(heads), -1, 1)
        return Scores(heads, coded, None) if is_first else Scores(heads, _project(heads, shared), coded)

    def __call__(self, tokens: torch.Tensor, cells: "LowRankCells") -> torch.Tensor:
        """Tokens projected and scaled (M, T, d) -> (M, T, N)."""
        scores = torch.bmm(tokens, self.shared)
        if self.code is not None:
            scores.view(-1, scores.shape[2]).addmm_((tokens @ self.heads).flatten(0, 1) @ cells.carried.T, cells.rows)
            scores.mul_(cells.factors).baddbmm_(tokens, self.code)
        return scores


@dataclass(frozen=True, eq=False)
class Told:
    """What the tokens of a block tell the cells, as it is carried at some level, centred, in products with Y (N, C)."""

    values: torch.Tensor
    """Of values through the output's weights (M, d, N)."""
    constant: torch.Tensor
    """Of the output's bias, and that of the norm before the block (N,)."""

    def add_twice(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Twice the products of an object's values (M, T, d): of the last token, and of how the others differ.

        Args:
            values: of an object.
            out: (pieces, 1 + M (T - 1), N / pieces), to be added to.
        """
        heads, tokens, _ = values.shape
        pieces, _, size = out.shape
        products = torch.bmm(values, self.values)  # M T N
        out[:, 0].add_(products[:, -1].sum(dim=0).add_(self.constant).view(pieces, size), alpha=2)
        others = products.view(heads, tokens, pieces, size)[:, :-1].permute(2, 0, 1, 3)
        out[:, 1:].view(pieces, heads, tokens - 1, size).add_(others, alpha=2)


@dataclass(frozen=True, eq=False)
class Variance:
    """The image's side of a normalisation's variance: products of the centred Y (N, C)."""

    squares: torch.Tensor
    """|Y|^2 (N,)."""
    told: tuple[Told, ...]
    """By each block so far."""

    def __call__(self, cells: "LowRankCells", carried: torch.Tensor) -> torch.Tensor:
        """What an object's rows carry, centred (R, C) -> (N,), the sum of its cells' squares over C, by r^2."""
        rows = cells.rows
        pieces = rows.unflatten(1, (math.gcd(rows.shape[1], PIECES), -1)).transpose(0, 1)
        size = len(rows) // len(self.told)
        total = self.squares.clone()
        for index, (told, values) in enumerate(zip(self.told, cells.values, strict=True)):
            start, end = index * size, (index + 1) * size
            weights = carried[start:end] @ carried[start:].T
            weights[:, size:] *= 2  # of two blocks each with the other
            products = torch.bmm(weights.expand(len(pieces), -1, -1), pieces[:, start:])
            told.add_twice(values, products)
            total += products.mul_(pieces[:, start:end]).sum(dim=1).flatten()
        return total.clamp_(min=0)  # rounding of a cell that is all one value


@dataclass(frozen=True, eq=False)
class Level:
    """What all objects of an image share before a block, or before the last look."""

    look: Heads
    keys: Scores
    values: torch.Tensor
    """(M, d, N), Y projected."""
    tell: Heads | None
    """None before the last look: nothing is told to the cells any more."""
    queries: Scores | None
    variance: Variance | None
    norm: nn.LayerNorm | None


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
        self.upscaling = upscaling
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
            products = tuple(Told(_project(weights, shared), shared @ constant) for weights, constant in told)
            variance = Variance(shared.square().sum(dim=1), products)
            self.levels.append(Level(look, keys, values, tell, queries, variance, norm))
            shared, before = shared * norm.weight, norm.bias
            told = [(weights * norm.weight, constant * norm.weight) for weights, constant in told]
        values = _project(final.v, shared)
        keys = Scores.of(final.k, None, shared, code, not blocks)
        self.levels.append(Level(final, keys, values, None, None, None, None))
        self.upscaled = linear(shared, upscaling[0], None)  # N C'

    def rows(self, tokens: int) -> int:
        """Rows of S behind all blocks."""
        return (len(self.levels) - 1) * (1 + len(self.levels[0].look.q) * (tokens - 1)) + 1

    def start(self, count: int, tokens: int) -> "LowRankObjects":
        """Objects of that many tokens, which nothing was told yet."""
        cells = self.upscaled.new_empty((count, self.rows(tokens), len(self.upscaled) + GAP))
        return LowRankObjects(self, [LowRankCells(self, rows[:, : len(self.upscaled)]) for rows in cells])


class LowRankCells:
    """The cells of one object, before some block; `tell` moves them behind it."""

    def __init__(self, image: LowRankImage, room: torch.Tensor) -> None:
        """Args: room: (R, N), for S as it will be behind all blocks."""
        self.image, self._room, self._filled = image, room, 1
        room[0] = 1
        self.factors = room[0]
        """r (N,)."""
        self.carried = room.new_zeros((1, image.upscaling[0].shape[1]))
        """D (R, C)."""
        self.values: list[torch.Tensor] = []
        """Of each block so far (M, T, d): of the last token, and how the others differ from it."""

    @property
    def rows(self) -> torch.Tensor:
        """S (R, N), as it is so far."""
        return self._room[: self._filled]

    def pool(self, level: Level, queries: torch.Tensor) -> torch.Tensor:
        """Averages of the projected cells by queries (M, T, d) -> (M, T, d), without the values' bias."""
        weights = level.keys(queries, self).softmax(dim=2)
        if not self.values:
            return torch.bmm(weights, level.values.transpose(1, 2))
        weights.mul_(self.factors)
        own = (weights.view(-1, weights.shape[2]) @ self.rows.T @ self.carried).view(*weights.shape[:2], -1)  # M T C
        return torch.bmm(weights, level.values.transpose(1, 2)).baddbmm_(own, level.look.v.transpose(1, 2))

    def tell(self, level: Level, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move behind a block whose tokens have keys and values (M, T, d)."""
        assert level.tell is not None
        assert level.queries is not None
        assert level.variance is not None
        assert level.norm is not None
        weights = level.queries(keys, self).softmax(dim=1)[:, :-1]
        start = self._filled
        self._filled += weights.shape[0] * weights.shape[1]
        torch.div(weights, self.factors, out=self._room[start : self._filled].view(weights.shape))
        last = values[:, -1:]
        self.values.append(torch.cat([values[:, :-1] - last, last], dim=1))
        told = torch.bmm(self.values[-1], level.tell.o)  # M T C
        constant = self.carried[-1:] + told[:, -1].sum(dim=0) + level.tell.module.out_proj.bias
        carried = _centred(torch.cat([self.carried[:-1], constant, told[:, :-1].flatten(0, 1)]))
        variance = level.variance(self, carried).mul_(self.factors).mul_(self.factors).div_(carried.shape[1])
        self.factors = self.factors / variance.add_(level.norm.eps).sqrt_()
        torch.reciprocal(self.factors, out=self._room[self._filled])
        self._filled += 1
        self.carried = torch.cat([carried * level.norm.weight, level.norm.bias[None]])

    def first_layer(self, size_hw: tuple[int, int]) -> FirstLayer:
        """The first linear layer behind the transformer, of cells that lie in so many rows and columns."""
        weight, bias = self.image.upscaling
        carried = self.carried @ weight.T  # R C'; MKL is faster on so few rows
        carried[-1] += bias  # the last row of S is 1 / r
        factors, shared = self.factors.view(*size_hw, 1), self.image.upscaled.view(*size_hw, -1)
        return partial(_first_layer, self.rows.unflatten(1, size_hw), carried, factors, shared)


class LowRankObjects:
    """Objects of an image that are decoded together."""

    def __init__(self, image: LowRankImage, cells: list[LowRankCells]) -> None:
        self.image, self.cells = image, cells

    def look(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (B, T, C) look at the image before block `index` -> (B, T, C)."""
        level = self.image.levels[index]
        heads = level.look
        queries = heads.split(heads.module.q_proj(tokens)).mul_(heads.scale).unflatten(1, tokens.shape[:2])
        pooled = [cells.pool(level, queries[:, i]) for i, cells in enumerate(self.cells)]
        return heads.output(torch.cat(pooled, dim=1), len(tokens))

    def tell(self, index: int, queries: torch.Tensor, tokens: torch.Tensor) -> None:
        """What the tokens of block `index` (B, T, C) tell the cells, tokens with and without what they are."""
        level = self.image.levels[index]
        heads = level.tell
        assert heads is not None
        shape = queries.shape[:2]
        keys = heads.split(heads.module.k_proj(queries + tokens)).mul_(heads.scale).unflatten(1, shape)
        values = heads.split(heads.module.v_proj(queries)).unflatten(1, shape)
        for i, cells in enumerate(self.cells):
            cells.tell(level, keys[:, i], values[:, i])

    def first_layer(self, index: int, upscaler: Upscaler) -> FirstLayer:
        """The upscaler's first layer of an object's cells."""
        assert upscaler.first is self.image.upscaling
        return self.cells[index].first_layer(upscaler.size_hw)


def _first_layer(
    own: torch.Tensor, carried: torch.Tensor, factors: torch.Tensor, shared: torch.Tensor, rows: slice, columns: slice
) -> torch.Tensor:
    """Of S (R, g, g), what its rows carry (R, C'), factors (g, g, 1) and the image's part (g, g, C'): (n, C')."""
    factors, shared = (x[rows, columns].flatten(0, 1) for x in (factors, shared))
    return torch.addmm(shared, own[:, rows, columns].flatten(1).T, carried).mul_(factors)


def _project(heads: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """(M, d, C) of cells (N, C) -> (M, d, N)."""
    return (heads.flatten(0, 1) @ cells.T).view(*heads.shape[:2], -1)


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=-1, keepdim=True)
