"""Prompts as tokens: where a point lies, what it is, and the one that is none."""

import pytest
import torch
from toy import toy_sam

from segment_anything.modeling import PromptEncoder

COORDS = torch.tensor([[[3.0, 40.0], [50.0, 9.0]], [[7.0, 7.0], [20.0, 31.0]]])
LABELS = torch.tensor([[1, 0], [1, -1]])
BOXES = torch.tensor([[4.0, 8.0, 40.0, 50.0], [0.0, 0.0, 63.0, 10.0]])


@torch.no_grad()
def test_points_without_a_box_are_followed_by_one_that_is_none() -> None:
    encoder = toy_sam().prompt_encoder
    alone, _ = encoder((COORDS, LABELS), None, None)
    somewhere = torch.cat([COORDS, torch.full((2, 1, 2), 17.0)], dim=1)
    none = torch.cat([LABELS, torch.full((2, 1), -1)], dim=1)
    with_boxes, _ = encoder((somewhere, none), BOXES, None)
    assert torch.equal(alone, with_boxes[:, :3])
    assert torch.equal(alone[0, 2], encoder.not_a_point_embed.weight[0])
    assert torch.equal(alone[1, 1], alone[0, 2])  # wherever such a point lies


@torch.no_grad()
def test_a_token_is_the_code_of_its_place_and_what_it_is() -> None:
    encoder = toy_sam().prompt_encoder
    tokens, _ = encoder((COORDS, LABELS), None, None)
    code = encoder.pe_layer.forward_with_coords(COORDS + 0.5, (64, 64))
    torch.testing.assert_close(tokens[0, 0], code[0, 0] + encoder._role(1)[0])
    torch.testing.assert_close(tokens[0, 1], code[0, 1] + encoder._role(0)[0])
    corners, _ = encoder(None, BOXES, None)
    assert corners.shape == (2, 2, 32)


@torch.no_grad()
def test_no_prompt_at_all_is_no_token() -> None:
    encoder = toy_sam().prompt_encoder
    tokens, dense = encoder(None, None, None)
    assert tokens.shape == (1, 0, 32)
    assert dense.shape == (1, 32, *encoder.image_embedding_size)


@pytest.mark.parametrize("size_hw", [(64, 64), (32, 128), (96, 24)])
@torch.no_grad()
def test_a_place_is_coded_by_its_share_of_the_width_and_of_the_height(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(16, (8, 8), size_hw, mask_in_chans=4)
    height, width = size_hw
    shares = torch.tensor([[0.25, 0.75], [0.5, 0.125]])
    coded = encoder.pe_layer.forward_with_coords(shares * torch.tensor([width, height]), size_hw)
    torch.testing.assert_close(coded, encoder.pe_layer._pe_encoding(shares))
