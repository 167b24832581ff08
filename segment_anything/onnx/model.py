"""`OnnxModel`: `Sam` on ONNX Runtime. Encode an image once, decode any number of prompts on it.

Letters: N objects, C channels or masks, g embedding cells a side, H x W original pixels, S side of the input.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from segment_anything._embedding_file import EmbeddingFile
from segment_anything.geometry import ImageGeometry
from segment_anything.images import check_image_array, fingerprint_image
from segment_anything.onnx.decoded import OnnxDecoded
from segment_anything.onnx.manifest import Manifest
from segment_anything.onnx.prompts import labelled_points, mask_prompts
from segment_anything.onnx.sessions import SHORT, Array, Graph, chosen_providers, to_float32
from segment_anything.prompts import Prompt, Prompts

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OnnxEmbedding:
    """An encoded image; `ImageEmbedding` in numpy. The files that either saves the other loads."""

    features: Floats
    """(1, C, g, g)."""
    geometry: ImageGeometry
    """How the image lies in the model's input."""
    model: str
    """Name of the model that made it."""
    weights_fingerprint: str
    """Of the image encoder's weights."""
    image_fingerprint: str
    """Of the image."""
    prepared: dict[str, Array] = field(default_factory=dict, repr=False)
    """What the prepared decoder needs of this image, once it was asked for."""

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write a file that `load` reads; `half` stores 16-bit floats."""
        EmbeddingFile(self.features, self.geometry, self.model, self.weights_fingerprint, self.image_fingerprint).write(
            path, half
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "OnnxEmbedding":
        """Read a file that `save` wrote, or `ImageEmbedding.save`.

        Raises:
            ValueError: if it is no such file.
            FileNotFoundError: if there is none.
        """
        file = EmbeddingFile.read(path)
        return cls(file.features, file.geometry, file.model, file.weights_fingerprint, file.image_fingerprint)

    def check_image(self, image: npt.NDArray[np.uint8]) -> None:
        """Refuse an image, (H, W, 3) uint8 RGB, other than the one that was encoded.

        Raises:
            ValueError: if the pixels differ.
        """
        if fingerprint_image(image) != self.image_fingerprint:
            raise ValueError("this embedding was made from another image (its pixels differ): encode this one.")


class OnnxModel:
    """An exported model. It keeps no image: threads may share it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open an export. Each graph is loaded at its first use.

        Args:
            path: folder that `segment-anything export` wrote, or the JSON in it.
            providers: ONNX Runtime's execution providers, full names or "cpu" and "cuda"; None takes CUDA where it is.
            threads: threads of each graph; None leaves the choice to ONNX Runtime.

        Raises:
            ValueError: if there is no export, or a provider is not there.
            ImportError: if onnxruntime is not installed.
        """
        self.manifest, self.folder = Manifest.load(path)
        self.providers = chosen_providers(providers)
        self.threads = threads

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.model

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.manifest.image_size

    @property
    def mask_input_size(self) -> int:
        """Side of low-resolution masks."""
        return self.manifest.mask_input_size

    @property
    def mask_threshold(self) -> float:
        """Logits above this are object."""
        return self.manifest.mask_threshold

    @property
    def device(self) -> str:
        """Where graphs run: "cpu", "cuda", or the name of another execution provider."""
        return next((short for short, full in SHORT.items() if full == self.providers[0]), self.providers[0])

    def fingerprint(self) -> str:
        """A short name of the image encoder's weights, which an embedding carries."""
        return self.manifest.encoder_fingerprint

    @cached_property
    def encoder(self) -> Graph:
        """The image encoder."""
        return self._graph("encoder")

    @cached_property
    def decoder(self) -> Graph:
        """The decoder of many objects."""
        return self._graph("batched")

    @cached_property
    def prepared_decoder(self) -> tuple[Graph, Graph] | None:
        """What is run once an image and what is run for prompts without masks, or None if it was not exported."""
        if "prepared" not in self.manifest.files:
            return None
        return self._graph("prepare"), self._graph("prepared")

    def _graph(self, role: str) -> Graph:
        if role not in self.manifest.files:
            raise ValueError(
                f"{self.folder} has no {role} decoder, which this runtime needs: "
                "export the model again with --decoders batched."
            )
        return Graph(role, self.manifest, self.folder, self.providers, self.threads)

    def encode(self, image: npt.NDArray[np.uint8]) -> OnnxEmbedding:
        """Encode one image, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: if it is no such array.
        """
        rgb = check_image_array(image)
        geometry = ImageGeometry((rgb.shape[0], rgb.shape[1]), self.image_size)
        features = self.encoder.run(self._encoder_inputs(rgb, geometry))["image_embeddings"]
        return OnnxEmbedding(features, geometry, self.name, self.fingerprint(), fingerprint_image(rgb))

    def _encoder_inputs(self, rgb: npt.NDArray[np.uint8], geometry: ImageGeometry) -> dict[str, Array]:
        height, width = geometry.input_size_hw
        resized = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
        if self.manifest.normalises:
            return {"image": resized}
        mean, std = to_float32(self.manifest.pixel_mean), to_float32(self.manifest.pixel_std)
        side = self.image_size
        padded = np.zeros((1, 3, side, side), dtype=np.float32)
        padded[0, :, :height, :width] = ((resized.astype(np.float32) - mean) / std).transpose(2, 0, 1)
        return {"input": padded}

    def decode(
        self,
        embedding: OnnxEmbedding,
        prompts: Prompts | Prompt | Sequence[Prompt],
        multimask_output: bool | None = True,
        batch_size: int = 64,
    ) -> OnnxDecoded:
        """Masks for the prompts of many objects; see `Sam.decode`.

        Args:
            embedding: of the image, made by this model here or in torch.
            prompts: one for each object, in original pixels, each with any mix of points, box and mask.
            multimask_output: three masks of each object, or one; None gives one by the paper's rule: for a single
                point the best of three, for anything else the single mask.
            batch_size: objects decoded in one run.

        Raises:
            ValueError: if the embedding was made by other weights, or a prompt does not fit the image.
        """
        self.check_embedding(embedding)
        prompts = Prompts([prompts] if isinstance(prompts, Prompt) else prompts)
        for prompt in prompts:
            prompt.check_inside(embedding.geometry.original_size_hw)
        completed = [prompt.completed() for prompt in prompts]
        parts = [
            self._decode_batch(embedding, completed[start : start + batch_size])
            for start in range(0, len(completed), batch_size)
        ]
        side = self.mask_input_size
        low_res = np.concatenate([np.zeros((0, 4, side, side), dtype=np.float32), *(part[0] for part in parts)])
        iou = np.concatenate([np.zeros((0, 4), dtype=np.float32), *(part[1] for part in parts)])
        if multimask_output is None:
            best = 1 + iou[:, 1:].argmax(axis=1)
            chosen = np.where([prompt.is_ambiguous for prompt in completed], best, 0)[:, None]
            masks = np.take_along_axis(low_res, chosen[:, :, None, None], axis=1)
            return OnnxDecoded(masks, np.take_along_axis(iou, chosen, axis=1), embedding.geometry)
        kept = slice(1, None) if multimask_output else slice(0, 1)
        return OnnxDecoded(low_res[:, kept], iou[:, kept], embedding.geometry)

    def _decode_batch(self, embedding: OnnxEmbedding, prompts: Sequence[Prompt]) -> tuple[Floats, Floats]:
        """All four masks (N, 4, 4g, 4g) and their predicted IoU (N, 4)."""
        coords, labels = labelled_points(prompts, embedding.geometry)
        inputs: dict[str, Array] = {"point_coords": coords, "point_labels": labels}
        has_masks = any(prompt.mask is not None or prompt.mask_logits is not None for prompt in prompts)
        if self.prepared_decoder is not None and not has_masks:
            prepare, decoder = self.prepared_decoder
            if not embedding.prepared:
                embedding.prepared.update(prepare.run({"image_embeddings": embedding.features}))
            outputs = decoder.run({**embedding.prepared, **inputs})
        else:
            mask_input, has_mask = mask_prompts(prompts, embedding.geometry, self.mask_input_size)
            masks = {"mask_input": mask_input, "has_mask_input": has_mask}
            outputs = self.decoder.run({"image_embeddings": embedding.features, **inputs, **masks})
        return outputs["low_res_masks"], outputs["iou_predictions"]

    def check_embedding(self, embedding: OnnxEmbedding) -> None:
        """Refuse an embedding that these weights did not make.

        Raises:
            ValueError: naming both models.
        """
        if embedding.geometry.image_size != self.image_size or embedding.weights_fingerprint != self.fingerprint():
            raise ValueError(
                f"this embedding was made by other weights ({embedding.model}, input {embedding.geometry.image_size}) "
                f"than this model's ({self.name}, input {self.image_size}): encode the image again."
            )
