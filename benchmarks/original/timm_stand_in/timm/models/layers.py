"""Pairs, an initialisation, and a layer that does nothing at inference."""

from typing import Any

import torch
from torch import nn


class DropPath(nn.Module):
    """Drops paths in training; here it never does."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same."""
        return x


def to_2tuple(value: Any) -> tuple[Any, Any]:
    """One value twice, or two as they are."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)  # type: ignore[return-value]


def trunc_normal_(tensor: torch.Tensor, std: float = 1.0) -> torch.Tensor:
    """Fill with a normal distribution cut at two standard deviations."""
    return nn.init.trunc_normal_(tensor, std=std)
