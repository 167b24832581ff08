"""Models in bfloat16 and 8 bits: what stays float32, and how near the answers stay."""

import copy
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from segment_anything import Prompt, Prompts, load_sam
from segment_anything.modeling import Sam
from segment_anything.modeling.attention import relative_attention
from segment_anything.modeling.cuda.batch_decoder import decode_batch
from segment_anything.modeling.int8 import Int8Linear, quantise_linear_layers

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def small(dtype: str, name: str = "nano") -> Sam:
    return load_sam(name, "random", device="cpu", dtype=dtype, image_size=64)


def test_pixel_statistics_stay_exact_in_half_precision_and_back() -> None:
    exact = small("float32")
    for sam in (small("bf16"), small("float32").half(), small("bf16").float()):
        assert torch.equal(sam.pixel_mean, exact.pixel_mean)
        assert torch.equal(sam.pixel_std, exact.pixel_std)


def test_the_head_that_predicts_iou_stays_float32() -> None:
    exact, sam = small("float32"), small("bf16")
    for (name, mine), theirs in zip(
        sam.mask_decoder.iou_prediction_head.named_parameters(),
        exact.mask_decoder.iou_prediction_head.parameters(),
        strict=True,
    ):
        assert torch.equal(mine, theirs), name
    assert sam.mask_decoder.mask_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("prompt", [Prompt.make([[20, 31]], [1]), Prompt.make([[9, 9]] * 14, [1] * 14)])
@torch.no_grad()
def test_bfloat16_answers_are_float32_and_near(prompt: Prompt) -> None:
    exact, sam = small("float32"), small("bf16")
    expected = exact.decode(exact.encode(IMAGE), prompt)
    found = sam.decode(sam.encode(IMAGE), prompt)
    assert found.low_res_logits.dtype == found.iou_predictions.dtype == torch.float32
    assert (found.low_res_logits - expected.low_res_logits).std() < 0.05 * expected.low_res_logits.std()
    torch.testing.assert_close(found.iou_predictions, expected.iou_predictions, rtol=0.05, atol=0.05)


def prepared(sam: Sam) -> torch.Tensor:
    return sam.decode(sam.encode(IMAGE), Prompt.make([[20, 31]], [1])).low_res_logits


def plain(sam: Sam) -> torch.Tensor:
    return sam.decode(sam.encode(IMAGE), Prompt.make([[9, 9]] * 14, [1] * 14)).low_res_logits


def all_objects_at_once(sam: Sam) -> torch.Tensor:
    points = torch.tensor([[[20.0, 31.0]], [[5.0, 9.0]]]), torch.ones(2, 1)
    features = sam.encode(IMAGE).features
    return decode_batch(sam.prompt_encoder, sam.mask_decoder, features, points, None, None, True)[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["nano", "vit_t"])
@pytest.mark.parametrize("logits", [prepared, plain, all_objects_at_once])
def test_logits_of_bfloat16_have_more_digits_than_bfloat16(name: str, logits: Callable[[Sam], torch.Tensor]) -> None:
    found = logits(small("bf16", name))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 1500])
def test_a_layer_in_8_bits_is_near_the_exact_one(tokens: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    x = torch.randn(2, tokens, 64) * torch.logspace(-3, 3, tokens)[:, None]  # each token has a step of its own
    expected, found = layer(x), Int8Linear(layer)(x)
    assert found.shape == expected.shape
    assert ((found - expected).std(dim=-1) / expected.std(dim=-1)).max() < 0.03


@torch.no_grad()
def test_a_layer_in_8_bits_is_exact_where_numbers_fit_and_zero_inputs_give_the_bias() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.copy_(torch.tensor([[127.0, -3.0, 5.0], [0.0, 2.0, -127.0]]))
    x = torch.tensor([[127.0, 11.0, -2.0]])
    torch.testing.assert_close(Int8Linear(layer)(x), layer(x))
    torch.testing.assert_close(Int8Linear(layer)(torch.zeros(4, 3)), layer.bias.expand(4, 2))
    bare = nn.Linear(3, 2, bias=False)
    assert Int8Linear(bare)(torch.zeros(1, 3)).abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["nano", "vit_t", "vit_b"])
def test_int8_is_a_dtype_of_load_sam(name: str) -> None:
    exact, sam = small("float32", name), small("int8", name)
    kinds = {type(module) for module in sam.image_encoder.modules()}
    assert Int8Linear in kinds
    assert nn.Linear not in kinds
    expected, found = exact.encode(IMAGE).features, sam.encode(IMAGE).features
    assert 0 < (found - expected).std() < 0.2 * expected.std()
    clicks = Prompts.from_points([[10, 12], [30, 30]])
    assert sam.decode(sam.encode(IMAGE), clicks).low_res_logits.dtype == torch.float32
    with pytest.raises(ValueError, match="made by other weights"):
        exact.decode(sam.encode(IMAGE), clicks)


@torch.no_grad()
def test_a_model_in_8_bits_can_be_copied_and_pickled() -> None:
    sam = small("int8")
    expected = sam.encode(IMAGE).features
    for other in (copy.deepcopy(sam), pickle.loads(pickle.dumps(sam))):
        assert torch.equal(other.encode(IMAGE).features, expected)


def test_other_layers_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    quantise_linear_layers(network)
    assert [type(module) for module in network.modules()] == [
        *(nn.Sequential, nn.Conv2d, nn.Sequential, Int8Linear, nn.GELU)
    ]


@pytest.mark.parametrize(("dtype", "instruction"), [("bf16", "avx512_bf16"), ("int8", "avx_vnni")])
def test_a_processor_without_instructions_for_a_type_is_warned_of(
    dtype: str, instruction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor: dict[str, object] = {"architecture": "x86_64", "cpu_name": "Old", "avx2": True, instruction: False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    words = rf'dtype "{dtype}" is many times slower than float32 on this processor \(Old\), which has none of .*'
    with pytest.warns(UserWarning, match=words + rf'{instruction}.*. Take "float32".'):
        small(dtype)
    for other in ({instruction: True}, {"architecture": "arm64"}):
        processor |= other
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small(dtype)


def test_int8_is_refused_elsewhere_than_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r'dtype int8 is for the CPU, and device is meta. Take "bf16"'):
        load_sam("nano", "random", device="meta", dtype="int8")


@torch.no_grad()
@pytest.mark.parametrize(("size_hw", "score_bytes"), [((5, 7), 8 * 2**20), ((6, 6), 999)])
def test_attention_in_bfloat16_is_that_of_float32_but_for_rounding(size_hw: tuple[int, int], score_bytes: int) -> None:
    torch.manual_seed(0)
    height, width = size_hw
    q, k, v = (torch.randn(2, 3, height * width, 16).bfloat16() for _ in range(3))
    tables = [torch.randn(2 * side - 1, 16).bfloat16() for side in size_hw]
    found = relative_attention(q, k, v, size_hw, *tables, score_bytes)
    with torch.enable_grad():  # the plain way
        exact = relative_attention(q.float(), k.float(), v.float(), size_hw, *(table.float() for table in tables))
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 0.03 * exact.abs().max()
