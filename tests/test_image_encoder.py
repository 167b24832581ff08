"""The published image encoder against plain versions of itself, written out here."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, linear, pad

from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling import attention as attention_module
from segment_anything.modeling.attention import (
    relative_attention,
    relative_table,
    window_partition,
    window_unpartition,
)
from segment_anything.modeling.image_encoder import Attention

Tables = tuple[torch.Tensor, torch.Tensor]


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size_hw: tuple[int, int], tables: Tables):
    """Softmax attention with every score of every head written down, one query and one key at a time."""
    h, w = size_hw
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    rows, columns = tables
    bias = torch.zeros_like(scores)
    for query in range(h * w):
        for key in range(h * w):
            row = rows[query // w - key // w + h - 1]
            column = columns[query % w - key % w + w - 1]
            bias[..., query, key] = (q[..., query, :] * (row + column)).sum(-1)
    return (scores + bias).softmax(dim=-1) @ v


def random_attention(h: int, w: int, heads: int = 2, width: int = 3) -> tuple[list[torch.Tensor], Tables]:
    generator = torch.Generator().manual_seed(h * 100 + w)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    qkv = [draw(2, heads, h * w, width) for _ in range(3)]
    return qkv, (draw(2 * h - 1, width), draw(2 * w - 1, width))


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 3), (2, 5), (4, 3)])
@pytest.mark.parametrize("gradients", [True, False])
def test_relative_attention_is_the_one_written_out(h: int, w: int, gradients: bool) -> None:
    qkv, tables = random_attention(h, w)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(relative_attention(*qkv, (h, w), *tables), plain_attention(*qkv, (h, w), tables))


def test_gradients_of_relative_attention_are_those_of_the_one_written_out() -> None:
    qkv, tables = random_attention(2, 3)
    inputs = [*qkv, *tables]
    ours = torch.autograd.grad(relative_attention(*qkv, (2, 3), *tables).square().sum(), inputs)
    plain = torch.autograd.grad(plain_attention(*qkv, (2, 3), tables).square().sum(), inputs)
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_heads_done_one_after_the_other_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, tables = random_attention(4, 3, heads=5)
    with torch.no_grad():
        together = relative_attention(*qkv, (4, 3), *tables)
        monkeypatch.setattr(attention_module, "SCORE_BYTES", 1)
        torch.testing.assert_close(relative_attention(*qkv, (4, 3), *tables), together)


def test_attention_without_tables_is_plain_attention() -> None:
    qkv, tables = random_attention(2, 3)
    zeros = (torch.zeros_like(tables[0]), torch.zeros_like(tables[1]))
    torch.testing.assert_close(relative_attention(*qkv, (2, 3), None, None), plain_attention(*qkv, (2, 3), zeros))


def test_a_relative_table_gives_the_row_of_each_offset() -> None:
    table = torch.arange(5.0)[:, None]
    assert relative_table(3, table)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


@pytest.mark.parametrize("size", [2, 5])
def test_a_relative_table_of_another_length_is_resampled_linearly(size: int) -> None:
    table = torch.randn(7, 3)
    resampled = interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    torch.testing.assert_close(relative_table(size, table), relative_table(size, resampled))
    assert relative_table(size, table).shape == (size, size, 3)


def test_a_resampled_relative_table_keeps_its_middle_and_its_type() -> None:
    table = torch.linspace(-3, 3, 7)[:, None]
    middle = relative_table(6, table)
    assert middle[2, 2, 0] == pytest.approx(0.0, abs=1e-6)
    assert (middle.diff(dim=0) > 0).all()
    assert relative_table(6, table.bfloat16()).dtype == torch.bfloat16


def attention_layer(window: int, qkv_bias: bool = True) -> Attention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention(
            8, num_heads=2, qkv_bias=qkv_bias, use_rel_pos=True, rel_pos_zero_init=False, input_size=(window, window)
        ).double()


def windowed_as_published(layer: Attention, x: torch.Tensor, window: int) -> torch.Tensor:
    """The published order: pad the tokens with zeros, cut windows, attend in each, join, cut off the padding."""
    batch, height, width, channels = x.shape
    bottom, right = (-height) % window, (-width) % window
    x = pad(x, (0, 0, 0, right, 0, bottom))
    out = torch.zeros_like(x)
    for b in range(batch):
        for top in range(0, height + bottom, window):
            for left in range(0, width + right, window):
                tokens = x[b, top : top + window, left : left + window].reshape(window * window, channels)
                q, k, v = linear(tokens, layer.qkv.weight, layer.qkv.bias).reshape(-1, 3, 2, 4).permute(1, 2, 0, 3)
                heads = plain_attention(q, k, v, (window, window), (layer.rel_pos_h, layer.rel_pos_w))
                joined = layer.proj(heads.transpose(0, 1).reshape(-1, channels))
                out[b, top : top + window, left : left + window] = joined.reshape(window, window, channels)
    return out[:, :height, :width]


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (3, 2), (1, 1)])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_windows_that_stick_out_see_padding_as_the_published_network(height: int, width: int, qkv_bias: bool) -> None:
    layer = attention_layer(window=2 if height == 4 else 3, qkv_bias=qkv_bias)
    window = 2 if height == 4 else 3
    x = torch.randn(2, height, width, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x, window), windowed_as_published(layer, x, window))


def test_gradients_through_padded_windows_are_those_of_the_published_order() -> None:
    layer = attention_layer(window=3)
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x, 3).square().sum(), inputs)
    plain = torch.autograd.grad(windowed_as_published(layer, x, 3).square().sum(), inputs)
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_windows_are_cut_in_row_order_and_joined_again() -> None:
    x = torch.arange(24).reshape(1, 4, 6, 1)
    windows = window_partition(x, 2)
    assert windows.shape == (6, 2, 2, 1)
    assert windows[1, ..., 0].tolist() == [[2, 3], [8, 9]]
    assert windows[3, ..., 0].tolist() == [[12, 13], [18, 19]]
    assert torch.equal(window_unpartition(windows, 2, (4, 6)), x)


def encoder(**options: object) -> ImageEncoderViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=8,
            depth=3,
            num_heads=2,
            out_chans=4,
            **options,  # type: ignore[arg-type]
        ).eval()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = encoder(use_rel_pos=True, window_size=3, global_attn_indexes=(2,))
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = model(images)
        assert together.shape == (3, 4, 4, 4)
        for image, embedding in zip(images, together, strict=True):
            torch.testing.assert_close(model(image[None])[0], embedding, atol=1e-5, rtol=1e-4)


def test_windows_keep_a_patch_from_what_is_far_away_and_a_global_block_does_not() -> None:
    local = encoder(use_rel_pos=True, window_size=2)
    wide = encoder(use_rel_pos=True, window_size=2, global_attn_indexes=(1,))
    image = torch.zeros(1, 3, 64, 64)
    changed = image.clone()
    changed[..., :16, :16] = 1
    with torch.no_grad():
        for model, reaches in ((local, False), (wide, True)):
            tokens = []
            for pixels in (image, changed):
                x = model.patch_embed(pixels)
                for block in model.blocks:
                    x = block(x)
                tokens.append(x)
            assert bool((tokens[0][:, 2:, 2:] != tokens[1][:, 2:, 2:]).any()) is reaches


def test_the_rate_of_dropped_paths_grows_with_depth() -> None:
    model = encoder(drop_path_rate=0.4)
    assert [block.drop_path for block in model.blocks] == [0.0, 0.2, 0.4]


def test_dropped_paths_drop_whole_images_in_training_only() -> None:
    block = encoder(drop_path_rate=0.5).blocks[2]
    branch = torch.ones(400, 1, 1, 1)
    assert torch.equal(block._dropped(branch), branch)
    block.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values, counts = block._dropped(branch).unique(return_counts=True)
    assert values.tolist() == [0, 2]
    assert 150 < int(counts[0]) < 250


@pytest.mark.parametrize(("size", "nearest"), [(1001, 1008), (100, 96), (5, 16)])
def test_an_image_size_that_patches_do_not_divide_is_refused(size: int, nearest: int) -> None:
    expected = rf"image_size must be a multiple of the patch size 16, got {size}; the nearest is {nearest}"
    with pytest.raises(ValueError, match=expected):
        ImageEncoderViT(img_size=size, embed_dim=8, depth=1, num_heads=2)


def test_relative_positions_need_the_size_of_the_grid() -> None:
    with pytest.raises(ValueError, match=r"input_size is needed with use_rel_pos: the token grid \(height, width\)"):
        Attention(8, num_heads=2, use_rel_pos=True)


def test_layers_may_be_exchanged() -> None:
    model = encoder(norm_layer=lambda width: nn.LayerNorm(width, eps=1e-3), act_layer=nn.ReLU)
    assert isinstance(model.blocks[0].mlp.act, nn.ReLU)
    assert model.blocks[0].norm1.eps == 1e-3
