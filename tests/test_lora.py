"""Low-rank adaptation starts as the model it adapts, trains few parameters, and merges into a plain checkpoint."""

import pytest
import torch
from torch import nn

from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.lora import add_lora, merge_lora, merged_copy
from segment_anything.modeling.nano import NanoEncoder


def vit() -> ImageEncoderViT:
    torch.manual_seed(0)
    return ImageEncoderViT(
        img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, out_chans=8, use_rel_pos=True, window_size=2
    )


@pytest.fixture(params=["vit", "nano"])
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module = vit() if request.param == "vit" else NanoEncoder(64, 8, (8, 8, 16, 16), (1, 1, 1, 1), heads=2)
    return module.eval()


def randomise(module: nn.Module) -> None:
    """Give the added matrices values, as training does."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)


def test_untrained_adaptation_changes_nothing(encoder: nn.Module) -> None:
    x = torch.randn(1, 3, 64, 64)
    before = encoder(x)
    add_lora(encoder, rank=2)
    assert torch.equal(encoder(x), before)


def test_only_the_added_matrices_are_trained(encoder: nn.Module) -> None:
    total = sum(p.numel() for p in encoder.parameters())
    add_lora(encoder, rank=2)
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert all(name.endswith((".down", ".up")) for name in trained)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) < total / 2
    encoder(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())


def test_merged_weights_predict_the_same_under_the_original_names(encoder: nn.Module) -> None:
    x = torch.randn(1, 3, 64, 64)
    names = list(encoder.state_dict())
    before = encoder(x)
    add_lora(encoder, rank=2)
    randomise(encoder)
    adapted = encoder(x)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_lora(encoder)
    assert sorted(encoder.state_dict()) == sorted(names)
    torch.testing.assert_close(encoder(x), adapted)


def test_merged_copy_leaves_the_model_as_it_is() -> None:
    encoder = vit()
    x = torch.randn(1, 3, 64, 64)
    assert merged_copy(encoder) is encoder
    add_lora(encoder, rank=2)
    randomise(encoder)
    plain = vit()
    plain.load_state_dict(merged_copy(encoder).state_dict())
    torch.testing.assert_close(plain(x), encoder(x))
    assert any(p.requires_grad for p in encoder.parameters())


def test_layers_are_chosen_by_name() -> None:
    encoder = vit()
    assert add_lora(encoder, wanted=lambda name: name.endswith("qkv")) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]


def test_rank_is_limited_by_the_layer() -> None:
    layer = nn.Sequential(nn.Linear(6, 4))
    add_lora(layer, rank=64)
    assert layer[0].parametrizations["weight"][0].up.shape == (4, 4)


def test_alpha_scales_the_added_matrix() -> None:
    layers = []
    for alpha in (None, 8.0):
        layer = nn.Sequential(nn.Linear(8, 8))
        nn.init.zeros_(layer[0].weight)
        add_lora(layer, rank=2, alpha=alpha)
        torch.manual_seed(1)
        randomise(layer)
        layers.append(layer[0].weight.detach())
    torch.testing.assert_close(layers[1], layers[0] * 4)


def test_bad_rank_is_named() -> None:
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
        add_lora(vit(), rank=0)


def test_module_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="LayerNorm has no layer to adapt"):
        add_lora(nn.LayerNorm(4))
