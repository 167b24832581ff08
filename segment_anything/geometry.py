"""The three frames of an image: original pixels, input pixels, embedding cells.

The model's input is a square of side `image_size`; an image is resized so that its longest side fills it and is padded
at the bottom and the right (Segment Anything, https://arxiv.org/abs/2304.02643, section A "Image encoder").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageGeometry:
    """How one image lies in the model's square input."""

    original_size_hw: tuple[int, int]
    """Height and width in original pixels."""
    image_size: int
    """Side of the square input, in input pixels."""

    @property
    def input_size_hw(self) -> tuple[int, int]:
        """Height and width of the resized image in input pixels, without padding; a thin line keeps one pixel."""
        height, width = self.original_size_hw
        scale = self.image_size * 1.0 / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per original pixel along x and y (rounding makes them differ slightly)."""
        (height, width), (new_height, new_width) = self.original_size_hw, self.input_size_hw
        return new_width / width, new_height / height

    def cells_seen(self, cells: int) -> tuple[int, int]:
        """Rows and columns of a grid of `cells` a side, 4 low-resolution logits each, that pixels are made from."""
        seen = []
        for inside in self.input_size_hw:
            last = (inside - 0.5) * 4 * cells / self.image_size - 0.5  # the last pixel's place among logits
            seen.append(min(cells, (max(0, math.floor(last)) + 1) // 4 + 1))
        return seen[0], seen[1]

    def points_to_input(self, points_xy: torch.Tensor) -> torch.Tensor:
        """Map (..., 2) points (x, y) from original to input pixels; float32 out."""
        import torch  # here, because the ONNX runtime of this package lives without it

        scale = torch.tensor(self.scale_xy, dtype=torch.float32, device=points_xy.device)
        return points_xy.to(torch.float32) * scale

    def boxes_to_input(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """Map (..., 4) boxes (x0, y0, x1, y1) from original to input pixels; float32 out."""
        return self.points_to_input(boxes_xyxy.reshape(*boxes_xyxy.shape[:-1], 2, 2)).reshape(boxes_xyxy.shape)
