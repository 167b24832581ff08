"""Low-rank adaptation (LoRA, https://arxiv.org/abs/2106.09685) that merges into a plain checkpoint.

The weight W (n x m) of a layer is frozen and replaced by W + (alpha / rank) B A with B (n x rank) = 0 and A (rank x m)
random, so that training starts from the model as it is. It is a torch parametrisation: the layer keeps its class and
everything that reads its `weight` sees the adapted one; `merge_lora` leaves plain layers with the original names.
Unlike QLoRA and the like it saves gradients and optimiser state, not the memory of the weights.
"""

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

ADAPTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
"""Kinds of layers that can be adapted."""


class LowRank(nn.Module):
    """Adds a trainable matrix of low rank to a weight of any shape, taken as (first axis, all other axes)."""

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted weight, of the shape of `weight`."""
        return weight + self.scale * (self.up @ self.down).view_as(weight).to(weight.dtype)


def add_lora(
    module: nn.Module, rank: int = 8, alpha: float | None = None, wanted: Callable[[str], bool] | None = None
) -> list[str]:
    """Freeze all of `module` and adapt its linear and dense convolution layers.

    Args:
        module: changed in place; it holds the layers and is none itself.
        rank: of the added matrices.
        alpha: strength; None takes `rank`, so that the added matrix is B A itself.
        wanted: chooses layers by their name inside `module`; None takes all. Depthwise convolutions and layers with
            fewer than four rows or columns are left alone: a low rank saves nothing there.

    Returns:
        Names of the adapted layers.

    Raises:
        ValueError: if `rank` is not positive, or no layer is left to adapt.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}.")
    module.requires_grad_(False)
    names = []
    for name, layer in list(module.named_modules()):
        if name and _adaptable(layer) and (wanted is None or wanted(name)):
            assert isinstance(layer.weight, torch.Tensor)
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, float(alpha or rank)))
            names.append(name)
    if not names:
        raise ValueError(f"{type(module).__name__} has no layer to adapt (linear or dense convolution, as wanted).")
    return names


def merge_lora(module: nn.Module) -> None:
    """Make every adapted layer a plain one again, with the adapted weight, in place; what is frozen stays frozen."""
    for name, layer in list(_adapted_layers(module)):
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, _plain(layer))


def _plain(layer: nn.Module) -> nn.Module:
    """The layer as it was before, with the adapted weight.

    Not by `remove_parametrizations`: that changes the layer's class, which copies of the layer share.
    """
    kind: type[nn.Module] = type(layer).__mro__[1]
    plain = kind.__new__(kind)
    plain.__dict__.update(layer.__dict__)
    plain._modules = {name: child for name, child in layer._modules.items() if name != "parametrizations"}
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    frozen = nn.Parameter(weight.detach().clone(), requires_grad=False)
    plain._parameters = {"weight": frozen, **layer._parameters}
    return plain


def merged_copy(module: nn.Module) -> nn.Module:
    """A copy with plain merged weights; the module itself when nothing in it is adapted."""
    if next(_adapted_layers(module), None) is None:
        return module
    merged = copy.deepcopy(module)
    merge_lora(merged)
    return merged


def _adaptable(layer: nn.Module) -> bool:
    if not isinstance(layer, ADAPTED) or (isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.groups > 1):
        return False
    return min(layer.weight.shape[0], layer.weight[0].numel()) >= 4


def _adapted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in list(module.named_modules()):
        if parametrize.is_parametrized(layer, "weight"):
            assert isinstance(layer.parametrizations, nn.ModuleDict)
            if any(isinstance(part, LowRank) for part in layer.parametrizations["weight"].children()):
                yield name, layer
