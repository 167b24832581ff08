"""Image embeddings on disk, one memory-mapped file an image, found by what the image shows and by the weights.

One file each, so that a hundred thousand images need no more memory than a hundred, an interrupted pass goes on where
it stopped, and several runs (and processes) may share a folder. A changed image or changed weights give another name:
a stale embedding is never used.
"""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from segment_anything.embedding import fingerprint_image
from segment_anything.modeling import Sam
from segment_anything.training.files import SaveError

SPARE_BYTES = 1 << 28
"""Disk space that is left to others."""


class EmbeddingCache:
    """The embeddings of one model in a folder."""

    def __init__(self, folder: Path, sam: Sam, half: bool = False) -> None:
        """Use `folder` (made when needed) for the embeddings of `sam`, whose encoder must not change any more.

        Args:
            folder: may hold the embeddings of other models as well.
            sam: the model.
            half: store float16: half the disk; results differ in the third digit of a logit.
        """
        kind = f"{sam.name}-{sam.image_size}-{sam.fingerprint()[:16]}{'-half' if half else ''}"
        self.folder = folder / kind
        self._sam = sam
        self._half = half
        self._lock = threading.Lock()

    def path(self, image: np.ndarray) -> Path:
        """Where the embedding of an image (H, W, 3) uint8 is, or will be."""
        name = fingerprint_image(image)
        return self.folder / name[:2] / f"{name}.safetensors"

    def ensure(self, image: np.ndarray) -> Path:
        """The file of an image's embedding, which is computed if it is not there.

        Raises:
            SaveError: if it cannot be written.
        """
        path = self.path(image)
        with self._lock:
            self._compute(image, path)
        return path

    def _compute(self, image: np.ndarray, path: Path) -> None:
        if not path.is_file():
            with torch.inference_mode():
                embedding = self._sam.encode(image)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                embedding.save(path, half=self._half)
            except (OSError, SafetensorError) as error:
                raise SaveError(
                    f"{path} could not be written ({error}). Free some space, or use --cache-half; what is there is "
                    "kept."
                ) from error

    def bytes_needed(self, images: int) -> int:
        """Disk space of the embeddings of so many images."""
        cells = self._sam.prompt_encoder.image_embedding_size
        return images * self._sam.prompt_encoder.embed_dim * cells[0] * cells[1] * (2 if self._half else 4)

    def check_space(self, images: int) -> None:
        """Fail now rather than after hours.

        Raises:
            SaveError: if the disk has too little free space for the embeddings of so many images.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        here = sum(1 for _ in self.folder.glob("*/*.safetensors"))
        needed = self.bytes_needed(max(0, images - here)) + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise SaveError(
                f"{self.folder}: the embeddings of {images} images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                "free. Choose another disk with --cache, or use --cache-half, --views 1 or --max-images."
            )


class Manifest:
    """Which image file has which embedding, so that a run that goes on need not read every image to find out.

    One JSON line an image, appended when its embedding is there; a file that was touched since is not trusted. Each
    process writes a file of its own.
    """

    def __init__(self, cache: EmbeddingCache, rank: int = 0) -> None:
        self._cache = cache
        self._file = cache.folder / f"images-{rank}.jsonl"
        self._known: dict[tuple[str, int, int], tuple[str, tuple[int, int]]] = {}
        for file in sorted(cache.folder.glob("images-*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    key = (entry["image"], entry["mtime_ns"], entry["bytes"])
                    self._known[key] = (entry["embedding"], (entry["height"], entry["width"]))
                except (ValueError, KeyError):  # the last line of a killed process
                    continue

    def find(self, image_path: Path) -> tuple[Path, tuple[int, int]] | None:
        """Embedding file and size (H, W) of an image file, if both are known and there."""
        found = self._known.get(_key(image_path))
        if found is None:
            return None
        path = self._cache.folder / found[0]
        return (path, found[1]) if path.is_file() else None

    def note(self, image_path: Path, embedding: Path, size_hw: tuple[int, int]) -> None:
        """Remember an embedding that was made of an image file as it is."""
        key, name = _key(image_path), str(embedding.relative_to(self._cache.folder))
        if key in self._known:
            return
        self._known[key] = (name, size_hw)
        entry = {"image": key[0], "mtime_ns": key[1], "bytes": key[2], "embedding": name}
        with open(self._file, "a") as file:
            file.write(json.dumps({**entry, "height": size_hw[0], "width": size_hw[1]}) + "\n")


def _key(image_path: Path) -> tuple[str, int, int]:
    status = image_path.stat()
    return str(image_path.resolve()), status.st_mtime_ns, status.st_size
