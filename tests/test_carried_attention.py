"""Weights carried over to the tokens against projecting the cells: values, gradients, and when it stands back."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segment_anything.modeling.carried_attention import can_carry, cells_to_tokens, scores, tokens_to_cells
from segment_anything.modeling.lora import add_lora
from segment_anything.modeling.transformer import Attention, TwoWayTransformer

CELLS = 40


def toy_attention(width: int = 16, heads: int = 2) -> Attention:
    torch.manual_seed(0)
    return Attention(width, heads, downsample_rate=2).double()


def plainly(attention: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The textbook: project everything, compare, weigh, project."""
    heads = attention.num_heads
    q, k, v = (
        layer(x).unflatten(2, (heads, -1)).transpose(1, 2)
        for layer, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    shares = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    projected: torch.Tensor = attention.out_proj((shares @ v).transpose(1, 2).flatten(2))
    return projected


@pytest.mark.parametrize("is_adapted", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("looks", [tokens_to_cells, cells_to_tokens])
def test_values_and_all_gradients_are_those_of_projected_cells(looks, is_adapted: bool) -> None:
    attention = toy_attention()
    if is_adapted:
        add_lora(attention, rank=2)
        nn.init.normal_(attention.q_proj.parametrizations.weight[0].up)
    tokens, cells = (3, 4, 16), (3, CELLS, 16)
    shapes = (tokens, cells, cells) if looks is tokens_to_cells else (cells, tokens, tokens)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    learned = [parameter for parameter in attention.parameters() if parameter.requires_grad]
    fast, plain = looks(attention, *inputs), plainly(attention, *inputs)
    torch.testing.assert_close(fast, plain)
    weights = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad((fast * weights).sum(), inputs + learned),
        torch.autograd.grad((plain * weights).sum(), inputs + learned),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_transformer_learns_what_it_predicts_without_gradients() -> None:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=2, mlp_dim=16)
    inputs = torch.randn(2, 32, 8, 8), torch.randn(1, 32, 8, 8), torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = transformer(*inputs)
    for ours, theirs in zip(transformer(*inputs), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)


def multiplications(attention: Attention, *inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        attention(*inputs)
    return counter.get_total_flops()


def test_training_takes_it_and_only_where_it_saves_work() -> None:
    attention = toy_attention()
    few, many, cells = (torch.randn(1, count, 16, dtype=torch.float64) for count in (2, 5, CELLS))

    def saved(*inputs: torch.Tensor) -> int:
        with torch.no_grad():  # projects the cells
            plainly = multiplications(attention, *inputs)
        return plainly - multiplications(attention, *inputs)

    assert saved(few, cells, cells) > 0
    assert saved(cells, few, few) > 0
    assert saved(few, few, few) == 0
    # Two heads of five tokens are more than the eight channels of the inner width.
    assert saved(many, cells, cells) == 0


def test_layers_that_somebody_changed_are_called_as_they_are() -> None:
    attention = toy_attention()
    assert can_carry(attention, tokens=4, cells=CELLS)
    watched, replaced = copy.deepcopy(attention), copy.deepcopy(attention)
    watched.k_proj.register_forward_hook(lambda *_: None)
    replaced.out_proj = nn.Sequential(replaced.out_proj)
    assert not can_carry(watched, tokens=4, cells=CELLS)
    assert not can_carry(replaced, tokens=4, cells=CELLS)


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("cells", [64, 48, 49, 1])
def test_scores_are_products_in_however_many_pieces(objects: int, cells: int) -> None:
    tokens, image = torch.randn(objects, 5, 8).double(), torch.randn(objects, cells, 8).double()
    torch.testing.assert_close(scores(tokens, image), torch.einsum("brc,bnc->brn", tokens, image))
