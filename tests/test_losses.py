"""The paper's losses: values that can be worked out by hand, gradients, and other ways to the same numbers."""

import math

import pytest
import torch

from segment_anything.training.losses import (
    DICE_WEIGHT,
    NEAR_WEIGHT,
    dice_loss,
    focal_loss,
    interactive_loss,
    near_cross_entropy,
    true_iou,
)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def masks(*values: float) -> torch.Tensor:
    """One object, one mask, a row of pixels: (1, 1, 1, n)."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def random_pair(objects: int = 3, count: int = 4, side: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(objects, count, side, side, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(objects, 1, side, side, generator=generator) > 0.5).double()


@pytest.mark.parametrize(("probability", "truth"), [(0.9, 1.0), (0.9, 0.0), (0.25, 1.0), (0.5, 0.0)])
def test_focal_loss_of_a_pixel_is_cross_entropy_times_the_squared_miss(probability: float, truth: float) -> None:
    right = probability if truth else 1 - probability
    expected = -math.log(right) * (1 - right) ** 2
    assert focal_loss(masks(logit(probability)), masks(truth)).item() == pytest.approx(expected)


def test_focal_loss_is_the_mean_over_pixels_and_keeps_objects_and_masks_apart() -> None:
    logits, truth = random_pair()
    whole = focal_loss(logits, truth)
    assert whole.shape == (3, 4)
    pixels = [
        focal_loss(masks(float(x)), masks(float(t)))
        for x, t in zip(logits[1, 2].flatten(), truth[1, 0].flatten(), strict=True)
    ]
    torch.testing.assert_close(whole[1, 2], torch.stack(pixels).mean())


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, truth = random_pair()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, truth.expand_as(logits), reduction="none"
    ).mean(dim=(2, 3))
    torch.testing.assert_close(focal_loss(logits, truth, gamma=0.0), expected)


def test_alpha_weighs_object_against_background() -> None:
    on_object, on_background = masks(1.0), masks(0.0)
    for truth, weight in ((on_object, 0.25), (on_background, 0.75)):
        plain = focal_loss(masks(0.3), truth)
        torch.testing.assert_close(focal_loss(masks(0.3), truth, alpha=0.25), weight * plain)


def test_focal_loss_stays_finite_for_very_sure_answers() -> None:
    logits = torch.tensor([-500.0, 500.0, -500.0, 500.0]).reshape(1, 1, 2, 2).requires_grad_()
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    loss = focal_loss(logits, truth)
    loss.sum().backward()
    assert loss.item() == pytest.approx(250.0)  # half of the pixels are wrong by 500
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_dice_loss_of_known_masks() -> None:
    truth = masks(1.0, 1.0, 0.0, 0.0)
    sure = 100.0
    cases = {
        (sure, sure, -sure, -sure): 1 - (4 + 1) / (4 + 1),  # exact
        (-sure, -sure, sure, sure): 1 - (0 + 1) / (4 + 1),  # the opposite
        (sure, sure, sure, sure): 1 - (4 + 1) / (6 + 1),  # everything
        (0.0, 0.0, 0.0, 0.0): 1 - (2 + 1) / (4 + 1),  # undecided
    }
    for logits, expected in cases.items():
        assert dice_loss(masks(*logits), truth).item() == pytest.approx(expected)


def test_dice_loss_of_nothing_found_where_nothing_is_is_zero() -> None:
    assert dice_loss(masks(-100.0, -100.0), masks(0.0, 0.0)).item() == pytest.approx(0.0)


def test_dice_loss_keeps_objects_and_masks_apart() -> None:
    logits, truth = random_pair()
    torch.testing.assert_close(dice_loss(logits, truth)[2, 1], dice_loss(logits[2:, 1:2], truth[2:])[0, 0])


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_gradients_are_those_of_finite_differences(loss: object) -> None:
    logits, truth = random_pair(objects=1, count=2, side=3)
    assert torch.autograd.gradcheck(lambda x: loss(x, truth), logits.requires_grad_())  # type: ignore[operator]


def test_true_iou_counts_pixels() -> None:
    predicted = masks(1.0, 2.0, -1.0, 0.5)
    assert true_iou(predicted, masks(1.0, 0.0, 1.0, 1.0)).item() == pytest.approx(2 / 4)
    assert true_iou(predicted, masks(1.0, 1.0, 0.0, 1.0)).item() == 1
    assert true_iou(masks(-1.0, -1.0), masks(0.0, 0.0)).item() == 0


def test_the_loss_of_a_round_is_that_of_the_best_mask_and_of_all_predicted_ious() -> None:
    logits, truth = random_pair()
    predicted = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    loss = interactive_loss(logits, predicted, truth)
    totals = []
    for n in range(3):
        each = [
            20 * focal_loss(logits[n : n + 1, k : k + 1], truth[n : n + 1])
            + dice_loss(logits[n : n + 1, k : k + 1], truth[n : n + 1])
            for k in range(4)
        ]
        totals.append(min(float(value) for value in each))
        assert float(loss.mask[n]) == pytest.approx(totals[-1], rel=1e-5)
    iou = true_iou(logits, truth)
    torch.testing.assert_close(loss.iou, iou)
    expected = sum(totals) / 3 + float((predicted - iou).square().mean())
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)


def test_only_the_best_mask_gets_a_gradient() -> None:
    logits, truth = random_pair()
    logits = logits.requires_grad_()
    interactive_loss(logits, torch.zeros(3, 4), truth).total.backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(dim=(2, 3)) > 0
    assert moved.sum(dim=1).tolist() == [1, 1, 1]
    each = 20 * focal_loss(logits, truth) + dice_loss(logits, truth)
    assert torch.equal(moved.int().argmax(dim=1), each.argmin(dim=1))


def test_predicted_ious_are_pulled_to_the_true_ones_and_masks_are_not_pushed_by_them() -> None:
    logits, truth = random_pair()
    predicted = torch.full((3, 4), 2.0, requires_grad=True)
    loss = interactive_loss(logits.requires_grad_(), predicted, truth)
    loss.total.backward()
    torch.testing.assert_close(predicted.grad, (2 * (2.0 - loss.iou) / 12).float())
    assert not loss.iou.requires_grad
    assert not loss.mask.requires_grad


def test_half_precision_answers_are_judged_in_float32() -> None:
    logits, truth = random_pair()
    loss = interactive_loss(logits.bfloat16(), torch.rand(3, 4).bfloat16(), truth)
    assert loss.total.dtype == torch.float32


def test_near_cross_entropy_gives_a_small_object_nearly_the_gradient_of_a_large_one() -> None:
    truth = torch.zeros(2, 1, 64, 64)
    truth[0, 0, 30:34, 30:34] = 1  # 16 pixels
    truth[1, 0, 8:56, 8:56] = 1  # 2304 pixels
    logits = torch.zeros(2, 1, 64, 64, requires_grad=True)
    near_cross_entropy(logits, truth).sum().backward()
    assert logits.grad is not None
    near = (logits.grad * truth).abs().sum((1, 2, 3))
    logits.grad = None
    focal_loss(logits, truth).sum().backward()
    focal = (logits.grad * truth).abs().sum((1, 2, 3))
    assert near[0] / near[1] > 0.15  # the grown box of the small one holds more background
    assert focal[0] / focal[1] < 0.01


def test_near_cross_entropy_by_hand() -> None:
    truth = torch.zeros(1, 1, 20, 40)
    truth[0, 0, 5, 10] = 1  # the grown box reaches 2.75 cells from the middle: 5 x 5
    logits = torch.zeros(1, 2, 20, 40)
    logits[0, 0, 0, 39] = 5.0  # a wrong pixel far away
    logits[0, 1, 5, 11] = 5.0  # a wrong pixel next to the object
    plain = torch.log(torch.tensor(2.0))
    extra = torch.nn.functional.softplus(torch.tensor(5.0)) - plain
    expected = plain + torch.stack([extra / 3 / 800, extra * (2 / 3 / 25 + 1 / 3 / 800)])
    torch.testing.assert_close(near_cross_entropy(logits, truth)[0], expected)


def test_near_loss_takes_the_place_of_the_focal_one() -> None:
    torch.manual_seed(0)
    truth = (torch.rand(3, 1, 8, 8) > 0.5).float()
    logits = torch.randn(3, 3, 8, 8)
    each = NEAR_WEIGHT * near_cross_entropy(logits, truth) + DICE_WEIGHT * dice_loss(logits, truth)
    loss = interactive_loss(logits, true_iou(logits, truth), truth, near=True)
    torch.testing.assert_close(loss.total, each.min(dim=1).values.mean())


def test_objects_that_cover_less_than_a_cell_and_empty_ones_have_a_finite_near_loss() -> None:
    truth = torch.zeros(2, 1, 16, 16)
    truth[0, 0, 4, 4] = 0.1
    assert near_cross_entropy(torch.randn(2, 3, 16, 16), truth).isfinite().all()
