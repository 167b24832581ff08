"""The two-way transformer's attention between few tokens and many cells, with the weights carried over to the tokens.

Projecting the cells (C x I weights, all N of them) costs more than carrying the same weights over to the tokens:
(x W_q)(y W_k)' = (x W_q W_k') y'. This pays while heads * tokens <= I.

Letters: B objects, T tokens, N = g * g image cells, C width, M heads, d head width, I = M * d.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock


@dataclass(frozen=True, eq=False)
class Heads:
    """The weights of an `Attention`, head by head."""

    module: Attention
    q: torch.Tensor
    """(M, d, C) and so are k, v and o, the output's weights transposed."""
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor

    @staticmethod
    def of(module: Attention) -> "Heads":
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


@dataclass(frozen=True, eq=False)
class Block:
    """A `TwoWayAttentionBlock` with its two cross attentions head by head."""

    module: TwoWayAttentionBlock
    to_image: Heads
    to_tokens: Heads

    def tokens_alone(self, queries: torch.Tensor, query_pe: torch.Tensor) -> torch.Tensor:
        """What the tokens do before they look at the image."""
        module = self.module
        if module.skip_first_layer_pe:
            attended: torch.Tensor = module.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            attended = queries + module.self_attn(q=q, k=q, v=queries)
        normed: torch.Tensor = module.norm1(attended)
        return normed

    def tokens_after(self, queries: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What the tokens do once they have looked at the image."""
        queries = self.module.norm2(queries + attended)
        normed: torch.Tensor = self.module.norm3(queries + self.module.mlp(queries))
        return normed


@dataclass(frozen=True, eq=False)
class Update:
    """What the tokens of some objects tell the cells, ready to be added."""

    keys: torch.Tensor
    """Carried over to the cells (B, M * T, C), or (M, B, T, d) where the cells' queries are known."""
    offset: torch.Tensor | None
    """(B, M * T, 1), what the bias of the cells' queries adds to their scores; None where these are known."""
    known: torch.Tensor | None
    """Queries of the cells (M, d, N), scaled, if all objects share them."""
    values: torch.Tensor
    """(B, M * T, C), behind the output layer."""
    heads: int
    norm: nn.LayerNorm

    @staticmethod
    def of(block: Block, queries: torch.Tensor, query_pe: torch.Tensor, known: torch.Tensor | None) -> "Update":
        heads, tokens = block.to_tokens, queries + query_pe
        values = heads.carried_values(queries)
        if known is None:
            keys, offset = heads.carried_keys(tokens)
            return Update(keys, offset, None, values, len(heads.q), block.module.norm4)
        own = heads.split(heads.module.k_proj(tokens)).unflatten(1, tokens.shape[:2])
        return Update(own, None, known, values, len(heads.q), block.module.norm4)

    def weights(self, part: slice, cells: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """(b or 1, N, C) cells and their position code -> (b, M * T, N): each cell's and head's share of each token."""
        if self.known is not None:
            keys = self.keys[:, part]  # M b T d
            scores = torch.bmm(keys.flatten(1, 2), self.known).view(*keys.shape[:3], -1)  # M b T N
            shares: torch.Tensor = scores.softmax(dim=2)
            return shares.transpose(0, 1).flatten(1, 2)
        assert self.offset is not None
        scores = torch.bmm(self.keys[part], (cells + code).transpose(1, 2)).add_(self.offset[part])
        return scores.view(len(scores), self.heads, -1, scores.shape[2]).softmax(dim=2).view(scores.shape)

    def apply(self, part: slice, cells: torch.Tensor, code: torch.Tensor, in_place: bool) -> torch.Tensor:
        """The cells (b or 1, N, C) after the update."""
        weights = self.weights(part, cells, code).transpose(1, 2)
        if in_place:
            moved = cells.baddbmm_(weights, self.values[part])
        else:
            moved = torch.baddbmm(cells, weights, self.values[part])
        normed: torch.Tensor = self.norm(moved)
        return normed
