"""The decoder's upscaling as linear layers of cells: the same function, laid out as it is computed.

A transposed convolution whose kernel is its stride is a linear layer of every cell to its four children. Computed so,
normalisation, activation and products need no map of channels, and only the masks are laid out at the end. On a CPU a
round of training, forward and backward, spends about half as long on the upscaling (docs/log.md).

Letters: N objects, K masks of each, C width, g cells a side, P cells of all objects.
"""

from typing import cast

import torch
from torch import nn
from torch.nn.functional import layer_norm

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.linear import is_watched


def per_cell(layer: nn.ConvTranspose2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (4 * out, in) and bias (4 * out,) of the linear layer from a cell to its children, row by row."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # in out y x -> y x out, in
    assert layer.bias is not None
    return weight, layer.bias.repeat(4)


def products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Logits `left @ right` of kernels and values, float32 of half precision: thresholds look at their last digits."""
    if right.dtype in (torch.bfloat16, torch.float16):
        left, right = left.float(), right.float()
    return left @ right


def can_upscale(layers: nn.Sequential) -> bool:
    """Whether `upscale` computes what `layers` do: the five that it knows, and no hook on any."""
    kinds = tuple(type(layer) for layer in layers)
    return (
        kinds[:2] == (nn.ConvTranspose2d, LayerNorm2d)
        and kinds[3:4] == (nn.ConvTranspose2d,)
        and len(kinds) == 5
        and not is_watched(*layers.modules())
    )


def upscale(
    layers: nn.Sequential, cells: torch.Tensor, size_hw: tuple[int, int] | torch.Size, kernels: torch.Tensor
) -> torch.Tensor:
    """Masks of objects, with gradients.

    Args:
        layers: the decoder's `output_upscaling`, for which `can_upscale` holds.
        cells: (N, g * g, C).
        size_hw: rows and columns of cells.
        kernels: (N, K, C / 8).

    Returns:
        Logits (N, K, 4g, 4g).
    """
    first, norm, act1, second, act2 = layers
    norm = cast(LayerNorm2d, norm)
    x = nn.functional.linear(cells, *per_cell(cast(nn.ConvTranspose2d, first))).view(-1, len(norm.weight))  # 4P C/4
    x = act1(layer_norm(x, x.shape[1:], norm.weight, norm.bias, norm.eps))
    x = act2(nn.functional.linear(x, *per_cell(cast(nn.ConvTranspose2d, second))))  # 4P 4C/8
    count, masks, width = kernels.shape
    logits = products(x.view(count, -1, width), kernels.transpose(1, 2))  # N 16gg K
    height, columns = size_hw
    grown = logits.view(count, height, columns, 2, 2, 2, 2, masks)  # y, x, child y x, grandchild y x
    maps: torch.Tensor = grown.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(count, masks, 4 * height, 4 * columns)
    return maps
