"""What decoding gives, in numpy: `Decoded` without torch.

Letters: N objects, C masks of each, L side of low-resolution masks, H x W original pixels.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from segment_anything.geometry import ImageGeometry

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OnnxDecoded:
    """Masks of N objects in one image, at low resolution until somebody wants them larger."""

    low_res_logits: Floats
    """(N, C, L, L), in the frame of the padded input."""
    iou_predictions: Floats
    """(N, C)."""
    geometry: ImageGeometry
    """How the image lies in the model's input."""

    def __len__(self) -> int:
        return len(self.low_res_logits)

    def logits(self) -> Floats:
        """(N, C, H, W) logits in original pixels."""
        rows, columns = upscaling(self.geometry, self.low_res_logits.shape[-1])
        return np.asarray(rows @ self.low_res_logits @ columns.T)

    def masks(self, threshold: float = 0.0) -> npt.NDArray[np.bool_]:
        """(N, C, H, W) bool in original pixels."""
        rows, columns = upscaling(self.geometry, self.low_res_logits.shape[-1])
        masks = np.empty((*self.low_res_logits.shape[:2], len(rows), len(columns)), dtype=np.bool_)
        for index in np.ndindex(*masks.shape[:2]):  # the logits of one mask at a time are in memory
            np.greater(rows @ self.low_res_logits[index] @ columns.T, threshold, out=masks[index])
        return masks

    def best(self) -> "OnnxDecoded":
        """Of each object's masks the one with the highest predicted IoU: C = 1."""
        rows, index = np.arange(len(self)), self.iou_predictions.argmax(axis=1)
        return replace(
            self,
            low_res_logits=self.low_res_logits[rows, index][:, None],
            iou_predictions=self.iou_predictions[rows, index][:, None],
        )


@lru_cache(maxsize=8)
def upscaling(geometry: ImageGeometry, low: int) -> tuple[Floats, Floats]:
    """Matrices (H, L) and (W, L) that resize along each axis: to the input square, cropped, to original pixels."""
    (height, width), (rows, columns) = geometry.original_size_hw, geometry.input_size_hw
    to_input = _bilinear(low, geometry.image_size)
    return (
        (_bilinear(rows, height) @ to_input[:rows]).astype(np.float32),
        (_bilinear(columns, width) @ to_input[:columns]).astype(np.float32),
    )


def _bilinear(inside: int, out: int) -> npt.NDArray[np.float64]:
    """(out, inside): the weights of bilinear interpolation without corner alignment, positions as torch rounds them."""
    scale = np.float32(inside) / np.float32(out)
    at = np.maximum(scale * (np.arange(out, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    left = np.minimum(at.astype(np.int64), inside - 1)
    share = (at - left.astype(np.float32)).astype(np.float64)
    weights, pixel = np.zeros((out, inside)), np.arange(out)
    np.add.at(weights, (pixel, left), 1 - share)
    np.add.at(weights, (pixel, np.minimum(left + 1, inside - 1)), share)
    return weights
