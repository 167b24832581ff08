"""Which network the commands run, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The arguments of `load_sam`."""

    model: str = "nano"
    """The network: nano (comes with the package), vit_t (MobileSAM), vit_b, vit_l or vit_h (fetched once)."""
    checkpoint: str | None = None
    """Other weights for it: a file, or "random"."""
    device: str = "auto"
    """Where to run: auto, cpu, cuda, cuda:1, mps, ..."""
    dtype: str = "float32"
    """Type of numbers: float32, bfloat16, float16 (on a GPU) or int8 (on a CPU); all but the first are approximate."""
    image_size: int | None = None
    """Side of the network's square input in pixels; smaller is faster and coarser. By default its own."""

    def load(self) -> Sam:
        """The model.

        Raises:
            ValueError: if it cannot be had; the message says why and what to do.
        """
        from segment_anything.build_sam import load_sam  # imports torch

        return load_sam(self.model, self.checkpoint, self.device, self.dtype, self.image_size)
