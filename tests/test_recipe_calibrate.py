"""The recipe that fits the head of predicted IoU to a finished network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything.build_sam import load_sam
from segment_anything.modeling.mask_decoder import MLP

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
NAN = float("nan")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(RECIPES)
    import calibrate_nano

    return calibrate_nano


def test_the_error_counts_the_mask_that_would_be_chosen_among_those_asked_for(recipe) -> None:
    predicted = torch.tensor([[0.9, 0.2, 0.6, 0.4], [0.3, 0.9, 0.9, 0.9]])
    iou = torch.tensor([[NAN, 0.2, 0.5, 1.0], [0.7, NAN, NAN, NAN]])
    torch.testing.assert_close(recipe.errors(predicted, iou), torch.tensor([0.1, 0.4]))


def test_fitting_halves_the_error_on_prompts_it_has_not_seen(recipe) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    tokens = torch.randn(3000, 8, generator=generator)
    iou = torch.sigmoid(tokens[:, :4])
    iou[::2, 0], iou[1::2, 1:] = NAN, NAN  # three masks, or the single one
    learnt, tested = recipe.Answers(tokens[:2000], iou[:2000]), recipe.Answers(tokens[2000:], iou[2000:])
    head = MLP(8, 32, 4, 3)
    before = recipe.errors(head(tested.tokens), tested.iou).mean().item()
    recipe.fit(head, learnt, steps=300, lr=3e-3, seed=0)
    assert recipe.errors(head(tested.tokens), tested.iou).mean().item() < before / 2


@torch.no_grad()
def test_answers_are_the_tokens_and_the_true_ious_of_a_box_and_of_five_clicks(recipe) -> None:
    sam = load_sam("nano")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)  # nothing to be seen: no mask is perfect
    truth = np.zeros((64, 96), bool)
    truth[16:48, 24:72] = True
    heard = recipe.listen(sam)
    answers = list(recipe.play(sam, heard, image, truth[None]))
    assert len(answers) == 6
    assert answers[0].iou.isnan().tolist() == [[False, True, True, True]]
    assert all(one.iou.isnan().tolist() == [[True, False, False, False]] for one in answers[1:])
    embedding = sam.encode(image)
    decoded = sam.decode(embedding, [recipe.Prompt.make(box=recipe.mask_to_box(truth))], multimask_output=False)
    mask = decoded.masks()[0, 0].numpy()
    assert answers[0].iou[0, 0].item() == pytest.approx((mask & truth).sum() / (mask | truth).sum())
    head = sam.mask_decoder.iou_prediction_head
    torch.testing.assert_close(head(answers[0].tokens)[:, :1], decoded.iou_predictions)
