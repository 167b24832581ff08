"""Bad input gets an answer that names the argument, what was expected, what came, and the cure.

Image files and arrays are in test_images.py; here is what a person meets through the predictor and the model.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything import Prompt, Prompts, Sam, SamAutomaticMaskGenerator, SamPredictor

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return toy_sam()


@pytest.fixture(scope="module")
def predictor(sam: Sam) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(PICTURE)
    return predictor


def words(*parts: str) -> str:
    """A pattern: these words in this order."""
    return ".*".join(re.escape(part) for part in parts)


BOTH = ("predict", "prompt")
"""The two ways to ask: `SamPredictor.predict`, and `Prompt.make` with `Sam.decode`."""


def ask(way: str, predictor: SamPredictor, given: dict[str, Any]) -> None:
    if way == "predict":
        predictor.predict(**given)
    else:
        names = {"point_coords": "points", "point_labels": "labels", "box": "box", "mask_input": "mask_logits"}
        assert predictor.embedding is not None
        predictor.model.decode(
            predictor.embedding, Prompt.make(**{names[name]: value for name, value in given.items()})
        )


PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "a bare point": (
        {"point_coords": np.array([200, 400]), "point_labels": np.array([1])},
        words("point_coords must have shape (P, 2)", "got shape (2,)", "did you mean np.array([[200, 400]])?"),
    ),
    "points of three numbers": (
        {"point_coords": [[1, 2, 3]], "point_labels": [1]},
        words("point_coords must have shape (P, 2)", "got shape (1, 3)"),
    ),
    "points of many objects": (
        {"point_coords": np.zeros((4, 1, 2)), "point_labels": np.ones((4, 1))},
        words("point_coords must have shape (P, 2)", "got shape (4, 1, 2)", "one Prompt each"),
    ),
    "rows of many lengths": (
        {"point_coords": [[1, 2], [3]], "point_labels": [1, 1]},
        words("point_coords must be numbers in rows of one length", "got [[1, 2], [3]]"),
    ),
    "labels missing": (
        {"point_coords": [[10, 20], [12, 20]]},
        words(
            "point_labels must be supplied if point_coords is supplied", "1 on the object, 0 on background", "2 of them"
        ),
    ),
    "points missing": ({"point_labels": [1]}, words("point_labels came without point_coords", "give both, or neither")),
    "labels of another length": (
        {"point_coords": [[10, 20], [12, 20]], "point_labels": [1]},
        words("point_labels must have shape (2,), one for each point", "got shape (1,)", "np.ones(2)"),
    ),
    "labels in a row of their own": (
        {"point_coords": [[10, 20]], "point_labels": [[1]]},
        words("point_labels must have shape (1,)", "got shape (1, 1)"),
    ),
    "labels outside 0 and 1": (
        {"point_coords": [[10, 20], [12, 20]], "point_labels": [1, 2]},
        words("point_labels must be 1 (on the object) or 0 (background), got 2"),
    ),
    "a padding label": (
        {"point_coords": [[10, 20]], "point_labels": [-1]},
        words("got -1 among them", "Padding is not needed"),
    ),
    "labels between 0 and 1": (
        {"point_coords": [[10, 20]], "point_labels": [0.5]},
        words("or 0 (background), got 0.5"),
    ),
    "a box as x, y, width, height": (
        {"box": [30, 10, 20, 25]},
        words(
            "box must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got [30, 10, 20, 25]",
            "Did you mean [30, 10, 50, 35], if this is x, y, width, height (XYWH)",
        ),
    ),
    "a box with its corners swapped": (
        {"box": [40, 30, 5, 5]},
        words("got [40, 30, 5, 5]", "or [5, 5, 40, 30], if these are two corners?"),
    ),
    "a box without area": ({"box": [10, 10, 10, -5]}, words("got [10, 10, 10, -5]", "It has no area")),
    "a box as high as its top": ({"box": [1, 10, 20, 10]}, words("with x0 < x1 and y0 < y1, got [1, 10, 20, 10]")),
    "a box of three numbers": ({"box": [1, 2, 3]}, words("box must be four numbers x0, y0, x1, y1, got shape (3,)")),
    "many boxes": (
        {"box": np.array([[1, 2, 30, 30], [5, 5, 20, 20]])},
        words("box must be four numbers", "got shape (2, 4)", "predict_many(Prompts.from_boxes(boxes))"),
    ),
    "NaN in a point": (
        {"point_coords": [[10, np.nan]], "point_labels": [1]},
        words("point_coords must be finite numbers, got nan among them"),
    ),
    "infinity in a point": (
        {"point_coords": [[np.inf, 3]], "point_labels": [1]},
        words("point_coords must be finite numbers, got inf among them"),
    ),
    "a number too large for float32": (
        {"point_coords": [[1e300, 3]], "point_labels": [1]},
        words("point_coords must be finite numbers, got inf among them"),
    ),
    "NaN in a box": ({"box": [1, 2, np.nan, 4]}, words("box must be finite numbers, got nan among them")),
    "NaN in a label": (
        {"point_coords": [[10, 20]], "point_labels": [np.nan]},
        words("point_labels must be finite numbers, got nan among them"),
    ),
    "NaN in a mask": (
        {"mask_input": np.full((1, 16, 16), np.nan)},
        words("mask_input must be finite numbers, got nan"),
    ),
    "words": ({"point_coords": "middle", "point_labels": [1]}, words("point_coords must be numbers", "got 'middle'")),
    "a point far outside the image": (
        {"point_coords": [[20, 10], [500, 700]], "point_labels": [1, 1]},
        words(
            "point_coords must lie in the image, 60 pixels wide and 40 high, but has (500, 700). Give original pixels"
        ),
    ),
    "a point with x and y swapped": (
        {"point_coords": [[20, 55]], "point_labels": [1]},
        words("60 pixels wide and 40 high, but has (20, 55). Are x and y swapped? Coordinates are (x, y)."),
    ),
    "a box far outside the image": (
        {"box": [10, 10, 1010, 35]},
        words("box must lie in the image, 60 pixels wide and 40 high, but has (1010, 35)"),
    ),
    "low-resolution logits of another size": (
        {"mask_input": np.zeros((1, 256, 256))},
        words(
            "mask_input must have shape (1, 16, 16)", "got (1, 256, 256)", "A binary mask goes to Prompt.make(mask=...)"
        ),
    ),
    "the image's mask as logits": (
        {"mask_input": np.zeros((40, 60), dtype=bool)},
        words("mask_input must have shape (1, 16, 16)", "got (1, 40, 60)", "Prompt.make(mask=...)"),
    ),
    "logits of three masks": (
        {"mask_input": np.zeros((3, 16, 16))},
        words("mask_input must have shape (1, H, W)", "got shape (3, 16, 16)", "logits[scores.argmax()][None]"),
    ),
}


@pytest.mark.parametrize("way", BOTH)
@pytest.mark.parametrize("case", PROMPTS)
def test_a_prompt_that_cannot_be_meant_is_answered(predictor: SamPredictor, way: str, case: str) -> None:
    given, expected = PROMPTS[case]
    with pytest.raises(ValueError, match=expected):
        ask(way, predictor, given)


MASKS: dict[str, tuple[Any, str]] = {
    "three masks": (
        np.zeros((3, 40, 60), bool),
        words("mask must have shape (H, W)", "(3, 40, 60)", "One of 3 masks is mask[0]"),
    ),
    "a line": (np.zeros(40, bool), words("mask must have shape (H, W), got shape (40,)")),
    "logits": (
        np.linspace(-8, 8, 2400).reshape(40, 60),
        words("mask must be binary", "from -8.0 to 8.0", "mask_logits"),
    ),
    "a label map": (np.arange(2400).reshape(40, 60) % 7, words("mask must be binary", "labels == number")),
    "another image's mask": (
        np.zeros((60, 40), bool),
        words("mask must have the image's shape (40, 60), got (60, 40)", "resize it"),
    ),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_binary_mask_of_another_kind_is_answered(predictor: SamPredictor, case: str) -> None:
    mask, expected = MASKS[case]
    with pytest.raises(ValueError, match=expected):
        predictor.predict_many([Prompt.make(mask=mask)])


def test_a_mask_and_logits_at_once_are_answered() -> None:
    with pytest.raises(ValueError, match=r"mask and mask_logits came together.*Give the binary mask, or the logits"):
        Prompt.make(mask=np.ones((4, 4)), mask_logits=np.zeros((1, 4, 4)))


def test_the_bad_one_of_many_boxes_is_named() -> None:
    with pytest.raises(ValueError, match=words("boxes[1] must be x0, y0, x1, y1 with x0 < x1", "XYWH")):
        Prompts.from_boxes([[1, 2, 30, 40], [30, 10, 20, 25]])


@pytest.mark.parametrize("boxes", [[1, 2, 30, 40], np.zeros((2, 5)), np.zeros((2, 2, 2))])
def test_boxes_of_another_shape_are_answered(boxes: Any) -> None:
    shape = np.shape(boxes)
    with pytest.raises(ValueError, match=words("boxes must have shape (N, 4)", f"got shape {shape}", "boxes[None]")):
        Prompts.from_boxes(boxes)


def test_an_array_is_no_list_of_prompts(predictor: SamPredictor) -> None:
    with pytest.raises(ValueError, match=words("prompts[0] must be a Prompt (see Prompt.make), got ndarray")):
        predictor.predict_many(np.array([[1, 2, 30, 40]]))  # type: ignore[arg-type]


def test_no_objects_at_once_are_answered(sam: Sam, predictor: SamPredictor) -> None:
    assert predictor.embedding is not None
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sam.decode(predictor.embedding, Prompts.from_boxes([[1, 2, 30, 40]]), batch_size=0)


IMAGES: dict[str, tuple[Any, str]] = {
    "floats in 0..1": (
        np.random.default_rng(0).random((40, 60, 3)),
        words(
            "image must be a numpy array of shape (H, W, 3) and type uint8",
            "float64 in 0..1",
            "(image * 255).astype(np.uint8)",
        ),
    ),
    "floats in 0..255": (np.full((40, 60, 3), 99.0), words("got float64 in 0..255", "image.astype(np.uint8)")),
    "channels first": (
        PICTURE.transpose(2, 0, 1),
        words("got shape (3, 40, 60), channels first", "image.transpose(1, 2, 0)"),
    ),
    "grey": (PICTURE[..., 0], words("got shape (40, 60), a grey image", "np.stack([image] * 3, axis=-1)")),
    "alpha": (np.zeros((40, 60, 4), np.uint8), words("with an alpha channel", "image[..., :3]")),
    "a batch": (PICTURE[None], words("got shape (1, 40, 60, 3), a batch", "image[0]")),
    "empty": (PICTURE[:0], words("got shape (0, 60, 3), an empty image")),
    "a tensor": (torch.from_numpy(PICTURE), words("got torch.Tensor", "Convert it to a numpy array")),
    "a path": ("photo.jpg", words("got the path 'photo.jpg'", "read_image(path)")),
    "OpenCV's None": (None, words("got None", "check the path")),
}


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.parametrize("way", ["set_image", "encode", "generate"])
def test_an_image_of_another_kind_is_answered(sam: Sam, case: str, way: str) -> None:
    image, expected = IMAGES[case]
    ways: dict[str, Callable[[Any], object]] = {
        "set_image": SamPredictor(sam).set_image,
        "encode": sam.encode,
        "generate": SamAutomaticMaskGenerator(sam, points_per_side=1).generate,
    }
    with pytest.raises(ValueError, match=expected):
        ways[way](image)


def test_an_unknown_order_of_channels_is_answered(sam: Sam) -> None:
    with pytest.raises(ValueError, match='image_format must be "RGB" or "BGR", got \'rgba\''):
        SamPredictor(sam).set_image(PICTURE, image_format="rgba")


@pytest.mark.parametrize(
    "ask_for",
    [
        lambda predictor: predictor.predict(np.array([[10, 20]]), np.array([1])),
        lambda predictor: predictor.predict_torch(None, None, torch.zeros(1, 4)),
        lambda predictor: predictor.predict_many([Prompt.make(box=[1, 2, 3, 4])]),
        lambda predictor: predictor.save_embedding("nowhere"),
    ],
)
def test_asking_before_an_image_is_set_is_answered(sam: Sam, ask_for: Callable[[SamPredictor], object]) -> None:
    with pytest.raises(RuntimeError, match=words("An image must be set with .set_image(...) before mask prediction.")):
        ask_for(SamPredictor(sam))


def test_asking_for_an_embedding_before_an_image_is_set_is_answered(sam: Sam) -> None:
    with pytest.raises(
        RuntimeError, match=words("An image must be set with .set_image(...) to generate an embedding.")
    ):
        SamPredictor(sam).get_image_embedding()


ONES = torch.ones(1, 1)
TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "points without objects": (
        {"point_coords": torch.zeros(2, 2), "point_labels": torch.ones(2)},
        words("point_coords must have shape (N, P, 2)", "got (2, 2)", "points[None]", "points[:, None]"),
    ),
    "labels without objects": (
        {"point_coords": torch.zeros(1, 2, 2), "point_labels": torch.ones(2)},
        words("point_labels must have shape (1, 2), one for each point, got (2,)", "labels[None]"),
    ),
    "labels missing": (
        {"point_coords": torch.zeros(1, 2, 2), "point_labels": None},
        words("point_labels must be supplied if point_coords is supplied"),
    ),
    "points missing": (
        {"point_coords": None, "point_labels": ONES},
        words("point_labels came without point_coords"),
    ),
    "a bare box": (
        {"point_coords": None, "point_labels": None, "boxes": torch.ones(4)},
        words("boxes must have shape (N, 4)", "got (4,)", "box[None]"),
    ),
    "a mask without objects": (
        {"point_coords": None, "point_labels": None, "mask_input": torch.zeros(1, 16, 16)},
        words("mask_input must have shape (N, 1, 16, 16)", "got (1, 16, 16)"),
    ),
    "three masks": (
        {"point_coords": None, "point_labels": None, "mask_input": torch.zeros(1, 3, 16, 16)},
        words("mask_input must have shape (N, 1, 16, 16)", "got (1, 3, 16, 16)", "low_res_logits[:, :1]"),
    ),
    "another number of boxes than of points": (
        {"point_coords": torch.zeros(2, 1, 2), "point_labels": torch.ones(2, 1), "boxes": torch.ones(3, 4)},
        words("all prompts must be for the same number of objects, got point_coords for 2, boxes for 3"),
    ),
}
VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "NaN in points": (
        {"point_coords": torch.full((1, 1, 2), torch.nan), "point_labels": ONES},
        words("point_coords must be finite numbers, got NaN or infinity"),
    ),
    "infinity in boxes": (
        {"point_coords": None, "point_labels": None, "boxes": torch.full((1, 4), torch.inf)},
        words("boxes must be finite numbers, got NaN or infinity"),
    ),
    "NaN in masks": (
        {"point_coords": None, "point_labels": None, "mask_input": torch.full((1, 1, 16, 16), torch.nan)},
        words("mask_input must be finite numbers"),
    ),
    "labels of corners": (
        {"point_coords": torch.zeros(1, 2, 2), "point_labels": torch.tensor([[2, 3]])},
        words("point_labels must be 1 (on the object), 0 (background) or -1 (padding), got values from 2 to 3"),
    ),
}


@pytest.mark.parametrize("case", [*TENSORS, *VALUES])
def test_tensors_that_cannot_be_meant_are_answered(predictor: SamPredictor, case: str) -> None:
    given, expected = {**TENSORS, **VALUES}[case]
    with pytest.raises(ValueError, match=expected):
        predictor.predict_torch(**given)


@pytest.mark.parametrize("case", TENSORS)
def test_forward_answers_tensors_of_another_shape(sam: Sam, case: str) -> None:
    given, expected = TENSORS[case]
    given = {"mask_inputs" if name == "mask_input" else name: value for name, value in given.items()}
    item = {"image": torch.zeros(3, 43, 64), "original_size": (40, 60), **given}
    with pytest.raises(ValueError, match=expected):
        sam([item], multimask_output=True)


@pytest.mark.parametrize("shape", [(3, 40, 65), (40, 60, 3), (1, 40, 60), (40, 60)])
def test_forward_answers_an_image_that_was_not_prepared(sam: Sam, shape: tuple[int, ...]) -> None:
    expected = words("image must be RGB of shape (3, h, w)", "ResizeLongestSide(64)", f"got {shape}")
    with pytest.raises(ValueError, match=expected):
        sam([{"image": torch.zeros(shape), "original_size": (40, 60)}], multimask_output=True)


@pytest.mark.parametrize("shape", [(1, 3, 40, 60), (3, 43, 64), (1, 43, 64, 3), (2, 3, 43, 64)])
def test_set_torch_image_answers_an_image_that_was_not_prepared(sam: Sam, shape: tuple[int, ...]) -> None:
    expected = words(
        "transformed_image must have shape (1, 3, h, w) with the longest side 64", f"got {shape}", "apply_image_torch"
    )
    with pytest.raises(ValueError, match=expected):
        SamPredictor(sam).set_torch_image(torch.zeros(shape), (40, 60))
