"""What decoding gives: masks at low resolution, and how to make them as large as the image.

Letters: N objects, C masks of each, H x W original pixels, g embedding cells a side.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import interpolate

from segment_anything._tiles import full_size_masks
from segment_anything.geometry import ImageGeometry


@dataclass(frozen=True, eq=False)
class Decoded:
    """Masks of N objects in one image, at low resolution until somebody wants them larger."""

    low_res_logits: torch.Tensor
    """(N, C, 4g, 4g), in the frame of the padded input."""
    iou_predictions: torch.Tensor
    """(N, C)."""
    geometry: ImageGeometry
    """How the image lies in the model's input."""

    def __len__(self) -> int:
        return len(self.low_res_logits)

    def logits(self) -> torch.Tensor:
        """(N, C, H, W) float32 logits in original pixels."""
        return upscale_masks(self.low_res_logits, self.geometry)

    def masks(self, threshold: float = 0.0) -> torch.Tensor:
        """(N, C, H, W) bool in original pixels."""
        logits = self.low_res_logits
        if logits.device.type != "cpu" or logits.numel() == 0:
            return self.logits() > threshold
        flat = logits.detach().float().flatten(0, 1).numpy()
        masks = full_size_masks(flat, self.geometry, threshold, torch.get_num_threads())
        return torch.from_numpy(masks).view(*logits.shape[:2], *masks.shape[1:])

    def best(self) -> "Decoded":
        """Of each object's masks the one with the highest predicted IoU: C = 1."""
        index = self.iou_predictions.argmax(dim=1)
        rows = torch.arange(len(index), device=index.device)
        return replace(
            self,
            low_res_logits=self.low_res_logits[rows, index][:, None],
            iou_predictions=self.iou_predictions[rows, index][:, None],
        )


def upscale_masks(masks: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    """Low-resolution logits (N, C, h, w) to original pixels (N, C, H, W), float32: up to the input, crop, resize."""
    height, width = geometry.input_size_hw
    side = (geometry.image_size, geometry.image_size)
    masks = interpolate(masks.float(), side, mode="bilinear", align_corners=False)[..., :height, :width]
    return interpolate(masks, geometry.original_size_hw, mode="bilinear", align_corners=False)
