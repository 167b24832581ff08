"""The simulated person who clicks and draws boxes, on masks small enough to see."""

import numpy as np
import pytest
import torch

from segment_anything.simulate import (
    farthest_point,
    mask_boxes,
    next_click_farthest,
    noisy_boxes,
    random_error_points,
    random_points,
)


def drawn(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def stacked(*masks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(masks))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CROSS = drawn(
    "..#..",
    "..#..",
    "#####",
    "..#..",
)


def test_random_points_fall_on_every_pixel_of_the_mask_equally_often() -> None:
    many = torch.from_numpy(CROSS).expand(4000, -1, -1)
    points = random_points(many, seeded())
    assert points.shape == (4000, 2)
    assert points.dtype == torch.float32
    x, y = points.long().unbind(1)
    hits = torch.zeros(4, 5).index_put((y, x), torch.ones(4000), accumulate=True)
    assert torch.equal(hits > 0, torch.from_numpy(CROSS))
    assert hits[hits > 0].min() > 420  # 500 expected, standard deviation 21


def test_random_points_follow_their_generator() -> None:
    masks = torch.from_numpy(CROSS).expand(20, -1, -1)
    assert torch.equal(random_points(masks, seeded(1)), random_points(masks, seeded(1)))
    assert not torch.equal(random_points(masks, seeded(1)), random_points(masks, seeded(2)))


def test_random_points_of_an_empty_mask_are_the_origin() -> None:
    assert random_points(torch.zeros(1, 3, 4, dtype=torch.bool), seeded()).tolist() == [[0, 0]]


def test_training_clicks_fall_where_the_prediction_is_wrong_with_the_right_label() -> None:
    truth = drawn("##..", "##..", "....")
    predicted = drawn(".#..", "##..", "...#")
    points, labels = random_error_points(
        stacked(predicted).expand(200, -1, -1), stacked(truth).expand(200, -1, -1), seeded()
    )
    answers = {(int(x), int(y), int(label)) for (x, y), label in zip(points, labels, strict=True)}
    assert answers == {(0, 0, 1), (3, 2, 0)}  # missed: a click on the object; taken: one on background
    assert labels.dtype == torch.int64


def test_each_object_is_clicked_in_its_own_error() -> None:
    truth = stacked(drawn("#..", "..."), drawn("...", "..#"))
    points, labels = random_error_points(torch.zeros_like(truth), truth, seeded())
    assert points.tolist() == [[0, 0], [2, 1]]
    assert labels.tolist() == [1, 1]


def test_a_perfect_prediction_is_clicked_on_the_object() -> None:
    truth = stacked(drawn("..#.", "...."))
    points, labels = random_error_points(truth, truth, seeded())
    assert (points.tolist(), labels.tolist()) == ([[2, 0]], [1])


def test_where_there_is_nothing_to_find_and_nothing_wrong_background_is_clicked() -> None:
    nothing = torch.zeros(50, 2, 2, dtype=torch.bool)
    points, labels = random_error_points(nothing, nothing, seeded())
    assert {tuple(point) for point in points.tolist()} == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert labels.tolist() == [0] * 50


def test_boxes_are_tight_and_end_on_the_last_pixel() -> None:
    masks = stacked(
        drawn(".....", ".##..", "...#.", "....."), drawn("....#", ".....", ".....", "....."), np.zeros((4, 5), bool)
    )
    assert mask_boxes(masks).tolist() == [[1, 1, 3, 2], [4, 0, 4, 0], [0, 0, 0, 0]]


def test_noise_on_boxes_is_a_tenth_of_each_side() -> None:
    box = torch.tensor([[300.0, 400.0, 400.0, 420.0]]).expand(20000, -1)
    shift = noisy_boxes(box, (1000, 1000), seeded()) - box
    torch.testing.assert_close(shift.std(dim=0), torch.tensor([10.0, 2.0, 10.0, 2.0]), rtol=0.05, atol=0)
    assert shift.mean(dim=0).abs().max() < 0.5


def test_noise_on_boxes_is_at_most_20_pixels() -> None:
    box = torch.tensor([[100.0, 100.0, 900.0, 900.0]]).expand(1000, -1)
    shift = (noisy_boxes(box, (1000, 1000), seeded()) - box).abs()
    assert shift.max() == 20
    assert (noisy_boxes(box, (1000, 1000), seeded(), at_most=5) - box).abs().max() == 5


def test_each_box_may_have_noise_of_its_own() -> None:
    boxes = torch.tensor([[10.0, 10.0, 90.0, 90.0]]).expand(2, -1)
    moved = noisy_boxes(boxes, (100, 100), seeded(), relative=torch.tensor([[0.0], [0.1]]))
    assert torch.equal(moved[0], boxes[0])
    assert not torch.equal(moved[1], boxes[1])


def test_noisy_boxes_stay_in_the_image_and_keep_a_pixel() -> None:
    boxes = torch.tensor([[0.0, 0.0, 49.0, 29.0], [49.0, 29.0, 49.0, 29.0], [0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 6.0, 6.0]])
    moved = noisy_boxes(boxes.repeat(500, 1), (30, 50), seeded(), relative=2.0)
    assert moved.min() >= 0
    assert moved[:, [0, 2]].max() <= 49
    assert moved[:, [1, 3]].max() <= 29
    assert (moved[:, 2:] - moved[:, :2]).min() > 0.9999


def test_the_farthest_point_is_the_middle_of_the_thickest_part() -> None:
    region = drawn(
        "#........",
        "#..#####.",
        "#..#####.",
        "#..#####.",
        "#..#####.",
        "#..#####.",
        "#........",
    )
    assert farthest_point(region) == ((5, 3), 3.0)


def test_the_edge_of_the_image_counts_as_a_border() -> None:
    assert farthest_point(np.ones((3, 5), dtype=bool)) == ((1, 1), 2.0)


def test_of_equally_far_points_the_first_in_row_order_is_taken() -> None:
    assert farthest_point(drawn("..#.", "#...")) == ((2, 0), 1.0)


def test_no_point_is_far_in_an_empty_region() -> None:
    with pytest.raises(ValueError, match="region must hold at least one pixel, got an empty mask"):
        farthest_point(np.zeros((3, 3), dtype=bool))


def test_the_first_evaluation_click_is_the_middle_of_the_object() -> None:
    truth = drawn(".....", ".###.", ".###.", ".###.")
    assert next_click_farthest(None, truth) == ((2, 2), 1)


def test_the_larger_error_is_clicked_next() -> None:
    truth = drawn("###....", "###....", "###....", ".......")
    missed_more = drawn(".......", ".......", ".......", "......#")
    taken_more = drawn(".##.###", "###.###", "###.###", ".......")
    assert next_click_farthest(missed_more, truth) == ((1, 1), 1)
    assert next_click_farthest(taken_more, truth) == ((5, 1), 0)


def test_a_missed_part_wins_over_an_equally_large_taken_one() -> None:
    assert next_click_farthest(drawn("#..."), drawn("...#")) == ((3, 0), 1)


def test_a_perfect_prediction_is_clicked_in_its_middle() -> None:
    truth = drawn("###", "###", "###")
    assert next_click_farthest(truth, truth) == ((1, 1), 1)


def test_no_pixel_is_clicked_twice_while_another_is_wrong() -> None:
    truth, nothing = drawn(".....", ".###.", ".###.", ".###."), drawn(".....", ".....", ".....", ".....")
    assert next_click_farthest(nothing, truth) == ((2, 2), 1)
    clicked = [(2, 2)]
    for _ in range(8):
        point, label = next_click_farthest(nothing, truth, clicked)
        assert point not in clicked
        assert (truth[point[1], point[0]], label) == (True, 1)
        clicked.append(point)
    assert next_click_farthest(nothing, truth, clicked) == ((2, 2), 1)  # all were: the centre again


def test_an_error_that_was_clicked_leaves_the_next_click_to_the_other() -> None:
    predicted, truth = drawn("##....", "......"), drawn("#....#", "......")
    assert next_click_farthest(predicted, truth) == ((5, 0), 1)
    assert next_click_farthest(predicted, truth, [(5, 0)]) == ((1, 0), 0)
