"""An encoded image: what every prompt on it needs, and enough to know later that it still fits."""

import hashlib
import os
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from segment_anything._embedding_file import EmbeddingFile
from segment_anything.geometry import ImageGeometry
from segment_anything.images import fingerprint_image

__all__ = ["ImageEmbedding", "fingerprint_image", "fingerprint_weights"]


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The image encoder's output for one image."""

    features: torch.Tensor
    """(1, C, g, g)."""
    geometry: ImageGeometry
    """How the image lies in the model's input."""
    model: str
    """Name of the model that made it."""
    weights_fingerprint: str
    """Of the image encoder's weights (`Sam.fingerprint`)."""
    image_fingerprint: str
    """Of the image (`fingerprint_image`)."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ImageEmbedding":
        """The same embedding on another device or in another type."""
        return replace(self, features=self.features.to(device=device, dtype=dtype))

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write a safetensors file that `load` reads; `half` stores 16-bit floats, half the size.

        The file appears whole or not at all.
        """
        features = self.features.detach().cpu().float().numpy()
        EmbeddingFile(features, self.geometry, self.model, self.weights_fingerprint, self.image_fingerprint).write(
            path, half
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ImageEmbedding":
        """Read a file that `save` wrote; features are float32 on the CPU.

        Raises:
            ValueError: if it is no such file.
            FileNotFoundError: if there is none.
        """
        file = EmbeddingFile.read(path)
        features = torch.from_numpy(file.features)
        return cls(features, file.geometry, file.model, file.weights_fingerprint, file.image_fingerprint)

    def check_image(self, image: npt.NDArray[np.uint8]) -> None:
        """Refuse an image other than the one that was encoded.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ValueError: if the pixels differ.
        """
        if fingerprint_image(image) != self.image_fingerprint:
            raise ValueError("this embedding was made from another image (its pixels differ): encode this one.")


def fingerprint_weights(state: dict[str, torch.Tensor], samples: int = 1024) -> str:
    """A short name of weights: of every tensor its name, its shape, and values spread over it.

    Values are compared as bfloat16, so that the same weights in float32 and in bfloat16 have the same name.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().reshape(-1)
        spread = flat[:: max(1, flat.numel() // samples)].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(spread.numpy().tobytes())
    return digest.hexdigest()
