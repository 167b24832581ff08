"""The two-way transformer of the mask decoder: tokens look at the image, the image looks back at the tokens.

Segment Anything (https://arxiv.org/abs/2304.02643), appendix A "Lightweight mask decoder". Module and parameter names
are those of the published checkpoints.

Letters: B prompts, T tokens, N image cells, C width, M heads.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from segment_anything.modeling.carried_attention import can_carry, cells_to_tokens, tokens_to_cells
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.linear import is_learning


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last attention of the tokens over the image."""

    def __init__(
        self,
        depth: int,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.embedding_dim = embedding_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(
                embedding_dim, num_heads, mlp_dim, activation, attention_downsample_rate, skip_first_layer_pe=index == 0
            )
            for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=attention_downsample_rate)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(
        self, image_embedding: torch.Tensor, image_pe: torch.Tensor, point_embedding: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let tokens and image attend to each other.

        Args:
            image_embedding: (B, C, h, w).
            image_pe: (B or 1, C, h, w), the position code of each cell.
            point_embedding: (B, T, C).

        Returns:
            The tokens (B, T, C) and the image (B, h * w, C).
        """
        # In memory order: sums of differently laid out tensors, and their gradients, take six times as long.
        keys = image_embedding.flatten(2).transpose(1, 2).contiguous()  # B N C
        key_pe = image_pe.flatten(2).transpose(1, 2).contiguous()
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, point_embedding, key_pe)
        attended = self.final_attn_token_to_image(q=queries + point_embedding, k=keys + key_pe, v=keys)
        queries = self.norm_final_attn(queries + attended)
        return queries, keys


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, an MLP on the tokens, image to tokens."""

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int = 2048,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
        skip_first_layer_pe: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=attention_downsample_rate)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, activation)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=attention_downsample_rate)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, query_pe: torch.Tensor, key_pe: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, C) and image (B, N, C) -> the same shapes."""
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)
        coded = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(q=queries + query_pe, k=coded, v=keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(q=coded, k=queries + query_pe, v=queries))
        return queries, keys


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention: queries (B, M, Q, d), keys and values (B, M, K, d) -> (B, M, Q, d).

    Between few tokens and a whole image the score matrix is thin; three plain products are then 2 to 4 times faster
    than the fused kernel on a CPU, forward and backward (docs/log.md).
    """
    # An exported graph must serve any number of tokens, so it may not branch on it.
    if not torch.compiler.is_exporting() and min(q.shape[2], k.shape[2]) > 32:
        return scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    weights: torch.Tensor = scores.softmax(dim=-1)
    return weights @ v


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its outer one."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        if self.internal_dim % num_heads:
            raise ValueError(
                f"num_heads must divide embedding_dim / downsample_rate = {self.internal_dim}, got {num_heads}"
            )
        self.q_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.k_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.v_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Queries (B, Q, C), keys and values (B, K, C) -> (B, Q, C)."""
        if is_learning(q):
            if can_carry(self, tokens=q.shape[1], cells=k.shape[1]):
                return tokens_to_cells(self, q, k, v)
            if can_carry(self, tokens=k.shape[1], cells=q.shape[1]):
                return cells_to_tokens(self, q, k, v)
        out = attend(self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v)))
        projected: torch.Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = x.unflatten(2, (self.num_heads, -1))
        return heads.transpose(1, 2)  # B M N d
