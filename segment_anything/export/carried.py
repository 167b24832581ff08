"""The two-way transformer as graphs compute it: weights carried over from many cells to few tokens, tokens masked.

The same function as `TwoWayTransformer`, in about half the operations for up to eleven prompt tokens: (x W_q)(y W_k)'
is (x W_q W_k') y', and with 8 heads and 7 tokens that is 56 products an image cell instead of 128. The bias of the
keys adds the same to all scores of a query and cancels in the softmax. `modeling.prepared_decoder` computes the same
rewrites for torch, where memory and loops can be steered; here all is one expression, for `torch.export`.

Letters: N objects, T tokens, G = g * g image cells, C width, M heads, d head width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

FirstLook = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What the first block projects from the cells: keys (1, M, d, G), values (1, M, G, d), queries (1, M, G, d)."""


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, T, M * d) -> (N, M, T, d)."""
    by_head: torch.Tensor = x.unflatten(2, (heads, -1))
    return by_head.transpose(1, 2)


def join(x: torch.Tensor) -> torch.Tensor:
    """(N, M, T, c) -> (N, M * T, c)."""
    return x.flatten(1, 2)


def attend_tokens(
    module: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """`module` over tokens (N, T, C), some of which are left out: `out` (N, 1, 1, T) is added to all scores."""
    heads = module.num_heads
    query, key, value = split(module.q_proj(q), heads), split(module.k_proj(k), heads), split(module.v_proj(v), heads)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + out
    attended: torch.Tensor = module.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
    return attended


class TokensToImage(nn.Module):
    """Tokens look at the cells."""

    def __init__(self, module: Attention) -> None:
        super().__init__()
        self.q_proj, self.out_proj, self.heads = module.q_proj, module.out_proj, module.num_heads
        self.k, self.v = _by_head(module.k_proj.weight, self.heads), _by_head(module.v_proj.weight, self.heads)
        self.v_bias = module.v_proj.bias

    def queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, M, T, d), scaled."""
        q = split(self.q_proj(tokens), self.heads)
        scale: float = q.shape[-1] ** -0.5
        return q * scale

    def forward(self, tokens: torch.Tensor, coded: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Tokens (N, T, C), cells (N, G, C) with and without their position code -> (N, T, C)."""
        carried = join(self.queries(tokens) @ self.k)  # N MT C
        pooled = (carried @ coded.transpose(1, 2)).softmax(dim=-1) @ cells  # N MT C
        values = pooled.unflatten(1, (self.heads, -1)) @ self.v.transpose(1, 2)  # N M T d
        out: torch.Tensor = self.out_proj(values.transpose(1, 2).flatten(2) + self.v_bias)
        return out

    def first_look(self, tokens: torch.Tensor, known: FirstLook) -> torch.Tensor:
        """`forward` where keys and values of the cells are known already (values with their bias)."""
        values = (self.queries(tokens) @ known[0]).softmax(dim=-1) @ known[1]  # N M T d
        out: torch.Tensor = self.out_proj(values.transpose(1, 2).flatten(2))
        return out


class ImageToTokens(nn.Module):
    """Cells look at the tokens."""

    def __init__(self, module: Attention) -> None:
        super().__init__()
        self.k_proj, self.v_proj, self.heads = module.k_proj, module.v_proj, module.num_heads
        self.q = _by_head(module.q_proj.weight, self.heads)
        self.q_bias = nn.Parameter(module.q_proj.bias.detach().unflatten(0, (self.heads, -1))[:, :, None])  # M d 1
        self.o = _by_head(module.out_proj.weight.T, self.heads)
        self.o_bias = module.out_proj.bias

    def forward(
        self, coded: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, known: FirstLook | None
    ) -> torch.Tensor:
        """What the cells (N, G, C) take from the tokens (N, T, C).

        Args:
            coded: cells with their position code; not looked at where `known` is given.
            k, v: tokens with and without their position code.
            out: (N, 1, 1, T), added to all scores.
            known: the queries of the cells, if they are known already.
        """
        key = split(self.k_proj(k), self.heads)
        key = key * key.shape[-1] ** -0.5
        if known is None:
            carried = join(key @ self.q).transpose(1, 2)  # N C MT
            scores = (coded @ carried).unflatten(2, (self.heads, -1))  # N G M T
            scores = scores + (key @ self.q_bias).transpose(1, 3).transpose(2, 3) + out  # N 1 M T
        else:
            scores = (known[2] @ key.transpose(2, 3) + out).transpose(1, 2)
        values = join(split(self.v_proj(v), self.heads) @ self.o)  # N MT C
        taken: torch.Tensor = scores.softmax(dim=-1).flatten(2) @ values + self.o_bias
        return taken


class CarriedBlock(nn.Module):
    """A `TwoWayAttentionBlock`."""

    def __init__(self, module: TwoWayAttentionBlock) -> None:
        super().__init__()
        self.self_attn, self.mlp = module.self_attn, module.mlp
        self.norm1, self.norm2, self.norm3, self.norm4 = module.norm1, module.norm2, module.norm3, module.norm4
        self.skip_first_layer_pe = module.skip_first_layer_pe
        self.to_image = TokensToImage(module.cross_attn_token_to_image)
        self.to_tokens = ImageToTokens(module.cross_attn_image_to_token)

    def forward(
        self,
        tokens: torch.Tensor,
        cells: torch.Tensor,
        first_tokens: torch.Tensor,
        code: torch.Tensor,
        out: torch.Tensor,
        known: FirstLook | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, T, C) and cells (N, G, C) -> the same shapes."""
        q = tokens if self.skip_first_layer_pe else tokens + first_tokens
        attended = attend_tokens(self.self_attn, q, q, tokens, out)
        tokens = self.norm1(attended if self.skip_first_layer_pe else tokens + attended)
        looking = tokens + first_tokens
        seen = (
            self.to_image(looking, cells + code, cells) if known is None else self.to_image.first_look(looking, known)
        )
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        cells = self.norm4(cells + self.to_tokens(cells + code, tokens + first_tokens, tokens, out, known))
        return tokens, cells


class CarriedTransformer(nn.Module):
    """A `TwoWayTransformer`."""

    def __init__(self, module: TwoWayTransformer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CarriedBlock(layer) for layer in _blocks(module))
        self.final = TokensToImage(module.final_attn_token_to_image)
        self.norm_final_attn = module.norm_final_attn

    def forward(
        self,
        tokens: torch.Tensor,
        cells: torch.Tensor,
        code: torch.Tensor,
        out: torch.Tensor,
        known: FirstLook | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let tokens and image attend to each other.

        Args:
            tokens: (N, T, C).
            cells: (N, G, C), or (1, G, C) for all objects.
            code: (1, G, C), the position code of the cells.
            out: (N, 1, 1, T): 0, or far below 0 for tokens that take no part.
            known: what the first block projects from the cells, if they are the same for all objects.

        Returns:
            The tokens (N, T, C) and the cells (N, G, C).
        """
        first_tokens = tokens
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, first_tokens, code, out, known)
            known = None
        tokens = self.norm_final_attn(tokens + self.final(tokens + first_tokens, cells + code, cells))
        return tokens, cells


def first_look(module: TwoWayTransformer, cells: torch.Tensor, code: torch.Tensor) -> FirstLook:
    """What the first block projects from the cells (1, G, C): computed once an image."""
    block = _blocks(module)[0]
    to_image, to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
    heads, coded = to_image.num_heads, cells + code
    keys = split(to_image.k_proj(coded), heads).transpose(2, 3)
    return keys, split(to_image.v_proj(cells), heads), split(to_tokens.q_proj(coded), heads)


def _blocks(module: TwoWayTransformer) -> Sequence[TwoWayAttentionBlock]:
    return [layer for layer in module.layers if isinstance(layer, TwoWayAttentionBlock)]


def _by_head(weight: torch.Tensor, heads: int) -> nn.Parameter:
    """(M * d, C) -> (M, d, C)."""
    return nn.Parameter(weight.detach().unflatten(0, (heads, -1)).contiguous(), requires_grad=False)
