"""The band of pixels along a mask's border."""

import numpy as np
import numpy.typing as npt

from segment_anything.masks._arrays import ArrayLike, BoolArray, as_bool


def boundary(mask: ArrayLike, dilation_ratio: float = 0.02) -> BoolArray:
    """Pixels of a mask within a distance of its border, as Boundary IoU defines it (https://arxiv.org/abs/2103.16562).

    Args:
        mask: (H, W) bool.
        dilation_ratio: distance as a share of the image's diagonal; at least one pixel.

    Returns:
        (H, W) bool: the mask without what remains after eroding it by a square of that distance. Beyond the image's
        edge lies background.

    Raises:
        ValueError: if `dilation_ratio` is not positive or `mask` is not two-dimensional.
    """
    array = as_bool(mask, 2)
    if not dilation_ratio > 0:
        raise ValueError(f"dilation_ratio must be a share of the diagonal > 0, but is {dilation_ratio!r}")
    distance = max(1, round(dilation_ratio * float(np.hypot(*array.shape))))
    return array & ~_erode(_erode(array, distance).T, distance).T


def _erode(mask: BoolArray, distance: int) -> npt.NDArray[np.bool_]:
    """Keep what has `distance` true pixels on both sides along the last axis."""
    before = np.cumsum(np.pad(mask, ((0, 0), (distance + 1, distance))), axis=1, dtype=np.int32)
    return np.asarray(before[:, 2 * distance + 1 :] - before[:, : -2 * distance - 1] == 2 * distance + 1)
