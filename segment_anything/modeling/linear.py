"""Linear layers without gradients on an x86 CPU, through oneDNN instead of MKL unless the product is small.

PyTorch hands float32 matrix products to MKL. oneDNN, which is part of PyTorch too, is faster on the sizes of an image
encoder (1.1 times on an AMD Zen 4, measured in docs/performance.md), and applies the activation while the product is
still in the cache. It is called for one layer at a time: no setting of PyTorch is changed.
"""

from collections.abc import Callable
from functools import lru_cache
from math import gcd, prod

import torch
from torch import nn

FUSED: dict[type[nn.Module], tuple[str, str]] = {
    nn.GELU: ("gelu", "none"),
    nn.Hardswish: ("hardswish", ""),
    nn.ReLU: ("relu", ""),
}
"""oneDNN's names of activations, and of how they are computed ("none": not by tanh)."""

IN_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "hardswish": torch.ops.aten.hardswish_,
    "relu": torch.ops.aten.relu_,
}

KEPT_BYTES = 2**25
"""Above this the C library maps a tensor anew each time, and its pages are faulted in one by one."""
PIECE_BYTES = 2**23
"""Of a hidden layer that would be larger."""

FEW_ROWS = 64
"""Up to so many, MKL is faster (docs/log.md)."""
LARGE_WEIGHT = 2**19
"""Numbers of a weight that is worth being shared out among threads."""
SMALL_PRODUCT = 2**23
"""With fewer multiplications MKL is faster for more rows too (docs/log.md)."""
PIECES = 16
"""Of the longer factor of a `thin_product`."""


def apply_linear(layer: nn.Module, x: torch.Tensor, activation: nn.Module | None = None) -> torch.Tensor:
    """`activation(layer(x))`."""
    if type(layer) is nn.Linear and not is_watched(layer):
        return linear(x, layer.weight, layer.bias, activation)
    out: torch.Tensor = layer(x)  # adapted, quantised or watched by somebody
    return out if activation is None else activation(out)


def apply_mlp(
    first: nn.Module,
    activation: nn.Module,
    second: nn.Module,
    x: torch.Tensor,
    whole_bytes: int = KEPT_BYTES,
    piece_bytes: int = PIECE_BYTES,
) -> torch.Tensor:
    """`second(activation(first(x)))` over the last axis.

    On a CPU a hidden layer of more than `whole_bytes` is made in pieces of `piece_bytes`.
    """
    rows, hidden = prod(x.shape[:-1]), getattr(first, "out_features", 0)
    bytes_per_row = hidden * x.element_size()
    if not may_divide(x, first, second) or is_watched(activation) or rows * bytes_per_row <= whole_bytes:
        return apply_linear(second, apply_linear(first, x, activation))
    at_once = 1 << max(1, piece_bytes // bytes_per_row).bit_length() - 1  # a power of two, as kernels like rows best
    pieces = x.reshape(rows, x.shape[-1]).split(at_once)
    out = torch.cat([apply_linear(second, apply_linear(first, piece, activation)) for piece in pieces])
    return out.view(*x.shape[:-1], -1)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module | None = None
) -> torch.Tensor:
    """`activation(torch.nn.functional.linear(x, weight, bias))`."""
    if not _is_fast(x):
        out = nn.functional.linear(x, weight, bias)
    elif (rows := prod(x.shape[:-1])) <= FEW_ROWS:
        out = _of_few_rows(x, weight, bias)
    elif rows * weight.numel() < SMALL_PRODUCT:
        out = nn.functional.linear(x, weight, bias)
    else:
        fused = None if activation is None else _fused(activation)
        name, how = fused or ("none", "")
        if name == "gelu" and not has_wide_vectors():  # slower inside the product than behind it
            name, how, fused = "none", "", None
        out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], how)
        activation = None if fused else activation
    return out if activation is None else activate(out, activation)


def thin_product(few: torch.Tensor, many: torch.Tensor) -> torch.Tensor:
    """Few rows (R, C) times many (N, C), on a CPU -> (R, N).

    MKL shares out the products of a batch among its threads, and hardly the inside of one so thin (docs/log.md): the
    many are taken in pieces.
    """
    pieces = many.unflatten(0, (gcd(len(many), PIECES), -1))
    found = torch.bmm(few.expand(len(pieces), -1, -1), pieces.transpose(1, 2))  # pieces R N / pieces
    return found.transpose(0, 1).reshape(len(few), -1)


def _of_few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer of a few tokens by MKL."""
    if weight.numel() < LARGE_WEIGHT or torch.get_num_threads() == 1:
        return nn.functional.linear(x, weight, bias)
    out = thin_product(x.reshape(-1, x.shape[-1]), weight)
    return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)


def activate(x: torch.Tensor, activation: nn.Module) -> torch.Tensor:
    """`activation(x)`, which may be written over x where nobody wants gradients."""
    fused = None if plain_wanted() else _fused(activation)
    activated: torch.Tensor = activation(x) if fused is None else IN_PLACE[fused[0]](x)
    return activated


def _fused(activation: nn.Module) -> tuple[str, str] | None:
    is_by_tanh = getattr(activation, "approximate", "none") != "none"
    return None if is_watched(activation) or is_by_tanh else FUSED.get(type(activation))


def is_watched(*modules: nn.Module) -> bool:
    """Whether somebody watches or changes, by a hook, what goes in or out of one of these (not of what is inside)."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def may_divide(x: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether parts of x may go through linear layers one after the other: on a CPU, and nobody would see the parts."""
    is_known = all(type(layer) is nn.Linear for layer in layers) and not is_watched(*layers)
    return is_known and x.device.type == "cpu" and not plain_wanted()


def plain_wanted() -> bool:
    """Whether the plain operations are needed: for gradients, or for a compiler or exporter that writes them down."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or is_exported()


def is_learning(x: torch.Tensor) -> bool:
    """Whether gradients are kept on a CPU, where forms of the same function exist that save time in training."""
    is_written_down = torch.compiler.is_compiling() or is_exported()
    return torch.is_grad_enabled() and not is_written_down and x.device.type == "cpu"


def is_exported() -> bool:
    """Whether an exporter writes the operations down, for runtimes that know those of PyTorch alone."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def _is_fast(x: torch.Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not plain_wanted()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # for export
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and x.numel() > 0
        and _has_onednn()
    )


@lru_cache(maxsize=1)
def has_wide_vectors() -> bool:
    """Whether PyTorch uses vectors of 512 bits: a Zen 4 does, a Zen 3 not, and other things are faster there."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@lru_cache(maxsize=1)
def _has_onednn() -> bool:
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
