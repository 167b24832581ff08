"""The decoder prepared for an image computes what `MaskDecoder` computes."""

import copy
import gc
import pickle
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy import toy_sam

from segment_anything import load_sam
from segment_anything.geometry import ImageGeometry
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from segment_anything.modeling.decoded import upscale_masks
from segment_anything.modeling.low_rank_cells import LowRankObjects
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.once import Once
from segment_anything.modeling.prepared_decoder import (
    PreparedDecoder,
    can_prepare,
    most_prompt_tokens,
    same_everywhere,
)
from segment_anything.modeling.prepared_images import PreparedImages
from segment_anything.modeling.prepared_upscaler import FirstLayer, Upscaler
from segment_anything.modeling.weights_watch import tensor_states
from segment_anything.modeling.whole_cells import WholeObjects
from segment_anything.prompts import Prompt, Prompts

SAM_LIKE = {"width": 32, "heads": 2, "act": nn.GELU}
NANO_LIKE = {"width": 64, "heads": 4, "act": nn.Hardswish}


def decoder(width: int, heads: int, act: type[nn.Module], depth: int = 2) -> MaskDecoder:
    """A tiny decoder in float64, so that only real differences show."""
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth, width, heads, mlp_dim=48)
    made = MaskDecoder(transformer_dim=width, transformer=transformer, activation=act)
    with torch.no_grad():
        for parameter in made.parameters():  # biases and norms too, which start as zeros and ones
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made.double().eval()


def inputs(width: int, objects: int, tokens: int, side: int = 6) -> dict[str, torch.Tensor]:
    draw = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return {
        "features": draw(1, width, side, side),
        "code": draw(1, width, side, side),
        "sparse": draw(objects, tokens, width),
        "dense": draw(objects, width, side, side),
        "vector": draw(width),
    }


@pytest.mark.parametrize("like", [SAM_LIKE, NANO_LIKE], ids=["sam", "nano"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("tokens", [0, 1, 5])
@torch.no_grad()
def test_masks_and_iou_are_the_decoders_when_objects_share_their_dense_prompt(
    like: dict[str, object], depth: int, tokens: int
) -> None:
    plain = decoder(**like, depth=depth)  # type: ignore[arg-type]
    given = inputs(like["width"], 3, tokens)  # type: ignore[arg-type]
    dense = given["vector"].view(1, -1, 1, 1).expand(3, -1, 6, 6)
    expected = plain.predict_masks(given["features"], given["code"], given["sparse"], dense)
    prepared = PreparedDecoder(plain, given["features"], given["code"], given["vector"])
    masks, iou = prepared.predict_masks(given["sparse"], dense, slice(None))
    torch.testing.assert_close(masks, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(iou, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("like", [SAM_LIKE, NANO_LIKE], ids=["sam", "nano"])
@torch.no_grad()
def test_masks_and_iou_are_the_decoders_when_each_object_has_its_own_dense_prompt(like: dict[str, object]) -> None:
    plain = decoder(**like)  # type: ignore[arg-type]
    given = inputs(like["width"], 5, 3)  # type: ignore[arg-type]
    dense = given["dense"]
    expected = plain(given["features"], given["code"], given["sparse"], dense, True)
    prepared = PreparedDecoder(plain, given["features"], given["code"])
    for _ in range(2):  # the first call leaves nothing changed
        masks, iou = prepared.predict_masks(given["sparse"], dense, slice(1, None))
        torch.testing.assert_close(masks, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(iou, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_only_masks_above_the_iou_threshold_are_made(shared: bool) -> None:
    plain = decoder(**SAM_LIKE)  # type: ignore[arg-type]
    given = inputs(32, 9, 2)
    vector = given["vector"] if shared else None
    prepared = PreparedDecoder(plain, given["features"], given["code"], vector)
    masks, iou = prepared.predict_masks(given["sparse"], given["dense"], slice(1, None))
    threshold = float(iou.median())
    some, places, all_iou = prepared.predict_masks_above(given["sparse"], given["dense"], slice(1, None), threshold)
    assert torch.equal(all_iou, iou)
    assert places.tolist() == (iou > threshold).nonzero().tolist()
    assert 0 < len(places) < iou.numel()
    torch.testing.assert_close(some, masks[iou > threshold], rtol=1e-12, atol=1e-12)
    none, places, _ = prepared.predict_masks_above(given["sparse"], given["dense"], slice(1, None), float(iou.max()))
    assert (none.shape, len(places)) == ((0, 24, 24), 0)


@torch.no_grad()
def test_groups_of_objects_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = decoder(**SAM_LIKE)  # type: ignore[arg-type]
    given = inputs(32, 7, 2)
    prepared = PreparedDecoder(plain, given["features"], given["code"])
    together, _ = prepared.predict_masks(given["sparse"], given["dense"], slice(None))
    monkeypatch.setattr("segment_anything.modeling.prepared_decoder.GROUP_BYTES", 1)
    singly, _ = prepared.predict_masks(given["sparse"], given["dense"], slice(None))
    torch.testing.assert_close(singly, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_rows_of_cells_upscaled_a_few_at_a_time_are_the_same(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = decoder(**SAM_LIKE)  # type: ignore[arg-type]
    given = inputs(32, 2, 2)
    prepared = PreparedDecoder(plain, given["features"], given["code"], given["vector"] if shared else None)
    whole, _ = prepared.predict_masks(given["sparse"], given["dense"], slice(None))
    taken: list[int] = []
    call = Upscaler.__call__

    def counting(self: Upscaler, first_layer: FirstLayer, *others: Any) -> None:
        def first(rows: slice, columns: slice) -> torch.Tensor:
            taken.append(rows.stop - rows.start)
            return first_layer(rows, columns)

        call(self, first, *others)

    monkeypatch.setattr(Upscaler, "__call__", counting)
    four_rows = 4 * 6 * 4 * (32 // 4)  # values behind the first layer: six cells a row, with four children each
    at_once = -(-four_rows // torch.get_num_threads())
    monkeypatch.setattr("segment_anything.modeling.prepared_upscaler.VALUES_AT_ONCE", at_once)
    pieces, _ = prepared.predict_masks(given["sparse"], given["dense"], slice(None))
    assert taken == [4, 2] * 2
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


def published() -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)).eval()


@torch.no_grad()
def test_cells_of_objects_without_a_mask_prompt_are_never_made_up_to_twelve_tokens() -> None:
    plain = published()
    given = {name: value.float() for name, value in inputs(256, 2, 1, side=4).items()}
    shared = PreparedDecoder(plain, given["features"], given["code"], given["vector"])
    own = PreparedDecoder(plain, given["features"], given["code"])
    kinds = [type(shared._objects(torch.zeros(2, tokens, 256), None)) for tokens in (7, 12, 13)]
    assert kinds == [LowRankObjects, LowRankObjects, WholeObjects]
    assert type(own._objects(torch.zeros(2, 7, 256), given["dense"])) is WholeObjects
    rounded = PreparedDecoder(plain.bfloat16(), *(given[name].bfloat16() for name in ("features", "code", "vector")))
    assert type(rounded._objects(torch.zeros(2, 7, 256, dtype=torch.bfloat16), None)) is WholeObjects


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 7], ids=["one click", "six clicks"])
def test_float32_is_as_near_to_float64_by_low_rank_as_by_whole_cells(tokens: int) -> None:
    plain = published()
    given = inputs(256, 2, tokens, side=12)
    given["sparse"] *= 5  # attention that is sharp, as that of trained weights
    dense = given["vector"].view(1, -1, 1, 1).expand(2, -1, 12, 12)
    exact, _ = copy.deepcopy(plain).double().predict_masks(given["features"], given["code"], given["sparse"], dense)
    f32 = {name: value.float() for name, value in given.items()}
    low_rank = PreparedDecoder(plain, f32["features"], f32["code"], f32["vector"])
    whole = PreparedDecoder(plain, f32["features"] + f32["vector"].view(1, -1, 1, 1), f32["code"])
    errors = []
    for prepared in (low_rank, whole):
        masks, _ = prepared.predict_masks(f32["sparse"], torch.zeros(2, 256, 12, 12), slice(None))
        errors.append(float((masks - exact).abs().max() / exact.std()))
    assert errors[0] < 2 * errors[1] + 1e-6
    assert errors[0] < 1e-4


@torch.no_grad()
def test_a_cell_of_one_value_stays_finite() -> None:
    plain = decoder(**SAM_LIKE).float()  # type: ignore[arg-type]
    given = {name: value.float() for name, value in inputs(32, 2, 1).items()}
    given["features"][..., 0, 0] = 1e3  # no deviation, and a square that rounds
    given["vector"] *= 0
    for layer in plain.transformer.layers:
        layer.cross_attn_image_to_token.out_proj.weight *= 0
        layer.cross_attn_image_to_token.out_proj.bias *= 0
    dense = given["vector"].view(1, -1, 1, 1).expand(2, -1, 6, 6)
    expected, _ = plain.predict_masks(given["features"], given["code"], given["sparse"], dense)
    prepared = PreparedDecoder(plain, given["features"], given["code"], given["vector"])
    masks, _ = prepared.predict_masks(given["sparse"], dense, slice(None))
    torch.testing.assert_close(masks, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_prepared_image_is_let_go_of_at_once() -> None:
    plain = decoder(**SAM_LIKE)  # type: ignore[arg-type]
    given = inputs(32, 2, 1)
    prepared = PreparedDecoder(plain, given["features"], given["code"], given["vector"])
    prepared.predict_masks(given["sparse"], given["dense"], slice(None))
    gone = [weakref.ref(one) for one in (prepared, prepared.whole, prepared.low_rank())]
    gc.disable()
    try:
        del prepared
        assert [one() for one in gone] == [None] * 3
    finally:
        gc.enable()


def test_what_several_threads_ask_for_is_made_once() -> None:
    made, barrier = [], threading.Barrier(4)

    def make() -> object:
        made.append(object())
        time.sleep(0.05)
        return made[-1]

    once = Once(make)

    def ask(_: int) -> object:
        barrier.wait()
        return once()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert made == [found[0]]
    assert all(one is found[0] for one in found)


class Louder(MaskDecoder):
    """A decoder of somebody else."""


def test_decoders_that_compute_something_else_are_not_prepared() -> None:
    plain = decoder(**SAM_LIKE)  # type: ignore[arg-type]
    assert can_prepare(plain)
    other = Louder(transformer_dim=32, transformer=plain.transformer)
    assert not can_prepare(other)
    hooked = copy.deepcopy(plain)
    hooked.transformer.get_submodule("layers.0.mlp").register_forward_hook(lambda module, args, out: 2 * out)
    assert not can_prepare(hooked)
    replaced = copy.deepcopy(plain)
    replaced.transformer.layers[0].mlp.lin1 = nn.Sequential(nn.Linear(32, 48), nn.Dropout())
    assert not can_prepare(replaced)
    unlike = copy.deepcopy(plain)
    unlike.output_hypernetworks_mlps[1] = MLP(32, 48, 4, 3).double()
    assert not can_prepare(unlike)
    unbiased = copy.deepcopy(plain)
    unbiased.output_hypernetworks_mlps[1].layers[2] = nn.Linear(32, 4, bias=False).double()
    assert not can_prepare(unbiased)
    squashed = copy.deepcopy(plain)
    squashed.output_hypernetworks_mlps[1] = MLP(32, 32, 4, 3, sigmoid_output=True).double()
    assert not can_prepare(squashed)


@torch.no_grad()
def test_a_hook_put_on_a_decoder_is_called_until_it_is_taken_away() -> None:
    sam = load_sam("vit_t", "random", image_size=64)
    embedding = sam.encode(image())
    before = sam.decode(embedding, MIXED[0]).low_res_logits
    calls: list[nn.Module] = []
    hook = sam.mask_decoder.transformer.get_submodule("layers.1.mlp").register_forward_hook(
        lambda module, args, out: calls.append(module)
    )
    during = sam.decode(embedding, MIXED[0]).low_res_logits
    assert len(calls) == 1
    hook.remove()
    after = sam.decode(embedding, MIXED[0]).low_res_logits
    assert len(calls) == 1
    assert torch.equal(after, before)
    torch.testing.assert_close(during, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 9], ids=["one object", "several batches"])
def test_what_is_decoded_without_gradients_may_be_written_on_and_learnt_from(count: int) -> None:
    sam = load_sam("vit_t", "random", image_size=64)
    clicks = Prompts.from_points(np.random.default_rng(2).uniform(0, 48, (count, 2)))
    with torch.no_grad():
        embedding = sam.encode(image())
        decoded = sam.decode(embedding, clicks)
        above, places = sam.decode_above(embedding, clicks, -1e9)
    given = [one for each in (decoded, above) for one in (each.low_res_logits, each.iou_predictions)]
    assert not any(one.is_inference() for one in [*given, places])
    for one in given:
        factor = torch.ones((), requires_grad=True)
        one.add_(1)
        (factor * one).sum().backward()
        assert factor.grad is not None
        assert factor.grad == one.sum()


def test_up_to_eleven_tokens_are_carried_over_at_the_published_sizes() -> None:
    assert most_prompt_tokens(published()) == 11


def test_an_expanded_vector_is_told_from_a_map() -> None:
    vector = torch.arange(4.0)
    for count in (1, 3):
        found = same_everywhere(vector.view(1, 4, 1, 1).expand(count, 4, 5, 5))
        assert found is not None
        assert found.tolist() == [0, 1, 2, 3]
    assert same_everywhere(torch.zeros(1, 4, 5, 5)) is None
    assert same_everywhere(torch.zeros(3, 4, 1, 1).expand(3, 4, 5, 5)) is None  # another vector for each object


@pytest.fixture(scope="module")
def sam() -> Sam:
    return toy_sam()


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


MIXED = Prompts(
    [
        Prompt.make([[10, 12]], [1]),
        Prompt.make([[10, 12], [30, 30]], [1, 0]),
        Prompt.make(box=[4, 4, 40, 30]),
        Prompt.make([[20, 20]], [1], box=[4, 4, 40, 30]),
        Prompt.make([[20, 20]], [1], mask=np.ones((48, 64), dtype=bool)),
        Prompt.make(np.random.default_rng(1).uniform(0, 48, (15, 2)), [1] * 15),  # too many to prepare
    ]
)


@pytest.mark.parametrize("multimask", [True, False, None])
def test_decode_without_gradients_equals_decode_with(sam: Sam, multimask: bool | None) -> None:
    embedding = sam.encode(image())
    slow = sam.decode(embedding, MIXED, multimask)
    assert slow.low_res_logits.requires_grad
    with torch.no_grad():
        fast = sam.decode(embedding, MIXED, multimask)
    torch.testing.assert_close(fast.low_res_logits, slow.low_res_logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.iou_predictions, slow.iou_predictions.detach(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_changed_weight_or_embedding_is_noticed() -> None:
    sam = toy_sam()
    embedding = sam.encode(image())
    before = sam.decode(embedding, MIXED[0]).low_res_logits
    sam.mask_decoder.transformer.final_attn_token_to_image.q_proj.weight.mul_(3)
    after = sam.decode(embedding, MIXED[0]).low_res_logits
    assert not torch.equal(before, after)
    with torch.enable_grad():
        expected = sam.decode(embedding, MIXED[0]).low_res_logits.detach()
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    sam.prompt_encoder.no_mask_embed.weight.add_(1)
    assert not torch.equal(sam.decode(embedding, MIXED[0]).low_res_logits, after)
    last = sam.decode(embedding, MIXED[0]).low_res_logits
    embedding.features.mul_(-1)
    assert not torch.equal(sam.decode(embedding, MIXED[0]).low_res_logits, last)


@torch.no_grad()
def test_masks_above_a_threshold_are_those_of_decode(sam: Sam) -> None:
    embedding = sam.encode(image())
    clicks = Prompts.from_points(np.random.default_rng(2).uniform(0, 48, (10, 2)))
    everything = sam.decode(embedding, clicks)
    threshold = float(everything.iou_predictions.median())
    good = everything.iou_predictions > threshold
    some, places = sam.decode_above(embedding, clicks, threshold, batch_size=4)
    assert places.tolist() == good.nonzero().tolist()
    torch.testing.assert_close(some.low_res_logits[:, 0], everything.low_res_logits[good])
    torch.testing.assert_close(some.iou_predictions[:, 0], everything.iou_predictions[good])
    with torch.enable_grad():  # the way of a decoder that cannot be prepared
        slow, slow_places = sam.decode_above(embedding, clicks, threshold, batch_size=4)
    assert slow_places.tolist() == places.tolist()
    torch.testing.assert_close(slow.low_res_logits.detach(), some.low_res_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size_hw", [(64, 64), (48, 64), (20, 64), (64, 20), (1, 300), (301, 97), (1200, 1800)])
def test_cells_seen_are_all_that_pixels_are_made_from_and_no_more(size_hw: tuple[int, int]) -> None:
    geometry = ImageGeometry(size_hw, 256)
    rows, columns = geometry.cells_seen(16)
    logits = torch.full((1, 1, 64, 64), float("nan"))
    logits[..., : 4 * rows, : 4 * columns] = 0
    assert not upscale_masks(logits, geometry).isnan().any()
    for row, column in ((rows - 1, 0), (0, columns - 1)):
        touched = torch.zeros((1, 1, 64, 64))
        touched[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
        assert upscale_masks(touched, geometry).any()


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(20, 64), (64, 20)])
@pytest.mark.parametrize("kind", ["shared", "mask prompts", "nano"])
def test_masks_above_a_threshold_are_not_made_in_the_padding(size_hw: tuple[int, int], kind: str) -> None:
    sam = load_sam("nano" if kind == "nano" else "vit_t", "random", image_size=64)
    embedding = sam.encode(np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8))
    points = np.random.default_rng(2).uniform(0, 20, (6, 2))
    mask = np.random.default_rng(3).random(size_hw) > 0.5
    clicks = Prompts.from_points(points)
    if kind == "mask prompts":
        clicks = Prompts([Prompt.make([point], [1], mask=mask) for point in points])
    everything = sam.decode(embedding, clicks)
    threshold = float(everything.iou_predictions.median())
    good = everything.iou_predictions > threshold
    some, _ = sam.decode_above(embedding, clicks, threshold)
    np.testing.assert_array_equal(np.asarray(some.masks())[:, 0], np.asarray(everything.masks())[good.numpy()])
    rows, columns = embedding.geometry.cells_seen(sam.embedding_size)
    assert 0 < 4 * min(rows, columns) < sam.mask_input_size
    low_res = some.low_res_logits[:, 0]
    torch.testing.assert_close(
        low_res[:, : 4 * rows, : 4 * columns], everything.low_res_logits[good][:, : 4 * rows, : 4 * columns]
    )
    assert not low_res[:, 4 * rows :].any()
    assert not low_res[:, :, 4 * columns :].any()


@torch.no_grad()
def test_images_are_prepared_once_kept_few_and_forgotten_with_their_embedding() -> None:
    cache, made = PreparedImages(capacity=2), []

    def ask(features: torch.Tensor, state: object = 0) -> None:
        def prepare() -> PreparedDecoder:
            made.append(features)
            return PreparedDecoder(plain, features, given["code"])

        cache.get(features, state, prepare)

    plain, given = decoder(**SAM_LIKE), inputs(32, 1, 1)  # type: ignore[arg-type]
    first, second, third = (given["features"] + i for i in range(3))
    for features in (first, second, first, second):
        ask(features)
    assert len(made) == 2
    ask(first, state=1)
    assert len(made) == 3
    ask(third)
    ask(second)
    assert len(made) == 5  # second was the oldest of three
    made.clear()
    del first, second, third, features
    ask(given["features"])
    assert len(cache._kept) == 1


def test_copies_of_a_model_start_without_prepared_images(sam: Sam) -> None:
    with torch.no_grad():
        sam.decode(sam.encode(image()), MIXED[0])
    assert copy.deepcopy(sam)._prepared._kept == []
    assert pickle.loads(pickle.dumps(sam))._prepared._kept == []


def test_threads_share_prepared_images(sam: Sam) -> None:
    with torch.no_grad():
        embeddings = [sam.encode(image()), sam.encode(255 - image())]
        expected = [sam.decode(embedding, MIXED).low_res_logits for embedding in embeddings]
    results: list[bool] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                got = sam.decode(embeddings[index], MIXED).low_res_logits
                results.append(torch.allclose(got, expected[index], atol=1e-6))

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20


def test_states_change_when_a_tensor_is_written_to_or_replaced() -> None:
    tensor = torch.zeros(2)
    before = tensor_states([tensor])
    assert tensor_states([tensor]) == before
    tensor.add_(1)
    assert tensor_states([tensor]) != before
    with torch.inference_mode():
        assert tensor_states([torch.zeros(2)])[0][1] == -1
