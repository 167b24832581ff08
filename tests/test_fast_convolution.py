"""Convolutions with their normalisation folded in give what the two layers give."""

import pytest
import torch
from torch import nn

from segment_anything.modeling import NanoEncoder, TinyViT
from segment_anything.modeling.fuse import apply_conv_norm, fold
from segment_anything.modeling.nano import ConvBlock


def worn(module: nn.Module) -> nn.Module:
    """Batch normalisation with statistics as after training."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)
            assert layer.running_var is not None
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module.eval()


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 6), (1, 2, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", [None, nn.GELU(), nn.Hardswish()])
@torch.no_grad()
def test_folded_convolutions_are_the_two_layers(
    kernel: int, stride: int, groups: int, bias: bool, memory_format: torch.memory_format, activation: nn.Module | None
) -> None:
    pair = worn(
        nn.Sequential(nn.Conv2d(6, 12, kernel, stride, kernel // 2, groups=groups, bias=bias), nn.BatchNorm2d(12))
    )
    x = torch.randn(2, 6, 7, 5).contiguous(memory_format=memory_format)
    expected = pair(x) if activation is None else activation(pair(x))
    torch.testing.assert_close(apply_conv_norm(pair[0], pair[1], x, activation), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: NanoEncoder(64), lambda: TinyViT(64)], ids=["nano", "tiny_vit"])
def test_an_encoder_without_gradients_equals_one_with(make: type[nn.Module]) -> None:
    encoder = worn(make())
    x = torch.randn(1, 3, 64, 64)
    slow = encoder(x)
    with torch.no_grad():
        fast = encoder(x)
    torch.testing.assert_close(fast, slow.detach(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_network_in_training_mode_is_normalised_by_its_batch() -> None:
    block = ConvBlock(4, 2).train()
    x = torch.randn(2, 4, 5, 5)
    before = block.widen[1].running_mean.clone()
    block(x)
    assert not torch.equal(block.widen[1].running_mean, before)


@torch.no_grad()
def test_folding_leaves_the_layers_as_they_were() -> None:
    pair = worn(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    fold(pair[0], pair[1])
    apply_conv_norm(pair[0], pair[1], torch.randn(1, 3, 2, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.state_dict().items())
