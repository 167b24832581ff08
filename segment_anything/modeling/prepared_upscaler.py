"""From the cells of one object to its masks, for as many masks as are wanted.

Letters: B objects, K masks of an object, N = g * g image cells, C width.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import layer_norm

from segment_anything.modeling.cells import per_cell
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.linear import linear
from segment_anything.modeling.mask_decoder import MaskDecoder

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
        self.hypernetworks = decoder.output_hypernetworks_mlps
        self.size_hw = size_hw
        self.norm = norm
        self.first, self.second = per_cell(first), per_cell(second)
        self.rows = max(1, 2**18 // (size_hw[1] * self.first[0].shape[0]))  # 2**18 values fit a core's cache

    def kernels(self, tokens: torch.Tensor, chosen: slice) -> torch.Tensor:
        """Mask tokens (B, K, C) of the masks that are chosen among all -> kernels (B, K, C / 8)."""
        mlps = list(self.hypernetworks)[chosen]
        return torch.stack([mlp(tokens[:, index]) for index, mlp in enumerate(mlps)], dim=1)

    def __call__(
        self, first_layer: FirstLayer, kernels: torch.Tensor, seen_hw: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Masks of one object.

        Args:
            first_layer: of its cells.
            kernels: (K, C / 8).
            seen_hw: rows and columns of cells that are wanted, from the top left; None for all.

        Returns:
            Logits (K, 4g, 4g), 0 where they are not wanted.
        """
        (height, width), count = self.size_hw, len(kernels)
        rows, columns = seen_hw or self.size_hw
        dtype = torch.float32 if kernels.dtype in HALF else kernels.dtype  # logits keep their digits
        shape = count, height, 2, 2, width, 2, 2  # y, its child, its grandchild, x, ...
        is_whole = (rows, columns) == self.size_hw
        out = kernels.new_empty(shape, dtype=dtype) if is_whole else kernels.new_zeros(shape, dtype=dtype)
        pairs = _as_pairs(out)[:, :rows, :, :, :columns]
        for row in range(0, rows, self.rows):
            part = slice(row, min(row + self.rows, rows))
            cells = first_layer(part, slice(columns))
            x = cells.view(len(cells) * 4, -1)
            x = self.act1(layer_norm(x, x.shape[1:], self.norm.weight, self.norm.bias, self.norm.eps))
            x = linear(x, *self.second, self.act2).view(len(cells) * 16, -1)
            masks = linear(kernels.to(dtype), x.to(dtype), None).view(
                count, -1, columns, 2, 2, 2, 2
            )  # K y x, child y x, grandchild y x
            pairs[:, part] = _as_pairs(masks).permute(0, 1, 3, 5, 2, 4, 6)
        return out.view(count, 4 * height, 4 * width)


def _as_pairs(x: torch.Tensor) -> torch.Tensor:
    """The last axis, of two, as one number of twice the width, which is moved in one go (10 times faster)."""
    return x.view(torch.int64) if x.dtype == torch.float32 else x
