"""Prompts drawn and mixed without gradients come out as `DrawnPromptEncoder` and `PromptMixer` compute them."""

import numpy as np
import pytest
import torch
from torch import nn

from segment_anything import Prompt, load_sam
from segment_anything.modeling import DrawnPromptEncoder, Sam
from segment_anything.modeling.linear import FEW_ROWS, SMALL_PRODUCT, linear
from segment_anything.modeling.prepared_decoder import same_everywhere
from segment_anything.modeling.prepared_mixer import Drawn, PreparedMixer, can_mix, draw, mix
from segment_anything.modeling.prepared_upscaler import Upscaler

POINTS = torch.tensor([[[20.0, 31.0], [3.0, 60.0]], [[50.0, 9.0], [33.0, 33.0]]]), torch.tensor([[1, 0], [1, -1]])
BOXES = torch.tensor([[4.0, 8.0, 40.0, 50.0], [0.0, 0.0, 63.0, 10.5]])
MASKS = torch.linspace(-3, 3, 2 * 32 * 32).view(2, 1, 32, 32)
PROMPTS = [(POINTS, None, None), (None, BOXES, None), (POINTS, BOXES, None), (POINTS, None, MASKS)]


def encoder() -> DrawnPromptEncoder:
    """For an input of 64 pixels and cells of 8, every weight away from its first value, in float64."""
    torch.manual_seed(0)
    made = DrawnPromptEncoder(16, (8, 8), (64, 64), mask_in_chans=4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.double()


@torch.no_grad()
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("rows", [3, 1024])
def test_cells_are_the_image_with_the_grounded_prompt(prompts: tuple, rows: int, monkeypatch) -> None:  # type: ignore[no-untyped-def, type-arg]
    monkeypatch.setattr("segment_anything.modeling.prepared_mixer.CELLS_AT_ONCE", rows)
    plain, image = encoder(), torch.randn(1, 16, 8, 8, dtype=torch.float64)
    points, boxes, masks = prompts
    masks = None if masks is None else masks.double()
    sparse, dense = plain(points, boxes, masks)
    expected = image + plain.ground(dense, image)
    found_sparse, drawn = draw(plain, points, boxes, masks)
    everywhere = same_everywhere(drawn.dense)
    assert (everywhere is None) == (masks is not None)
    mixer = PreparedMixer(plain, image, everywhere)
    cells = mixer.cells(drawn, mixer.coarse(drawn))
    torch.testing.assert_close(cells, expected.flatten(2).transpose(1, 2))
    assert torch.equal(found_sparse, sparse)
    second = drawn[1:2]
    torch.testing.assert_close(mixer.cells(second, mixer.coarse(second)), cells[1:2])


@torch.no_grad()
def test_a_block_leaves_what_it_is_given_as_it_was() -> None:
    block, x = encoder().mixer.enter, torch.randn(2, 64, 4, 4, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    torch.testing.assert_close(mix(block, x), block(x))
    assert torch.equal(x, before)


def test_other_networks_and_watched_ones_are_not_prepared() -> None:
    plain = encoder()
    assert can_mix(plain)
    seen = []
    plain.mixer.enter.register_forward_hook(lambda module, args, out: seen.append(out))
    assert not can_mix(plain)
    other = encoder()
    other.drawing[2] = nn.Sequential(other.drawing[2])  # a wrapper that could do anything
    other.drawing.append(nn.Dropout())
    assert not can_mix(other)


@pytest.fixture(scope="module")
def nano() -> Sam:
    return load_sam("nano", "random", image_size=64)


LOGITS = np.linspace(-4, 4, 32 * 32, dtype=np.float32).reshape(1, 32, 32)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt.make([[20, 31]], [1]),
        Prompt.make([[20, 31], [40, 10]], [1, 0], box=[4, 8, 40, 50]),
        Prompt.make([[20, 31]], [1], mask_logits=LOGITS),
        Prompt.make(np.random.default_rng(0).uniform(0, 48, (14, 2)), [1] * 14),  # too many points to prepare
    ],
)
@pytest.mark.parametrize("multimask", [True, False, None])
def test_nano_answers_without_gradients_as_with(nano: Sam, prompt: Prompt, multimask: bool | None) -> None:
    embedding = nano.encode(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    slow = nano.decode(embedding, prompt, multimask)
    with torch.no_grad():
        fast = nano.decode(embedding, prompt, multimask)
    assert slow.low_res_logits.requires_grad
    torch.testing.assert_close(fast.low_res_logits, slow.low_res_logits.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.iou_predictions, slow.iou_predictions.detach(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_changed_weight_of_the_mixer_is_noticed() -> None:
    sam = load_sam("nano", "random", image_size=64)
    embedding = sam.encode(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    before = sam.decode(embedding, Prompt.make([[20, 31]], [1])).low_res_logits
    sam.prompt_encoder.get_submodule("mixer.down").weight.mul_(2)  # type: ignore[operator]
    after = sam.decode(embedding, Prompt.make([[20, 31]], [1])).low_res_logits
    with torch.enable_grad():
        expected = sam.decode(embedding, Prompt.make([[20, 31]], [1])).low_res_logits.detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masks_are_upscaled_in_every_type(dtype: torch.dtype) -> None:
    decoder = load_sam("nano", "random", image_size=64).mask_decoder.to(dtype)
    cells, tokens = torch.randn(1, 64, 128, dtype=dtype), torch.randn(1, 4, 128, dtype=dtype)
    upscaler = Upscaler(decoder, (8, 8))
    kernels = upscaler.kernels(tokens[:, 1:], slice(1, None))[0]
    found = upscaler.room(3, kernels)
    upscaler(lambda *part: linear(cells.view(8, 8, -1)[part].flatten(0, 1), *upscaler.first), kernels, found)
    expected = decoder.upscale(cells, (8, 8), tokens)[0, 1:]
    rough = dtype == torch.bfloat16
    assert found.dtype == expected.dtype == (torch.float32 if rough else dtype)
    torch.testing.assert_close(found, expected, rtol=0.05 if rough else 1e-3, atol=0.05 if rough else 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.ReLU(), nn.SiLU(), None])
@pytest.mark.parametrize(("rows", "width"), [(35, 16), (140, 16), (140, 256)], ids=["few rows", "small", "oneDNN"])
def test_a_product_with_its_activation_is_the_two_in_turn(activation: nn.Module | None, rows: int, width: int) -> None:
    assert (rows > FEW_ROWS, rows * width**2 >= SMALL_PRODUCT) == (rows == 140, width == 256)
    x, weight, bias = torch.randn(rows // 7, 7, width), torch.randn(width, width), torch.randn(width)
    expected = nn.functional.linear(x, weight, bias)
    expected = expected if activation is None else activation(expected)
    torch.testing.assert_close(linear(x, weight, bias, activation), expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(7, 256), (2, 5, 256), (64, 256), (65, 256)])
def test_few_rows_meet_a_large_weight_in_pieces(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(2048, 256), torch.randn(2048)
    threads = torch.get_num_threads()
    try:
        for some in (1, 2):
            torch.set_num_threads(some)
            expected = nn.functional.linear(x.double(), weight.double(), bias.double())
            torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=1e-4, atol=1e-4)
            without = linear(x, weight, None).double()
            torch.testing.assert_close(without, expected - bias.double(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                linear(x, weight, bias, nn.ReLU()).double(), expected.relu(), rtol=1e-4, atol=1e-4
            )
    finally:
        torch.set_num_threads(threads)


def test_parts_of_drawn_prompts_are_of_the_same_objects() -> None:
    drawn = Drawn(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3.0).view(3, 1, 1, 1) + 10)
    assert drawn[1:].hidden.flatten().tolist() == [1, 2]
    assert drawn[1:].dense.flatten().tolist() == [11, 12]
