"""The image encoder's linear layers in 8 bits, for a CPU: faster, and approximate (drift: docs/performance.md).

Each output channel's weights and each token's inputs are rounded to -127..127 times a step of their own (symmetric,
the inputs' steps found as they come), multiplied in integers, and scaled back; everything between the layers stays
float32. An encoder in 8 bits is for inference: no gradients reach its weights.

Letters: N tokens, I inputs, O outputs.
"""

import torch
from torch import nn

TOKENS_AT_ONCE = 1024
"""Tokens that go through a layer together, so that the integers of their outputs fit a core's cache."""


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers."""

    weight: torch.Tensor
    """(O, I) int8."""
    step: torch.Tensor
    """(O,) float32."""
    bias: torch.Tensor
    """(O,) float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        step = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        self.register_buffer("weight", (weight / step[:, None]).round().to(torch.int8))
        self.register_buffer("step", step)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O)."""
        rows = x.detach().reshape(-1, x.shape[-1])
        out = torch.empty((len(rows), len(self.weight)), dtype=torch.float32, device=x.device)
        for start in range(0, len(rows), TOKENS_AT_ONCE):
            part = slice(start, start + TOKENS_AT_ONCE)
            step = rows[part].abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(127)
            product = torch._int_mm((rows[part] / step).round_().to(torch.int8), self.weight.t())
            torch.addcmul(self.bias, product * step, self.step, out=out[part])
        return out.view(*x.shape[:-1], -1)


def quantise_linear_layers(network: nn.Module) -> None:
    """Replace every linear layer inside a network, in place, by one in 8 bits."""
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Linear:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, Int8Linear(layer))
