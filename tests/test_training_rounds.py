"""Every rule of the paper's interactive training, on masks small enough to draw."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from segment_anything.geometry import ImageGeometry
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from segment_anything.training.losses import dice_loss, focal_loss, true_iou
from segment_anything.training.rounds import ROUNDS, Round, draw_kinds, plan_rounds, round_loss, train_on_image
from segment_anything.training.targets import Targets, limit_objects, make_targets

GRID, SIDE, IMAGE = 8, 32, 128  # embedding cells, cells of the decoder's masks, input pixels
WIDTH = 16


class RecordingPromptEncoder(PromptEncoder):
    """Keeps what it was asked to encode."""

    def __init__(self) -> None:
        super().__init__(WIDTH, (GRID, GRID), (IMAGE, IMAGE), 4)
        self.asked: list[dict[str, torch.Tensor | None]] = []

    def forward(self, points, boxes, masks):  # type: ignore[no-untyped-def]
        coords, labels = points if points is not None else (None, None)
        self.asked.append({"points": coords, "labels": labels, "boxes": boxes, "masks": masks})
        return super().forward(points, boxes, masks)


@pytest.fixture
def networks() -> tuple[RecordingPromptEncoder, MaskDecoder, torch.Tensor]:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=1, embedding_dim=WIDTH, mlp_dim=16, num_heads=2)
    decoder = MaskDecoder(transformer_dim=WIDTH, transformer=transformer, iou_head_hidden_dim=8)
    return RecordingPromptEncoder(), decoder, torch.randn(1, WIDTH, GRID, GRID)


def targets(count: int = 3) -> Targets:
    """Rectangles of growing size in a 96 x 128 image."""
    masks = np.zeros((count, 96, 128), dtype=bool)
    for number in range(count):
        masks[number, 8 : 24 + 8 * number, 16 : 40 + 12 * number] = True
    return make_targets(masks, np.arange(count), ImageGeometry((96, 128), IMAGE), SIDE)


def play(networks, seed: int = 0, **options) -> tuple[list[Round], list[dict[str, torch.Tensor | None]]]:  # type: ignore[no-untyped-def]
    encoder, decoder, features = networks
    encoder.asked.clear()
    generator = torch.Generator().manual_seed(seed)
    rounds = [result for _, result in train_on_image(encoder, decoder, features, targets(), generator, **options)]
    return rounds, encoder.asked


# ---- targets --------------------------------------------------------------------------------------------------------


def test_targets_lie_in_the_decoders_frame() -> None:
    made = targets(1)
    assert made.truth.shape == (1, 1, SIDE, SIDE)
    expected = torch.zeros(SIDE, SIDE)
    expected[2:6, 4:10] = 1  # 4 input pixels a cell
    torch.testing.assert_close(made.truth[0, 0], expected)
    assert made.boxes_input.tolist() == [[16.0, 8.0, 39.0, 23.0]]
    assert made.input_size_hw == (96, 128)


def test_object_thinner_than_a_cell_keeps_its_fullest_cells() -> None:
    masks = np.zeros((1, 128, 128), dtype=bool)
    masks[0, 40, 20:60] = True
    made = make_targets(masks, np.zeros(1), ImageGeometry((128, 128), IMAGE), SIDE)
    assert made.truth.max() < 0.5
    assert made.solid[0, 10, 5:15].all()
    assert made.solid.sum() == 10


def test_image_without_objects_has_no_targets() -> None:
    made = make_targets(np.zeros((0, 96, 128), bool), np.zeros(0), ImageGeometry((96, 128), IMAGE), SIDE)
    assert len(made) == 0
    assert made.boxes_input.shape == (0, 4)


def test_objects_are_limited_by_lot() -> None:
    chosen = [tuple(limit_objects(10, 3, np.random.default_rng(seed))) for seed in range(20)]
    assert all(len(set(indices)) == 3 for indices in chosen)
    assert len(set(chosen)) > 10
    assert limit_objects(2, 3, np.random.default_rng(0)).tolist() == [0, 1]


# ---- rounds ---------------------------------------------------------------------------------------------------------


def test_eleven_rounds_of_which_two_get_no_new_point() -> None:
    places = Counter()
    for seed in range(400):
        plan = plan_rounds(ROUNDS, torch.Generator().manual_seed(seed))
        assert 1 + len(plan) == 11
        assert sum(plan) == 8
        assert plan[-1] is False
        places[plan.index(False)] += 1
    assert sorted(places) == list(range(8))
    assert max(places.values()) < 3 * min(places.values())


def test_short_plans_use_every_round_for_a_point() -> None:
    generator = torch.Generator()
    assert plan_rounds(1, generator) == []
    assert plan_rounds(3, generator) == [True, True]


def test_first_prompt_is_a_point_or_a_box_with_equal_chance() -> None:
    drawn = draw_kinds(2000, "both", torch.Generator().manual_seed(0))
    assert abs(float(drawn.float().mean()) - 0.5) < 0.04
    assert not draw_kinds(9, "points", torch.Generator()).any()
    assert draw_kinds(9, "boxes", torch.Generator()).all()


def test_first_point_lies_on_the_object(networks) -> None:  # type: ignore[no-untyped-def]
    solid = targets().solid
    for seed in range(10):
        _, asked = play(networks, seed, rounds=1, prompts="points")
        (prompt,) = asked
        assert prompt["boxes"] is None
        assert prompt["masks"] is None
        assert prompt["labels"].tolist() == [[1], [1], [1]]
        cells = ((prompt["points"][:, 0] + 0.5) / 4 - 0.5).long()
        assert solid[torch.arange(3), cells[:, 1], cells[:, 0]].all()


def test_box_noise_is_a_tenth_of_the_side_and_at_most_20_pixels_of_1024(networks) -> None:  # type: ignore[no-untyped-def]
    shift = box_shifts(networks, paper_only=True)
    assert shift.abs().max() <= 20 * IMAGE / 1024 + 1e-3
    assert float(shift[:, 3].std()) == pytest.approx(1.5, rel=0.2)


def test_most_boxes_are_nearly_tight_unless_the_paper_is_followed_to_the_letter(networks) -> None:  # type: ignore[no-untyped-def]
    shift = box_shifts(networks, paper_only=False)[:, 3].abs()
    assert shift.max() > 1.5  # some are as noisy as the paper's
    assert (shift < 0.3).float().mean() > 0.5


def box_shifts(networks, paper_only: bool) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """(150, 4) how far the smallest box, 23 x 15 pixels, was moved by 150 seeds."""
    shifts = []
    for seed in range(150):
        _, asked = play(networks, seed, rounds=1, prompts="boxes", paper_only=paper_only)
        assert asked[0]["points"] is None
        shifts.append(asked[0]["boxes"] - targets().boxes_input)
    return torch.stack(shifts)[:, 0]


def test_later_points_lie_where_the_last_mask_was_wrong(networks) -> None:  # type: ignore[no-untyped-def]
    solid = targets().solid
    rounds, asked = play(networks, 1, prompts="points")
    for previous, before, now in zip(rounds, asked, asked[1:], strict=False):
        if now["points"].shape == before["points"].shape:
            continue
        cells = ((now["points"][:, -1] + 0.5) / 4 - 0.5).long()
        rows = torch.arange(3)
        predicted = previous.logits[:, 0] > 0
        wrong = predicted ^ solid
        hit = wrong[rows, cells[:, 1], cells[:, 0]]
        assert (hit | ~wrong.flatten(1).any(dim=1)).all()
        assert torch.equal(now["labels"][:, -1], solid[rows, cells[:, 1], cells[:, 0]].long())


def test_points_are_added_in_eight_rounds_and_kept_in_two(networks) -> None:  # type: ignore[no-untyped-def]
    _, asked = play(networks, 2, prompts="points")
    counts = [prompt["points"].shape[1] for prompt in asked]
    assert len(counts) == 11
    assert counts[0] == 1
    assert counts[-1] == counts[-2] == 9
    assert sorted(b - a for a, b in pairwise(counts)) == [0, 0, *[1] * 8]


def test_a_box_stays_in_all_rounds(networks) -> None:  # type: ignore[no-untyped-def]
    _, asked = play(networks, 2, prompts="boxes")
    assert asked[0]["points"] is None
    assert all(torch.equal(prompt["boxes"], asked[0]["boxes"]) for prompt in asked)
    assert asked[-1]["points"].shape[1] == 8


def test_each_round_gets_the_unthresholded_mask_of_the_round_before(networks) -> None:  # type: ignore[no-untyped-def]
    rounds, asked = play(networks, 3, prompts="points")
    assert asked[0]["masks"] is None
    for previous, prompt in zip(rounds, asked[1:], strict=False):
        assert torch.equal(prompt["masks"], previous.logits)
        assert not prompt["masks"].requires_grad
        assert len(prompt["masks"].unique()) > 2


def test_rounds_of_one_seed_are_the_same(networks) -> None:  # type: ignore[no-untyped-def]
    first, again, other = (play(networks, seed)[0] for seed in (5, 5, 6))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[-1].logits, other[-1].logits) or len(first) != len(other)


def test_round_by_round_gradients_equal_those_of_the_sum(networks) -> None:  # type: ignore[no-untyped-def]
    encoder, decoder, features = networks
    gradients = []
    for together in (False, True):
        leaf = features.clone().requires_grad_()
        decoder.zero_grad()
        generator = torch.Generator().manual_seed(4)
        losses = []
        for _, result in train_on_image(encoder, decoder, leaf, targets(), generator, rounds=5):
            losses.append(result.loss)
            if not together:
                result.loss.backward()
        if together:
            sum(losses).backward()
        gradients.append((leaf.grad, decoder.mask_tokens.weight.grad.clone()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ---- losses ---------------------------------------------------------------------------------------------------------


def four_masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, 4, 4, 4) whose third mask is the truth, and the truth."""
    truth = torch.zeros(1, 1, 4, 4)
    truth[..., :2, :] = 1
    logits = torch.full((1, 4, 4, 4), -4.0)
    logits[:, 2, :2] = 4.0
    logits[:, 3, 2:] = 4.0
    return logits, truth


def test_loss_of_a_single_prompt_is_that_of_the_best_of_three() -> None:
    logits, truth = four_masks()
    iou = torch.tensor([[0.1, 0.2, 0.3, 0.9]])
    loss, _ = round_loss(logits, iou, truth, "point", paper_only=True)
    best = 20 * focal_loss(logits[:, 2:3], truth) + dice_loss(logits[:, 2:3], truth)
    error = ((iou[:, 1:] - torch.tensor([[0.0, 1.0, 0.0]])) ** 2).mean()
    torch.testing.assert_close(loss, best.squeeze() + error)


def test_the_mask_with_the_highest_predicted_iou_goes_on() -> None:
    logits, truth = four_masks()
    _, chosen = round_loss(logits, torch.tensor([[0.95, 0.2, 0.3, 0.9]]), truth, "point", paper_only=True)
    assert chosen.tolist() == [3]


def test_several_prompts_get_the_single_mask() -> None:
    logits, truth = four_masks()
    iou = torch.tensor([[0.5, 0.2, 0.3, 0.9]])
    loss, chosen = round_loss(logits, iou, truth, None, paper_only=True)
    assert chosen.tolist() == [0]
    expected = 20 * focal_loss(logits[:, :1], truth) + dice_loss(logits[:, :1], truth) + 0.5**2
    torch.testing.assert_close(loss, expected.squeeze())


def test_single_mask_learns_from_a_box_alone_unless_the_paper_is_followed_to_the_letter() -> None:
    logits, truth = four_masks()
    logits.requires_grad_()
    for paper_only, expected in ((True, 0.0), (False, 1.0)):
        loss, chosen = round_loss(logits, torch.full((1, 4), 0.5), truth, "box", paper_only)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(gradient[:, 0].abs().sum() > 0) == expected
        assert chosen.tolist() == [1 if paper_only else 0]


def test_focal_and_dice_values_by_hand() -> None:
    truth = torch.tensor([[[[1.0, 0.0]]]])
    logits = torch.zeros(1, 1, 1, 2)
    half = float(np.log(2))
    assert float(focal_loss(logits, truth)) == pytest.approx(half * 0.25)
    assert float(focal_loss(logits, truth, alpha=0.25)) == pytest.approx((0.25 * half * 0.25 + 0.75 * half * 0.25) / 2)
    assert float(dice_loss(logits, truth)) == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))


def test_true_iou_by_hand() -> None:
    truth = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    assert float(true_iou(torch.tensor([[[[5.0, -5.0, 5.0, -5.0]]]]), truth)) == pytest.approx(1 / 3)
