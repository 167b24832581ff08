"""The small model: a convolutional encoder with a little attention, and prompts that are also drawn.

Trained from nothing on a few thousand photos, a SAM spends most of its time on learning that two Fourier-coded corners
mean "look here". Here the prompts are drawn as well, as smooth maps on the embedding grid, and added to the dense
prompt embedding: 2.4 to 2.8 times the IoU after the same number of steps (docs/log.md). The Python interface, the
economy (one image embedding, many prompts) and the mask decoder are SAM's.

Letters: B images, N objects, P points, C channels, g embedding cells a side.
"""

from itertools import pairwise

import torch
from torch import nn

from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.fuse import apply_conv_norm
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import Points, PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch normalisation, which `fuse` folds into one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor, activation: nn.Module | None = None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H', W'), `activation` applied to it."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return apply_conv_norm(conv, norm, x, activation)


class ConvBlock(nn.Module):
    """Depthwise 3 x 3 convolution, then widen and narrow by 1 x 1 convolutions, with a residual."""

    def __init__(self, channels: int, expand: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 3, groups=channels)
        self.widen = ConvNorm(channels, channels * expand, 1)
        self.act = nn.Hardswish()
        self.narrow = ConvNorm(channels * expand, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y: torch.Tensor = self.narrow(self.widen(self.depthwise(x), self.act))
        return x + y


class AttentionBlock(nn.Module):
    """A transformer block over all cells of a coarse grid; its position code is a depthwise convolution.

    Conditional positional encoding (https://arxiv.org/abs/2102.10882) works at any grid size.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, 4 * channels, nn.Hardswish)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.position(x)
        tokens = x.flatten(2).transpose(1, 2)  # B HW C
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        cells: torch.Tensor = tokens.transpose(1, 2).unflatten(2, tuple(x.shape[-2:]))
        return cells


class NanoEncoder(nn.Module):
    """Image -> embedding at stride 8: four stages at strides 4 to 32, joined top-down (a feature pyramid)."""

    def __init__(
        self,
        img_size: int = 512,
        out_chans: int = 128,
        widths: tuple[int, int, int, int] = (48, 96, 192, 320),
        depths: tuple[int, int, int, int] = (1, 2, 4, 4),
        heads: int = 8,
    ) -> None:
        """Build the encoder.

        Args:
            img_size: side of the square input, a multiple of 32.
            out_chans: channels of the embedding.
            widths: channels of the stages at strides 4, 8, 16, 32.
            depths: blocks of each stage; the last stage attends, the others convolve.
            heads: attention heads of the last stage.

        Raises:
            ValueError: if `img_size` is no multiple of 32.
        """
        super().__init__()
        if img_size % 32:
            nearest = max(1, round(img_size / 32)) * 32
            raise ValueError(f"image_size must be a multiple of 32 for nano, got {img_size}; the nearest is {nearest}")
        self.img_size = img_size
        self.patch_size = 8
        self.stem = nn.Sequential(
            ConvNorm(3, widths[0] // 2, 3, stride=2), nn.Hardswish(), ConvNorm(widths[0] // 2, widths[0], 3, stride=2)
        )
        self.downs = nn.ModuleList(ConvNorm(n, m, 3, stride=2) for n, m in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvBlock(width, 3) if stage < 3 else AttentionBlock(width, heads) for _ in range(depth)))
            for stage, (width, depth) in enumerate(zip(widths, depths, strict=True))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, out_chans, 1) for width in widths[1:])
        self.fine = nn.Conv2d(widths[0], out_chans, 2, stride=2)
        self.merge = nn.Sequential(ConvBlock(out_chans, 2), ConvBlock(out_chans, 2))
        self.norm = LayerNorm2d(out_chans)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised input, H and W multiples of 32 -> (B, out_chans, H / 8, W / 8)."""
        if not torch.is_grad_enabled():  # 1 x 1 convolutions are linear layers then (`apply_conv_norm`)
            x = x.contiguous(memory_format=torch.channels_last)
        fine = self.stages[0](self.stem(x))
        levels = [fine]
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            levels.append(stage(down(levels[-1])))
        top = self.laterals[2](levels[3])
        middle = self.laterals[1](levels[2]) + nn.functional.interpolate(top, scale_factor=2.0, mode="nearest")
        low = self.laterals[0](levels[1]) + nn.functional.interpolate(middle, scale_factor=2.0, mode="nearest")
        embedding: torch.Tensor = self.norm(self.merge(low + self.fine(fine)))
        return embedding.contiguous()


class MixBlock(nn.Module):
    """Depthwise convolution, normalisation, then widen and narrow, with a residual (https://arxiv.org/abs/2201.03545)."""

    def __init__(self, channels: int, kernel: int, expand: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.widen = nn.Conv2d(channels, channels * expand, 1)
        self.act = nn.Hardswish()
        self.narrow = nn.Conv2d(channels * expand, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        y: torch.Tensor = self.narrow(self.act(self.widen(self.norm(self.depthwise(x)))))
        return x + y


class PromptMixer(nn.Module):
    """Lets what a prompt says travel over the image: a small pyramid at 2 and 4 times the embedding's stride.

    In SAM's decoder a cell meets the prompt through a few tokens only, and compares itself with them on its own. A
    large encoder has grouped the cells into objects by then; a small one has not.
    """

    def __init__(self, channels: int, coarse: int = 64, coarsest: int = 96) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, coarse, 2, stride=2)
        self.enter = MixBlock(coarse, 3, 2)
        self.deeper = nn.Conv2d(coarse, coarsest, 2, stride=2)
        self.deep = nn.Sequential(*(MixBlock(coarsest, 5, 2) for _ in range(3)))
        self.rise = nn.Conv2d(coarsest, coarse, 1)
        self.leave = nn.Sequential(MixBlock(coarse, 3, 2), MixBlock(coarse, 3, 2))
        self.up = nn.Conv2d(coarse, channels, 1)
        self.local = MixBlock(channels, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, g, g) -> (N, C, g, g); g is a multiple of 4."""
        raised = nn.functional.interpolate(
            self.coarse(self.down(x)), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        mixed: torch.Tensor = self.local(x + raised)
        return mixed

    def coarse(self, x: torch.Tensor) -> torch.Tensor:
        """The pyramid behind its first step `down`: (N, coarse, g / 2, g / 2) -> (N, C, g / 2, g / 2)."""
        middle = self.enter(x)
        bottom = self.rise(self.deep(self.deeper(middle)))
        middle = self.leave(middle + nn.functional.interpolate(bottom, scale_factor=2.0, mode="nearest"))
        raised: torch.Tensor = self.up(middle)
        return raised


class DrawnPromptEncoder(PromptEncoder):
    """SAM's prompt encoder that also draws points and boxes on the embedding grid.

    Eight maps: the box filled, its own coordinates u and v from -1 to 1, its inscribed ellipse; then two widths of a
    Gaussian around foreground points and two around background points. A small network turns them into C channels,
    added to the dense embedding.
    """

    SIGMAS = (0.75, 3.0)
    """Standard deviations of the Gaussians, in embedding cells."""

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int,
        activation: type[nn.Module] = nn.Hardswish,
    ) -> None:
        """Args: as `PromptEncoder`."""
        super().__init__(embed_dim, image_embedding_size, input_image_size, mask_in_chans, activation)
        last = nn.Conv2d(32, embed_dim, 1, bias=False)
        nn.init.normal_(last.weight, std=0.3)  # as loud as the image embedding from the first step
        self.drawing = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), activation(), last)
        self.mixer = PromptMixer(embed_dim)

    def forward(
        self, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Arguments, frames and shapes as `PromptEncoder.forward`."""
        sparse, dense = super().forward(points, boxes, masks)
        return sparse, dense + self.drawing(self.draw(points, boxes, dense))

    def draw(self, points: Points | None, boxes: torch.Tensor | None, dense: torch.Tensor) -> torch.Tensor:
        """The eight maps (N, 8, g, g) of N objects, in the type of `dense`, of which there are N."""
        maps = torch.cat([self._draw_boxes(boxes, dense), self._draw_points(points, dense)], dim=1)
        return maps.to(dense.dtype).contiguous(memory_format=torch.channels_last)

    def ground(self, dense: torch.Tensor, image_embeddings: torch.Tensor) -> torch.Tensor:
        """See `PromptEncoder.ground`: the drawn prompt spreads over the image around it."""
        image = image_embeddings.contiguous(memory_format=torch.channels_last)  # or each sum below is a slow one
        mixed: torch.Tensor = self.mixer((image + dense).contiguous(memory_format=torch.channels_last))
        return mixed - image

    def _cells(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres of the cells in cell units: x (1, 1, g) and y (1, g, 1)."""
        height, width = self.image_embedding_size
        x = torch.arange(width, device=like.device, dtype=torch.float32) + 0.5
        y = torch.arange(height, device=like.device, dtype=torch.float32) + 0.5
        return x[None, None, :], y[None, :, None]

    def _to_cells(self, coords: torch.Tensor) -> torch.Tensor:
        """(..., 2) input pixels -> cell units."""
        (height, width), (grid_h, grid_w) = self.input_image_size, self.image_embedding_size
        scale = torch.tensor([grid_w / width, grid_h / height], dtype=torch.float32, device=coords.device)
        return (coords.to(torch.float32) + 0.5) * scale

    def _draw_boxes(self, boxes: torch.Tensor | None, dense: torch.Tensor) -> torch.Tensor:
        """(N, 4) -> (N, 4, g, g): soft fill, u, v and ellipse, all zero outside."""
        if boxes is None:
            return dense.new_zeros((dense.shape[0], 4, *self.image_embedding_size), dtype=torch.float32)
        corners = self._to_cells(boxes.reshape(-1, 2, 2))
        x0, y0, x1, y1 = (corners[:, i, j, None, None] for i in (0, 1) for j in (0, 1))
        x, y = self._cells(dense)
        fill_x = (torch.minimum(x1, x + 0.5) - torch.maximum(x0, x - 0.5)).clamp(0, 1)  # share of the cell covered
        fill_y = (torch.minimum(y1, y + 0.5) - torch.maximum(y0, y - 0.5)).clamp(0, 1)
        fill = fill_x * fill_y  # N g g
        u = ((2 * x - x0 - x1) / (x1 - x0).clamp(min=1e-3)).clamp(-1, 1) * fill
        v = ((2 * y - y0 - y1) / (y1 - y0).clamp(min=1e-3)).clamp(-1, 1) * fill
        ellipse = (1 - u * u - v * v) * fill
        return torch.stack([fill, u, v, ellipse], dim=1)

    def _draw_points(self, points: Points | None, dense: torch.Tensor) -> torch.Tensor:
        """(N, P, 2) and (N, P) -> (N, 4, g, g): narrow and wide Gaussians of foreground, then of background."""
        if points is None:
            return dense.new_zeros((dense.shape[0], 4, *self.image_embedding_size), dtype=torch.float32)
        centres = self._to_cells(points[0])[..., None, None]  # N P 2 1 1
        x, y = self._cells(dense)
        across, down = (x - centres[:, :, 0]).square(), (y - centres[:, :, 1]).square()  # N P 1 g, N P g 1
        falls = [torch.exp(across / (-2 * sigma**2)) * torch.exp(down / (-2 * sigma**2)) for sigma in self.SIGMAS]
        chosen = [(points[1] == label)[..., None, None] for label in (1, 0)]
        return torch.stack([(fall * which).amax(dim=1) for which in chosen for fall in falls], dim=1)


def build_nano_parts(image_size: int = 512) -> tuple[NanoEncoder, DrawnPromptEncoder, MaskDecoder]:
    """The three networks of `nano`, with fresh weights, for a square input of `image_size` pixels a side."""
    encoder = NanoEncoder(image_size)
    grid = image_size // encoder.patch_size
    prompt_encoder = DrawnPromptEncoder(
        embed_dim=128, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=128, num_heads=4, mlp_dim=1024)
    decoder = MaskDecoder(transformer_dim=128, transformer=transformer, activation=nn.Hardswish)
    return encoder, prompt_encoder, decoder
