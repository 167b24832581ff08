"""The small model: its encoder at any size, and prompts drawn on the embedding grid."""

import numpy as np
import pytest
import torch
from torch import nn

from segment_anything import Prompt, load_sam
from segment_anything.modeling import DrawnPromptEncoder, NanoEncoder
from segment_anything.modeling.nano import AttentionBlock, build_nano_parts

FILL, U, V, ELLIPSE, NEAR_OBJECT, FAR_OBJECT, NEAR_BACKGROUND, FAR_BACKGROUND = range(8)


class Maps(nn.Module):
    """Keeps the drawn maps in place of the small network that turns them into channels."""

    drawn: torch.Tensor

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        self.drawn = maps
        return maps.new_zeros(maps.shape[0], 8, *maps.shape[-2:])


def maps(
    *, points: list[list[float]] | None = None, labels: list[int] | None = None, box: list[float] | None = None
) -> torch.Tensor:
    """The eight maps (8, 8, 8) of a prompt for an input of 64 pixels with cells of 8."""
    encoder = DrawnPromptEncoder(8, (8, 8), (64, 64), mask_in_chans=4)
    encoder.drawing = Maps()  # type: ignore[assignment]
    given = None if points is None else (torch.tensor([points]), torch.tensor([labels]))
    with torch.no_grad():
        encoder(given, None if box is None else torch.tensor([box]), None)
    return encoder.drawing.drawn[0]  # type: ignore[union-attr, return-value]


def corner(x: float, y: float) -> list[float]:
    """A corner on the border between cells: coordinates name centres of pixels, half a pixel from their edges."""
    return [8 * x - 0.5, 8 * y - 0.5]


def test_a_box_fills_the_cells_it_covers() -> None:
    drawn = maps(box=[*corner(2, 3), *corner(6, 5)])
    expected = torch.zeros(8, 8)
    expected[3:5, 2:6] = 1
    torch.testing.assert_close(drawn[FILL], expected)
    assert drawn[NEAR_OBJECT:].abs().max() == 0


def test_a_cell_covered_in_part_is_filled_in_part() -> None:
    drawn = maps(box=[*corner(2.5, 3), *corner(6, 4.75)])
    torch.testing.assert_close(drawn[FILL, 3, 1:7], torch.tensor([0, 0.5, 1, 1, 1, 0]))
    torch.testing.assert_close(drawn[FILL, 4, 2:4], torch.tensor([0.375, 0.75]))


def test_a_box_smaller_than_a_cell_is_not_lost() -> None:
    drawn = maps(box=[20, 20, 21, 21])
    assert float(drawn[FILL].sum()) == pytest.approx(1 / 64)
    assert float(drawn[FILL, 2, 2]) == pytest.approx(1 / 64)


def test_coordinates_of_the_box_run_from_minus_one_to_one() -> None:
    drawn = maps(box=[*corner(2, 2), *corner(6, 6)])
    steps = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    torch.testing.assert_close(drawn[U, 3, 2:6], steps)
    torch.testing.assert_close(drawn[V, 2:6, 3], steps)
    torch.testing.assert_close(drawn[V], drawn[U].T)
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert drawn[:4, outside].abs().max() == 0


def test_the_ellipse_is_high_in_the_middle_and_negative_in_the_corners() -> None:
    drawn = maps(box=[*corner(1, 1), *corner(7, 7)])
    assert drawn[ELLIPSE, 3, 3] > 0.9
    assert drawn[ELLIPSE, 1, 1] < 0
    assert drawn[ELLIPSE, 3, 1] > 0


def test_a_point_on_the_object_is_a_peak_in_its_cell() -> None:
    drawn = maps(points=[[35.5, 19.5]], labels=[1])  # the middle of cell 4, 2
    for width in (NEAR_OBJECT, FAR_OBJECT):
        assert drawn[width, 2, 4] == 1
        assert int(drawn[width].argmax()) == 2 * 8 + 4
    assert float(drawn[NEAR_OBJECT, 2, 5]) == pytest.approx(np.exp(-1 / (2 * 0.75**2)), rel=1e-4)
    assert float(drawn[FAR_OBJECT, 2, 7]) == pytest.approx(np.exp(-9 / (2 * 3.0**2)), rel=1e-4)
    assert drawn[:NEAR_OBJECT].abs().max() == 0
    assert drawn[NEAR_BACKGROUND:].abs().max() == 0


def test_points_on_background_have_maps_of_their_own() -> None:
    drawn = maps(points=[[35.5, 19.5], [3.5, 59.5]], labels=[1, 0])
    assert int(drawn[NEAR_OBJECT].argmax()) == 2 * 8 + 4
    assert int(drawn[NEAR_BACKGROUND].argmax()) == 7 * 8
    assert drawn[NEAR_OBJECT, 7, 0] < 1e-6


def test_many_points_of_a_kind_are_drawn_together_and_order_does_not_matter() -> None:
    first, second = [11.5, 11.5], [51.5, 43.5]
    both = maps(points=[first, second], labels=[1, 1])
    torch.testing.assert_close(both, maps(points=[second, first], labels=[1, 1]))
    torch.testing.assert_close(both, torch.maximum(maps(points=[first], labels=[1]), maps(points=[second], labels=[1])))


def test_padding_points_are_not_drawn() -> None:
    padded = maps(points=[[11.5, 11.5], [51.5, 43.5]], labels=[1, -1])
    torch.testing.assert_close(padded, maps(points=[[11.5, 11.5]], labels=[1]))


def test_tokens_are_those_of_the_plain_prompt_encoder() -> None:
    encoder = DrawnPromptEncoder(8, (8, 8), (64, 64), mask_in_chans=4)
    points = torch.tensor([[[11.5, 11.5]]]), torch.tensor([[1]])
    with torch.no_grad():
        sparse, dense = encoder(points, None, None)
        plain_sparse, plain_dense = super(DrawnPromptEncoder, encoder).forward(points, None, None)
    assert torch.equal(sparse, plain_sparse)
    assert dense.shape == plain_dense.shape
    assert not torch.equal(dense, plain_dense)


def test_a_prompt_of_nothing_draws_nothing() -> None:
    assert maps().abs().max() == 0


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 32)])
def test_the_encoder_takes_any_multiple_of_32(size: tuple[int, int]) -> None:
    encoder = NanoEncoder(64, out_chans=16, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=2).eval()
    with torch.no_grad():
        embedding = encoder(torch.randn(2, 3, *size))
    assert embedding.shape == (2, 16, size[0] // 8, size[1] // 8)


@pytest.mark.parametrize(("size", "nearest"), [(500, 512), (40, 32), (1, 32)])
def test_other_image_sizes_are_refused(size: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=rf"multiple of 32 for nano, got {size}; the nearest is {nearest}"):
        NanoEncoder(size)


def test_the_same_weights_serve_every_size_of_input() -> None:
    small, large = load_sam("nano", "random", image_size=64), load_sam("nano", "random", image_size=128)
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == {
        name: tensor.shape for name, tensor in large.state_dict().items()
    }
    large.load_state_dict(small.state_dict())
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with torch.no_grad():
        decoded = large.decode(large.encode(picture), Prompt.make(box=[20, 20, 90, 90]), False)
    assert decoded.low_res_logits.shape == (1, 1, 64, 64)


def test_a_prompt_is_drawn_at_the_same_place_of_the_image_at_every_size_of_input() -> None:
    for size in (64, 128):
        encoder = DrawnPromptEncoder(8, (8, 8), (size, size), mask_in_chans=4)
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * size - 0.5
        expected = torch.zeros(8, 8)
        expected[2:6, 2:6] = 1
        torch.testing.assert_close(encoder._draw_boxes(box, torch.zeros(1, 8, 8, 8))[0, FILL], expected)


def test_attention_at_the_coarsest_stage_sees_the_whole_grid() -> None:
    block = AttentionBlock(8, heads=2).eval()
    x = torch.randn(1, 8, 5, 7)
    changed = x.clone()
    changed[..., 0, 0] += 1
    with torch.no_grad():
        difference = (block(changed) - block(x)).abs().amax(dim=1)[0]
    assert difference.shape == (5, 7)
    assert (difference > 0).all()


def test_nano_has_at_most_12_million_parameters_and_24_mebibytes_in_half_precision() -> None:
    parts = build_nano_parts()
    count = sum(p.numel() for part in parts for p in part.parameters())
    stored = sum(t.numel() for part in parts for t in part.state_dict().values())
    assert count <= 12_000_000
    assert 2 * stored <= 24 * 2**20
    assert (parts[0].img_size, parts[1].mask_input_size, parts[2].transformer_dim) == (512, (256, 256), 128)


def test_gradients_reach_every_weight_of_nano() -> None:
    sam = load_sam("nano", "random", image_size=64)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    prompts = [
        Prompt.make([[20, 20]], [1], box=[5, 5, 40, 40]),
        Prompt.make([[9, 9], [40, 40]], [0, 1], mask_logits=np.linspace(-1, 1, 32 * 32).reshape(1, 32, 32)),
    ]
    decoded = sam.decode(sam.encode(picture), prompts)
    (decoded.low_res_logits.square().mean() + decoded.iou_predictions.square().mean()).backward()
    assert {name for name, p in sam.named_parameters() if p.grad is None} == set()
