"""`OnnxPredictor` and `OnnxMaskGenerator` are asked as their torch counterparts are: walked name by name."""

import inspect
from typing import Any

import numpy as np
import pytest
from exported import export, model, photo

from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.onnx import OnnxMaskGenerator, OnnxModel, OnnxPredictor
from segment_anything.predictor import SamPredictor

pytest.importorskip("onnx")

TENSORS = {"set_torch_image", "predict_torch", "postprocess_small_regions"}
"""Methods that take and give tensors, which there are none of without torch; `predict_many` takes many objects."""
PAIRS = [(SamPredictor, OnnxPredictor), (SamAutomaticMaskGenerator, OnnxMaskGenerator)]
CLICK: dict[str, Any] = {"point_coords": [[30, 20]], "point_labels": [1]}


@pytest.fixture(scope="module")
def toy() -> OnnxModel:
    return OnnxModel(export("toy"), providers="cpu", threads=1)


def public(instance: object) -> set[str]:
    """Methods, properties and attributes of an instance."""
    return {name for name in [*dir(type(instance)), *vars(instance)] if not name.startswith("_")}


def asked_with(method: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter behind the first."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


@pytest.mark.parametrize(("torchs", "ours"), PAIRS)
def test_every_public_name_of_torchs_is_there(torchs: type, ours: type, toy: OnnxModel) -> None:
    missing = public(torchs(model("toy"))) - public(ours(toy))
    assert missing <= TENSORS
    assert len(public(torchs(model("toy")))) >= 15


@pytest.mark.parametrize(
    ("torchs", "ours", "name"),
    [
        (torchs, ours, name)
        for torchs, ours in PAIRS
        for name, value in inspect.getmembers(torchs, inspect.isfunction)
        if not name.startswith("_") and name not in TENSORS
    ],
)
def test_every_method_takes_the_same_arguments(torchs: type, ours: type, name: str) -> None:
    assert asked_with(getattr(ours, name)) == asked_with(getattr(torchs, name))


def test_both_generators_are_made_with_the_same_arguments() -> None:
    theirs, mine = (asked_with(kind.__init__)[1:] for kind in (SamAutomaticMaskGenerator, OnnxMaskGenerator))
    assert mine == theirs
    assert len(mine) == 19


@pytest.mark.parametrize(("torchs", "ours"), PAIRS)
def test_what_can_be_set_on_torchs_can_be_set_here(torchs: type, ours: type) -> None:
    properties = {name: value for name, value in inspect.getmembers(torchs) if isinstance(value, property)}
    for name, value in properties.items():
        assert (value.fset is None) == (getattr(ours, name).fset is None), name


@pytest.mark.parametrize("first", ["features", "original_size"])
def test_an_embedding_is_restored_by_setting_what_the_original_keeps(first: str, toy: OnnxModel) -> None:
    before, after = OnnxPredictor(toy), OnnxPredictor(toy)
    before.set_image(photo())
    values = {"features": before.features, "original_size": before.original_size}
    for name in sorted(values, key=lambda name: name != first):
        setattr(after, name, values[name])
    after.input_size, after.is_image_set = before.input_size, True
    assert np.array_equal(after.predict(**CLICK)[2], before.predict(**CLICK)[2])
    after.is_image_set = False
    assert after.features is None


def test_setting_none_forgets_the_image(toy: OnnxModel) -> None:
    predictor = OnnxPredictor(toy)
    predictor.set_image(photo())
    predictor.features = None
    assert (predictor.is_image_set, predictor.original_size) == (False, None)


def test_features_of_another_shape_are_named_when_asked(toy: OnnxModel) -> None:
    predictor = OnnxPredictor(toy)
    predictor.features, predictor.original_size = np.zeros((1, 256, 64, 64), np.float32), (45, 70)
    with pytest.raises(
        ValueError, match=r"image_embeddings of .* must have shape \(1, 32, 4, 4\); got \(1, 256, 64, 64\)"
    ):
        predictor.predict(**CLICK)


def test_points_are_moved_to_the_input_as_torchs_are(toy: OnnxModel) -> None:
    ours, theirs = OnnxPredictor(toy).transform, SamPredictor(model("toy")).transform
    clicks = np.array([[5.0, 8.0], [69.0, 44.0]])
    assert np.array_equal(ours.apply_coords(clicks, (45, 70)), theirs.apply_coords(clicks, (45, 70)))


def test_the_device_is_the_one_that_graphs_run_on(toy: OnnxModel) -> None:
    assert OnnxPredictor(toy).device == "cpu"


def test_options_are_read_and_set_as_attributes(toy: OnnxModel) -> None:
    generator = OnnxMaskGenerator(toy, 4, 32, 0.5, output_mode="coco_rle")
    assert (generator.points_per_batch, generator.pred_iou_thresh, generator.output_mode) == (32, 0.5, "coco_rle")
    generator.pred_iou_thresh, generator.crop_n_layers = 0.9, 1
    assert (generator.options.pred_iou_thresh, len(generator.point_grids)) == (0.9, 2)
    with pytest.raises(ValueError, match="box_nms_thresh must be a number of at least 0 and at most 1, got 2"):
        generator.box_nms_thresh = 2


def test_the_generator_has_a_predictor_on_its_model(toy: OnnxModel) -> None:
    generator = OnnxMaskGenerator(toy)
    assert generator.predictor is generator.predictor
    assert generator.predictor.model is toy


class RedOrNot:
    """Scores each mask: the first label for reddish ones."""

    def choices(self, image: np.ndarray, records: list[dict[str, Any]], names: list[str]) -> np.ndarray:
        return np.tile([0.75, 0.25], (len(records), 1))


def test_masks_are_named_by_labels_as_in_torch(toy: OnnxModel) -> None:
    options: dict[str, Any] = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    named = {"labels": ["red", "other"], "scorer": RedOrNot()}
    ours = OnnxMaskGenerator(toy, **options, **named).generate(photo())
    theirs = SamAutomaticMaskGenerator(model("toy"), **options, **named).generate(photo())
    assert [record["category"] for record in ours] == [record["category"] for record in theirs] == ["red"] * len(ours)
    assert ours
    assert ours[0]["category_score"] == 0.75


def test_labels_are_refused_before_the_masks_are_made(toy: OnnxModel) -> None:
    with pytest.raises(ValueError, match="scorer is needed to name masks by labels"):
        OnnxMaskGenerator(toy, labels=["red"])
    with pytest.raises(ValueError, match="labels"):
        OnnxMaskGenerator(toy, labels=["red", "red"], scorer=RedOrNot())  # type: ignore[arg-type]


def test_the_models_answer_alike() -> None:
    """`Sam` and `OnnxModel` share the names that predictors and generators reach for."""
    shared = {"name", "image_size", "mask_input_size", "mask_threshold", "fingerprint", "device", "encode", "decode"}
    assert shared <= {name for name in dir(OnnxModel) if not name.startswith("_")}
    assert shared <= set(dir(Sam)) | {*vars(model("toy"))}
    assert asked_with(OnnxModel.decode) == asked_with(Sam.decode)
