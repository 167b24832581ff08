"""`Sam`: encode an image once, decode any number of prompts on it.

Segment Anything, https://arxiv.org/abs/2304.02643. The three networks know nothing of images and people; this class
knows the frames: original pixels outside, input pixels and embedding cells inside.

Letters: B images, N objects, C masks of each, H x W original pixels, S side of the square input, g embedding cells a
side.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from segment_anything.embedding import ImageEmbedding, fingerprint_image
from segment_anything.geometry import ImageGeometry
from segment_anything.images import check_image_array
from segment_anything.modeling.cuda.resize import resize_bilinear
from segment_anything.modeling.decoded import Decoded
from segment_anything.modeling.prompt_batches import Tensors, batches, to_tensors
from segment_anything.modeling.prompt_encoder import Points
from segment_anything.modeling.prompt_tensors import check_shapes, paired
from segment_anything.modeling.prompted import Prompted, meet
from segment_anything.modeling.sam_networks import SamNetworks
from segment_anything.modeling.spread import spread
from segment_anything.prompts import Prompt, Prompts
from segment_anything.utils.transforms import ResizeLongestSide

Job = TypeVar("Job")
Result = TypeVar("Result")

CPU_BATCH = 8
"""Objects decoded at once on a CPU at most: enough for the tokens' matrices, few enough that memory is used again."""


class Sam(SamNetworks):
    """A promptable segmentation model."""

    def forward(self, batched_input: list[dict[str, Any]], multimask_output: bool) -> list[dict[str, torch.Tensor]]:
        """Encode and decode a list of images, each with its own prompts, already in the input's frame.

        In eval mode no gradients are kept: programs for the original package call it so, and the activations of a ViT
        fill gigabytes. After `train()` they flow, as they do through `encode` and `decode` in any mode.

        Args:
            batched_input: for each image a dict of "image" (3, h, w) resized RGB 0..255, "original_size" (H, W), and
                of any of "point_coords" (N, P, 2), "point_labels" (N, P), "boxes" (N, 4), "mask_inputs"
                (N, 1, 4g, 4g), coordinates in input pixels (`ResizeLongestSide`).
            multimask_output: three masks of each prompt, or one.

        Returns:
            for each image a dict of "masks" (N, C, H, W) bool, "iou_predictions" (N, C) and "low_res_logits"
            (N, C, 4g, 4g).

        Raises:
            ValueError: for an image or prompts of another shape.
        """
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return self._forward(batched_input, multimask_output)

    def _forward(self, batched_input: list[dict[str, Any]], multimask_output: bool) -> list[dict[str, torch.Tensor]]:
        if not batched_input:
            return []
        images = torch.stack([self.preprocess(item["image"]) for item in batched_input])
        outputs = []
        for item, features in zip(batched_input, self.image_encoder(images), strict=True):
            points = paired(item.get("point_coords"), item.get("point_labels"))
            low_res, iou = self.predict_low_res(
                features[None], points, item.get("boxes"), item.get("mask_inputs"), multimask_output
            )
            masks = self.postprocess_masks(low_res, item["image"].shape[-2:], item["original_size"])
            outputs.append({"masks": masks > self.mask_threshold, "iou_predictions": iou, "low_res_logits": low_res})
        return outputs

    def predict_low_res(
        self,
        features: torch.Tensor,
        points: Points | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the prompts of N objects in one image: the one place where prompts meet an embedding.

        Args:
            features: (1, C, g, g).
            points: coordinates (N, P, 2) in input pixels and labels (N, P), or None.
            boxes: (N, 4) in input pixels, or None.
            masks: (N, 1, 4g, 4g) logits, or None.
            multimask_output: three masks of each prompt, or one.

        Returns:
            Logits (N, 3 or 1, 4g, 4g) and predicted IoU (N, 3 or 1).
        """
        found = self._decode_recorded(features, points, boxes, masks, multimask_output)
        low_res, iou = found or self.prompted(features, points, boxes, masks).masks(multimask_output)
        return low_res.float(), iou.float()

    def _decode_recorded(
        self,
        features: torch.Tensor,
        points: Points | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As `predict_low_res` in the model's type, by a CUDA graph; None on a CPU, and where gradients are wanted."""
        if self.device.type != "cuda":
            return None
        prompts = check_shapes(points, boxes, masks, self.mask_input_size)
        return self._recorded.decode(self.prompt_encoder, self.mask_decoder, features, *prompts, multimask_output)

    def prompted(
        self, features: torch.Tensor, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
    ) -> Prompted:
        """Prompts that met an embedding, ready for the decoder; arguments as `predict_low_res`."""
        device = self.device
        points, boxes, masks = check_shapes(points, boxes, masks, self.mask_input_size)
        if points is not None:
            points = points[0].to(device, torch.float32), points[1].to(device, torch.int64)
        boxes = None if boxes is None else boxes.to(device, torch.float32)
        masks = None if masks is None else masks.to(device, self.dtype)
        return meet(self._prepared, self.prompt_encoder, self.mask_decoder, features, points, boxes, masks)

    def encode(self, image: npt.NDArray[np.uint8]) -> ImageEmbedding:
        """Encode one image, (H, W, 3) uint8 RGB. Gradients flow unless the caller switches them off.

        Raises:
            ValueError: if it is no such array.
        """
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Encode several images, each (H, W, 3) uint8 RGB of any size, in one pass of the network."""
        checked = [check_image_array(image) for image in images]
        if not checked:
            return []
        batch = torch.stack([self.preprocess(self._resized(image)) for image in checked])
        weights = self.fingerprint()
        encoded = self._recorded.encode(self.image_encoder, batch) if batch.is_cuda else None
        return [
            ImageEmbedding(
                features[None],
                ImageGeometry((image.shape[0], image.shape[1]), self.image_size),
                self.name,
                weights,
                fingerprint_image(image),
            )
            for image, features in zip(checked, self.image_encoder(batch) if encoded is None else encoded, strict=True)
        ]

    def _resized(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """(H, W, 3) -> (3, h, w) uint8, the longest side S; on a CUDA device by that device, to the same bytes."""
        if self.device.type == "cuda":
            geometry = ImageGeometry((image.shape[0], image.shape[1]), self.image_size)
            return resize_bilinear(self._uploads(image, self.device), geometry.input_size_hw).permute(2, 0, 1)
        return torch.from_numpy(ResizeLongestSide(self.image_size).apply_image(image)).permute(2, 0, 1)

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Prompt | Sequence[Prompt],
        multimask_output: bool | None = True,
        batch_size: int = 64,
    ) -> Decoded:
        """Masks for the prompts of many objects. Touches no state: any number of threads may decode one embedding.

        Args:
            embedding: of the image, made by this model.
            prompts: one for each object, in original pixels, each with any mix of points, box and mask.
            multimask_output: three masks of each object, or one; None gives one by the paper's rule: for a single
                point the best of three, for anything else the single mask.
            batch_size: objects decoded at once.

        Returns:
            `Decoded` of N objects in the order given; N may be 0.

        Raises:
            ValueError: if the embedding was made by other weights, or a prompt does not fit the image.
        """
        self.check_embedding(embedding)
        jobs = list(batches(embedding.geometry, prompts, multimask_output, self._at_once(batch_size)))
        decoded = self._spread(lambda job: self._decode_alike(embedding, job[1], multimask_output), jobs)
        parts = [(batch, *found) for (batch, _), found in zip(jobs, decoded, strict=True)]
        count = 3 if multimask_output else 1
        if not parts:
            side = self.mask_input_size
            empty = torch.empty((0, count, side, side), device=self.device)
            return Decoded(empty, torch.empty((0, count), device=self.device), embedding.geometry)
        if len(parts) == 1:
            return Decoded(*parts[0][1:], embedding.geometry)
        order = torch.tensor([index for batch, _, _ in parts for index in batch]).argsort().to(self.device)
        low_res, iou = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
        return Decoded(low_res[order], iou[order], embedding.geometry)

    def decode_above(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompt],
        iou_threshold: float,
        batch_size: int = 64,
    ) -> tuple[Decoded, torch.Tensor]:
        """Of three masks of each object those whose predicted IoU is above a threshold; others are never upscaled.

        Args: as `decode`.

        Returns:
            `Decoded` of P masks, (P, 1) each, and their places (P, 2): object and mask (0, 1, 2), in this order. Their
            low-resolution logits may be 0 in the padding, of which no pixel of the image is made.

        Raises:
            ValueError: as `decode`.
        """
        logits, ious, places = [], [], [torch.empty((0, 2), dtype=torch.int64, device=self.device)]
        self.check_embedding(embedding)
        jobs = list(batches(embedding.geometry, prompts, True, self._at_once(batch_size)))
        seen_hw = embedding.geometry.cells_seen(self.embedding_size)

        def decode(job: tuple[list[int], list[Prompt]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            tensors = to_tensors(embedding.geometry, job[1], self.mask_input_size)
            return self._above(embedding.features, tensors, iou_threshold, seen_hw)

        for (indices, _), (low_res, iou, place) in zip(jobs, self._spread(decode, jobs), strict=True):
            place[:, 0] = torch.tensor(indices, device=place.device)[place[:, 0]]
            logits.append(low_res.float())
            ious.append(iou.float())
            places.append(place)
        side = self.mask_input_size
        empty = torch.empty((0, side, side), device=self.device), torch.empty(0, device=self.device)
        low_res, iou, place = torch.cat([empty[0], *logits]), torch.cat([empty[1], *ious]), torch.cat(places)
        order = (place[:, 0] * 3 + place[:, 1]).argsort()
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            low_res, iou, place = low_res[order], iou[order], place[order]
        return Decoded(low_res[:, None], iou[:, None], embedding.geometry), place

    def _above(
        self, features: torch.Tensor, tensors: Tensors, iou_threshold: float, seen_hw: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (P, 4g, 4g), predicted IoU (P,) and places (P, 2) of the masks above a predicted IoU."""
        found = self._decode_recorded(features, *tensors, True)
        if found is None:
            return self.prompted(features, *tensors).masks_above(iou_threshold, seen_hw)
        low_res, iou = found
        place = (iou.float() > iou_threshold).nonzero()
        return low_res[place[:, 0], place[:, 1]], iou[place[:, 0], place[:, 1]], place

    def _spread(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
        return spread(work, jobs) if self.device.type == "cpu" else [work(job) for job in jobs]

    def _at_once(self, batch_size: int) -> int:
        is_large = self.device.type != "cpu" or torch.is_grad_enabled()
        return batch_size if is_large else min(batch_size, CPU_BATCH)

    def _decode_alike(
        self, embedding: ImageEmbedding, prompts: list[Prompt], multimask_output: bool | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode objects whose prompts have the same parts."""
        tensors = to_tensors(embedding.geometry, prompts, self.mask_input_size)
        three = prompts[0].is_ambiguous if multimask_output is None else multimask_output
        low_res, iou = self.predict_low_res(embedding.features, *tensors, three)
        if multimask_output is None and three:
            best = Decoded(low_res, iou, embedding.geometry).best()
            return best.low_res_logits, best.iou_predictions
        return low_res, iou

    def check_embedding(self, embedding: ImageEmbedding) -> None:
        """Refuse an embedding that these weights did not make.

        Raises:
            ValueError: naming both models.
        """
        if embedding.geometry.image_size != self.image_size or embedding.weights_fingerprint != self.fingerprint():
            raise ValueError(
                f"this embedding was made by other weights ({embedding.model}, input {embedding.geometry.image_size}) "
                f"than this model's ({self.name}, input {self.image_size}): encode the image again."
            )
