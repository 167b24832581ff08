"""Which numbers the networks compute with while they train; weights and losses stay float32."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """Numbers used inside the networks: a context for their forward passes."""

    name: str
    """fp32 or bf16."""
    device: torch.device

    def __call__(self) -> torch.autocast:
        # Without the cache: a cached cast would tie the backward passes of different rounds together.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.name == "bf16", cache_enabled=False)


def fastest_precision(device: str | torch.device = "cpu") -> str:
    """bf16 on a GPU and on a processor that multiplies in it (AVX512_BF16, AMX), else fp32.

    Without those instructions a processor imitates bfloat16: a step of `nano` takes several times as long.
    """
    if torch.device(device).type != "cpu":
        return "bf16"
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if is_fast else "fp32"
