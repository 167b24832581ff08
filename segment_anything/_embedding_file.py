"""The file that an image embedding is kept in: safetensors, with what it belongs to in its header.

Plain numpy, shared by torch and ONNX Runtime: what one wrote the other reads.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segment_anything._optional import require
from segment_anything.geometry import ImageGeometry

FORMAT = "segment-anything image embedding 1"


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """The content of such a file; the fields are those of `ImageEmbedding`."""

    features: npt.NDArray[Any]
    """(1, C, g, g) float."""
    geometry: ImageGeometry
    model: str
    weights_fingerprint: str
    image_fingerprint: str

    def write(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write the file, in 16-bit floats if `half`; it appears whole or not at all."""
        metadata = {
            "format": FORMAT,
            "original_size_hw": json.dumps(self.geometry.original_size_hw),
            "image_size": str(self.geometry.image_size),
            "model": self.model,
            "weights_fingerprint": self.weights_fingerprint,
            "image_fingerprint": self.image_fingerprint,
        }
        features = np.ascontiguousarray(self.features, dtype=np.float16 if half else np.float32)
        part = Path(f"{os.fspath(path)}.{os.getpid()}.part")
        try:
            require("safetensors.numpy", extra="onnx").save_file({"features": features}, part, metadata)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "EmbeddingFile":
        """Read a file that `write` wrote; features are float32.

        Raises:
            ValueError: if it is no such file.
            FileNotFoundError: if there is none.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{os.fspath(path)}: there is no such embedding file.")
        safetensors = require("safetensors", extra="onnx")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{os.fspath(path)}: not an image embedding (format {metadata.get('format')!r}).")
                features = file.get_tensor("features").astype(np.float32)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{os.fspath(path)}: not an image embedding, or damaged ({error}).") from error
        height, width = json.loads(metadata["original_size_hw"])
        geometry = ImageGeometry((height, width), int(metadata["image_size"]))
        return cls(
            features, geometry, metadata["model"], metadata["weights_fingerprint"], metadata["image_fingerprint"]
        )
