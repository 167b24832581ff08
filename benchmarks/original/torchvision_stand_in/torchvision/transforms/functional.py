"""An image as PIL has it, and its resize."""

import numpy as np
from PIL import Image


def to_pil_image(image: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> PIL."""
    return Image.fromarray(image)


def resize(image: Image.Image, size: list[int] | tuple[int, int]) -> Image.Image:
    """To (height, width) by Pillow's bilinear filter, torchvision's default."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)
