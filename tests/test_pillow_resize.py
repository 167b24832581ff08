"""Resizing with integers on any device gives Pillow's bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from triton_kernels import DEVICE

from segment_anything.modeling.cuda.resize import Uploads, _in_order, resize_bilinear, weights

SIDES = st.integers(1, 70)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR))


def same(image: np.ndarray, size_hw: tuple[int, int]) -> bool:
    found = resize_bilinear(torch.from_numpy(image).to(DEVICE), size_hw)
    assert found.dtype == torch.uint8
    return bool(np.array_equal(found.cpu().numpy(), by_pillow(image, size_hw)))


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_any_size_becomes_any_other_as_pillow_does_it(height: int, width: int, new_height: int, new_width: int) -> None:
    assert same(random_image(height, width), (new_height, new_width))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((600, 900), (683, 1024)),  # up
        ((601, 899), (171, 256)),  # down
        ((1200, 30), (1024, 26)),
        ((30, 2000), (15, 1024)),
        ((1024, 8), (1024, 8)),  # as it is
        ((500, 700), (500, 1024)),  # one axis alone
        ((3, 4000), (1, 1024)),
        ((900, 600), (256, 171)),
        ((60, 31), (20, 11)),  # twice as many rows less as columns
        ((61, 31), (20, 11)),
    ],
)
def test_sizes_of_photographs_are_pillows(old: tuple[int, int], new: tuple[int, int]) -> None:
    assert same(random_image(*old), new)


def test_the_order_of_axes_matters() -> None:
    image = torch.from_numpy(random_image(60, 30))
    assert not torch.equal(_in_order(image, (20, 25), True), _in_order(image, (20, 25), False))


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_a_plain_image_stays_plain(value: int) -> None:
    image = np.full((37, 53, 3), value, dtype=np.uint8)
    for size in ((16, 23), (71, 101)):
        assert (resize_bilinear(torch.from_numpy(image), size) == value).all()


def test_weights_of_a_new_pixel_make_up_one() -> None:
    for old, new in ((100, 7), (7, 100), (5, 5), (1, 3), (3, 1)):
        _, values = weights(old, new)
        assert abs(values.astype(np.int64).sum(axis=0) - 2**22).max() <= len(values)


def test_an_image_of_any_layout_can_be_sent() -> None:
    image = random_image(6, 8)
    uploads = Uploads()
    for view in (image, image[::-1], image[:, ::2], image[..., ::-1]):
        there = uploads(view, torch.device(DEVICE))
        assert there.device.type == DEVICE
        assert np.array_equal(there.cpu().numpy(), view)
    image.flags.writeable = False
    assert np.array_equal(uploads(image, torch.device(DEVICE)).cpu().numpy(), image)
