"""MobileSAM as a whole, from pixels to masks, under the deterministic weights of the parity files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filled import filled
from numpy.typing import NDArray
from PIL import Image

from segment_anything.architectures import assemble, without_initialisation
from segment_anything.modeling import Sam
from segment_anything.predictor import SamPredictor

EXPECTED_SMALL = Path(__file__).parent / "data" / "vit_t_small.npz"
Values = dict[str, NDArray[np.generic]]


def filled_sam(image_size: int) -> Sam:
    with without_initialisation():
        sam = assemble("vit_t", image_size)
    sam.load_state_dict(filled(sam.state_dict()))
    return sam.eval()


def small_picture() -> NDArray[np.uint8]:
    """(96, 128, 3): stripes of three colours that need no file."""
    y, x = np.mgrid[:96, :128]
    return np.stack([(x * 5 + y) % 256, (y * 7) % 256, (x * y // 8) % 256], axis=-1).astype(np.uint8)


def small_answers(predictor: SamPredictor) -> Values:
    """What the model says about `small_picture` for a point and for a box with a point."""
    answers: Values = {}
    for name, prompt in {
        "point": {"point_coords": np.array([[40, 30]]), "point_labels": np.array([1])},
        "box": {"box": np.array([20, 10, 90, 80]), "point_coords": np.array([[50, 50]]), "point_labels": np.array([0])},
    }.items():
        _, answers[f"{name}.iou"], low_res = predictor.predict(**prompt)
        answers[f"{name}.low_res"] = low_res
    return answers


def assert_close(actual: NDArray[np.generic], expected: NDArray[np.generic], tolerance: float = 1e-3) -> None:
    """Within `tolerance` of the standard deviation of what is expected (or of 1, for a few numbers)."""
    scale = float(expected.std()) if expected.size > 16 else 1.0
    assert actual.shape == expected.shape
    assert np.abs(np.asarray(actual) - expected).max() < tolerance * scale


def test_a_small_picture_gets_the_masks_kept_when_parity_was_shown() -> None:
    predictor = SamPredictor(filled_sam(image_size=128))
    predictor.set_image(small_picture())
    answers = small_answers(predictor)
    with np.load(EXPECTED_SMALL) as expected:
        assert set(expected) == set(answers)
        for name in expected:
            assert_close(answers[name], expected[name])


@pytest.fixture(scope="module")
def parity(shared: Path) -> Iterator[tuple[SamPredictor, Values]]:
    """A predictor with the embedding of the parity photo, and the published answers."""
    with Image.open(shared / "images" / "truck.jpg") as file:
        photo = np.asarray(file.convert("RGB"))
    predictor = SamPredictor(filled_sam(image_size=1024))
    predictor.set_image(photo)
    with np.load(shared / "parity" / "vit_t.npz") as expected:
        yield predictor, dict(expected)


def assert_answers(actual: tuple[NDArray[np.generic], ...], expected: Values, name: str) -> None:
    """Compare logits at full size, predicted IoU and low-resolution logits with the entries called `name`."""
    logits, iou, low_res = actual
    height, width = logits.shape[-2:]
    assert_close(iou, expected[f"{name}.iou"])
    assert_close(low_res[..., ::4, ::4], expected[f"{name}.low_res"])
    area = (logits > 0).sum(axis=(-2, -1))
    assert np.abs(area - expected[f"{name}.area"]).max() < 1e-3 * height * width
    if f"{name}.logits" in expected:
        assert_close(logits[..., :: height // 32, :: width // 32], expected[f"{name}.logits"])


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("name", ["one_point", "three_points", "box", "points_and_box"])
def test_prompts_are_answered_like_the_published_network(
    parity: tuple[SamPredictor, Values], name: str, multi: bool
) -> None:
    predictor, expected = parity
    points, labels, box = expected["points"], expected["labels"], expected["box"]
    prompt = {
        "one_point": {"point_coords": points[:1], "point_labels": labels[:1]},
        "three_points": {"point_coords": points, "point_labels": labels},
        "box": {"box": box},
        "points_and_box": {"point_coords": points, "point_labels": labels, "box": box},
    }[name]
    answers = predictor.predict(**prompt, multimask_output=multi, return_logits=True)
    assert_answers(answers, expected, f"{name}.{'multi' if multi else 'single'}")


def test_a_mask_is_refined_like_the_published_network_does(parity: tuple[SamPredictor, Values]) -> None:
    predictor, expected = parity
    points, labels = expected["points"], expected["labels"]
    _, iou, low_res = predictor.predict(points[:1], labels[:1])
    best = int(np.argmax(iou))
    assert best == expected["refine.mask_index"]
    answers = predictor.predict(
        points[:2], labels[:2], mask_input=low_res[best : best + 1], multimask_output=False, return_logits=True
    )
    assert_answers(answers, expected, "refine")


def test_three_boxes_at_once_are_answered_like_the_published_network(parity: tuple[SamPredictor, Values]) -> None:
    predictor, expected = parity
    boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(expected["boxes3"]), (1200, 1800))
    answers = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
    assert_answers(tuple(answer.numpy() for answer in answers), expected, "boxes3")
