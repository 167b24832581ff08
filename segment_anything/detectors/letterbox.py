"""Fit an image into a detector's input, and bring boxes and masks back.

Three ways are in use: scaled and padded on both sides ("centred": YOLOv5 and later), scaled and padded at the bottom
and the right ("corner": YOLOX), stretched without padding ("stretch": RT-DETR).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Fit = Literal["centred", "corner", "stretch"]
FILL = 114  # the grey both YOLO families pad with


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input: network pixel = original pixel * scale + offset."""

    original_size_hw: tuple[int, int]
    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]

    def boxes_to_original(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Map (N, 4) boxes from network pixels to original pixels, clipped to the image; float32."""
        height, width = self.original_size_hw
        corners = (boxes_xyxy.reshape(-1, 2, 2) - np.array(self.offset_xy)) / np.array(self.scale_xy)
        return np.asarray(np.clip(corners, 0, (width, height)).reshape(-1, 4), dtype=np.float32)

    def boxes_to_network(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Map (N, 4) boxes from original to network pixels; float32."""
        corners = boxes_xyxy.reshape(-1, 2, 2) * np.array(self.scale_xy) + np.array(self.offset_xy)
        return np.asarray(corners.reshape(-1, 4), dtype=np.float32)


def place(original_size_hw: tuple[int, int], network_size_hw: tuple[int, int], fit: Fit) -> Placement:
    """The placement of an image of one size in an input of another."""
    (height, width), (net_h, net_w) = original_size_hw, network_size_hw
    if fit == "stretch":
        return Placement(original_size_hw, (net_w / width, net_h / height), (0.0, 0.0))
    scale = min(net_h / height, net_w / width)
    if fit == "corner":
        return Placement(original_size_hw, (scale, scale), (0.0, 0.0))
    new_w, new_h = round(width * scale), round(height * scale)
    # Whole pixels, an odd one going to the bottom or the right.
    offset = (float((net_w - new_w) // 2), float((net_h - new_h) // 2))
    return Placement(original_size_hw, (scale, scale), offset)


def fit_image(image: np.ndarray, network_size_hw: tuple[int, int], fit: Fit) -> tuple[np.ndarray, Placement]:
    """Resize and pad an image.

    Args:
        image: (H, W, 3) uint8.
        network_size_hw: the network's input size (h, w).
        fit: which of the three ways.

    Returns:
        (h, w, 3) uint8, and where the image lies in it.
    """
    net_h, net_w = network_size_hw
    placement = place((image.shape[0], image.shape[1]), network_size_hw, fit)
    new_w = min(net_w, max(1, round(image.shape[1] * placement.scale_xy[0])))
    new_h = min(net_h, max(1, round(image.shape[0] * placement.scale_xy[1])))
    resized = np.asarray(Image.fromarray(image).resize((new_w, new_h), Image.Resampling.BILINEAR))
    left, top = int(placement.offset_xy[0]), int(placement.offset_xy[1])
    canvas = np.full((net_h, net_w, 3), FILL, dtype=np.uint8)
    canvas[top : top + new_h, left : left + new_w] = resized
    return canvas, placement
