"""The TinyViT image encoder of MobileSAM (`vit_t`), compatible with its published checkpoint.

A convolutional stem and stage, then three stages of windowed attention with a depthwise convolution between attention
and MLP (TinyViT, https://arxiv.org/abs/2207.10666). MobileSAM (https://arxiv.org/abs/2306.14289) keeps the last stage
at the resolution of the third and puts SAM's neck behind it, so that the mask decoder of SAM fits.

Letters: B images, C channels, H and W rows and columns of a feature map, S window side, N = S * S tokens of a window,
A attention heads, D channels of a head, G embedding side (image side / 16).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.fuse import apply_bottleneck, apply_conv_norm
from segment_anything.modeling.linear import apply_linear, is_watched

GELU = nn.GELU()
STRIDE = 16
"""Input pixels per embedding cell: 4 in the stem, 2 in each of the first two merges, 1 in the last."""


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation; the entries `c` and `bn` of the published checkpoint."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, in_chans: int, out_chans: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            OrderedDict(
                c=nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False),
                bn=nn.BatchNorm2d(out_chans),
            )
        )

    def forward(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), `activation` applied to it."""
        return apply_conv_norm(self.c, self.bn, x, activation)


def bottleneck(x: Tensor, widen: ConvNorm, depthwise: ConvNorm, narrow: ConvNorm) -> Tensor:
    """`narrow(gelu(depthwise(gelu(widen(x)))))`, (B, C, H, W) -> (B, C', H', W')."""
    layers = (widen, depthwise, narrow)
    if is_watched(*layers):
        y: Tensor = narrow(depthwise(widen(x, GELU), GELU))
        return y
    return apply_bottleneck([(layer.c, layer.bn) for layer in layers], x, GELU)


class PatchEmbed(nn.Module):
    """The stem: two strided convolutions, (B, 3, 4H, 4W) -> (B, C, H, W)."""

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(in_chans, embed_dim // 2, kernel=3, stride=2),
            nn.GELU(),
            ConvNorm(embed_dim // 2, embed_dim, kernel=3, stride=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        stem: Tensor = self.seq(image)
        return stem


class MBConv(nn.Module):
    """Inverted bottleneck with a residual: widen, depthwise 3x3, narrow. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, expand_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * expand_ratio)
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)
        nn.init.zeros_(self.conv3.bn.weight)  # starts as the identity, as in the paper's training code

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + bottleneck(x, self.conv1, self.conv2, self.conv3))


class PatchMerging(nn.Module):
    """Changes the width between stages and divides the sides by `stride`: (B, C, H, W) -> (B, C', H/s, W/s)."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, kernel=3, stride=stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return bottleneck(x, self.conv1, self.conv2, self.conv3)


class Attention(nn.Module):
    """Self-attention inside one window, with a learned bias for each distance between two tokens.

    The bias table is (A, N): entry dy * S + dx for rows `dy` and columns `dx` apart, whatever the direction.
    """

    distance_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.register_buffer("distance_index", distance_index(window_size), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """(B', N, C) -> (B', N, C), where B' counts windows."""
        count, tokens, _ = windows.shape
        qkv = apply_linear(self.qkv, self.norm(windows)).view(
            count, tokens, self.num_heads, 3, -1
        )  # a head's q, k, v lie together
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each (B', A, N, D)
        bias = self.attention_biases[:, self.distance_index].unsqueeze(0).to(q.dtype)  # (1, A, N, N)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return apply_linear(self.proj, x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Normalise, widen, narrow, over the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(self.fc2, apply_linear(self.fc1, self.norm(x), GELU))


class TinyViTBlock(nn.Module):
    """Windowed attention, a depthwise convolution across windows, an MLP. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads, window_size)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.local_conv = ConvNorm(dim, dim, kernel=3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        rows = rows + self._attend(rows)
        local: Tensor = self.local_conv(rows.permute(0, 3, 1, 2))
        rows = local.permute(0, 2, 3, 1)
        mixed: Tensor = rows + self.mlp(rows)
        return mixed.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C). Windows that reach past the map see zeros there, which do take part."""
        size = self.attn.window_size
        batch, height, width, channels = x.shape
        down, across = -(-height // size), -(-width // size)
        x = F.pad(x, (0, 0, 0, across * size - width, 0, down * size - height))
        x = x.view(batch, down, size, across, size, channels).transpose(2, 3)  # (B, down, across, S, S, C)
        mixed: Tensor = self.attn(x.reshape(-1, size * size, channels))
        mixed = mixed.view(batch, down, across, size, size, channels).transpose(2, 3)
        return mixed.reshape(batch, down * size, across * size, channels)[:, :height, :width]


class Stage(nn.Module):
    """Blocks at one resolution, then the merge into the next stage (none after the last)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """MobileSAM's image encoder. The default sizes are the 5 M parameter model of the published checkpoint."""

    def __init__(
        self,
        img_size: int = 1024,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        mlp_ratio: float = 4.0,
        mbconv_expand_ratio: float = 4.0,
        out_chans: int = 256,
    ) -> None:
        """
        Args:
            img_size: side of the square input in pixels, a multiple of 16.
            in_chans: channels of the input.
            num_classes: width of the classifier that the published checkpoint still carries; not used here.
            embed_dims, depths, num_heads, window_sizes: one entry a stage; the first stage is convolutional and ignores
                its heads and window.
            mlp_ratio, mbconv_expand_ratio: how much wider the hidden layers are.
            out_chans: channels of the embedding.

        Raises:
            ValueError: if `img_size` is not a positive multiple of 16, or the four lists differ in length.
        """
        super().__init__()
        if img_size <= 0 or img_size % STRIDE:
            raise ValueError(f"img_size must be a positive multiple of {STRIDE}; got {img_size}.")
        if not len(embed_dims) == len(depths) == len(num_heads) == len(window_sizes):
            raise ValueError(
                "embed_dims, depths, num_heads and window_sizes need one entry a stage each; "
                f"got {len(embed_dims)}, {len(depths)}, {len(num_heads)} and {len(window_sizes)} entries."
            )
        self.img_size = img_size
        self.patch_size = STRIDE
        self.patch_embed = PatchEmbed(in_chans, embed_dims[0])
        last = len(depths) - 1
        self.layers = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            blocks: list[nn.Module] = [
                TinyViTBlock(dim, num_heads[i], window_sizes[i], mlp_ratio) if i else MBConv(dim, mbconv_expand_ratio)
                for _ in range(depth)
            ]
            merge = None if i == last else PatchMerging(dim, embed_dims[i + 1], stride=1 if i == last - 1 else 2)
            self.layers.append(Stage(blocks, merge))
        self.norm_head = nn.LayerNorm(embed_dims[-1])  # these two are in the checkpoint, but not on the way to a mask
        self.head = nn.Linear(embed_dims[-1], num_classes)
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 16G, 16G) normalised input -> (B, out_chans, G, G) embedding."""
        # Channels last: the permutes between convolutions and attention then move no memory.
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            x = layer(x)
        embedding: Tensor = self.neck(x)
        return embedding.contiguous()


def distance_index(window_size: int) -> Tensor:
    """(N, N) int64: the entry of the bias table for each pair of tokens of a window, dy * S + dx."""
    along = torch.arange(window_size)
    apart = (along[:, None] - along[None, :]).abs()  # (S, S)
    index = apart[:, None, :, None] * window_size + apart[None, :, None, :]  # (S, S, S, S) as y, x, y', x'
    return index.reshape(window_size**2, window_size**2)


def init_linear(module: nn.Module) -> None:
    """Draws the weights of a linear layer from a narrow normal distribution, as ViTs are trained from."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
