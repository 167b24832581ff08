"""Figures that protocols share: overlap, clicks needed, calibration, average recall."""

import numpy as np
import pytest

from segment_anything.evaluation.metrics import (
    COCO_THRESHOLDS,
    boundary_iou,
    calibration,
    clicks_needed,
    iou,
    recall_hits,
)
from segment_anything.masks import boundary


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def test_iou_of_two_overlapping_masks() -> None:
    assert iou(drawn("##.", "##."), drawn(".##", ".##")) == pytest.approx(2 / 6)
    assert iou(drawn("..."), drawn("...")) == 0


def test_boundary_iou_sees_a_hole_that_iou_hardly_sees() -> None:
    truth = np.zeros((200, 200), bool)
    truth[20:180, 20:180] = True
    holed = truth.copy()
    holed[98:102, 98:102] = False
    assert iou(holed, truth) > 0.999
    assert boundary_iou(truth, truth) == 1
    assert boundary_iou(holed, truth) < 0.98


@pytest.mark.parametrize("seed", range(6))
def test_boundary_iou_equals_that_of_whole_boundaries(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = np.zeros((90, 130), bool), np.zeros((90, 130), bool)
    for mask in (a, b):
        for _ in range(3):
            (y, x), (h, w) = random.integers(0, 80, 2), random.integers(1, 50, 2)
            mask[y : y + h, x : x + w] = True
    assert boundary_iou(a, b) == iou(boundary(a), boundary(b))
    assert boundary_iou(a & False, b & False) == 0


def test_clicks_are_counted_until_the_target_is_reached() -> None:
    assert clicks_needed([0.5, 0.86, 0.8, 0.91], 0.85, 20) == (2, True)
    assert clicks_needed([0.5, 0.86, 0.8, 0.91], 0.90, 20) == (4, True)


def test_an_object_that_never_reaches_the_target_counts_as_the_limit_and_as_a_failure() -> None:
    assert clicks_needed([0.5] * 30, 0.9, 20) == (20, False)
    assert clicks_needed([0.5] * 20 + [1.0], 0.9, 20) == (20, False)


def test_calibration_of_known_errors() -> None:
    trust = calibration(np.array([0.95, 0.95, 0.15, 0.15]), np.array([0.85, 0.95, 0.35, 0.15]))
    assert trust.mean_absolute_error == pytest.approx(0.075)
    assert trust.bias == pytest.approx(-0.025)
    # bin 0.9..1.0: predicted 0.95, true 0.90; bin 0.1..0.2: predicted 0.15, true 0.25; two masks each
    assert trust.expected_calibration_error == pytest.approx((0.05 + 0.10) / 2)
    assert trust.count.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert trust.actual[1] == pytest.approx(0.25)
    assert np.isnan(trust.actual[5])


def test_predictions_outside_zero_to_one_fall_in_the_outermost_bins() -> None:
    trust = calibration(np.array([1.3, -0.2]), np.array([1.0, 0.0]))
    assert trust.count[[0, -1]].tolist() == [1, 1]


def test_calibration_needs_pairs() -> None:
    with pytest.raises(ValueError, match="one length above 0, got 1 and 2"):
        calibration(np.zeros(1), np.zeros(2))
    with pytest.raises(ValueError, match="got 0 and 0"):
        calibration(np.zeros(0), np.zeros(0))


def test_each_mask_is_taken_by_one_proposal_only() -> None:
    overlap = np.array([[0.9, 0.6], [0.8, 0.0]])  # both prefer the first mask; the better proposal has it
    assert recall_hits(overlap, np.array([0.5])).tolist() == [1]


def test_recall_falls_with_the_threshold() -> None:
    overlap = np.array([[0.72, 0.0], [0.0, 0.55]])
    assert recall_hits(overlap, COCO_THRESHOLDS).tolist() == [2, 2, 1, 1, 1, 0, 0, 0, 0, 0]


def test_without_proposals_or_masks_nothing_is_found() -> None:
    assert recall_hits(np.zeros((0, 3))).tolist() == [0] * 10
    assert recall_hits(np.zeros((3, 0))).tolist() == [0] * 10


def test_an_exact_copy_reaches_every_threshold() -> None:
    assert recall_hits(np.ones((1, 1)), np.array([1.0])).tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_average_recall_equals_faster_coco_eval(seed: int) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    from segment_anything.masks import encode_rles, rle_iou, rle_to_coco

    random = np.random.default_rng(seed)

    def blobs(count: int) -> np.ndarray:
        masks = np.zeros((count, 120, 160), bool)
        for mask in masks:
            (y, x), (h, w) = random.integers(0, 90, 2), random.integers(4, 70, 2)
            mask[y : y + h, x : x + w] = True
        return masks

    images, annotations, results, hits, total = [], [], [], np.zeros((3, 10)), 0
    for image_id in range(1, 5):
        truths = blobs(6)
        shifted = np.roll(truths, random.integers(-6, 6, 2), axis=(1, 2))
        proposals = encode_rles(np.concatenate([shifted, blobs(30)])[random.permutation(36)])
        codes = encode_rles(truths)
        images.append({"id": image_id, "width": 160, "height": 120})
        for code, mask in zip(codes, truths, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": {"size": code["size"], "counts": rle_to_coco(code)},
                    "area": int(mask.sum()),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": 0,
                }
            )
        for rank, code in enumerate(proposals):
            found = {
                "image_id": image_id,
                "category_id": 1,
                "score": 1 - rank / 100,
                "segmentation": {"size": code["size"], "counts": rle_to_coco(code)},
            }
            results.append(found)
        overlap = rle_iou(proposals, codes)
        total += len(codes)
        for row, count in enumerate((1, 10, 100)):
            hits[row] += recall_hits(overlap[:count])
    truth = COCO(
        {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]},
    )
    official = COCOeval_faster(truth, truth.loadRes(results), "segm", print_function=lambda *_: None)
    official.evaluate()
    official.accumulate()
    official.summarize()
    names = ("AR_all", "AR_second", "AR_third")
    expected = [official.stats_as_dict[name] for name in names]
    assert (hits.sum(axis=1) / (10 * total)).tolist() == pytest.approx(expected)
