"""Prompts of one object and of many, in original pixels: what they keep and how they meet an image.

What they refuse is in test_bad_input.py.
"""

import numpy as np
import pytest
import torch

from segment_anything import ImageGeometry, Prompt, Prompts
from segment_anything.prompts import MASK_LOGIT


def drawn(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_make_the_same_prompt(kind: type) -> None:
    prompt = Prompt.make(kind([[3, 4], [5, 6]]), kind([1, 0]), kind([1, 2, 30, 40]), mask_logits=kind([[[0.5, -1.0]]]))
    assert prompt.points_xy is not None
    assert prompt.labels is not None
    assert prompt.box_xyxy is not None
    assert prompt.points_xy.tolist() == [[3, 4], [5, 6]]
    assert prompt.labels.tolist() == [1, 0]
    assert prompt.box_xyxy.tolist() == [1, 2, 30, 40]
    assert (prompt.points_xy.dtype, prompt.box_xyxy.dtype) == (np.float32, np.float32)


def test_bfloat16_tensors_are_taken() -> None:
    prompt = Prompt.make(torch.tensor([[3, 4]], dtype=torch.bfloat16), torch.tensor([True]))
    assert prompt.points_xy is not None
    assert prompt.points_xy.tolist() == [[3, 4]]


def test_what_a_caller_passed_is_copied() -> None:
    points = np.array([[3.0, 4.0]], dtype=np.float32)
    prompt = Prompt.make(points, [1])
    points[:] = 9
    assert prompt.points_xy is not None
    assert prompt.points_xy.tolist() == [[3, 4]]


def test_a_box_in_a_row_of_its_own_is_taken() -> None:
    prompt = Prompt.make(box=np.array([[1, 2, 30, 40]]))
    assert prompt.box_xyxy is not None
    assert prompt.box_xyxy.shape == (4,)


@pytest.mark.parametrize(
    ("prompt", "ambiguous"),
    [
        (Prompt.make([[1, 1]], [1]), True),
        (Prompt.make([[1, 1], [2, 2]], [1, 1]), False),
        (Prompt.make([[1, 1]], [1], box=[0, 0, 3, 3]), False),
        (Prompt.make([[1, 1]], [1], mask_logits=np.zeros((1, 4, 4))), False),
        (Prompt.make(box=[0, 0, 3, 3]), False),
        (Prompt.make(), False),
    ],
)
def test_a_single_point_alone_is_ambiguous(prompt: Prompt, ambiguous: bool) -> None:
    assert prompt.is_ambiguous is ambiguous


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
@pytest.mark.parametrize("high", [1, 255])
def test_a_binary_mask_may_come_in_any_type(kind: type, high: int) -> None:
    mask = drawn("#.", ".#")
    prompt = Prompt.make(mask=(mask * high).astype(kind))
    assert prompt.mask is not None
    assert prompt.mask.dtype == np.bool_
    assert np.array_equal(prompt.mask, mask)


def test_a_mask_alone_is_given_its_box() -> None:
    mask = drawn(
        "......",
        "..##..",
        "..###.",
        "......",
    )
    completed = Prompt.make(mask=mask).completed()
    assert completed.box_xyxy is not None
    assert completed.box_xyxy.tolist() == [2, 1, 4, 2]
    assert completed.mask is not None


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt.make(mask=drawn("..", "..")),
        Prompt.make([[0, 0]], [1], mask=drawn("#.", "..")),
        Prompt.make(box=[0, 0, 1, 1], mask=drawn("#.", "..")),
        Prompt.make([[0, 0]], [1]),
    ],
)
def test_other_prompts_are_complete_as_they_are(prompt: Prompt) -> None:
    assert prompt.completed() is prompt


def test_a_mask_becomes_logits_in_the_frame_of_the_padded_input() -> None:
    mask = np.zeros((40, 80), dtype=bool)
    mask[:20, 40:] = True  # the upper right quarter
    logits = Prompt.make(mask=mask).low_res_logits(ImageGeometry((40, 80), 64), 16)
    assert logits is not None
    assert logits.shape == (1, 16, 16)
    assert logits.dtype == torch.float32
    assert (logits[0] > 0).tolist() == [[row < 4 and column >= 8 for column in range(16)] for row in range(16)]
    assert logits.max() == MASK_LOGIT
    assert (logits[0, 8:] == -MASK_LOGIT).all()  # below the image is padding


def test_a_cell_half_covered_by_the_mask_is_undecided() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[::2] = True
    logits = Prompt.make(mask=mask).low_res_logits(ImageGeometry((64, 64), 64), 16)
    assert logits is not None
    assert logits[0, 2:-2, 2:-2].abs().max() < 0.1 * MASK_LOGIT


def test_low_resolution_logits_are_passed_on() -> None:
    given = np.arange(16, dtype=np.float64).reshape(1, 4, 4)
    logits = Prompt.make(mask_logits=given).low_res_logits(ImageGeometry((10, 10), 16), 4)
    assert logits is not None
    assert logits.dtype == torch.float32
    assert np.array_equal(logits.numpy(), given)


def test_a_prompt_without_a_mask_has_no_logits() -> None:
    assert Prompt.make(box=[0, 0, 3, 3]).low_res_logits(ImageGeometry((10, 10), 16), 4) is None


def test_coordinates_a_little_outside_the_image_are_let_through() -> None:
    Prompt.make([[-9, 59]], [1], box=[-5, -5, 110, 55]).check_inside((50, 100))


def test_points_become_one_object_each() -> None:
    prompts = Prompts.from_points(np.array([[1, 2], [3, 4], [5, 6]]))
    assert [prompt.points_xy.tolist() for prompt in prompts] == [[[1, 2]], [[3, 4]], [[5, 6]]]
    assert all(prompt.labels.tolist() == [1] and prompt.is_ambiguous for prompt in prompts)


def test_boxes_become_one_object_each() -> None:
    prompts = Prompts.from_boxes(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert [prompt.box_xyxy.tolist() for prompt in prompts] == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4))])
def test_no_boxes_become_no_objects(nothing: object) -> None:
    assert len(Prompts.from_boxes(nothing)) == 0


def test_prompts_are_a_sequence() -> None:
    prompts = Prompts.from_points([[1, 2], [3, 4], [5, 6]])
    assert len(prompts) == 3
    assert prompts[1].points_xy.tolist() == [[3, 4]]
    assert [prompt.points_xy[0, 0] for prompt in prompts[1:]] == [3, 5]
    assert isinstance(prompts[1:], Prompts)
    assert len(Prompts([*prompts, Prompt.make(box=[0, 0, 1, 1])])) == 4


def test_points_and_boxes_are_scaled_each_axis_by_its_own_rounded_size() -> None:
    geometry = ImageGeometry((1200, 1800), 256)
    assert geometry.input_size_hw == (171, 256)
    moved = geometry.points_to_input(torch.tensor([[1800.0, 1200.0], [0.0, 0.0]], dtype=torch.float64))
    assert moved.dtype == torch.float32
    assert moved.tolist() == [[256, 171], [0, 0]]
    boxes = geometry.boxes_to_input(torch.tensor([[0, 0, 900, 600], [900, 600, 1800, 1200]]))
    assert boxes.tolist() == [[0, 0, 128, 85.5], [128, 85.5, 256, 171]]


@pytest.mark.parametrize("size_hw", [(1, 5000), (5000, 1)])
def test_a_line_of_pixels_keeps_a_pixel_of_width(size_hw: tuple[int, int]) -> None:
    assert sorted(ImageGeometry(size_hw, 1024).input_size_hw) == [1, 1024]
