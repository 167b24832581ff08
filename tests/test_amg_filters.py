"""The fast half of automatic masks: which of the network's proposals are kept, judged on hand-drawn logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from segment_anything import _amg_filters
from segment_anything._amg_filters import filter_proposals, measure_plain
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Proposals
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import decode_rle
from segment_anything.modeling import Decoded

SIDE = 64
ALL = AutomaticMaskOptions(
    pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1, crop_nms_thresh=1, output_mode="uncompressed_rle"
)


def rectangle(x0: int, y0: int, x1: int, y1: int, level: float = 10.0) -> np.ndarray:
    """Logits (64, 64): `level` inside, -10 outside."""
    logits = np.full((SIDE, SIDE), -10.0, dtype=np.float32)
    logits[y0:y1, x0:x1] = level
    return logits


def proposals(
    *found: tuple[float, np.ndarray],
    crop: tuple[int, int, int, int] = (0, 0, SIDE, SIDE),
    size_hw: tuple[int, int] = (SIDE, SIDE),
) -> Proposals:
    """Predicted IoUs with logits that need no upsampling, one mask a click; click i lies at (i, 0) of the crop."""
    logits = torch.from_numpy(np.stack([mask for _, mask in found]))[:, None]
    decoded = Decoded(logits, torch.tensor([[iou] for iou, _ in found]), ImageGeometry((SIDE, SIDE), SIDE))
    clicks = np.array([[crop[0] + i, crop[1]] for i in range(len(found))], dtype=np.float64)
    return Proposals(decoded, clicks, crop, size_hw)


def boxes(found: Candidates) -> list[list[int]]:
    return found.boxes_xyxy.tolist()


A, B, C = rectangle(0, 0, 20, 20), rectangle(0, 0, 20, 19), rectangle(40, 40, 60, 60)
BOX_A, BOX_B, BOX_C = [0, 0, 19, 19], [0, 0, 19, 18], [40, 40, 59, 59]


def test_all_masks_come_back_best_first_when_nothing_is_filtered() -> None:
    found, explanation = filter_proposals([proposals((0.5, A), (0.9, C)), proposals((0.7, B))], ALL)
    assert boxes(found) == [BOX_C, BOX_B, BOX_A]
    assert found.predicted_iou.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert found.points_xy.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert (explanation.clicks, explanation.proposed, explanation.kept) == (3, 3, 3)


def test_masks_are_encoded_as_they_are() -> None:
    found, _ = filter_proposals([proposals((0.5, A), (0.9, C))], ALL)
    assert np.array_equal(decode_rle(found.rles[0]), C > 0)
    assert np.array_equal(decode_rle(found.rles[1]), A > 0)


def test_a_predicted_iou_at_the_threshold_is_not_enough() -> None:
    options = replace(ALL, pred_iou_thresh=0.5)
    found, explanation = filter_proposals([proposals((0.5, A), (0.75, C))], options)
    assert boxes(found) == [BOX_C]
    assert explanation.low_predicted_iou == 1


def test_thresholds_of_zero_or_less_keep_all() -> None:
    options = replace(ALL, pred_iou_thresh=-99.0, stability_score_thresh=-1.0)
    found, _ = filter_proposals([proposals((-0.5, A), (0.0, np.full_like(A, -10)))], options)
    assert len(found) == 2


def test_masks_that_hang_on_the_cut_off_are_unstable() -> None:
    faint = rectangle(40, 40, 60, 60)
    faint[50:60, 40:60] = 0.5  # inside at 0 and at -1, outside at 1: half the mask
    options = replace(ALL, stability_score_thresh=0.5)
    found, explanation = filter_proposals([proposals((0.9, A), (0.8, faint))], options)
    assert found.stability_score.tolist() == pytest.approx([1.0, 0.5])
    stricter = replace(options, stability_score_thresh=0.51)
    found, explanation = filter_proposals([proposals((0.9, A), (0.8, faint))], stricter)
    assert boxes(found) == [BOX_A]
    assert explanation.unstable == 1


def test_of_masks_whose_boxes_overlap_the_better_stays() -> None:
    found, explanation = filter_proposals([proposals((0.7, A), (0.9, B), (0.8, C))], replace(ALL, box_nms_thresh=0.7))
    assert boxes(found) == [BOX_B, BOX_C]
    assert explanation.overlapping_in_crop == 1


def test_masks_of_a_crop_are_placed_in_the_image() -> None:
    found, _ = filter_proposals(
        [proposals((0.9, rectangle(22, 30, 40, 40)), crop=(36, 0, 100, 64), size_hw=(64, 100))], ALL
    )
    assert boxes(found) == [[58, 30, 75, 39]]
    assert found.crop_boxes_xyxy.tolist() == [[36, 0, 100, 64]]
    assert found.points_xy.tolist() == [[36, 0]]
    mask = decode_rle(found.rles[0])
    assert mask.shape == (64, 100)
    assert np.argwhere(mask).min(axis=0).tolist() == [30, 58]


def test_masks_cut_off_by_a_crop_are_dropped_but_not_those_at_the_image_edge() -> None:
    left, right = rectangle(0, 20, 30, 40), rectangle(34, 20, 64, 40)
    crop = proposals((0.9, left), (0.8, right), crop=(36, 0, 100, 64), size_hw=(64, 100))
    found, explanation = filter_proposals([crop], ALL)
    assert boxes(found) == [[70, 20, 99, 39]]
    assert explanation.at_crop_edge == 1


def test_masks_of_smaller_crops_win_over_better_ones() -> None:
    size = (100, 100)
    whole = Proposals(
        Decoded(
            torch.from_numpy(np.pad(rectangle(30, 30, 41, 41), (0, 36), constant_values=-10))[None, None],
            torch.tensor([[0.99]]),
            ImageGeometry(size, 100),
        ),
        np.zeros((1, 2)),
        (0, 0, 100, 100),
        size,
    )
    crop = proposals((0.6, rectangle(30, 30, 40, 40)), crop=(0, 0, 64, 64), size_hw=size)
    options = replace(ALL, crop_nms_thresh=0.7)
    found, explanation = filter_proposals([whole, crop], options)
    assert found.crop_boxes_xyxy.tolist() == [[0, 0, 64, 64]]
    assert explanation.overlapping_across_crops == 1


def test_masks_outside_the_area_range_are_dropped() -> None:
    batch = proposals((0.9, A), (0.8, rectangle(30, 30, 32, 32)), (0.7, rectangle(0, 0, 64, 64)))
    found, explanation = filter_proposals([batch], replace(ALL, min_mask_area=4, max_mask_area=400))
    assert boxes(found) == [BOX_A, [30, 30, 31, 31]]
    found, explanation = filter_proposals([batch], replace(ALL, min_mask_area=5, max_mask_area=399))
    assert (len(found), explanation.outside_area_range) == (0, 3)


def test_a_mask_too_large_does_not_suppress_one_of_the_right_size() -> None:
    batch = proposals((0.9, A), (0.8, B))
    found, _ = filter_proposals([batch], replace(ALL, box_nms_thresh=0.5, max_mask_area=380))
    assert boxes(found) == [BOX_B]


def test_small_holes_and_islands_are_cleaned_and_masks_that_became_alike_dropped() -> None:
    dirty = A.copy()
    dirty[5, 5] = -10
    dirty[30, 30] = 10
    options = replace(ALL, box_nms_thresh=0.9, crop_nms_thresh=0.9, min_mask_region_area=4)
    found, explanation = filter_proposals([proposals((0.9, dirty), (0.8, C))], options)
    assert boxes(found) == [BOX_C, BOX_A]  # the one that needed no cleaning comes first
    assert np.array_equal(decode_rle(found.rles[1]), A > 0)
    found, explanation = filter_proposals([proposals((0.9, dirty), (0.8, A))], options)
    assert boxes(found) == [BOX_A]
    assert found.predicted_iou.tolist() == pytest.approx([0.8])
    assert explanation.overlapping_after_cleaning == 1


def test_masks_inside_a_better_one_are_dropped_on_demand() -> None:
    ring = rectangle(0, 0, 60, 60)
    ring[20:40, 20:40] = -10
    part, filling = rectangle(0, 0, 10, 60), rectangle(22, 22, 38, 38)
    batch = proposals((0.9, ring), (0.8, part), (0.7, filling))
    found, _ = filter_proposals([batch], replace(ALL, box_nms_thresh=0.7))
    assert len(found) == 3
    found, explanation = filter_proposals([batch], replace(ALL, box_nms_thresh=0.7, overlap="iomin"))
    assert boxes(found) == [[0, 0, 59, 59], [22, 22, 37, 37]]  # what lies in a hole is not inside
    assert explanation.inside_better == 1


def test_no_masks_at_all_are_no_error() -> None:
    for options in (ALL, replace(ALL, min_mask_region_area=5, overlap="iomin", min_mask_area=1)):
        options = replace(options, pred_iou_thresh=0.99)
        empty = proposals((0.5, A))
        crop = proposals((0.5, A), crop=(0, 0, 64, 64), size_hw=(100, 100))
        for batches in ([], [empty], [empty, crop]):
            found, explanation = filter_proposals(batches, options)
            assert (len(found), explanation.kept) == (0, 0)


def test_one_mask_at_a_time_gives_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    batch = proposals(*[(float(rng.random()), rng.normal(size=(SIDE, SIDE)).astype(np.float32)) for _ in range(7)])
    options = replace(ALL, stability_score_thresh=0.1)
    together, explained = filter_proposals([batch], options, measure=measure_plain)
    monkeypatch.setattr(_amg_filters, "CHUNK_BYTES", 1)
    singly, explained_singly = filter_proposals([batch], options, measure=measure_plain)
    assert explained == explained_singly
    for name in ("boxes_xyxy", "predicted_iou", "stability_score", "points_xy"):
        assert np.array_equal(getattr(together, name), getattr(singly, name))
    assert [rle["counts"].tolist() for rle in together.rles] == [rle["counts"].tolist() for rle in singly.rles]


def test_every_mask_lost_is_explained() -> None:
    rng = np.random.default_rng(1)
    noisy = [
        (float(rng.random()), rectangle(*sorted_box(rng)) + rng.normal(size=(SIDE, SIDE)).astype(np.float32) * 5)
        for _ in range(40)
    ]
    options = AutomaticMaskOptions(
        pred_iou_thresh=0.2,
        stability_score_thresh=0.6,
        box_nms_thresh=0.5,
        min_mask_area=20,
        min_mask_region_area=9,
        overlap="iomin",
    )
    found, explanation = filter_proposals([proposals(*noisy)], options)
    counts = vars(explanation)
    lost = sum(counts[name] for name in counts if name not in ("clicks", "proposed", "kept"))
    assert explanation.proposed - lost == explanation.kept == len(found) > 0
    assert "low predicted iou" in str(explanation)


def sorted_box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    x0, x1 = sorted(rng.choice(SIDE, 2, replace=False))
    y0, y1 = sorted(rng.choice(SIDE, 2, replace=False))
    return int(x0), int(y0), int(x1), int(y1)
