"""The blocks of the two-way transformer, prepared for an image, with the weights carried over to the tokens.

Letters: B objects, T tokens, N = g * g image cells, C width, M heads, d head width, I = M * d.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from segment_anything.modeling.carried_attention import Heads, scores
from segment_anything.modeling.transformer import TwoWayAttentionBlock


@dataclass(frozen=True, eq=False)
class Block:
    """A `TwoWayAttentionBlock` with its two cross attentions head by head."""

    module: TwoWayAttentionBlock
    to_image: Heads
    to_tokens: Heads
    alike: tuple[torch.Tensor, torch.Tensor]
    """Weights (3I or 2I, C) and biases of the layers that see the same tokens in self-attention: of queries, keys and,
    where no position is added, values: one product instead of two or three."""

    @staticmethod
    def of(module: TwoWayAttentionBlock) -> "Block":
        """Prepare a block."""
        own = module.self_attn
        layers = [own.q_proj, own.k_proj, own.v_proj][: 3 if module.skip_first_layer_pe else 2]
        alike = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        look, tell = module.cross_attn_token_to_image, module.cross_attn_image_to_token
        return Block(module, Heads.of(look), Heads.of(tell), alike)

    def tokens_alone(self, queries: torch.Tensor, query_pe: torch.Tensor) -> torch.Tensor:
        """What the tokens do before they look at the image."""
        module = self.module
        if module.skip_first_layer_pe:
            attended = self._attend(linear(queries, *self.alike))
        else:
            attended = self._attend(linear(queries + query_pe, *self.alike), module.self_attn.v_proj(queries))
            attended += queries
        normed: torch.Tensor = module.norm1(attended)
        return normed

    def _attend(self, *projected: torch.Tensor) -> torch.Tensor:
        """Self-attention of queries, keys and values, side by side (B, T, I) each -> (B, T, C)."""
        module = self.module.self_attn
        q, k, v = (
            heads
            for some in projected
            for heads in some.unflatten(2, (-1, module.num_heads, module.internal_dim // module.num_heads))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        attended: torch.Tensor = module.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended

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
            shared = torch.bmm(keys.flatten(1, 2), self.known).view(*keys.shape[:3], -1)  # M b T N
            shares: torch.Tensor = shared.softmax(dim=2)
            return shares.transpose(0, 1).flatten(1, 2)
        assert self.offset is not None
        found = scores(self.keys[part], cells + code).add_(self.offset[part])
        return found.view(len(found), self.heads, -1, found.shape[2]).softmax(dim=2).view(found.shape)

    def apply(self, part: slice, cells: torch.Tensor, code: torch.Tensor, in_place: bool) -> torch.Tensor:
        """The cells (b or 1, N, C) after the update."""
        weights = self.weights(part, cells, code).transpose(1, 2)
        if in_place:
            moved = cells.baddbmm_(weights, self.values[part])
        else:
            moved = torch.baddbmm(cells, weights, self.values[part])
        normed: torch.Tensor = self.norm(moved)
        return normed
