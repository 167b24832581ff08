"""Two layers that every network here shares."""

import torch
from torch import nn

from segment_anything.modeling.linear import apply_mlp


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them, back to the width it came from."""

    def __init__(self, embedding_dim: int, mlp_dim: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embedding_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embedding_dim)
        self.act = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        return apply_mlp(self.lin1, self.act, self.lin2, x)


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a (B, C, H, W) map, each pixel on its own."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        normalised = nn.functional.layer_norm(
            x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, self.eps
        )  # B H W C
        return normalised.permute(0, 3, 1, 2)
