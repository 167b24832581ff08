"""The encoder's ways without gradients give what the plain layers give."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from segment_anything.modeling.attention import blocked_attention, fused_attention, relative_attention, relative_scores
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT
from segment_anything.modeling.linear import SMALL_PRODUCT, apply_linear, apply_mlp, linear


@pytest.mark.parametrize("score_bytes", [1, 500, 4000, 2**20])
@pytest.mark.parametrize("size_hw", [(3, 5), (7, 7)])
@torch.no_grad()
def test_attention_in_pieces_is_attention(score_bytes: int, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    h, w = size_hw
    q, k, v = torch.randn(2, h * w, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
    tables = torch.randn(2 * h - 1, 6), torch.randn(2 * w - 1, 6)
    rows, columns = relative_scores(q, size_hw, *tables)
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(3)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    found = [
        relative_attention(q, k, v, size_hw, *tables, score_bytes),  # whichever of the two this processor likes better
        fused_attention((q, k, v), (rows, columns), score_bytes),
        blocked_attention((q, k, v), (rows, columns), score_bytes),
    ]
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tokens_lie_channel_by_channel_from_the_first_block_on() -> None:
    encoder = ImageEncoderViT(32, embed_dim=8, depth=1, num_heads=2, out_chans=4, use_rel_pos=True)
    seen: list[bool] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    encoder(torch.randn(1, 3, 32, 32))
    assert seen == [True]  # anything else is turned by every sum and norm of every block, a twentieth of ViT-B's time


@pytest.mark.parametrize("window", [0, 3])
def test_a_block_without_gradients_equals_one_with(window: int) -> None:
    torch.manual_seed(0)
    block = Block(16, 2, use_rel_pos=True, rel_pos_zero_init=False, window_size=window, input_size=(5, 7)).eval()
    x = torch.randn(2, 5, 7, 16)
    slow = block(x)
    with torch.no_grad():
        fast = block(x)
    assert slow.requires_grad
    assert not fast.requires_grad
    torch.testing.assert_close(fast, slow.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("piece_bytes", [1, 3 * 12 * 4, 2**20], ids=["a row", "three rows", "all"])
@torch.no_grad()
def test_a_hidden_layer_in_pieces_is_the_hidden_layer(piece_bytes: int) -> None:
    torch.manual_seed(0)
    mlp, x = MLPBlock(8, 12), torch.randn(2, 5, 8)
    expected = mlp.lin2(mlp.act(mlp.lin1(x)))
    found = apply_mlp(mlp.lin1, mlp.act, mlp.lin2, x, whole_bytes=1, piece_bytes=piece_bytes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_watched_layer_sees_all_of_its_input_at_once() -> None:
    mlp, x, seen = MLPBlock(8, 12), torch.randn(2, 5, 8), []
    mlp.lin2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    apply_mlp(mlp.lin1, mlp.act, mlp.lin2, x, whole_bytes=1, piece_bytes=1)
    assert seen == [(2, 5, 12)]


@torch.no_grad()
def test_only_where_nobody_watches_are_windows_projected_a_row_at_a_time() -> None:
    attention, x, seen = Attention(8, 2), torch.randn(1, 5, 7, 8), []
    attention.proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    in_rows = attention(x, 3)
    attention.qkv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    torch.testing.assert_close(attention(x, 3), in_rows)
    assert seen == [(1, 5, 7, 8)] * 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(140, 256), (2, 7, 10, 256), (5, 256), (0, 256)])
@pytest.mark.parametrize("has_wide_vectors", [False, True])
@torch.no_grad()
def test_linear_layers_are_linear_layers(
    bias: bool, shape: tuple[int, ...], has_wide_vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segment_anything.modeling.linear.has_wide_vectors", lambda: has_wide_vectors)
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 256, bias=bias), torch.randn(shape)
    assert 140 * layer.weight.numel() >= SMALL_PRODUCT  # so many rows are oneDNN's
    torch.testing.assert_close(apply_linear(layer, x), layer(x), rtol=1e-5, atol=1e-5)
    for activation in (nn.GELU(), nn.GELU("tanh"), nn.ReLU()):
        expected = activation(layer(x))
        torch.testing.assert_close(apply_linear(layer, x, activation), expected, rtol=1e-5, atol=1e-5)
        bare = linear(x, layer.weight, layer.bias, activation)
        torch.testing.assert_close(bare, expected, rtol=1e-5, atol=1e-5)


class Doubled(nn.Linear):
    """A layer of somebody else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return layer


@pytest.mark.parametrize("make", [lambda: Doubled(4, 4), lambda: hooked(nn.Linear(4, 4))], ids=["subclass", "hook"])
@torch.no_grad()
def test_adapted_layers_are_called_as_they_are(make: Callable[[], nn.Linear]) -> None:
    layer, x = make(), torch.randn(3, 4)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(apply_linear(layer, x), 2 * plain)
    torch.testing.assert_close(apply_linear(layer, x, nn.GELU()), nn.GELU()(2 * plain))


def test_gradients_autocast_and_other_types_take_the_plain_way() -> None:
    block, x = MLPBlock(8, 16), torch.randn(3, 8)
    block(x).sum().backward()
    assert block.lin1.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert block.double()(x.double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # PyTorch's, whenever flags are set without an Intel GPU
@torch.no_grad()
def test_without_onednn_the_result_is_the_same() -> None:
    block, x = MLPBlock(8, 16), torch.randn(3, 8)
    with_onednn = block(x)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(block(x), with_onednn, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_bfloat16_stays_near_float32() -> None:
    torch.manual_seed(0)
    block = Block(16, 2, use_rel_pos=True, rel_pos_zero_init=False, window_size=3, input_size=(5, 7)).eval()
    x = torch.randn(1, 5, 7, 16)
    exact = block(x)
    assert (block.bfloat16()(x.bfloat16()).float() - exact).abs().max() < 0.1 * exact.abs().max()
