"""Augmentation that moves image, masks, points and boxes together, all of it drawn from one generator.

Large-scale jitter (https://arxiv.org/abs/2012.07177, used by Segment Anything, appendix A "Training algorithm") scales
the image and crops or pads it to the size it had; flips and colour follow. What was drawn is a value, `Augmentation`,
so that the same one can be applied to whatever belongs to the image.

Letters: N objects, P points, H and W in original pixels; the image keeps its size.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from segment_anything.datasets import SegmentationSample

PADDING_RGB = (124, 116, 104)
"""The model's mean colour, which normalisation turns to zero."""


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """How strongly to augment."""

    flip: float = 0.5
    """Chance to mirror left and right."""
    flip_vertical: float = 0.0
    """Chance to mirror top and bottom; useful for microscopes and satellites, harmful for streets."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of large-scale jitter; the paper's is (0.1, 2.0). (1, 1) turns scaling and cropping off."""
    colour: float = 0.2
    """Brightness, contrast and saturation change by up to this fraction."""
    min_area_px: int = 16
    """Objects of which fewer pixels stay visible are left out."""

    def __post_init__(self) -> None:
        for name in ("flip", "flip_vertical"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a chance between 0 and 1, got {getattr(self, name)}.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {self.scale}.")
        if not 0 <= self.colour < 1:
            raise ValueError(f"colour must be in [0, 1), got {self.colour}.")


NO_AUGMENTATION = AugmentOptions(flip=0.0, scale=(1.0, 1.0), colour=0.0)


@dataclass(frozen=True)
class Augmentation:
    """One drawn augmentation: mirror, then scale, then shift on a canvas of the image's size; colour apart."""

    size_hw: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    scale: float = 1.0
    offset_xy: tuple[float, float] = (0.0, 0.0)
    """Where the scaled image's top left corner lands, in pixels of the canvas."""
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of brightness, contrast and saturation."""

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W, 3) uint8, smooth when shrunk, padded with the mean colour."""
        return _recolour(self._move_image(image), self.colour)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """(N, H, W) bool -> (N, H, W) bool: each pixel takes the value under its centre."""
        rows, row_inside = self._sources(axis=0)
        columns, column_inside = self._sources(axis=1)
        moved = masks[:, rows[:, None], columns[None, :]]
        moved &= row_inside[:, None] & column_inside[None, :]
        return np.asarray(moved)

    def points(self, points_xy: np.ndarray) -> np.ndarray:
        """(P, 2) pixel positions -> (P, 2); the centre of pixel (x, y) lies at (x + 0.5, y + 0.5) on the plane."""
        return self._move_plane(np.asarray(points_xy, dtype=np.float64) + 0.5) - 0.5

    def boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """(N, 4) boxes of the image plane -> (N, 4), cut off at the canvas."""
        height, width = self.size_hw
        corners = self._move_plane(np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 2, 2))
        ordered = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        return np.asarray(np.clip(ordered, 0, [width, height, width, height]))

    def _move_plane(self, positions_xy: np.ndarray) -> np.ndarray:
        size_xy = np.array(self.size_hw[::-1], dtype=np.float64)
        mirrored = np.where([self.flip_x, self.flip_y], size_xy - positions_xy, positions_xy)
        return np.asarray(mirrored * self.scale + self.offset_xy)

    def _sources(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row (axis 0) or column (1) of the canvas the one it shows, and whether it shows any."""
        size = self.size_hw[axis]
        plane = (np.arange(size) + 0.5 - self.offset_xy[1 - axis]) / self.scale
        inside = (plane >= 0) & (plane < size)
        if (self.flip_y, self.flip_x)[axis]:
            plane = size - plane
        return np.floor(plane).astype(np.int64).clip(0, size - 1), inside

    def _move_image(self, image: np.ndarray) -> np.ndarray:
        image = image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        if self.scale == 1.0 and self.offset_xy == (0.0, 0.0):
            return np.ascontiguousarray(image)
        height, width = self.size_hw
        size_xy, offset = np.array([width, height]), np.array(self.offset_xy)
        start = np.clip(np.round(offset), 0, size_xy).astype(int)
        stop = np.clip(np.round(offset + size_xy * self.scale), start + 1, size_xy).astype(int)
        start = np.minimum(start, stop - 1)
        source = np.concatenate([(start - offset) / self.scale, (stop - offset) / self.scale])
        source = np.clip(source, 0, [width, height, width, height])
        shown = Image.fromarray(image).resize(
            (int(stop[0] - start[0]), int(stop[1] - start[1])), Image.Resampling.BILINEAR, box=tuple(source.tolist())
        )
        canvas = np.full_like(image, PADDING_RGB)
        canvas[start[1] : stop[1], start[0] : stop[0]] = np.asarray(shown)
        return canvas


def draw_augmentation(
    options: AugmentOptions, size_hw: tuple[int, int], generator: np.random.Generator
) -> Augmentation:
    """Draw one augmentation for an image of `size_hw`."""
    height, width = size_hw
    flip_x, flip_y = generator.random(2) < (options.flip, options.flip_vertical)
    scale = float(generator.uniform(*options.scale))
    slack = np.array([width, height]) * (1 - scale)  # negative when there is something to crop
    offset = slack * generator.random(2)
    factors = 1 + options.colour * generator.uniform(-1, 1, size=3)
    return Augmentation(
        size_hw, bool(flip_x), bool(flip_y), scale, (float(offset[0]), float(offset[1])), tuple(factors.tolist())
    )


def augment(sample: SegmentationSample, options: AugmentOptions, generator: np.random.Generator) -> SegmentationSample:
    """One augmented copy of a sample, with the objects that are still to be seen."""
    if options == NO_AUGMENTATION:
        return sample
    drawn, masks, labels = augment_masks(sample.masks, sample.labels, options, generator)
    return SegmentationSample(drawn.image(sample.image), masks, labels, sample.name)


def augment_masks(
    masks: np.ndarray, labels: np.ndarray, options: AugmentOptions, generator: np.random.Generator
) -> tuple[Augmentation, np.ndarray, np.ndarray]:
    """What `augment` draws and does to masks (N, H, W) and labels (N,), without the image.

    If the crop shows none of the objects the image keeps its frame and is mirrored and coloured only.
    """
    size_hw = (masks.shape[1], masks.shape[2])
    drawn = draw_augmentation(options, size_hw, generator)
    moved = drawn.masks(masks)
    visible = moved.sum(axis=(1, 2)) >= options.min_area_px
    if len(masks) and not visible.any():
        drawn = Augmentation(size_hw, drawn.flip_x, drawn.flip_y, colour=drawn.colour)
        moved, visible = drawn.masks(masks), np.ones(len(masks), dtype=bool)
    return drawn, moved[visible], labels[visible]


def _recolour(image: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    if colour == (1.0, 1.0, 1.0):
        return image
    brightness, contrast, saturation = colour
    pixels = image.astype(np.float32) * brightness
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma
    pixels = grey[..., None] + saturation * (pixels - grey[..., None])
    pixels = grey.mean() + contrast * (pixels - grey.mean())
    return np.asarray(pixels.round().clip(0, 255).astype(np.uint8))
