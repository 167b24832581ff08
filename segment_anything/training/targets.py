"""An image's objects in the frames that training needs: soft masks at the decoder's size, boxes in input pixels.

Letters: N objects, H and W in original pixels, h and w in input pixels, s side of the decoder's masks (4g).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate, pad

from segment_anything.geometry import ImageGeometry
from segment_anything.simulate import mask_boxes


@dataclass(frozen=True)
class Targets:
    """What the decoder should find in one image."""

    truth: torch.Tensor
    """(N, 1, s, s) float32 in 0..1: the share of each cell that the object covers."""
    boxes_input: torch.Tensor
    """(N, 4) float32 XYXY, tight, in input pixels."""
    labels: torch.Tensor
    """(N,) int64 class indices."""
    input_size_hw: tuple[int, int]
    """The image without padding, in input pixels."""

    def __len__(self) -> int:
        return len(self.truth)

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return replace(
            self,
            truth=self.truth.to(device, non_blocking=True),
            boxes_input=self.boxes_input.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

    def take(self, index: torch.Tensor) -> "Targets":
        """The objects at `index` (an index or bool tensor)."""
        return replace(self, truth=self.truth[index], boxes_input=self.boxes_input[index], labels=self.labels[index])

    @property
    def solid(self) -> torch.Tensor:
        """(N, s, s) bool: cells that belong to each object; an object thinner than a cell keeps its fullest ones."""
        fullest = self.truth.amax(dim=(1, 2, 3), keepdim=True)
        return (self.truth >= fullest.clamp(max=0.5))[:, 0] & (fullest[:, 0] > 0)


def make_targets(masks: np.ndarray, labels: np.ndarray, geometry: ImageGeometry, mask_side: int) -> Targets:
    """Bring masks (N, H, W) bool of one image to the decoder's frame.

    Args:
        masks: (N, H, W) bool.
        labels: (N,) class indices.
        geometry: of the image in the model's input.
        mask_side: s, a divisor of the model's image size.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(masks))
    truth = [to_decoder(mask, geometry, mask_side) for mask in tensor]
    boxes = mask_boxes(tensor) if len(tensor) else torch.zeros(0, 4)
    return Targets(
        truth=torch.stack(truth)[:, None] if truth else torch.zeros(0, 1, mask_side, mask_side),
        boxes_input=geometry.boxes_to_input(boxes),
        labels=torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        input_size_hw=geometry.input_size_hw,
    )


def to_decoder(mask: torch.Tensor, geometry: ImageGeometry, mask_side: int) -> torch.Tensor:
    """(H, W) bool -> (s, s) float32: resized as the image is, padded at the bottom and the right, averaged by cell."""
    height, width = geometry.input_size_hw
    resized = interpolate(mask[None, None].float(), size=(height, width), mode="bilinear", antialias=True)
    square = pad(resized, (0, geometry.image_size - width, 0, geometry.image_size - height))
    return avg_pool2d(square, geometry.image_size // mask_side)[0, 0].clamp(0, 1)


def limit_objects(count: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of at most `most` of `count` objects, drawn without repetition, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(generator.choice(count, size=most, replace=False))
