"""`torch.compile` for those who ask for it: block by block, so that the many alike are compiled once.

Nothing here is used unless `load_sam(..., compile=True)`. The first image then waits for the compiler (seconds to
minutes); PyTorch keeps its work on disk (TORCHINDUCTOR_CACHE_DIR), so that the next process waits less. Regional
compilation: https://docs.pytorch.org/tutorials/recipes/regional_compilation.html
"""

import warnings

import torch
from torch import nn

from segment_anything.modeling.image_encoder import ImageEncoderViT


def compile_encoder(encoder: nn.Module, backend: str = "inductor") -> None:
    """Compile an image encoder in place, at its first call: each block of a ViT, any other encoder as a whole.

    Names and shapes of parameters stay as they are.
    """
    regions = list(encoder.blocks) if isinstance(encoder, ImageEncoderViT) else [encoder]
    for region in regions:
        region.compile(backend=backend, dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Compile a line of arithmetic, and refuse if that fails.

    Raises:
        ValueError: with the compiler's reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, about itself
            torch.compile(_two_operations, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # torch, the C++ compiler, Triton and the system fail in classes of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        wanted = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        raise ValueError(
            f"compile=True does not work here: {reason} It needs {wanted}. Leave compile out: nothing else needs it."
        ) from error


def _two_operations(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
