"""Attention between few tokens and many cells, with the weights carried over to the tokens.

Projecting the cells (C x I weights, all N of them) costs more than carrying the same weights over to the tokens:
(x W_q)(y W_k)' = (x W_q W_k') y'. This pays while heads * tokens <= I. The same in training, where a block of `nano`
then takes about half as long, forward and backward, on a CPU (docs/log.md).

Letters: B objects, T tokens, N = g * g image cells, C width, M heads, d head width, I = M * d.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from segment_anything.modeling.linear import is_watched, thin_product


class Projections(Protocol):
    """What is asked of an `Attention` here."""

    num_heads: int
    internal_dim: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear


@dataclass(frozen=True, eq=False)
class Heads:
    """The weights of an `Attention`, head by head."""

    module: Projections
    q: torch.Tensor
    """(M, d, C) and so are k, v and o, the output's weights transposed."""
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor

    @staticmethod
    def of(module: Projections) -> "Heads":
        q, k, v = (
            layer.weight.view(module.num_heads, -1, layer.in_features)
            for layer in (module.q_proj, module.k_proj, module.v_proj)
        )
        o = module.out_proj.weight.T.reshape(q.shape)
        return Heads(module, q, k, v, o)

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.q.shape[1])

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, I) -> (M, B * T, d)."""
        return x.view(-1, len(self.q), self.q.shape[1]).transpose(0, 1)

    def join(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """(M, B * T, c) -> (B, M * T, c), B = `count`."""
        heads, _, width = x.shape
        return x.view(heads, count, -1, width).transpose(0, 1).reshape(count, -1, width)

    def carried_queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """Queries of tokens (B, T, C), carried over to the cells: (B, M * T, C). The keys' bias cancels in softmax."""
        q = self.split(self.module.q_proj(tokens)) * self.scale
        return self.join(q @ self.k, len(tokens))

    def carried_keys(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of tokens (B, T, C), carried over to the cells: (B, M * T, C), and the queries' bias (B, M * T, 1)."""
        k = self.split(self.module.k_proj(tokens)) * self.scale
        offset = k @ self.module.q_proj.bias.view(len(self.q), -1, 1)
        return self.join(k @ self.q, len(tokens)), self.join(offset, len(tokens))

    def carried_values(self, tokens: torch.Tensor) -> torch.Tensor:
        """Values of tokens (B, T, C) behind the output layer: (B, M * T, C).

        The weights of each of M heads sum to 1, so an M-th of the output's bias in every row makes up the whole.
        """
        v = self.split(self.module.v_proj(tokens))
        return self.join(v @ self.o, len(tokens)) + self.module.out_proj.bias / len(self.q)

    def pooled(self, cells: torch.Tensor) -> torch.Tensor:
        """Cells pooled by each head and token (B, M * T, C) -> the attention's output (B, T, C)."""
        count = len(cells)
        x = cells.view(count, len(self.q), -1, cells.shape[2]).transpose(0, 1).flatten(1, 2)  # M BT C
        return self.output(x @ self.v.transpose(1, 2), count)

    def output(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Values of each head without their bias (M, B * T, d) -> (B, T, C)."""
        joined = values.permute(1, 0, 2).flatten(1) + self.module.v_proj.bias  # BT I
        projected: torch.Tensor = self.module.out_proj(joined)
        return projected.view(count, -1, projected.shape[1])


def scores(tokens: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Carried tokens (b, R, C) times cells (b, N, C) -> (b, R, N), without gradients."""
    if len(cells) > 1 or cells.device.type != "cpu":
        return torch.bmm(tokens, cells.transpose(1, 2))
    return thin_product(tokens[0], cells[0])[None]


def can_carry(module: Projections, tokens: int, cells: int) -> bool:
    """Whether carrying weights over to that many tokens saves work, and no layer is replaced or watched by a hook."""
    layers = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
    return (
        module.num_heads * tokens <= module.internal_dim < cells
        and all(isinstance(layer, nn.Linear) for layer in layers)
        and not is_watched(*layers)
    )


def tokens_to_cells(module: Projections, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`module(q, k, v)` for queries of tokens (B, T, C), keys and values of cells (B, N, C): (B, T, C)."""
    heads = Heads.of(module)
    shares = (heads.carried_queries(q) @ k.transpose(1, 2)).softmax(dim=2)  # B MT N
    # The keys' bias cancels in softmax. Its gradient is zero, not missing: data-parallel training waits for every one.
    return heads.pooled(shares @ v) + 0 * module.k_proj.bias.sum()


def cells_to_tokens(module: Projections, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`module(q, k, v)` for queries of cells (B, N, C), keys and values of tokens (B, T, C): (B, N, C)."""
    heads = Heads.of(module)
    keys, offset = heads.carried_keys(k)
    scores = q @ keys.transpose(1, 2) + offset.transpose(1, 2)  # B N MT
    shares: torch.Tensor = scores.unflatten(2, (len(heads.q), -1)).softmax(dim=3).flatten(2)
    return shares @ heads.carried_values(v)
