"""Pictures: what is drawn where, in which colour, what lies above what, and errors in words."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment_anything.masks import encode_rle, rle_to_coco
from segment_anything.visualize import colour, contact_sheet, cutout, overlay

GREY = 100


def grey(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def square(y0: int, y1: int, x0: int, x1: int, size_hw: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def tint(index: int, opacity: float = 0.45) -> np.ndarray:
    """What `colour(index)` makes of the grey image."""
    return GREY * (1 - opacity) + np.array(colour(index)) * opacity


def test_colours_are_stable() -> None:
    assert [colour(i) for i in range(3)] == [(71, 153, 253), (254, 162, 143), (8, 143, 112)]


def test_colours_of_sixteen_masks_are_told_apart() -> None:
    distances = [np.linalg.norm(np.subtract(colour(i), colour(j))) for i, j in itertools.combinations(range(16), 2)]
    assert min(distances) > 35
    neighbours = [np.linalg.norm(np.subtract(colour(i), colour(i + 1))) for i in range(40)]
    assert min(neighbours) > 100


@given(st.integers(0, 10**6))
def test_every_colour_is_one_the_screen_can_show(index: int) -> None:
    assert all(0 <= value <= 255 for value in colour(index))
    assert max(colour(index)) - min(colour(index)) > 60  # and no grey


def test_a_mask_is_tinted_inside_and_the_rest_is_untouched() -> None:
    drawn = overlay(grey(), square(10, 50, 10, 40))
    np.testing.assert_allclose(drawn[30, 25], tint(0), atol=2)
    assert (drawn[:, 50:] == GREY).all()
    assert drawn.shape == (60, 80, 3)
    assert drawn.dtype == np.uint8


def test_the_outline_is_opaque_in_the_colour_of_the_mask() -> None:
    drawn = overlay(grey(), square(10, 50, 10, 40)).astype(int)
    edge = drawn[30, 8:12]
    assert np.abs(edge - np.array(colour(0))).sum(axis=1).min() < 50  # the tint alone is 129 away


def test_no_outline_runs_along_the_border_of_the_image() -> None:
    drawn = overlay(grey(), square(0, 60, 0, 40))
    np.testing.assert_allclose(drawn[0, 10], tint(0), atol=2)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_small_mask_lies_above_a_large_one_and_shows_its_own_colour(order: tuple[int, int]) -> None:
    both = [square(5, 55, 5, 75), square(20, 40, 30, 50)]
    drawn = overlay(grey(), np.stack([both[i] for i in order]))
    np.testing.assert_allclose(drawn[30, 40], tint(order.index(1)), atol=2)
    np.testing.assert_allclose(drawn[10, 10], tint(order.index(0)), atol=2)


def test_masks_are_drawn_alike_as_arrays_records_and_run_lengths() -> None:
    masks = np.stack([square(5, 55, 5, 75), square(20, 40, 30, 50)])
    expected = overlay(grey(), masks)
    rles = [encode_rle(mask) for mask in masks]
    compact = [{"size": rle["size"], "counts": rle_to_coco(rle)} for rle in rles]
    for same in (
        list(masks),
        masks[:, None],
        [{"segmentation": mask, "area": 1} for mask in masks],
        [{"segmentation": rle} for rle in rles],
        [{"segmentation": rle} for rle in compact],
        compact,
    ):
        np.testing.assert_array_equal(overlay(grey(), same), expected)
    np.testing.assert_array_equal(overlay(grey(), {"segmentation": masks[0]}), overlay(grey(), masks[0]))


def test_nothing_to_draw_gives_the_image() -> None:
    np.testing.assert_array_equal(overlay(grey()), grey())
    np.testing.assert_array_equal(overlay(grey(), []), grey())
    np.testing.assert_array_equal(overlay(grey(), np.zeros((0, 60, 80), bool)), grey())
    np.testing.assert_array_equal(overlay(grey(), np.zeros((60, 80), bool)), grey())


def test_the_image_given_is_not_drawn_on() -> None:
    image = grey()
    overlay(image, square(0, 30, 0, 30), points_xy=[[5, 5]], boxes_xyxy=[1, 1, 9, 9], names=["a"])
    assert (image == GREY).all()


def test_clicks_are_green_for_the_object_and_red_for_the_rest() -> None:
    drawn = overlay(grey(), points_xy=[[20, 30], [60, 30]], labels=[1, 0]).astype(int)
    for x, channel in ((20, 1), (60, 0)):
        ring = drawn[30 - 4 : 30 + 5, x - 4 : x + 5].reshape(-1, 3)
        others = [c for c in range(3) if c != channel]
        assert (ring[:, channel] - ring[:, others].max(axis=1)).max() > 50
        assert ring.min(axis=1).max() > 240  # the white rim


def test_a_click_without_a_label_is_foreground() -> None:
    np.testing.assert_array_equal(
        overlay(grey(), points_xy=[[20, 30]]), overlay(grey(), points_xy=np.array([[20, 30]]), labels=np.array([1]))
    )


def test_a_box_is_drawn_in_the_colour_of_its_mask() -> None:
    drawn = overlay(grey(), boxes_xyxy=[[5, 5, 20, 20], [30, 10, 70, 50]])
    assert drawn[30, 30].tolist() == list(colour(1))
    assert drawn[5, 12].tolist() == list(colour(0))
    assert drawn[30, 50].tolist() == [GREY] * 3


def test_a_name_is_written_on_its_mask_or_box() -> None:
    for named in (
        overlay(grey(), square(30, 50, 20, 60), names=["dog"]),
        overlay(grey(), boxes_xyxy=[20, 30, 60, 50], names=["dog"]),
    ):
        label = named[12:28, 20:36].reshape(-1, 3).tolist()
        assert list(colour(0)) in label


def test_a_name_at_the_border_stays_inside_the_picture() -> None:
    drawn = overlay(grey(), boxes_xyxy=[70, 0, 79, 9], names=["elephant"])
    assert (np.abs(drawn.astype(int) - np.array(colour(0))).sum(axis=2) < 5).sum() > 200


def test_a_larger_picture_has_everything_at_the_same_place() -> None:
    drawn = overlay(grey(), square(10, 50, 10, 40), points_xy=[[60, 30]], scale=3)
    assert drawn.shape == (180, 240, 3)
    np.testing.assert_allclose(drawn[90, 75], tint(0), atol=2)
    assert drawn[90, 180].tolist() != [GREY] * 3
    assert (drawn[:, 216:] == GREY).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 59), st.integers(0, 79), st.integers(1, 20), st.floats(0.5, 3))
def test_masks_anywhere_and_at_any_scale_are_drawn(y: int, x: int, side: int, scale: float) -> None:
    drawn = overlay(grey(), square(y, y + side, x, x + side), scale=scale, names=["x"])
    assert drawn.shape == (round(60 * scale), round(80 * scale), 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: overlay(grey(), np.zeros((5, 5), bool)),
            "masks must have the image's size (60, 80), mask 0 has (5, 5)",
        ),
        (
            lambda: overlay(grey(), [np.zeros(5, bool)]),
            "masks must have shape (N, H, W) or (H, W), got one of shape (5,)",
        ),
        (lambda: overlay(grey(), points_xy=[1, 2, 3]), "points_xy must have shape (N, 2), got (3,)"),
        (lambda: overlay(grey(), boxes_xyxy=[[1, 2]]), "boxes_xyxy must have shape (N, 4), got (1, 2)"),
        (
            lambda: overlay(grey(), points_xy=[[1, 2]], labels=[1, 0]),
            "labels must have one value for each of the 1 points",
        ),
        (
            lambda: overlay(grey(), square(0, 9, 0, 9), names=["a", "b"]),
            "names must have one text for each of the 1 masks",
        ),
        (lambda: overlay(grey() / 255.0), "multiply by 255"),
        (lambda: cutout(grey(), np.zeros((60, 80), bool)), "mask is empty: there is nothing to cut out"),
        (lambda: cutout(grey(), np.zeros((6, 8), bool)), "masks must have the image's size"),
        (lambda: contact_sheet([]), "images is empty"),
        (lambda: contact_sheet([grey()], ["a", "b"]), "titles must have one text for each of the 1 images, got 2"),
    ],
)
def test_what_does_not_fit_is_told_in_words(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_a_cutout_is_the_object_and_transparency() -> None:
    image = np.random.default_rng(0).integers(1, 256, (60, 80, 3), dtype=np.uint8)
    mask = square(10, 20, 30, 45)
    mask[10, 30] = False
    cut = cutout(image, mask)
    assert cut.shape == (10, 15, 4)
    np.testing.assert_array_equal(cut[..., 3], mask[10:20, 30:45] * 255)
    np.testing.assert_array_equal(cut[1:, :, :3], image[11:20, 30:45])
    assert cut[0, 0].tolist() == [0, 0, 0, 0]


def test_a_cutout_keeps_a_margin_as_far_as_the_image_reaches() -> None:
    assert cutout(grey(), square(2, 20, 30, 45), margin_px=5).shape == (2 + 18 + 5, 5 + 15 + 5, 4)


def test_a_feathered_cutout_fades_at_its_edge_and_is_opaque_inside() -> None:
    alpha = cutout(grey(), square(10, 50, 20, 60), margin_px=8, feather_px=6)[..., 3].astype(int)
    across = alpha[28]
    assert across[28] == 255
    assert across[0] < 10
    assert (np.diff(across[:28]) >= 0).all()
    assert len(np.unique(across)) > 4


def test_a_contact_sheet_holds_every_picture_with_its_title() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [np.full((30, 40, 3), c, np.uint8) for c in colours]
    plain = contact_sheet(pictures, cell_px=100)
    titled = contact_sheet(pictures, ["one", "two", "three"], cell_px=100)
    assert titled.shape[0] > plain.shape[0]
    for c in colours:
        assert (plain == np.array(c)).all(axis=2).sum() == 100 * 75
    assert contact_sheet(pictures, columns=3, cell_px=100).shape[0] < plain.shape[0]


def test_a_contact_sheet_shows_transparency_on_a_chequered_ground() -> None:
    sheet = contact_sheet([cutout(grey(), np.eye(60, 80, dtype=bool))], cell_px=100)
    assert {225, 255} <= set(sheet[..., 0].ravel().tolist())
