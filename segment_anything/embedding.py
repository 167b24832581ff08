"""An encoded image: what every prompt on it needs, and enough to know later that it still fits."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from segment_anything.geometry import ImageGeometry

FORMAT = "segment-anything image embedding 1"


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
        metadata = {
            "format": FORMAT,
            "original_size_hw": json.dumps(self.geometry.original_size_hw),
            "image_size": str(self.geometry.image_size),
            "model": self.model,
            "weights_fingerprint": self.weights_fingerprint,
            "image_fingerprint": self.image_fingerprint,
        }
        features = self.features.detach().cpu().to(torch.float16 if half else torch.float32).contiguous()
        part = Path(f"{os.fspath(path)}.{os.getpid()}.part")
        try:
            save_file({"features": features}, part, metadata)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ImageEmbedding":
        """Read a file that `save` wrote; features are float32 on the CPU.

        Raises:
            ValueError: if it is no such file.
            FileNotFoundError: if there is none.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{os.fspath(path)}: there is no such embedding file.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{os.fspath(path)}: not an image embedding (format {metadata.get('format')!r}).")
                features = file.get_tensor("features").float()
        except SafetensorError as error:
            raise ValueError(f"{os.fspath(path)}: not an image embedding, or damaged ({error}).") from error
        height, width = json.loads(metadata["original_size_hw"])
        geometry = ImageGeometry((height, width), int(metadata["image_size"]))
        return cls(
            features, geometry, metadata["model"], metadata["weights_fingerprint"], metadata["image_fingerprint"]
        )

    def check_image(self, image: npt.NDArray[np.uint8]) -> None:
        """Refuse an image other than the one that was encoded.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ValueError: if the pixels differ.
        """
        if fingerprint_image(image) != self.image_fingerprint:
            raise ValueError("this embedding was made from another image (its pixels differ): encode this one.")


def fingerprint_image(image: npt.NDArray[np.uint8]) -> str:
    """A short name of an image's size and pixels: equal images have the same, different ones practically never.

    Args:
        image: (H, W, 3) uint8.
    """
    digest = hashlib.sha1(repr(image.shape).encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


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
