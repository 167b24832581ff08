"""The stateless core: `Sam.encode` and `Sam.decode`, and the original package's `Sam.forward` on lists."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything import Decoded, ImageEmbedding, ImageGeometry, Prompt, Prompts, Sam, SamPredictor, load_sam

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
MASK = np.zeros((40, 60), dtype=bool)
MASK[10:30, 15:40] = True
RAGGED = Prompts(
    [
        Prompt.make([[10, 20]], [1]),
        Prompt.make(box=[5, 5, 40, 30]),
        Prompt.make([[30, 25], [3, 3], [12, 30]], [1, 0, 1]),
        Prompt.make([[50, 35]], [1]),
        Prompt.make([[30, 25]], [0], box=[20, 10, 50, 35]),
        Prompt.make(mask=MASK),
        Prompt.make([[30, 25]], [1], mask_logits=np.linspace(-3, 3, 256).reshape(1, 16, 16)),
        Prompt.make(box=[1, 2, 59, 39]),
        Prompt.make(),
    ]
)
"""Every mix of prompts, in no order."""


@pytest.fixture(scope="module")
def sam() -> Sam:
    return toy_sam()


@pytest.fixture(scope="module")
def embedding(sam: Sam) -> ImageEmbedding:
    with torch.no_grad():
        return sam.encode(PICTURE)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)


def test_an_embedding_knows_its_image_and_its_model(sam: Sam, embedding: ImageEmbedding) -> None:
    assert embedding.features.shape == (1, 32, 4, 4)
    assert embedding.geometry == ImageGeometry((40, 60), 64)
    assert embedding.model == "toy"
    assert embedding.weights_fingerprint == sam.fingerprint()
    embedding.check_image(PICTURE)


def test_images_of_many_sizes_are_encoded_together_as_one_by_one(sam: Sam) -> None:
    pictures = [PICTURE, PICTURE[:, :20], np.repeat(PICTURE, 3, axis=1), PICTURE[:1, :1]]
    with torch.no_grad():
        together = sam.encode_batch(pictures)
        for picture, embedding in zip(pictures, together, strict=True):
            assert_close(embedding.features, sam.encode(picture).features)
            assert embedding.geometry.original_size_hw == picture.shape[:2]
    assert sam.encode_batch([]) == []


def test_an_image_that_cannot_be_written_to_is_encoded(sam: Sam, embedding: ImageEmbedding) -> None:
    frozen = PICTURE.copy()
    frozen.flags.writeable = False
    with torch.no_grad():
        assert torch.equal(sam.encode(frozen).features, embedding.features)


@pytest.mark.parametrize("multimask", [True, False, None])
@pytest.mark.parametrize("gradients", [True, False])
def test_many_prompts_are_decoded_as_one_by_one(
    sam: Sam, embedding: ImageEmbedding, multimask: bool | None, gradients: bool
) -> None:
    with torch.set_grad_enabled(gradients):
        together = sam.decode(embedding, RAGGED, multimask)
        alone = [sam.decode(embedding, prompt, multimask) for prompt in RAGGED]
    assert len(together) == len(RAGGED)
    assert_close(together.low_res_logits, torch.cat([one.low_res_logits for one in alone]))
    assert_close(together.iou_predictions, torch.cat([one.iou_predictions for one in alone]))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_of_any_size_give_the_same(sam: Sam, embedding: ImageEmbedding, batch_size: int) -> None:
    prompts = Prompts.from_points(np.random.default_rng(1).uniform(0, 40, (7, 2)))
    with torch.no_grad():
        expected = sam.decode(embedding, prompts)
        assert_close(sam.decode(embedding, prompts, batch_size=batch_size).low_res_logits, expected.low_res_logits)


def test_a_list_of_prompts_will_do(sam: Sam, embedding: ImageEmbedding) -> None:
    with torch.no_grad():
        assert_close(sam.decode(embedding, list(RAGGED)).iou_predictions, sam.decode(embedding, RAGGED).iou_predictions)


@pytest.mark.parametrize(("multimask", "count"), [(True, 3), (False, 1), (None, 1)])
def test_no_prompts_give_no_masks(sam: Sam, embedding: ImageEmbedding, multimask: bool | None, count: int) -> None:
    decoded = sam.decode(embedding, [], multimask)
    assert decoded.low_res_logits.shape == (0, count, 16, 16)
    assert decoded.iou_predictions.shape == (0, count)
    assert decoded.masks().shape == (0, count, 40, 60)
    assert len(decoded.best()) == 0


def test_a_binary_mask_is_a_prompt(sam: Sam, embedding: ImageEmbedding) -> None:
    with torch.no_grad():
        answer = sam.decode(embedding, Prompt.make(mask=MASK))
        other = sam.decode(embedding, Prompt.make(mask=~MASK))
        logits = Prompt.make(mask=MASK).low_res_logits(embedding.geometry, 16)
        same = sam.decode(embedding, Prompt.make(box=[15, 10, 39, 29], mask_logits=logits))
    assert_close(answer.low_res_logits, same.low_res_logits)
    assert not torch.allclose(answer.low_res_logits, other.low_res_logits)


def test_many_threads_decode_one_embedding_at_once(sam: Sam, embedding: ImageEmbedding) -> None:
    def answer(index: int) -> torch.Tensor:
        with torch.no_grad():  # which is a setting of each thread
            return sam.decode(embedding, RAGGED[index % len(RAGGED)], False).low_res_logits

    expected = [answer(index) for index in range(len(RAGGED))]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(8 * len(RAGGED))))
    for index, given in enumerate(answers):
        assert_close(given, expected[index % len(RAGGED)])


def test_threads_encode_and_decode_different_images_at_once(sam: Sam) -> None:
    pictures = [np.roll(PICTURE, shift, axis=1) for shift in range(6)]

    def answer(picture: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return sam.decode(sam.encode(picture), RAGGED[1]).low_res_logits

    expected = [answer(picture) for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        for given, wanted in zip(pool.map(answer, pictures * 4), expected * 4, strict=True):
            assert_close(given, wanted)


def test_gradients_flow_through_encode_and_decode(sam: Sam) -> None:
    trained = toy_sam()
    decoded = trained.decode(trained.encode(PICTURE), RAGGED)
    (decoded.logits().square().mean() + decoded.iou_predictions.square().mean()).backward()
    without = {name for name, p in trained.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert without == set()
    assert all(bool(p.grad.any()) for p in trained.image_encoder.parameters() if p.grad is not None)


def test_a_gradient_step_by_decode_lowers_the_loss() -> None:
    trained = toy_sam()
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    truth = torch.from_numpy(MASK)[None, None].float()
    losses = []
    for _ in range(6):
        logits = trained.decode(trained.encode(PICTURE), Prompt.make(box=[15, 10, 40, 30]), False).logits()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_inference_mode_will_do(sam: Sam, embedding: ImageEmbedding) -> None:
    with torch.no_grad():
        expected = sam.decode(embedding, RAGGED).low_res_logits
    with torch.inference_mode():
        answer = sam.decode(sam.encode(PICTURE), RAGGED).low_res_logits
    assert_close(answer, expected)


def test_masks_are_the_logits_above_a_threshold(sam: Sam, embedding: ImageEmbedding) -> None:
    with torch.no_grad():
        decoded = sam.decode(embedding, RAGGED)
    assert decoded.logits().shape == (len(RAGGED), 3, 40, 60)
    assert torch.equal(decoded.masks(), decoded.logits() > 0)
    assert torch.equal(decoded.masks(0.5), decoded.logits() > 0.5)


def test_best_is_the_mask_of_highest_predicted_iou() -> None:
    logits = torch.arange(3.0).expand(2, 3)[..., None, None] * torch.ones(2, 3, 4, 4)
    decoded = Decoded(logits, torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.1, 0.7]]), ImageGeometry((4, 4), 4))
    best = decoded.best()
    assert best.iou_predictions.tolist() == [[pytest.approx(0.9)], [pytest.approx(0.7)]]
    assert best.low_res_logits[:, 0, 0, 0].tolist() == [1, 2]


def test_logits_are_cut_from_the_padded_input_before_they_are_resized() -> None:
    low_res = torch.zeros(1, 1, 4, 4)
    low_res[..., 2:, :] = 100  # below an image twice as wide as high there is only padding
    logits = Decoded(low_res, torch.zeros(1, 1), ImageGeometry((32, 64), 64)).logits()
    assert logits.shape == (1, 1, 32, 64)
    assert (logits[..., :20, :] == 0).all()


def prepared(sam: Sam, picture: np.ndarray, **prompts: Any) -> dict[str, Any]:
    """An image as programs for the original package hand it to `Sam.forward`."""
    transform = SamPredictor(sam).transform
    size = picture.shape[:2]
    item: dict[str, Any] = {
        "image": torch.from_numpy(transform.apply_image(picture)).permute(2, 0, 1),
        "original_size": size,
    }
    if "points" in prompts:
        item["point_coords"] = transform.apply_coords_torch(torch.tensor(prompts["points"]), size)
        item["point_labels"] = torch.tensor(prompts["labels"])
    if "boxes" in prompts:
        item["boxes"] = transform.apply_boxes_torch(torch.tensor(prompts["boxes"]), size)
    if "masks" in prompts:
        item["mask_inputs"] = prompts["masks"]
    return item


def test_forward_on_a_list_equals_the_predictor(sam: Sam) -> None:
    narrow = PICTURE[:, :25]
    boxes = [[5.0, 5.0, 20.0, 30.0], [1.0, 1.0, 24.0, 39.0]]
    masks = torch.randn(2, 1, 16, 16)
    batch = [
        prepared(sam, PICTURE, points=[[[10.0, 20.0], [3.0, 4.0]]], labels=[[1, 0]]),
        prepared(sam, narrow, boxes=boxes, masks=masks),
    ]
    first, second = sam(batch, multimask_output=True)
    predictor = SamPredictor(sam)
    predictor.set_image(PICTURE)
    expected, iou, low_res = predictor.predict([[10, 20], [3, 4]], [1, 0])
    assert np.array_equal(first["masks"][0].numpy(), expected)
    np.testing.assert_allclose(first["iou_predictions"][0].numpy(), iou, atol=1e-4)
    np.testing.assert_allclose(first["low_res_logits"][0].numpy(), low_res, atol=1e-3)
    predictor.set_image(narrow)
    assert second["masks"].shape == (2, 3, 40, 25)
    assert second["masks"].dtype == torch.bool
    for index, box in enumerate(boxes):
        _, _, low_res = predictor.predict(box=box, mask_input=masks[index].numpy())
        np.testing.assert_allclose(second["low_res_logits"][index].numpy(), low_res, atol=1e-3)


def test_forward_keeps_no_gradients_in_eval_mode_and_keeps_them_in_training() -> None:
    sam = toy_sam()
    batch = [prepared(sam, PICTURE, boxes=[[5.0, 5.0, 20.0, 30.0]])]
    assert not sam(batch, multimask_output=False)[0]["iou_predictions"].requires_grad
    sam.train()
    sam(batch, multimask_output=False)[0]["low_res_logits"].sum().backward()
    assert sam.image_encoder.patch_embed.proj.weight.grad.any()
    with torch.no_grad():
        assert not sam(batch, multimask_output=False)[0]["iou_predictions"].requires_grad


def test_forward_on_an_empty_list_is_an_empty_list(sam: Sam) -> None:
    assert sam([], multimask_output=True) == []


def test_float64_is_cast_wherever_it_comes_in(sam: Sam, embedding: ImageEmbedding) -> None:
    doubles = np.array([[10, 20], [30, 25]], dtype=np.float64)
    with torch.no_grad():
        expected = sam.decode(embedding, Prompt.make(doubles, [1, 0], box=[5, 5, 40, 30])).low_res_logits
        single = sam.decode(embedding, Prompt.make(doubles.astype(np.float32), [1, 0], box=[5, 5, 40, 30]))
        assert_close(single.low_res_logits, expected)
        item = prepared(sam, PICTURE, boxes=[[5.0, 5.0, 20.0, 30.0]])
        wanted = sam([item], multimask_output=True)[0]
        item["image"], item["boxes"] = item["image"].double(), item["boxes"].double()
        assert_close(sam([item], multimask_output=True)[0]["low_res_logits"], wanted["low_res_logits"])
        features = sam.predict_low_res(
            embedding.features.double(),
            (torch.tensor([[[10.0, 20.0]]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)),
            None,
            torch.zeros(1, 1, 16, 16, dtype=torch.float64),
            True,
        )
    assert expected.dtype == torch.float32
    assert [tensor.dtype for tensor in features] == [torch.float32, torch.float32]


def test_a_bfloat16_model_answers_in_numpy_and_close_to_float32(sam: Sam) -> None:
    half = toy_sam().to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    predictors = []
    for model in (sam, half):
        predictors.append(SamPredictor(model))
        predictors[-1].set_image(PICTURE)
    (_, iou, low_res), answers = (predictor.predict(box=[5, 5, 40, 30]) for predictor in predictors)
    assert [answer.dtype for answer in answers] == [bool, np.float32, np.float32]
    assert np.abs(answers[1] - iou).max() < 0.1
    assert np.corrcoef(answers[2].ravel(), low_res.ravel())[0, 1] > 0.99
    assert predictors[1].get_image_embedding().numpy().dtype == np.float32
    outputs = half([prepared(half, PICTURE, boxes=[[5.0, 5.0, 20.0, 30.0]])], multimask_output=True)[0]
    assert outputs["iou_predictions"].numpy().dtype == np.float32
    assert outputs["low_res_logits"].numpy().dtype == np.float32


def test_position_codes_stay_exact_in_a_bfloat16_model(sam: Sam) -> None:
    half = toy_sam().to(torch.bfloat16)
    assert half.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.dtype == torch.float32
    exact = sam.prompt_encoder.get_dense_pe()
    assert (half.prompt_encoder.get_dense_pe().float() - exact).abs().max() < 0.01


def test_an_embedding_of_a_float32_model_suits_the_same_model_in_bfloat16(embedding: ImageEmbedding) -> None:
    half = toy_sam().to(torch.bfloat16)
    with torch.no_grad():
        assert half.decode(embedding, RAGGED[1]).low_res_logits.dtype == torch.float32


@pytest.mark.parametrize("image_size", [32, 80, 112])
def test_every_multiple_of_the_patch_is_an_image_size(image_size: int) -> None:
    sam = toy_sam(image_size=image_size)
    with torch.no_grad():
        embedding = sam.encode(PICTURE)
        decoded = sam.decode(embedding, RAGGED[0])
    grid = image_size // 16
    assert embedding.features.shape == (1, 32, grid, grid)
    assert (sam.image_size, sam.embedding_size, sam.mask_input_size) == (image_size, grid, 4 * grid)
    assert decoded.low_res_logits.shape == (1, 3, 4 * grid, 4 * grid)
    assert decoded.masks().shape == (1, 3, 40, 60)


def test_a_nano_of_another_size_answers_too() -> None:
    sam = load_sam("nano", checkpoint="random", image_size=128)
    with torch.no_grad():
        decoded = sam.decode(sam.encode(PICTURE), RAGGED[:5], None)
    assert decoded.low_res_logits.shape == (5, 1, 64, 64)
    assert decoded.masks().shape == (5, 1, 40, 60)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_prompts_and_embeddings_on_another_device_are_moved(embedding: ImageEmbedding) -> None:
    sam = toy_sam().cuda()
    predictor = SamPredictor(sam)
    predictor.set_image(PICTURE)
    box = torch.tensor([[5.0, 5.0, 40.0, 30.0]])
    for device in ("cpu", "cuda"):
        assert predictor.predict_torch(None, None, box.to(device))[0].device.type == "cuda"
    assert sam.decode(embedding, Prompt.make(box=torch.tensor([5, 5, 40, 30]).cuda())).logits().device.type == "cuda"
    assert sam([prepared(sam, PICTURE, boxes=[[5.0, 5.0, 20.0, 30.0]])], True)[0]["masks"].device.type == "cuda"
