"""The ways in which data sets keep masks: polygons and run lengths, label maps, one file a mask.

Each class here is an `Objects` (see base.py): it gives bool masks and class indices for an image of known size.
Letters: N objects, H and W in original pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from segment_anything.datasets.base import SampleError
from segment_anything.masks import RLE, decode_rle, polygons_to_mask

Rle = Mapping[str, Any]
Polygons = Sequence[np.ndarray]
"""The outlines of one object: each (P, 2) x, y in original pixels, P >= 3."""

VOID = 255
"""Value that PASCAL VOC draws around objects: neither object nor background."""


@dataclass(frozen=True)
class CodedObjects:
    """Objects as polygons or run lengths (COCO, SA-1B, labelme)."""

    codes: tuple[Rle | Polygons, ...]
    labels: tuple[int, ...]
    size_hw: tuple[int, int] | None = None
    """Size that the annotation file states, if it does."""

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,)."""
        if self.size_hw is not None:
            check_size(self.size_hw, size_hw, "the annotation")
        masks = np.zeros((len(self.codes), *size_hw), dtype=bool)
        for mask, code in zip(masks, self.codes, strict=True):
            mask[:] = draw(code, size_hw)
        return masks, np.asarray(self.labels, dtype=np.int64)


@dataclass(frozen=True)
class LabelMap:
    """One integer image: every value but 0 and the void value is an object, or a class."""

    path: Path
    values_are_classes: bool = False
    """True: an object of value v has class v - 1. False: every object has class 0, unless `labels` says otherwise."""
    labels: Mapping[int, int] | None = None
    """Class index by value, where the data set lists it."""
    void: int | None = None

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,), in order of value."""
        ids = read_label_image(self.path, size_hw)
        values = [int(value) for value in np.unique(ids) if value != 0 and value != self.void]
        masks = np.zeros((len(values), *size_hw), dtype=bool)
        for mask, value in zip(masks, values, strict=True):
            np.equal(ids, value, out=mask)
        return masks, np.array([self._label(value) for value in values], dtype=np.int64)

    def _label(self, value: int) -> int:
        if self.labels is not None:
            if value not in self.labels:
                raise SampleError(f"{self.path.name} holds the value {value}, for which the data set lists no class.")
            return self.labels[value]
        return value - 1 if self.values_are_classes else 0


@dataclass(frozen=True)
class MaskFiles:
    """One file a mask; a file with more than two values is a label map with one object a value."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool and class indices (N,)."""
        masks: list[np.ndarray] = [np.zeros((0, *size_hw), dtype=bool)]
        labels: list[int] = []
        for path, label in zip(self.paths, self.labels, strict=True):
            objects = split_mask_image(read_label_image(path, size_hw))
            masks.append(objects)
            labels += [label] * len(objects)
        return np.concatenate(masks), np.asarray(labels, dtype=np.int64)


@dataclass(frozen=True)
class NoObjects:
    """An image that shows none of the data set's objects."""

    def read(self, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """No masks (0, H, W), no classes (0,)."""
        return np.zeros((0, *size_hw), dtype=bool), np.zeros(0, dtype=np.int64)


def draw(code: Rle | Polygons, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of one object; what lies outside the image is cut off.

    Raises:
        SampleError: for run lengths of another size, and for what does not decode.
    """
    try:
        if not isinstance(code, Mapping):
            return np.asarray(polygons_to_mask(code, *size_hw))
        height, width = code["size"]
        check_size((int(height), int(width)), size_hw, "a mask")
        return np.asarray(decode_rle(RLE(size=[int(height), int(width)], counts=code["counts"])))
    except SampleError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise SampleError(f"a mask is damaged ({error}).") from error


def check_size(found_hw: tuple[int, int], image_hw: tuple[int, int], what: str) -> None:
    """Raise SampleError if a mask is not as large as its image; name the usual cause where the sides are swapped."""
    if found_hw == image_hw:
        return
    cause = ""
    if found_hw == image_hw[::-1]:
        cause = " (the camera's rotation, EXIF, was ignored when the masks were drawn: rotate the image file itself)"
    raise SampleError(
        f"{what} is {found_hw[1]} x {found_hw[0]} pixels, the image {image_hw[1]} x {image_hw[0]}{cause}."
    )


def read_label_image(path: Path, size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W) int64 values of a mask file, as stored: palette indices, 8, 16 or 32 bits, or RGB as R + 256 G + 65536 B.

    A colour file of three equal channels counts as grey; a cut-out (RGBA that is partly transparent) gives its alpha.

    Raises:
        SampleError: if it is damaged or not as large as its image (where `size_hw` is given).
        FileNotFoundError: if it is missing.
    """
    try:
        with Image.open(path) as image:
            if size_hw is not None:
                check_size((image.height, image.width), size_hw, path.name)
            if image.mode in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                return np.asarray(image).astype(np.int64)
            if image.mode == "F":
                raise SampleError(f"{path.name} holds floating point values; label maps are integers.")
            pixels = np.asarray(image.convert("RGBA")).astype(np.int64)
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(f"{path.name} is not an image ({error}).") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SampleError(f"{path.name} is damaged ({error}).") from error
    red, green, blue, alpha = np.moveaxis(pixels, -1, 0)
    if (alpha < 255).any():
        return np.asarray(alpha)
    if (red == green).all() and (red == blue).all():
        return np.asarray(red)
    return np.asarray(red + 256 * green + 65536 * blue)


def split_mask_image(values: np.ndarray) -> np.ndarray:
    """(N, H, W) bool: one mask of a black and white image, or one a value of a label map.

    Black and white is what has two values, or what a lossy file makes of them (all values near the two ends).
    """
    if is_black_and_white(values):
        high = int(values.max(initial=0))
        mask = values > (high // 2 if high > 127 else 0)
        return mask[None] if mask.any() else mask[None][:0]
    ids = [value for value in np.unique(values) if value != 0]
    return np.stack([values == value for value in ids])


def is_black_and_white(values: np.ndarray) -> bool:
    """Whether a mask file shows one object: at most one value besides 0, or all values near 0 or 255."""
    present = np.unique(values)
    if len(present) <= 2 and (len(present) < 2 or present[0] == 0):
        return True
    between = (values > 32) & (values < 223)
    return bool(values.max() <= 255 and values.max() > 222 and between.mean() < 0.05)
