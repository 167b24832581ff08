"""A convolution and its batch normalisation as one convolution, where no gradients are needed.

The normalisation of a trained network multiplies and shifts each channel by constants, which are folded into the
weights at each call: that costs a thousandth of the convolution, and leaves nothing behind that could be out of date.
A 1 x 1 convolution of a map that lies channels last in memory is a linear layer of its pixels.
"""

import torch
from torch import nn
from torch.nn.functional import conv2d

from segment_anything.modeling.linear import linear, plain_wanted


def apply_conv_norm(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor, activation: nn.Module | None = None
) -> torch.Tensor:
    """`activation(norm(conv(x)))`, (B, C, H, W) -> (B, C', H', W')."""
    if not _can_fold(conv, norm):
        out: torch.Tensor = norm(conv(x))
        return out if activation is None else activation(out)
    weight, bias = fold(conv, norm)
    is_pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    if is_pointwise and x.is_contiguous(memory_format=torch.channels_last):
        pixels = linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias, activation)
        return pixels.permute(0, 3, 1, 2)
    out = conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return out if activation is None else activation(out)


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the convolution that does both; the norm is in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    weight, dtype = conv.weight * factor[:, None, None, None], conv.weight.dtype
    return weight.to(dtype), (norm.bias + bias * factor).to(dtype)  # the norm may be kept in a wider type


def _can_fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return (
        not plain_wanted()
        and not norm.training
        and norm.running_mean is not None
        and norm.affine
        and type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and conv.padding_mode == "zeros"
        and not any(m._forward_hooks or m._forward_pre_hooks for m in (conv, norm))
    )
