"""MobileSAM's image encoder: the published names and shapes, and its outputs under deterministic weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from filled import filled
from PIL import Image
from torch import nn

from segment_anything.modeling.fuse import apply_bottleneck
from segment_anything.modeling.tiny_vit import Attention, ConvNorm, TinyViT, TinyViTBlock, distance_index

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def encoder() -> TinyViT:
    """The published sizes under the weights of the parity files."""
    encoder = TinyViT(img_size=128).eval()
    encoder.load_state_dict(filled(encoder.state_dict(), prefix="image_encoder."))
    return encoder


def small_encoder() -> TinyViT:
    torch.manual_seed(0)
    return TinyViT(img_size=64, embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), out_chans=8)


def waves(height: int, width: int) -> torch.Tensor:
    """(1, 3, H, W): a smooth coloured pattern that needs no file."""
    y, x = torch.arange(height)[:, None] / 17, torch.arange(width)[None, :] / 11
    return torch.stack([torch.sin(y + x), torch.cos(y - 2 * x), torch.sin(3 * y) * torch.cos(x)])[None]


def test_names_shapes_and_order_are_those_of_the_published_checkpoint() -> None:
    published = json.loads((DATA / "manifests" / "vit_t.json").read_text())
    expected = {name: shape for name, shape in published.items() if name.startswith("image_encoder.")}
    with torch.device("meta"):
        entries = {f"image_encoder.{name}": list(tensor.shape) for name, tensor in TinyViT().state_dict().items()}
    assert entries == expected
    assert list(entries) == list(expected)


def test_embedding_of_a_small_pattern_is_the_one_kept_when_parity_was_shown(encoder: TinyViT) -> None:
    with torch.no_grad():
        embedding = encoder(waves(128, 128))
    expected = np.load(DATA / "vit_t_waves.npz")["embedding"]
    assert embedding.shape == (1, 256, 8, 8)
    assert np.abs(embedding[0, ::8].numpy() - expected).max() < 1e-4 * expected.std()


def test_embedding_of_the_parity_photo_equals_the_published_network(encoder: TinyViT, shared: Path) -> None:
    expected = np.load(shared / "parity" / "vit_t.npz")
    with Image.open(shared / "images" / "truck.jpg") as file:
        photo = file.convert("RGB").resize((1024, 683), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = torch.nn.functional.pad((pixels - mean[:, None, None]) / std[:, None, None], (0, 0, 0, 1024 - 683))
    with torch.no_grad():
        embedding = encoder(x[None])[0]
    deviation = np.abs(embedding[::16, ::4, ::4].numpy() - expected["embedding"]).max() / expected["embedding"].std()
    assert deviation < 1e-4
    np.testing.assert_allclose([embedding.mean(), embedding.std()], expected["embedding_mean_std"], rtol=1e-4)


@pytest.mark.parametrize("size", [16, 48, 80, 112])
def test_any_multiple_of_16_gives_one_cell_per_16_pixels(size: int) -> None:
    with torch.no_grad():
        embedding = small_encoder().eval()(waves(size, size))
    assert embedding.shape == (1, 8, size // 16, size // 16)
    assert embedding.isfinite().all()


def test_image_size_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(ValueError, match="img_size must be a positive multiple of 16; got 1000"):
        TinyViT(img_size=1000)


def test_stage_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one entry a stage each; got 4, 3, 4 and 4 entries"):
        TinyViT(depths=(2, 2, 6))


def test_distance_index_counts_rows_and_columns_apart() -> None:
    index = distance_index(3)  # tokens 0 1 2 / 3 4 5 / 6 7 8
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # from the corner: dy * 3 + dx
    assert index[4].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4]  # from the middle
    assert torch.equal(index, index.T)


def test_attention_equals_the_formula_written_out() -> None:
    torch.manual_seed(1)
    layer = Attention(dim=6, num_heads=2, window_size=2).double()
    torch.nn.init.normal_(layer.attention_biases)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    index = distance_index(2)
    rows = layer.qkv(layer.norm(x))
    heads = []
    for head in range(2):
        q, k, v = rows[..., 9 * head : 9 * head + 9].split(3, dim=-1)
        scores = q @ k.transpose(1, 2) / math.sqrt(3) + layer.attention_biases[head][index]
        heads.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, dim=-1)))


def test_windows_do_not_see_each_other_except_through_the_convolution() -> None:
    torch.manual_seed(2)
    block = TinyViTBlock(dim=4, num_heads=2, window_size=4, mlp_ratio=2.0).eval()
    x = torch.randn(1, 4, 8, 8)
    changed = x.clone()
    changed[0, 0, 7, 7] += 1.0  # in the lower right window
    with torch.no_grad():
        moved = (block(x) - block(changed)).abs().amax(dim=1)[0] > 1e-6
    assert moved[4:, 4:].all()
    assert moved[3, 3:].all()
    assert moved[3:, 3].all()
    assert not moved[:3].any()
    assert not moved[:, :3].any()


def test_a_batch_gives_what_its_images_give_alone() -> None:
    encoder = small_encoder().eval()
    first, second = waves(64, 64), -waves(64, 64)
    with torch.no_grad():
        together = encoder(torch.cat([first, second]))
        alone = torch.cat([encoder(first), encoder(second)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stripe_bytes", [1, 3 * 7 * 8 * 4 * 2, 2**20], ids=["a row", "three rows", "all"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [5, 6, 1])
@torch.no_grad()
def test_a_bottleneck_in_stripes_is_the_bottleneck(height: int, stride: int, stripe_bytes: int) -> None:
    torch.manual_seed(0)
    convolutions = ConvNorm(4, 8), ConvNorm(8, 8, kernel=3, stride=stride, groups=8), ConvNorm(8, 6)
    for layer in convolutions:
        nn.init.uniform_(layer.bn.weight, 0.5, 1.5)
        nn.init.normal_(layer.bn.bias)  # so that what lies beyond the map would not be zero by itself
        layer.bn.running_mean.normal_()
        layer.eval()
    x = torch.randn(2, 4, height, 7).contiguous(memory_format=torch.channels_last)
    widen, depthwise, narrow = convolutions
    expected = narrow(nn.functional.gelu(depthwise(nn.functional.gelu(widen(x)))))
    layers = [(layer.c, layer.bn) for layer in convolutions]
    found = apply_bottleneck(layers, x, nn.GELU(), whole_bytes=1, stripe_bytes=stripe_bytes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_parameter_on_the_way_to_the_embedding_learns() -> None:
    encoder = small_encoder().train()
    encoder(torch.cat([waves(64, 64), 1 - waves(64, 64)])).square().mean().backward()
    idle = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert idle == {"head.bias", "head.weight", "norm_head.bias", "norm_head.weight"}  # of the unused classifier


def test_bfloat16_weights_give_nearly_the_float32_embedding() -> None:
    encoder = small_encoder().eval()
    with torch.no_grad():
        exact = encoder(waves(64, 64))
        rough = encoder.to(torch.bfloat16)(waves(64, 64).to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.std()
