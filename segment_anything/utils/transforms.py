"""Images, points and boxes from original pixels to the model's input pixels, under the original package's names.

The longest side of the image becomes `target_length`; the numbers come from `segment_anything.geometry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segment_anything.geometry import ImageGeometry

if TYPE_CHECKING:
    import torch  # only tensors need it: exported models run without


class ResizeLongestSide:
    """Resizes images to a longest side, and moves points and boxes along with them.

    Sizes are (height, width). Nothing passed in is changed.
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize an image with Pillow's bilinear filter, which averages when it shrinks (antialiasing).

        Args:
            image: (H, W, C) or (H, W) uint8.

        Returns:
            The image with its longest side `target_length`, uint8.

        Raises:
            ValueError: if the image is not uint8 or not two- or three-dimensional.
        """
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"image must be (H, W, C) uint8 with values 0..255, but is {image.dtype} of shape {image.shape}; "
                "a float image in 0..1 becomes one with (image * 255).round().astype(np.uint8)"
            )
        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_coords(self, coords: npt.NDArray[Any], original_size: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Points (..., 2) as x, y in original pixels -> float32 in input pixels.

        The product is taken in float64 and rounded once; float64 itself would not fit on every device.
        """
        scale = np.array(self._geometry(original_size).scale_xy)
        return np.asarray(np.asarray(coords, dtype=np.float64) * scale, dtype=np.float32)

    def apply_boxes(self, boxes: npt.NDArray[Any], original_size: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Boxes (N, 4) or (4,) as x0, y0, x1, y1 in original pixels -> (N, 4) float32 in input pixels."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: torch.Tensor) -> torch.Tensor:
        """Resize images (B, C, H, W) of a floating type with torch's antialiased bilinear filter.

        It may differ from `apply_image` by a grey level or two; `apply_image` is what the published models saw.
        """
        size = self.get_preprocess_shape(image.shape[2], image.shape[3], self.target_length)
        from torch.nn.functional import interpolate

        return interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: torch.Tensor, original_size: tuple[int, ...]) -> torch.Tensor:
        """`apply_coords` for a tensor, on its device."""
        return self._geometry(original_size).points_to_input(coords)

    def apply_boxes_torch(self, boxes: torch.Tensor, original_size: tuple[int, ...]) -> torch.Tensor:
        """`apply_boxes` for a tensor, on its device."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(height, width) after the longest side became `long_side_length`."""
        return ImageGeometry((oldh, oldw), long_side_length).input_size_hw

    def _geometry(self, original_size: tuple[int, ...]) -> ImageGeometry:
        height, width = original_size
        return ImageGeometry((int(height), int(width)), self.target_length)
