"""From the cells of one object to its masks, for as many masks as are wanted.

Letters: B objects, K masks of an object, N = g * g image cells, C width.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.functional import layer_norm

from segment_anything.modeling.cells import per_cell
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.linear import activate, linear
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder

VALUES_AT_ONCE = 2**18
"""Of a thread, behind the first layer: they fit a core's cache."""
HALF = (torch.bfloat16, torch.float16)
FirstLayer = Callable[[slice, slice], torch.Tensor]
"""The upscaler's first linear layer of an object's cells in some rows and columns, (rows * columns, C)."""


class Upscaler:
    """The decoder's upscaling and the products with each mask's kernel.

    A transposed convolution whose kernel is its stride is a linear layer of every cell to its four children; computed
    so, nothing is laid out anew until the masks.
    """

    def __init__(self, decoder: MaskDecoder, size_hw: tuple[int, int]) -> None:
        first, norm, self.act1, second, self.act2 = decoder.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        self.hypernetworks = _layer_by_layer(decoder.output_hypernetworks_mlps)
        self.size_hw = size_hw
        self.norm = norm
        self.first, self.second = per_cell(first), per_cell(second)
        self.row_values = size_hw[1] * self.first[0].shape[0]

    def kernels(self, tokens: torch.Tensor, chosen: slice) -> torch.Tensor:
        """Mask tokens (B, K, C) of the masks that are chosen among all -> kernels (B, K, C / 8)."""
        x = tokens.transpose(0, 1)  # K B C
        for index, (weight, bias) in enumerate(self.hypernetworks):
            x = x.relu() if index else x
            x = torch.baddbmm(bias[chosen], x, weight[chosen].transpose(1, 2))
        return x.transpose(0, 1).contiguous()

    def room(self, count: int, kernels: torch.Tensor, seen_hw: tuple[int, int] | None = None) -> torch.Tensor:
        """Memory for so many masks (P, 4g, 4g) by such kernels; 0 where they are not wanted.

        Args:
            count: P, of one object or more.
            kernels: (K, C / 8) of one of them; of half precision they make masks of float32.
            seen_hw: rows and columns of cells that are wanted, from the top left; None for all.
        """
        dtype = torch.float32 if kernels.dtype in HALF else kernels.dtype  # logits keep their digits
        shape = count, 4 * self.size_hw[0], 4 * self.size_hw[1]
        is_whole = seen_hw is None or seen_hw == self.size_hw
        return kernels.new_empty(shape, dtype=dtype) if is_whole else kernels.new_zeros(shape, dtype=dtype)

    def __call__(
        self,
        first_layer: FirstLayer,
        kernels: torch.Tensor,
        out: torch.Tensor,
        seen_hw: tuple[int, int] | None = None,
    ) -> None:
        """Masks of one object.

        Args:
            first_layer: of its cells.
            kernels: (K, C / 8).
            out: (K, 4g, 4g) from `room`, where the logits go.
            seen_hw: rows and columns of cells that are wanted, from the top left; None for all.
        """
        (height, width), count = self.size_hw, len(kernels)
        rows, columns = seen_hw or self.size_hw
        shape = count, height, 2, 2, width, 2, 2  # y, its child, its grandchild, x, ...
        pairs = _as_pairs(out.view(shape))[:, :rows, :, :, :columns]
        own = kernels.to(out.dtype)
        step = max(1, VALUES_AT_ONCE * torch.get_num_threads() // self.row_values)
        for row in range(0, rows, step):
            part = slice(row, min(row + step, rows))
            cells = first_layer(part, slice(columns))
            x = cells.view(len(cells) * 4, -1)
            x = activate(layer_norm(x, x.shape[1:], self.norm.weight, self.norm.bias, self.norm.eps), self.act1)
            x = linear(x, *self.second, self.act2).view(len(cells) * 16, -1)
            x = x.to(out.dtype).view(part.stop - row, columns * 16, -1)
            masks = torch.bmm(own.expand(len(x), -1, -1), x.transpose(1, 2)).view(
                -1, count, columns, 2, 2, 2, 2
            )  # y K x, child y x, grandchild y x
            pairs[:, part] = _as_pairs(masks).permute(1, 0, 3, 5, 2, 4, 6)


def are_alike(mlps: Iterable[nn.Module]) -> bool:
    """Whether the networks differ in nothing but their weights, and end in a linear layer."""
    shapes = {tuple(layer.weight.shape for layer in mlp.layers) for mlp in mlps if isinstance(mlp, MLP)}
    return len(shapes) == 1 and not any(getattr(mlp, "sigmoid_output", True) for mlp in mlps)


def _layer_by_layer(mlps: Iterable[nn.Module]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights (K, C', C) and biases (K, 1, C') of each layer: one product for K networks (docs/log.md)."""
    layers = zip(*(mlp.layers for mlp in mlps if isinstance(mlp, MLP)), strict=True)
    return [
        (torch.stack([layer.weight for layer in same]), torch.stack([layer.bias for layer in same])[:, None])
        for same in layers
    ]


def _as_pairs(x: torch.Tensor) -> torch.Tensor:
    """The last axis, of two, as one number of twice the width, which is moved in one go (10 times faster)."""
    return x.view(torch.int64) if x.dtype == torch.float32 else x
