"""The original's `SamOnnxModel`: its rules, its five outputs, and both of torch's exporters on it."""

import io

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything._onnxruntime import onnxruntime
from segment_anything.predictor import SamPredictor
from segment_anything.utils.onnx import SamOnnxModel

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)


def inputs(points: int = 3, size_hw: tuple[int, int] = (40, 90), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image_embeddings": torch.randn(1, 32, 4, 4, generator=generator),
        "point_coords": torch.rand(1, points, 2, generator=generator) * 64,
        "point_labels": torch.randint(-1, 4, (1, points), generator=generator).float(),
        "mask_input": torch.randn(1, 1, 16, 16, generator=generator),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor(size_hw, dtype=torch.float32),
    }


def test_all_four_masks_come_at_both_sizes() -> None:
    masks, scores, low_res = SamOnnxModel(toy_sam(), return_single_mask=False)(**inputs())
    assert (tuple(masks.shape), tuple(scores.shape), tuple(low_res.shape)) == ((1, 4, 40, 90), (1, 4), (1, 4, 16, 16))


def test_the_masks_are_the_predictors() -> None:
    sam = toy_sam()
    predictor = SamPredictor(sam)
    predictor.set_image(PHOTO)
    click, box = np.array([[30.0, 20.0]]), np.array([10.0, 5.0, 80.0, 35.0])
    expected, iou, low_res = predictor.predict(click, np.array([1]), box, multimask_output=True, return_logits=True)
    coords = predictor.transform.apply_coords(np.concatenate([click, box.reshape(2, 2)]), PHOTO.shape[:2])
    given = {
        **inputs(),
        "image_embeddings": predictor.get_image_embedding(),
        "point_coords": torch.from_numpy(coords)[None],
        "point_labels": torch.tensor([[1.0, 2.0, 3.0]]),
        "has_mask_input": torch.zeros(1),
    }
    masks, scores, low = SamOnnxModel(sam, return_single_mask=False)(**given)
    assert np.abs(masks[0, 1:].numpy() - expected).max() < 1e-5
    assert np.abs(scores[0, 1:].numpy() - iou).max() < 1e-5
    assert np.abs(low[0, 1:].numpy() - low_res).max() < 1e-5


@pytest.mark.parametrize(("count", "chosen"), [(1, 3), (2, 3), (3, 0), (9, 0)])
def test_few_points_choose_the_best_of_three_and_many_the_single_mask(count: int, chosen: int) -> None:
    masks = torch.arange(4.0).reshape(1, 4, 1, 1)
    scores = torch.tensor([[0.9, 0.2, 0.1, 0.5]])
    mask, score = SamOnnxModel(toy_sam(), True).select_masks(masks, scores, count)
    assert (mask.flatten().tolist(), score.tolist()) == ([chosen], [[scores[0, chosen]]])


def test_stability_and_area_come_before_the_low_resolution_masks() -> None:
    model = SamOnnxModel(toy_sam(), return_single_mask=True, return_extra_metrics=True)
    masks, _, stability, areas, low_res = model(**inputs())
    assert areas.dtype == torch.int64
    assert areas.item() == (masks > 0).sum().item()
    strict, loose = (masks > 1).sum().item(), (masks > -1).sum().item()
    assert stability.item() == pytest.approx(strict / loose)
    assert tuple(low_res.shape) == (1, 1, 16, 16)


def test_scores_can_be_stability_at_low_resolution() -> None:
    _, scores, low_res = SamOnnxModel(toy_sam(), False, use_stability_score=True)(**inputs())
    expected = (low_res > 1).sum((-1, -2)) / (low_res > -1).sum((-1, -2))
    assert torch.equal(scores, expected)


def test_without_a_mask_its_values_do_not_matter() -> None:
    model = SamOnnxModel(toy_sam(), False)
    given = {**inputs(), "has_mask_input": torch.zeros(1)}
    other = {**given, "mask_input": given["mask_input"] * 100}
    assert torch.equal(model(**given)[2], model(**other)[2])


@pytest.mark.parametrize(
    ("size_hw", "expected"), [((1200, 1800), (683, 1024)), ((3, 1000), (3, 1024)), ((7, 7), (1024, 1024))]
)
def test_sizes_are_rounded_as_the_images_are(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    size = SamOnnxModel.resize_longest_image_size(torch.tensor(size_hw, dtype=torch.float32), 1024)
    assert tuple(size.tolist()) == expected


@pytest.mark.filterwarnings("ignore")  # the older exporter announces its own end
def test_the_older_exporter_still_leaves_points_and_size_open() -> None:
    pytest.importorskip("onnx")
    model, example = SamOnnxModel(toy_sam(), True), inputs()
    file = io.BytesIO()
    open_sides = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
    torch.onnx.export(
        model, tuple(example.values()), file, dynamo=False, opset_version=17, input_names=list(example),
        output_names=["masks", "iou_predictions", "low_res_masks"], dynamic_axes=open_sides,
    )  # fmt: skip
    session = onnxruntime().InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for points, size_hw in ((1, (33, 20)), (6, (150, 151))):
        given = inputs(points, size_hw, seed=1)
        found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        for mine, torchs in zip(found, model(**given), strict=True):
            assert np.abs(mine - torchs.numpy()).max() < 1e-5
