"""Masks measured by tiles equal masks made at full size: scores, boxes, run lengths, counts of what was dropped."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from segment_anything import _tiles
from segment_anything._amg_fast import PackedMask, measure_tiled
from segment_anything._amg_filters import filter_proposals, measure_plain
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Proposals
from segment_anything._side_by_side import side_by_side
from segment_anything._tiles import PIXELS_FOR_THREADS, TileGrid, _make_axis, full_size_masks
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import decode_rle, mask_to_box, rle_area
from segment_anything.modeling import Decoded
from segment_anything.modeling.decoded import upscale_masks

KEEP_ALL = AutomaticMaskOptions(pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1, crop_nms_thresh=1)

SIZES = [  # original height, width, side of the input, side of the low-resolution masks
    (60, 90, 64, 16),
    (200, 133, 128, 32),
    (301, 517, 256, 64),
    (64, 64, 64, 16),
    (20, 31, 64, 16),  # smaller than the input
    (1, 300, 64, 16),
    (5, 5, 64, 64),
]


def blobs(count: int, low: int, seed: int = 0, noise: float = 0.0) -> torch.Tensor:
    """Smooth logits (count, low, low) with outlines of every kind, from -8 to 8."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(size=(count, 1, 5, 5)).astype(np.float32) * 8)
    smooth = interpolate(coarse, (low, low), mode="bicubic", align_corners=True)[:, 0]
    return smooth + torch.from_numpy(random.normal(size=smooth.shape).astype(np.float32)) * noise


def proposals(
    logits: torch.Tensor,
    geometry: ImageGeometry,
    crop: tuple[int, int, int, int] | None = None,
    image_size_hw: tuple[int, int] | None = None,
) -> Proposals:
    """One mask a click."""
    height, width = geometry.original_size_hw
    iou = torch.linspace(0.1, 0.9, len(logits))[:, None]
    decoded = Decoded(logits[:, None], iou, geometry)
    clicks = np.arange(2.0 * len(logits)).reshape(-1, 2)
    return Proposals(decoded, clicks, crop or (0, 0, width, height), image_size_hw or (height, width))


def both(
    batch: Proposals, options: AutomaticMaskOptions, threshold: float = 0.0
) -> tuple[tuple[Candidates, Counter[str]], tuple[Candidates, Counter[str]]]:
    results = []
    for measure in (measure_plain, measure_tiled):
        counts: Counter[str] = Counter()
        results.append((measure(batch.decoded, batch.points_xy, batch, options, threshold, counts), +counts))
    return results[0], results[1]


def assert_same(plain: Candidates, tiled: Candidates) -> None:
    assert len(plain) == len(tiled)
    for name in ("boxes_xyxy", "predicted_iou", "stability_score", "points_xy", "crop_boxes_xyxy"):
        assert np.array_equal(getattr(plain, name), getattr(tiled, name)), name
        assert getattr(plain, name).dtype == getattr(tiled, name).dtype, name
    for a, b in zip(plain.rles, tiled.rles, strict=True):
        assert a["size"] == b["size"]
        assert np.array_equal(np.asarray(a["counts"]), np.asarray(b["counts"]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_all_that_is_known_of_a_mask_is_the_same(size: tuple[int, int, int, int], noise: float) -> None:
    height, width, side, low = size
    batch = proposals(blobs(12, low, noise=noise), ImageGeometry((height, width), side))
    (plain, lost), (tiled, lost_tiled) = both(batch, KEEP_ALL)
    assert len(plain) == 12
    assert_same(plain, tiled)
    assert lost == lost_tiled


@pytest.mark.parametrize("threshold", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("offset", [0.0, 0.25, 1.0])
def test_other_thresholds_and_offsets_give_the_same(threshold: float, offset: float) -> None:
    options = AutomaticMaskOptions(stability_score_thresh=0.5, stability_score_offset=offset)
    batch = proposals(blobs(12, 32, noise=0.5), ImageGeometry((150, 200), 128))
    (plain, lost), (tiled, lost_tiled) = both(batch, options, threshold)
    assert_same(plain, tiled)
    assert lost == lost_tiled


def test_empty_full_and_tiny_masks_are_the_same() -> None:
    logits = torch.full((5, 16, 16), -9.0)
    logits[1] = 9
    logits[2, 15, 15] = 40  # the last corner, some of it in the padding
    logits[3, 0, 0] = 40
    logits[4, 5, 7] = 9.2  # a few pixels
    batch = proposals(logits, ImageGeometry((60, 64), 64))
    (plain, _), (tiled, _) = both(batch, KEEP_ALL)
    assert [rle_area(rle) for rle in tiled.rles][:2] == [0, 60 * 64]
    assert_same(plain, tiled)


def test_logits_at_a_threshold_count_as_below() -> None:
    logits = torch.zeros((2, 16, 16))
    logits[1] = 1.0
    batch = proposals(logits, ImageGeometry((64, 64), 64))
    (plain, _), (tiled, _) = both(batch, KEEP_ALL)
    assert [rle_area(rle) for rle in tiled.rles] == [0, 64 * 64]
    assert tiled.stability_score.tolist() == plain.stability_score.tolist() == [0.0, 0.0]
    assert_same(plain, tiled)


def test_masks_of_a_crop_lie_in_the_image_the_same() -> None:
    options = AutomaticMaskOptions(stability_score_thresh=0, min_mask_area=1500, max_mask_area=20000)
    kinds_lost = set()
    for crop in ((36, 10, 336, 250), (0, 0, 300, 240), (36, 0, 336, 240)):
        geometry = ImageGeometry((240, 300), 64)
        batch = proposals(blobs(60, 16, seed=3) - 7, geometry, crop, (270, 336))
        (plain, lost), (tiled, lost_tiled) = both(batch, options)
        assert_same(plain, tiled)
        assert lost == lost_tiled
        kinds_lost |= set(lost)
    assert kinds_lost == {"at_crop_edge", "outside_area_range"}


def test_a_run_over_the_foot_of_a_column_goes_on() -> None:
    logits = torch.full((1, 16, 16), -9.0)
    logits[0, :, 4:9] = 9
    batch = proposals(logits, ImageGeometry((64, 64), 64))
    (plain, _), (tiled, _) = both(batch, KEEP_ALL)
    assert len(np.asarray(tiled.rles[0]["counts"])) == 3
    assert_same(plain, tiled)


def test_a_few_tiles_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = proposals(blobs(9, 32), ImageGeometry((150, 200), 128))
    together = both(batch, KEEP_ALL)[1][0]
    monkeypatch.setattr(_tiles, "TILES_AT_ONCE", 5)
    assert_same(both(batch, KEEP_ALL)[1][0], together)


def test_only_tiles_along_outlines_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    values = TileGrid.values

    def counting(grid: TileGrid, logits: np.ndarray, mask: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        computed.append(len(mask))
        return values(grid, logits, mask, y, x)

    monkeypatch.setattr(TileGrid, "values", counting)
    y, x = np.mgrid[:64, :64]
    disc = torch.from_numpy((14 - np.hypot(x - 32, y - 32)).astype(np.float32))[None]
    both(proposals(disc, ImageGeometry((1024, 1024), 256)), KEEP_ALL)
    assert 0 < sum(computed) < 0.25 * (1024 // 32) * (1024 // 64)


def test_rows_of_tiles_full_of_outlines_are_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = blobs(2, 64)
    logits[0, 24:] = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32))
    decoded = Decoded(logits[None], torch.zeros(1, 2), ImageGeometry((1000, 700), 256))
    whole: list[tuple[int, int]] = []
    draw_rows = TileGrid.draw_rows

    def counting(grid: TileGrid, logits: np.ndarray, wanted: np.ndarray, *others: Any) -> None:
        whole.extend(map(tuple, np.argwhere(wanted).tolist()))
        draw_rows(grid, logits, wanted, *others)

    monkeypatch.setattr(TileGrid, "draw_rows", counting)
    assert torch.equal(decoded.masks(), decoded.logits() > 0)
    assert (0, 20) in whole
    assert (0, 31) in whole  # the last, of which 8 pixels lie inside
    assert len(whole) < 0.8 * 2 * 32


def test_the_whole_selection_is_the_same() -> None:
    options = AutomaticMaskOptions(
        pred_iou_thresh=0.3, stability_score_thresh=0.6, min_mask_region_area=20, overlap="iomin", min_mask_area=30
    )
    geometry = ImageGeometry((150, 200), 128)
    batches = [proposals(blobs(16, 32, seed, noise=0.5), geometry) for seed in range(3)]
    plain, explained = filter_proposals(batches, options, measure=measure_plain)
    tiled, explained_tiled = filter_proposals(batches, options)
    assert any(isinstance(rle["counts"], PackedMask) for rle in tiled.rles)
    assert 0 < len(plain) < 48
    assert_same(plain, tiled)
    assert explained == explained_tiled


def test_masks_never_made_are_counted_as_too_low() -> None:
    geometry, options = ImageGeometry((60, 64), 64), AutomaticMaskOptions(pred_iou_thresh=0.5, stability_score_thresh=0)
    everything = proposals(blobs(9, 16), geometry)
    found, explained = filter_proposals([everything], options)
    good = everything.decoded.iou_predictions[:, 0] > 0.5
    decoded = Decoded(everything.decoded.low_res_logits[good], everything.decoded.iou_predictions[good], geometry)
    some = Proposals(
        decoded, everything.points_xy[good.numpy()], everything.crop_box_xyxy, (60, 64), 9 - len(decoded), 9
    )
    found_some, explained_some = filter_proposals([some], options)
    assert explained.low_predicted_iou == explained_some.low_predicted_iou > 0
    assert explained == explained_some
    assert_same(found, found_some)


def test_tile_weights_upsample_like_torch() -> None:
    for low, side, inside, out in ((16, 64, 64, 150), (16, 64, 43, 20), (64, 256, 171, 300)):
        axis = _make_axis(low, side, inside, out, tile=32)
        line = torch.randn(low, generator=torch.Generator().manual_seed(0))
        wide = interpolate(line[None, None], side, mode="linear")[..., :inside]
        expected = interpolate(wide, out, mode="linear")[0, 0]
        tiles = [
            line[first : first + axis.reach] @ torch.from_numpy(axis.weights[i]).T for i, first in enumerate(axis.first)
        ]
        torch.testing.assert_close(torch.cat(tiles)[:out], expected, rtol=1e-5, atol=1e-6)


def test_a_packed_mask_is_an_rle_like_any_other() -> None:
    batch = proposals(blobs(1, 16), ImageGeometry((40, 64), 64))
    found = both(batch, KEEP_ALL)[1][0]
    mask = decode_rle(found.rles[0])
    x0, y0, x1, y1 = mask_to_box(mask).tolist()
    assert found.boxes_xyxy.tolist() == [[x0, y0, x1 - 1, y1 - 1]]
    assert rle_area(found.rles[0]) == mask.sum() > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0.0, 9.0])
def test_decoded_masks_are_the_logits_above_the_threshold(size: tuple[int, int, int, int], noise: float) -> None:
    height, width, side, low = size
    logits = blobs(6, low, noise=noise).reshape(3, 2, low, low)
    decoded = Decoded(logits, torch.zeros(3, 2), ImageGeometry((height, width), side))
    for threshold in (0.0, 2.5):
        masks = decoded.masks(threshold)
        assert masks.dtype == torch.bool
        assert torch.equal(masks, decoded.logits() > threshold)
    assert Decoded(logits[:0], torch.zeros(0, 2), decoded.geometry).masks().shape == (0, 2, height, width)


def test_several_threads_draw_the_masks_that_one_draws() -> None:
    geometry = ImageGeometry((1070, 1010), 256)
    logits = blobs(63, 64)
    masks = full_size_masks(logits.numpy(), geometry, 0.0, threads=3)
    assert masks.size > PIXELS_FOR_THREADS
    for mask, own in zip(masks, logits, strict=True):
        np.testing.assert_array_equal(mask, upscale_masks(own[None, None], geometry)[0, 0].numpy() > 0)


def test_work_side_by_side_keeps_its_order_and_raises_its_errors() -> None:
    assert side_by_side(lambda item: item * item, range(20), threads=3) == [item * item for item in range(20)]
    with pytest.raises(ZeroDivisionError, match="division"):
        side_by_side(lambda item: 1 // item, [1, 0, 1], threads=2)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_several_threads_keep_the_masks_that_one_keeps(count: int) -> None:
    batch = proposals(blobs(count, 16), ImageGeometry((40, 64), 64))
    options = AutomaticMaskOptions(pred_iou_thresh=0, stability_score_thresh=0.8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found, explanation = filter_proposals([batch], options)
    finally:
        torch.set_num_threads(before)
    expected, expected_explanation = filter_proposals([batch], options, measure=measure_plain)
    assert_same(found, expected)
    assert explanation == expected_explanation
