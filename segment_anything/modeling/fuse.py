"""A convolution and its batch normalisation as one convolution, where no gradients are needed.

The normalisation of a trained network multiplies and shifts each channel by constants, which are folded into the
weights at each call: that costs a thousandth of the convolution, and leaves nothing behind that could be out of date.
A 1 x 1 convolution of a map that lies channels last in memory is a linear layer of its pixels. The wide maps of an
inverted bottleneck (https://arxiv.org/abs/1801.04381) are made a stripe of rows at a time, which the cache holds.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from segment_anything.modeling.linear import is_watched, linear, plain_wanted

WHOLE_BYTES, STRIPE_BYTES = 2**24, 2**21
"""Maps up to the first gain nothing by being made in stripes of the second (docs/log.md)."""


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


def apply_bottleneck(
    layers: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]],
    x: torch.Tensor,
    activation: nn.Module,
    whole_bytes: int = WHOLE_BYTES,
    stripe_bytes: int = STRIPE_BYTES,
) -> torch.Tensor:
    """`narrow(activation(depthwise(activation(widen(x)))))`, each a convolution and its normalisation.

    Args:
        layers: widen and narrow are 1 x 1, depthwise is 3 x 3 with a padding of 1 and any stride.
        x: (B, C, H, W).
        activation: behind the first two.
        whole_bytes, stripe_bytes: on a CPU, if the widest map has more than `whole_bytes`, it is made in stripes of
            `stripe_bytes`.

    Returns:
        (B, C', H', W').
    """
    (widen, _), (depthwise, _), _ = layers
    height, width = x.shape[-2:]
    row_bytes = len(x) * width * widen.out_channels * x.element_size()
    is_large = x.device.type == "cpu" and height * row_bytes > whole_bytes
    can_stripe = all(_can_fold(*layer) for layer in layers) and x.is_contiguous(memory_format=torch.channels_last)
    if not is_large or not can_stripe:
        for (conv, norm), act in zip(layers, (activation, activation, None), strict=True):
            x = apply_conv_norm(conv, norm, x, act)
        return x
    (wide, wide_bias), (each, each_bias), (narrow, narrow_bias) = (fold(*layer) for layer in layers)
    pixels, stride = x.permute(0, 2, 3, 1), depthwise.stride[0]
    rows = max(1, stripe_bytes // (row_bytes * stride))  # of the result
    stripes = []
    for start in range(0, (height - 1) // stride + 1, rows):
        top, bottom = start * stride - 1, min((start + rows - 1) * stride + 2, height + 1)  # one row more on both sides
        y = linear(pixels[:, max(top, 0) : bottom], wide.flatten(1), wide_bias, activation)
        if top < 0 or bottom > height:  # beyond the map the hidden values are zero; `pad` by nothing would copy
            y = pad(y, (0, 0, 0, 0, max(-top, 0), max(bottom - height, 0)))
        y = conv2d(y.permute(0, 3, 1, 2), each, each_bias, stride, (0, 1), groups=len(each))
        stripes.append(linear(activation(y).permute(0, 2, 3, 1), narrow.flatten(1), narrow_bias))
    return torch.cat(stripes, dim=1).permute(0, 3, 1, 2)


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
        and not is_watched(conv, norm)
    )
