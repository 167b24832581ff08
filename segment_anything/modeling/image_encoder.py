"""The published image encoder: a plain ViT with windowed and a few global attention blocks.

Segment Anything (https://arxiv.org/abs/2304.02643), appendix A "Image encoder"; ViTDet
(https://arxiv.org/abs/2203.16527). Module and parameter names are those of the published checkpoints.

Letters: B batch, H x W token grid, C width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from segment_anything.modeling.attention import grid_attention_plain
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.linear import apply_linear, is_exported, may_divide


class PatchEmbed(nn.Module):
    """One linear map of every patch of pixels to a token."""

    def __init__(
        self,
        kernel_size: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (16, 16),
        padding: tuple[int, int] = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=kernel_size, stride=stride, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) pixels -> (B, H, W, C) tokens."""
        tokens: torch.Tensor = self.proj(x)
        return tokens.permute(0, 2, 3, 1).contiguous()  # or every sum and norm of the blocks turns it


class Attention(nn.Module):
    """Multi-head attention of a grid of tokens, over all of it or inside windows."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = dim // num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            if input_size is None:
                raise ValueError("input_size is needed with use_rel_pos: the token grid (height, width)")
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size[0] - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size[1] - 1, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: torch.Tensor, window_size: int = 0) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C); `window_size` 0 attends over the whole grid.

        Projections run on real tokens only; windows that stick out of the grid see the bias beyond it, as the published
        network does (`grid_attention_plain`).
        """
        # Windows do not see each other. A row of them at a time stays in the cache, and in memory that is used again.
        is_divided = window_size and may_divide(x, self.qkv)
        parts = x.split(window_size, dim=1) if is_divided else (x,)
        mixed = [self._mix(part, window_size) for part in parts]
        return apply_linear(self.proj, torch.cat(mixed, dim=1) if is_divided else mixed[0])

    def _mix(self, x: torch.Tensor, window_size: int) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C), all but the last projection."""
        qkv = apply_linear(self.qkv, x)
        attend: Callable[..., torch.Tensor] = grid_attention_plain
        if qkv.is_cuda and self.use_rel_pos and not is_exported():
            from segment_anything.modeling.cuda.grid_attention import grid_attention as attend
        tables = (self.rel_pos_h, self.rel_pos_w) if self.use_rel_pos else (None, None)
        return attend(qkv, self.qkv.bias, *tables, self.num_heads, window_size)


class Block(nn.Module):
    """A transformer block: attention (in windows if `window_size`), then MLP, each with its residual."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        input_size: tuple[int, int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            use_rel_pos=use_rel_pos,
            rel_pos_zero_init=rel_pos_zero_init,
            input_size=input_size if window_size == 0 else (window_size, window_size),
        )
        self.norm2 = norm_layer(dim)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=int(dim * mlp_ratio), act=act_layer)
        self.window_size = window_size
        self.drop_path = drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self._dropped(self.attn(self.norm1(x), self.window_size))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: torch.Tensor) -> torch.Tensor:
        """Stochastic depth (https://arxiv.org/abs/1603.09382): in training, drop a sample's whole branch."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        mask = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(keep)
        return branch * mask / keep


class ImageEncoderViT(nn.Module):
    """Image -> embedding: patches, transformer blocks, and a neck to `out_chans` channels."""

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        act_layer: type[nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        global_attn_indexes: Sequence[int] = (),
        drop_path_rate: float = 0.0,
    ) -> None:
        """Args: as published; `drop_path_rate` grows linearly from 0 at the first block to this at the last.

        Raises:
            ValueError: if `img_size` is no multiple of `patch_size`.
        """
        super().__init__()
        if img_size % patch_size:
            nearest = max(1, round(img_size / patch_size)) * patch_size
            raise ValueError(
                f"image_size must be a multiple of the patch size {patch_size}, got {img_size}; "
                f"the nearest is {nearest}"
            )
        self.img_size = img_size
        self.patch_size = patch_size
        grid = img_size // patch_size
        self.patch_embed = PatchEmbed((patch_size, patch_size), (patch_size, patch_size), (0, 0), in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim)) if use_abs_pos else None
        self.blocks = nn.ModuleList(
            Block(
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                norm_layer=norm_layer,
                act_layer=act_layer,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                window_size=0 if index in global_attn_indexes else window_size,
                input_size=(grid, grid),
                drop_path=drop_path_rate * index / max(1, depth - 1),
            )
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, img_size, img_size) normalised input -> (B, out_chans, img_size / patch, img_size / patch)."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding: torch.Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embedding
