"""The fused attention of a grid of tokens: its kernels (in Triton's interpreter) and its operator of PyTorch."""

from functools import partial

import pytest
import torch
from triton_kernels import DEVICE, needs_triton

from segment_anything.modeling.attention import grid_attention_plain
from segment_anything.modeling.cuda import grid_attention as module
from segment_anything.modeling.cuda.grid_attention import (
    Kind,
    Launch,
    choose_launch,
    give_up,
    grid_attention,
    kernels_can,
    launch,
    power_of_two,
    split_width,
)
from segment_anything.modeling.image_encoder import Attention

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

BY_ROWS = Launch(queries=16, keys=0, warps=4, stages=1)
BY_BLOCKS = Launch(queries=16, keys=16, warps=4, stages=1)


def inputs(
    shape: tuple[int, int, int], heads: int, width: int, window: int = 0, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Queries, keys, values of a (B, H, W) grid, padding and tables; scores of the order of 1."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    where = partial(torch.Tensor.to, device=DEVICE, dtype=dtype)
    rows, columns = (window, window) if window else shape[1:]
    return (
        where(draw(*shape, 3 * heads * width)),
        where(draw(3 * heads * width)),
        where(draw(2 * rows - 1, width) * 0.3),
        where(draw(2 * columns - 1, width) * 0.3),
    )


@needs_triton
@pytest.mark.parametrize("plan", [BY_ROWS, BY_BLOCKS], ids=["rows", "blocks"])
@pytest.mark.parametrize("width", [16, 64, 80])
def test_the_kernel_over_a_whole_grid_is_plain_attention(plan: Launch, width: int) -> None:
    given = inputs((1, 3, 5), heads=2, width=width)
    expected = grid_attention_plain(*given, 2, 0)
    torch.testing.assert_close(launch(*given, 2, 0, plan), expected, rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("plan", [BY_ROWS, BY_BLOCKS], ids=["rows", "blocks"])
@pytest.mark.parametrize("size_hw", [(6, 6), (4, 5), (2, 2)], ids=str)
def test_the_kernel_in_windows_sees_padding_beyond_the_grid(plan: Launch, size_hw: tuple[int, int]) -> None:
    given = inputs((2, *size_hw), heads=2, width=16, window=3)
    expected = grid_attention_plain(*given, 2, 3)
    torch.testing.assert_close(launch(*given, 2, 3, plan), expected, rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("plan", [BY_ROWS, BY_BLOCKS], ids=["rows", "blocks"])
def test_the_kernel_without_a_bias_sees_zeros_beyond_the_grid(plan: Launch) -> None:
    qkv, _, *tables = inputs((1, 2, 4), heads=1, width=16, window=3)
    expected = grid_attention_plain(qkv, None, *tables, 1, 3)
    torch.testing.assert_close(launch(qkv, None, *tables, 1, 3, plan), expected, rtol=1e-5, atol=1e-5)


@needs_triton
def test_the_kernel_takes_windows_of_the_published_size_at_batch_one_with_the_published_launch() -> None:
    given = inputs((1, 14, 14), heads=1, width=80, window=14)
    expected = grid_attention_plain(*given, 1, 14)
    plan = choose_launch((14, 14), torch.float16)
    torch.testing.assert_close(launch(*given, 1, 14, plan), expected, rtol=1e-5, atol=1e-5)


@needs_triton
def test_the_kernel_takes_a_wide_grid_with_the_published_launch() -> None:
    given = inputs((1, 2, 32), heads=1, width=16)
    plan = choose_launch((2, 32), torch.float16)
    assert plan.keys == 0
    expected = grid_attention_plain(*given, 1, 0)
    torch.testing.assert_close(launch(*given, 1, 0, plan), expected, rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("width", [3, 24])
def test_the_kernel_takes_heads_of_any_width_and_tables_of_another_length(width: int) -> None:
    qkv, padding, _, _ = inputs((1, 3, 4), heads=1, width=width)
    _, _, *tables = inputs((1, 5, 2), heads=1, width=width)
    expected = grid_attention_plain(qkv, padding, *tables, 1, 0)
    torch.testing.assert_close(launch(qkv, padding, *tables, 1, 0, BY_ROWS), expected, rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("plan", [BY_ROWS, BY_BLOCKS], ids=["rows", "blocks"])
def test_the_kernel_in_half_precision_keeps_its_softmax_in_full(plan: Launch) -> None:
    given = inputs((1, 4, 4), heads=1, width=16, dtype=torch.float16)
    exact = grid_attention_plain(*(tensor.double() for tensor in given), 1, 0)
    found = launch(*given, 1, 0, plan)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), exact, rtol=4e-3, atol=4e-3)


@needs_triton
def test_the_kernel_bears_scores_that_overflow_an_exponential() -> None:
    qkv, padding, *tables = inputs((1, 3, 3), heads=1, width=16)
    given = qkv * 30, padding, *tables
    found = launch(*given, 1, 0, BY_BLOCKS)
    assert found.isfinite().all()
    torch.testing.assert_close(found, grid_attention_plain(*given, 1, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("with_padding", [True, False])
def test_the_operator_keeps_the_contract_of_pytorch(window: int, with_padding: bool) -> None:
    qkv, padding, *tables = (tensor.double().requires_grad_() for tensor in inputs((1, 2, 4), 2, 3, window))
    given = qkv, padding if with_padding else None, *tables, 2, window
    torch.library.opcheck(
        grid_attention, given, test_utils=["test_schema", "test_autograd_registration", "test_faketensor"]
    )


@pytest.mark.slow
def test_a_compiler_sees_the_operator_and_its_gradient() -> None:
    given = tuple(tensor.double().requires_grad_() for tensor in inputs((1, 2, 2), 1, 2))
    torch.library.opcheck(grid_attention, (*given, 1, 0), test_utils=["test_aot_dispatch_dynamic"])


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("with_padding", [True, False])
def test_gradients_of_the_operator_are_those_of_plain_attention(window: int, with_padding: bool) -> None:
    qkv, padding, *tables = (tensor.double().requires_grad_() for tensor in inputs((2, 4, 5), 2, 3, window))
    wanted = [qkv, *tables, *([padding] if with_padding and window else [])]
    given = qkv, padding if with_padding else None, *tables, 2, window
    weights = torch.randn(2, 4, 5, 6, dtype=torch.float64, device=DEVICE)
    ours = torch.autograd.grad((grid_attention(*given) * weights).sum(), wanted)
    plain = torch.autograd.grad((grid_attention_plain(*given) * weights).sum(), wanted)
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_parameters_of_a_wider_type_keep_theirs_as_under_autocast() -> None:
    qkv, padding, *tables = (tensor.requires_grad_() for tensor in inputs((1, 4, 5), 2, 3, 3))
    narrow = qkv.detach().bfloat16().requires_grad_()
    out = grid_attention(narrow, padding, *tables, 2, 3)
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().sum(), [narrow, padding, *tables])
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, *[torch.float32] * 3]
    exact = torch.autograd.grad(grid_attention(qkv, padding, *tables, 2, 3).sum(), [qkv, padding, *tables])
    for rough, wanted in zip(gradients, exact, strict=True):
        torch.testing.assert_close(rough.float(), wanted, rtol=0.1, atol=0.1)


def test_shapes_are_known_without_computing() -> None:
    given = [None if tensor is None else tensor.to("meta") for tensor in inputs((2, 4, 5), 2, 16)]
    found = grid_attention(*given, 2, 0)
    assert (found.shape, found.device.type) == ((2, 4, 5, 32), "meta")


def test_a_layer_computes_what_the_operator_computes() -> None:
    torch.manual_seed(0)
    layer = Attention(16, num_heads=2, use_rel_pos=True, rel_pos_zero_init=False, input_size=(3, 3))
    x = torch.randn(1, 4, 5, 16)
    attended = grid_attention(layer.qkv(x), layer.qkv.bias, layer.rel_pos_h, layer.rel_pos_w, 2, 3)
    torch.testing.assert_close(layer(x, 3), layer.proj(attended))


@pytest.mark.parametrize(
    ("width", "parts"), [(80, (64, 16)), (64, (64, 0)), (16, (16, 0)), (3, (16, 0)), (72, (64, 16))]
)
def test_a_head_is_split_into_powers_of_two(width: int, parts: tuple[int, int]) -> None:
    assert split_width(width) == parts


def test_sides_grow_to_what_a_product_of_the_gpu_takes() -> None:
    assert [power_of_two(size) for size in (1, 16, 17, 64, 127)] == [16, 16, 32, 64, 128]


def test_rows_are_taken_whole_where_they_nearly_fill_a_power_of_two() -> None:
    assert choose_launch((64, 64), torch.bfloat16) == module.WHOLE_GRID
    assert choose_launch((14, 14), torch.bfloat16) == module.WINDOW
    assert choose_launch((40, 40), torch.bfloat16) == module.WINDOW
    assert choose_launch((64, 64), torch.float32).keys == 0
    assert choose_launch((14, 14), torch.float32).keys == 32


@needs_triton
def test_what_the_kernels_cannot_take_is_left_to_plain_attention() -> None:
    assert kernels_can(torch.empty(1, 2, 2, 48), 1)
    assert not kernels_can(torch.empty(1, 2, 2, 48, dtype=torch.float64), 1)
    assert not kernels_can(torch.empty(0, 2, 2, 48), 1)
    assert not kernels_can(torch.empty(1, 2, 2, 3 * 512), 1)


@needs_triton
def test_a_kernel_that_fails_says_so_and_is_left_alone_for_its_kind() -> None:
    failed: set[Kind] = set()
    qkv = torch.empty(1, 2, 2, 48, dtype=torch.float16)
    with pytest.warns(UserWarning, match=r"fused attention does not run on cpu in torch\.float16: out of resource"):
        give_up(qkv, 1, RuntimeError("out of resource\nmore"), failed)
    assert not kernels_can(qkv, 1, failed)
    assert kernels_can(qkv, 2, failed)
    assert kernels_can(qkv.float(), 1, failed)
    assert kernels_can(qkv, 1)  # what a test noted is no failure of this process
