"""Pillow's bilinear resize of 8-bit images, to the byte, on any device; and how an image gets there.

Pillow averages when it shrinks: a triangle of weights around each new pixel, as wide as the old pixels it covers, in
numbers with 22 binary places; first along one axis, then along the other, rounded to 8 bits after each. Integers leave
no room for other roundings, so a GPU finds the same bytes. Which axis comes first depends on the sizes in Pillow 13, so
the Pillow that is installed is asked once whether it is one of those. (Found by comparing outputs of
`Image.resize(..., Image.Resampling.BILINEAR)`; tests go on comparing.)

Letters: H x W old size, h x w new size, T taps: the most old pixels that one new pixel is made of.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

BITS = 22
"""Binary places of a weight: 8 of 32 bits are the pixel's, 2 are spare."""


def weights(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Which old pixels a new one is made of, along one axis.

    Args:
        old, new: lengths.

    Returns:
        the first old pixel of each new one (new,), and weights (T, new), 2**22 for 1.
    """
    scale = old / new
    reach = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(np.trunc(centre - reach + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(centre + reach + 0.5), old).astype(np.int64)
    taps = math.ceil(reach) * 2 + 1
    place = np.arange(taps)[:, None]
    distance = np.abs((place + first - centre + 0.5) * (1.0 / reach))
    raw = np.where((distance < 1.0) & (place < end - first), 1.0 - distance, 0.0)
    total = np.zeros(new)
    for row in raw:  # in this order, as rounding depends on it
        total += row
    return first, np.trunc(raw / total * (1 << BITS) + 0.5).astype(np.int32)


@lru_cache(maxsize=64)
def _on_device(old: int, new: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Old pixels (T, new) and weights (T, new) of `weights`, there; taps that nothing is made of are left out."""
    first, values = weights(old, new)
    used = np.flatnonzero(values.any(axis=1))
    taps = np.minimum(first + np.arange(len(values))[:, None], old - 1)
    return torch.from_numpy(taps[used]).to(device), torch.from_numpy(values[used]).to(device)


def _along(pixels: torch.Tensor, new: int) -> torch.Tensor:
    """(A, old, B) uint8 -> (A, new, B) uint8."""
    old = pixels.shape[1]
    if old == new:
        return pixels
    places, values = _on_device(old, new, pixels.device)
    total = torch.full(
        (pixels.shape[0], new, pixels.shape[2]), 1 << (BITS - 1), dtype=torch.int32, device=pixels.device
    )
    for place, value in zip(places, values, strict=True):
        total.addcmul_(pixels.index_select(1, place).to(torch.int32), value[None, :, None])
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)


def resize_bilinear(image: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Resize as Pillow does.

    Args:
        image: (H, W, C) uint8, on any device.
        size_hw: (h, w).

    Returns:
        (h, w, C) uint8.
    """
    is_rows_first = _may_take_rows_first() and takes_rows_first((image.shape[0], image.shape[1]), size_hw)
    return _in_order(image, size_hw, is_rows_first)


def _in_order(image: torch.Tensor, size_hw: tuple[int, int], is_rows_first: bool) -> torch.Tensor:
    height, width = size_hw
    if not is_rows_first:
        image = _along(image, width)
    image = _along(image.reshape(1, image.shape[0], -1), height).view(height, -1, image.shape[2])
    return _along(image, width) if is_rows_first else image


def takes_rows_first(old_hw: tuple[int, int], new_hw: tuple[int, int]) -> bool:
    """Whether Pillow 13 lessens the rows before the columns: if that takes away more than twice as many."""
    fewer_rows, fewer_columns = old_hw[0] - new_hw[0], old_hw[1] - new_hw[1]
    return fewer_rows > max(0, 2 * fewer_columns)


@lru_cache(maxsize=1)
def _may_take_rows_first() -> bool:
    """Whether the Pillow that is installed ever does; tried on an image for which the orders differ."""
    image = np.random.default_rng(0).integers(0, 256, (60, 30, 3), dtype=np.uint8)
    found = np.asarray(Image.fromarray(image).resize((25, 20), Image.Resampling.BILINEAR))
    return np.array_equal(_in_order(torch.from_numpy(image), (20, 25), True).numpy(), found)


class Uploads:
    """Sends images to a CUDA device from pinned memory on a stream of its own, beside what runs there."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __reduce__(self) -> tuple[type["Uploads"], tuple[()]]:
        return Uploads, ()

    def __call__(self, image: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
        """The image (H, W, C) on the device; work started there afterwards finds it complete."""
        tensor = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        if device.type != "cuda":
            return tensor.to(device)
        stream = self._streams.setdefault(device, torch.cuda.Stream(device))
        with torch.cuda.stream(stream):
            there = tensor.pin_memory().to(device, non_blocking=True)
        users = torch.cuda.current_stream(device)
        users.wait_stream(stream)
        there.record_stream(users)
        return there
