"""What pre-training and distillation can be told. Imports no torch: help must be quick."""

from dataclasses import dataclass
from pathlib import Path

from segment_anything.training.finetune_options import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """How an encoder is pre-trained by masked autoencoding."""

    size: int = 224
    """Side of the crops in pixels; position tables are resampled when the weights go into a model."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    decoder_dim: int = 512
    """Width of the decoder, which is thrown away afterwards."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    valid_fraction: float = 0.05
    """Share of the images to validate on."""
    precision: str = "fp32"
    """fp32 or bf16."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, got {self.mask_ratio}.")
        if self.decoder_dim < 32 or self.decoder_dim % 32:
            raise ValueError(f"decoder_dim must be a multiple of 32, got {self.decoder_dim}.")


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """How a student's image encoder learns a teacher's image embeddings."""

    views: int = 2
    """Augmented versions of each image that the teacher embeds, the first as it is."""
    cache: Path | None = None
    """Folder of the teacher's embeddings. By default inside the folder of the run."""
    cache_half: bool = True
    """Keep them in half precision."""
    valid_fraction: float = 0.1
    """Share of the images to validate on."""
    precision: str = "fp32"
    """fp32 or bf16."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if self.views < 1:
            raise ValueError(f"views must be 1 or more, got {self.views}.")
