"""Cut the picture of one mask out of an image for an image encoder, square, in one of three styles."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

CropStyle = Literal["box", "blurred", "masked"]
CROP_STYLES: tuple[CropStyle, ...] = ("box", "blurred", "masked")


@dataclass(frozen=True)
class Crop:
    """A square picture around a mask, and the mask in it."""

    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    mask: np.ndarray
    """(S, S) bool."""


def square_crop(
    image: np.ndarray, mask: np.ndarray, box_xyxy: tuple[float, float, float, float], *, expand: float = 1.2
) -> Crop:
    """The square around a box, `expand` times its longer side.

    What lies outside the image is filled with the image's mean colour, so that the object is never stretched or cut.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        box_xyxy: original pixels.
        expand: side of the square over the longer side of the box.
    """
    x0, y0, x1, y1 = box_xyxy
    side = max(1, round(max(x1 - x0, y1 - y0) * expand))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    height, width = mask.shape
    inside = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    place = (
        slice(inside[0].start - top, inside[0].stop - top),
        slice(inside[1].start - left, inside[1].stop - left),
    )
    colour = image[inside].reshape(-1, 3).mean(axis=0) if image[inside].size else np.zeros(3)
    picture = np.empty((side, side, 3), dtype=np.uint8)
    picture[:] = colour.round().astype(np.uint8)
    picture[place] = image[inside]
    cut = np.zeros((side, side), dtype=bool)
    cut[place] = mask[inside]
    return Crop(picture, cut)


def apply_style(crop: Crop, style: CropStyle, fill: tuple[int, int, int] = (127, 127, 127)) -> np.ndarray:
    """The picture of a crop in a style.

    Args:
        crop: the square.
        style: "box" leaves it, "blurred" blurs what is outside the mask, "masked" fills that with one colour.
        fill: the colour of "masked".

    Returns:
        (S, S, 3) uint8.

    Raises:
        ValueError: for another style.
    """
    if style == "box":
        return crop.image
    if style == "masked":
        outside = np.broadcast_to(np.array(fill, dtype=np.uint8), crop.image.shape)
    elif style == "blurred":
        radius = max(2.0, crop.image.shape[0] / 16)
        outside = np.asarray(Image.fromarray(crop.image).filter(ImageFilter.GaussianBlur(radius)))
    else:
        raise ValueError(f"style must be one of {', '.join(CROP_STYLES)}; got {style!r}.")
    return np.where(crop.mask[..., None], crop.image, outside)
