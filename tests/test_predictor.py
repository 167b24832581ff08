"""`SamPredictor`: the original package's way of asking, over one image embedding or none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything import Prompt, Prompts, Sam, SamPredictor

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return toy_sam()


@pytest.fixture
def predictor(sam: Sam) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(PICTURE)
    return predictor


@pytest.mark.parametrize(("multimask", "count"), [(True, 3), (False, 1)])
def test_predict_gives_masks_quality_and_logits(predictor: SamPredictor, multimask: bool, count: int) -> None:
    masks, iou, low_res = predictor.predict(np.array([[10, 20]]), np.array([1]), multimask_output=multimask)
    assert masks.shape == (count, 40, 60)
    assert masks.dtype == bool
    assert iou.shape == (count,)
    assert low_res.shape == (count, 16, 16)
    assert (iou.dtype, low_res.dtype) == (np.float32, np.float32)


def test_masks_are_the_logits_above_the_threshold(predictor: SamPredictor) -> None:
    logits, _, _ = predictor.predict(box=[5, 5, 40, 30], return_logits=True)
    masks, _, _ = predictor.predict(box=[5, 5, 40, 30])
    assert logits.dtype == np.float32
    assert np.array_equal(masks, logits > 0)


def test_a_program_may_move_the_threshold(sam: Sam, predictor: SamPredictor) -> None:
    logits, _, _ = predictor.predict(box=[5, 5, 40, 30], return_logits=True)
    sam.mask_threshold = float(np.median(logits))
    try:
        masks, _, _ = predictor.predict(box=[5, 5, 40, 30])
    finally:
        sam.mask_threshold = 0.0
    assert np.array_equal(masks, logits > np.median(logits))


def test_predict_torch_takes_what_the_transform_gives(predictor: SamPredictor) -> None:
    points, labels = np.array([[10, 20], [30, 25]]), np.array([1, 0])
    box = np.array([5, 5, 40, 30])
    expected = predictor.predict(points, labels, box, return_logits=True)
    answers = predictor.predict_torch(
        torch.from_numpy(predictor.transform.apply_coords(points, (40, 60)))[None],
        torch.from_numpy(labels)[None],
        torch.from_numpy(predictor.transform.apply_boxes(box, (40, 60))),
        return_logits=True,
    )
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer[0].numpy(), wanted, atol=1e-4)


def test_a_padding_point_beside_a_box_is_ignored_by_label_only(predictor: SamPredictor) -> None:
    coords = torch.tensor([[[10.0, 20.0], [3.0, 3.0]], [[10.0, 20.0], [50.0, 9.0]]])
    labels = torch.tensor([[1, -1], [1, -1]])
    _, iou, _ = predictor.predict_torch(coords, labels)
    torch.testing.assert_close(iou[0], iou[1])


def test_boxes_of_shape_n_1_4_are_taken(predictor: SamPredictor) -> None:
    boxes = torch.tensor([[5.0, 5.0, 40.0, 30.0], [10.0, 10.0, 50.0, 30.0]])
    torch.testing.assert_close(
        predictor.predict_torch(None, None, boxes[:, None]), predictor.predict_torch(None, None, boxes)
    )


def test_the_last_masks_logits_refine_the_next(predictor: SamPredictor) -> None:
    _, iou, low_res = predictor.predict([[10, 20]], [1])
    best = low_res[iou.argmax()]
    refined = predictor.predict([[10, 20]], [1], mask_input=best[None], multimask_output=False)
    plain = predictor.predict([[10, 20]], [1], multimask_output=False)
    assert not np.allclose(refined[2], plain[2])
    without_axis = predictor.predict([[10, 20]], [1], mask_input=best, multimask_output=False)
    assert np.array_equal(refined[2], without_axis[2])


def test_predict_many_answers_in_the_order_asked(predictor: SamPredictor) -> None:
    prompts = [
        Prompt.make([[10, 20]], [1]),
        Prompt.make(box=[5, 5, 40, 30]),
        Prompt.make([[30, 25], [3, 3]], [1, 0]),
        Prompt.make([[50, 35]], [1]),
        Prompt.make([[30, 25]], [1], box=[20, 10, 50, 35]),
    ]
    masks, iou, low_res = predictor.predict_many(prompts, multimask_output=True)
    assert (masks.shape, iou.shape, low_res.shape) == ((5, 3, 40, 60), (5, 3), (5, 3, 16, 16))
    for index, prompt in enumerate(prompts):
        alone = predictor.predict(prompt.points_xy, prompt.labels, prompt.box_xyxy)
        np.testing.assert_allclose(iou[index], alone[1], atol=1e-4)
        np.testing.assert_allclose(low_res[index], alone[2], atol=1e-3)


def test_predict_many_gives_the_best_of_three_for_a_point_and_the_single_mask_otherwise(
    predictor: SamPredictor,
) -> None:
    _, iou, low_res = predictor.predict_many([Prompt.make([[10, 20]], [1]), Prompt.make(box=[5, 5, 40, 30])])
    _, point_iou, point_low_res = predictor.predict([[10, 20]], [1], multimask_output=True)
    _, box_iou, _ = predictor.predict(box=[5, 5, 40, 30], multimask_output=False)
    assert iou.shape == (2, 1)
    np.testing.assert_allclose(iou[0, 0], point_iou.max(), atol=1e-4)
    np.testing.assert_allclose(low_res[0, 0], point_low_res[point_iou.argmax()], atol=1e-3)
    np.testing.assert_allclose(iou[1], box_iou, atol=1e-4)


def test_predict_many_of_nothing_is_nothing(predictor: SamPredictor) -> None:
    masks, iou, low_res = predictor.predict_many(Prompts([]))
    assert (masks.shape, iou.shape, low_res.shape) == ((0, 1, 40, 60), (0, 1), (0, 1, 16, 16))


def test_bgr_images_are_turned_round(sam: Sam, predictor: SamPredictor) -> None:
    other = SamPredictor(sam)
    other.set_image(PICTURE[..., ::-1], image_format="BGR")
    assert torch.equal(other.get_image_embedding(), predictor.get_image_embedding())


def test_a_resized_tensor_gives_the_same_embedding(sam: Sam, predictor: SamPredictor) -> None:
    other = SamPredictor(sam)
    resized = other.transform.apply_image(PICTURE)
    other.set_torch_image(torch.from_numpy(resized).permute(2, 0, 1)[None], (40, 60))
    torch.testing.assert_close(other.get_image_embedding(), predictor.get_image_embedding())
    assert other.original_size == (40, 60)


def test_what_programs_read_from_a_predictor(sam: Sam, predictor: SamPredictor) -> None:
    assert predictor.is_image_set
    assert predictor.original_size == (40, 60)
    assert predictor.input_size == (43, 64)
    assert predictor.features is not None
    assert torch.equal(predictor.features, predictor.get_image_embedding())
    assert predictor.device == sam.device
    assert predictor.model is sam


def test_reset_forgets_the_image(predictor: SamPredictor) -> None:
    predictor.reset_image()
    assert not predictor.is_image_set
    assert (predictor.features, predictor.original_size, predictor.input_size) == (None, None, None)
    with pytest.raises(RuntimeError, match="An image must be set"):
        predictor.get_image_embedding()


def test_a_program_restores_an_embedding_by_setting_attributes(sam: Sam, predictor: SamPredictor) -> None:
    other = SamPredictor(sam)
    other.features = predictor.get_image_embedding()
    other.original_size = (40, 60)
    other.input_size = (43, 64)
    other.is_image_set = True
    np.testing.assert_array_equal(other.predict([[10, 20]], [1])[2], predictor.predict([[10, 20]], [1])[2])


def test_setting_features_alone_replaces_those_of_an_image_of_the_same_size(predictor: SamPredictor) -> None:
    before = predictor.predict([[10, 20]], [1])[2]
    predictor.features = predictor.get_image_embedding() + 1
    assert predictor.original_size == (40, 60)
    assert not np.allclose(predictor.predict([[10, 20]], [1])[2], before)


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_embedding_answers_like_the_image(
    sam: Sam, predictor: SamPredictor, tmp_path: Path, half: bool
) -> None:
    path = tmp_path / "embedding.safetensors"
    predictor.save_embedding(path, half=half)
    other = SamPredictor(sam)
    other.load_embedding(path, image=PICTURE)
    expected, answers = predictor.predict([[10, 20]], [1])[2], other.predict([[10, 20]], [1])[2]
    np.testing.assert_allclose(answers, expected, atol=1e-2 * expected.std() if half else 0)


def test_a_saved_embedding_is_refused_by_other_weights_and_for_another_image(
    sam: Sam, predictor: SamPredictor, tmp_path: Path
) -> None:
    path = tmp_path / "embedding.safetensors"
    predictor.save_embedding(path)
    with pytest.raises(ValueError, match="made by other weights"):
        SamPredictor(toy_sam(seed=1)).load_embedding(path)
    with pytest.raises(ValueError, match="made from another image"):
        SamPredictor(sam).load_embedding(path, image=255 - PICTURE)


def test_nothing_is_kept_for_gradients(predictor: SamPredictor) -> None:
    assert not predictor.get_image_embedding().requires_grad
    assert not predictor.predict_torch(None, None, torch.tensor([[5.0, 5.0, 40.0, 30.0]]))[1].requires_grad
