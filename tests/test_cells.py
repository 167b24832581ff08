"""Upscaling as linear layers of cells against the decoder's own layers: values, gradients, and when it stands back."""

import copy

import pytest
import torch
from torch import nn

from segment_anything.modeling.cells import can_upscale, upscale
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.transformer import TwoWayTransformer


def toy_decoder(activation: type[nn.Module]) -> MaskDecoder:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=16)
    return MaskDecoder(transformer_dim=32, transformer=transformer, activation=activation)


@pytest.mark.parametrize("activation", [nn.GELU, nn.Hardswish])
def test_masks_and_all_gradients_are_those_of_the_layers(activation: type[nn.Module]) -> None:
    layers = toy_decoder(activation).output_upscaling.double()
    cells = torch.randn(2, 3 * 5, 32, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    inputs = [cells, kernels, *layers.parameters()]
    fast = upscale(layers, cells, (3, 5), kernels)
    grown = layers(cells.transpose(1, 2).unflatten(2, (3, 5)))
    plain = (kernels @ grown.flatten(2)).unflatten(2, (12, 20))
    torch.testing.assert_close(fast, plain)
    weights = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((plain * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_decoder_learns_by_cells_what_it_predicts_without_gradients() -> None:
    decoder = toy_decoder(nn.GELU)
    image, tokens = torch.randn(2, 16, 32), torch.randn(2, 4, 32)
    with torch.no_grad():
        expected = decoder.upscale(image, (4, 4), tokens)
    torch.testing.assert_close(decoder.upscale(image, (4, 4), tokens).detach(), expected)


def test_layers_that_somebody_changed_are_called_as_they_are() -> None:
    layers = toy_decoder(nn.GELU).output_upscaling
    assert can_upscale(layers)
    watched, replaced = copy.deepcopy(layers), copy.deepcopy(layers)
    watched[0].register_forward_hook(lambda *_: None)
    replaced[3] = nn.Sequential(replaced[3])
    assert not can_upscale(watched)
    assert not can_upscale(replaced)
    assert not can_upscale(layers[:4])
