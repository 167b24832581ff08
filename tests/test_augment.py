"""Augmentation moves image, masks, points and boxes together, and is drawn from one seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment_anything.datasets import SegmentationSample
from segment_anything.training.augment import (
    NO_AUGMENTATION,
    PADDING_RGB,
    Augmentation,
    AugmentOptions,
    augment,
    draw_augmentation,
)

HEIGHT, WIDTH = 40, 60


def sample() -> SegmentationSample:
    """A bright rectangle and a dark one on grey."""
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 4:16, 6:30] = True
    masks[1, 22:38, 34:50] = True
    image = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    image[masks[0]] = 250
    image[masks[1]] = 5
    return SegmentationSample(image, masks, np.array([0, 1]), "x")


def picture(text: str) -> np.ndarray:
    return np.array([[character == "#" for character in line] for line in text.split()])


def test_mirrored_mask() -> None:
    mask = picture("##.. #... .... ....")
    assert np.array_equal(Augmentation((4, 4), flip_x=True).masks(mask[None])[0], picture("..## ...# .... ...."))
    assert np.array_equal(Augmentation((4, 4), flip_y=True).masks(mask[None])[0], picture(".... .... #... ##.."))


def test_enlarged_mask_is_cropped() -> None:
    mask = picture("##.. #... .... ....")
    moved = Augmentation((4, 4), scale=2.0, offset_xy=(-1.0, 0.0)).masks(mask[None])[0]
    assert np.array_equal(moved, picture("###. ###. #... #..."))


def test_shrunk_image_is_padded_with_the_mean_colour() -> None:
    moved = Augmentation((HEIGHT, WIDTH), scale=0.5, offset_xy=(30.0, 20.0)).image(sample().image)
    assert (moved[:20] == PADDING_RGB).all()
    assert (moved[:, :30] == PADDING_RGB).all()
    assert not (moved[20:, 30:] == PADDING_RGB).all(axis=-1).any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_image_and_masks_move_together(seed: int) -> None:
    original = sample()
    options = AugmentOptions(flip_vertical=0.5, colour=0.0)
    drawn = draw_augmentation(options, (HEIGHT, WIDTH), np.random.default_rng(seed))
    image, masks = drawn.image(original.image), drawn.masks(original.masks)
    bright, dark = (image > 190).all(axis=-1), (image < 55).all(axis=-1)
    for shown, mask in ((bright, masks[0]), (dark, masks[1])):
        assert (shown != mask).sum() <= 0.06 * HEIGHT * WIDTH * max(1.0, drawn.scale) / 2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), x=st.integers(0, WIDTH - 1), y=st.integers(0, HEIGHT - 1))
def test_points_stay_on_their_pixel(seed: int, x: int, y: int) -> None:
    options = AugmentOptions(flip_vertical=0.5, scale=(1.0, 2.0))
    drawn = draw_augmentation(options, (HEIGHT, WIDTH), np.random.default_rng(seed))
    mask = np.zeros((1, HEIGHT, WIDTH), dtype=bool)
    mask[0, y, x] = True
    moved = drawn.masks(mask)[0]
    (point,) = drawn.points(np.array([[x, y]]))
    rows, columns = np.nonzero(moved)
    if len(rows):
        assert abs(rows.mean() - point[1]) <= 1
        assert abs(columns.mean() - point[0]) <= 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_boxes_enclose_their_masks(seed: int) -> None:
    original = sample()
    options = AugmentOptions(flip_vertical=0.5, scale=(0.6, 2.0))
    drawn = draw_augmentation(options, (HEIGHT, WIDTH), np.random.default_rng(seed))
    boxes = drawn.boxes(np.array([[6, 4, 30, 16], [34, 22, 50, 38]]))
    for mask, (x0, y0, x1, y1) in zip(drawn.masks(original.masks), boxes, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows):
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(found) - [x0, y0, x1, y1]).max() <= 1


def test_one_seed_gives_one_augmentation() -> None:
    first, again, other = (
        augment(sample(), AugmentOptions(), np.random.default_rng((7, epoch, 3))) for epoch in (0, 0, 1)
    )
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)


def test_objects_out_of_sight_are_left_out() -> None:
    for seed in range(40):
        moved = augment(sample(), AugmentOptions(scale=(2.0, 2.0)), np.random.default_rng(seed))
        assert len(moved.masks) == len(moved.labels) >= 1
        assert moved.masks.any(axis=(1, 2)).all()


def test_no_augmentation_returns_the_sample_itself() -> None:
    original = sample()
    assert augment(original, NO_AUGMENTATION, np.random.default_rng(0)) is original


def test_colour_changes_the_image_and_not_the_masks() -> None:
    original = sample()
    options = AugmentOptions(flip=0.0, scale=(1.0, 1.0), colour=0.4)
    moved = augment(original, options, np.random.default_rng(0))
    assert np.array_equal(moved.masks, original.masks)
    assert not np.array_equal(moved.image, original.image)
    assert moved.image.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("flip", 1.5, "flip must be a chance between 0 and 1, got 1.5"),
        ("scale", (2.0, 1.0), r"scale must be \(low, high\)"),
        ("colour", 1.0, r"colour must be in \[0, 1\)"),
    ],
)
def test_bad_options_are_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AugmentOptions(**{name: value})
