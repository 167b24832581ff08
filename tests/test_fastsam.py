"""FastSAM: masks from prototypes and coefficients, with a hand-made graph whose answer is known."""

import numpy as np
import pytest
import torch
from colour_encoder import ColourEncoder
from onnx_graphs import constant_graph

from segment_anything.detectors.letterbox import place
from segment_anything.fastsam import (
    FastSam,
    FastSamOptions,
    logits_to_original,
    mask_logits,
    select_by_boxes,
    select_by_points,
)
from segment_anything.records import make_record, record_mask
from segment_anything.text import TextScorer, rank_records

CELLS = 8 * 8 + 4 * 4 + 2 * 2
SQUARE = np.zeros((64, 64, 3), np.uint8)
KEYS = {"segmentation", "area", "bbox", "predicted_iou", "stability_score", "point_coords", "crop_box"}


def picture(mask, step=8):
    return ["".join(".#"[int(v)] for v in row[step // 2 :: step]) for row in mask[step // 2 :: step]]


def halves_graph(path):
    """Two prototypes: +9 in the left half and -9 in the right, and +9 in the upper half and -9 in the lower one.

    Three boxes of the 64 x 64 input: the whole with the left half, the lower right with the lower half, and nothing.
    """
    prototypes = np.full((1, 2, 16, 16), -9, np.float32)
    prototypes[0, 0, :, :8] = 9
    prototypes[0, 1, :8] = 9
    rows = np.zeros((4 + 1 + 2, CELLS), np.float32)
    rows[:, 3] = [32, 32, 64, 64, 0.9, 1, 0]
    rows[:, 9] = [48, 40, 32, 48, 0.8, 0, -1]
    rows[:, 20] = [32, 32, 64, 64, 0.3, 0, 1]
    return constant_graph(path, {"output0": rows[None], "output1": prototypes})


def test_masks_are_sums_of_prototypes_cut_to_their_boxes(tmp_path):
    first, second = FastSam(halves_graph(tmp_path / "f.onnx")).generate(SQUARE)
    assert picture(first["segmentation"]) == ["####...."] * 8
    assert picture(second["segmentation"]) == ["........"] * 4 + ["....####"] * 4
    assert [first["predicted_iou"], second["predicted_iou"]] == pytest.approx([0.9, 0.8])


def test_records_have_the_keys_of_automatic_mask_generation(tmp_path):
    first, _ = FastSam(halves_graph(tmp_path / "f.onnx")).generate(SQUARE)
    assert first.keys() == KEYS
    assert (first["area"], first["bbox"], first["crop_box"]) == (2048, [0, 0, 31, 63], [0, 0, 64, 64])
    assert first["point_coords"] == [[32, 32]]
    assert 0.9 < first["stability_score"] <= 1


@pytest.mark.parametrize("size_hw", [(32, 64), (64, 32), (120, 200), (33, 57)])
def test_the_letterbox_is_cut_off(tmp_path, size_hw):
    record, *_ = FastSam(halves_graph(tmp_path / "f.onnx")).generate(np.zeros((*size_hw, 3), np.uint8))
    mask = record["segmentation"]
    left = mask[:, : size_hw[1] // 2]
    assert mask.shape == size_hw
    assert left.mean() > 0.97
    assert mask.sum() - left.sum() <= size_hw[0]  # at most one column past the middle


def test_enlarging_is_bilinear_and_exact_for_a_ramp():
    ramp = torch.arange(16.0).expand(16, 16)[None]  # value of a cell = its x
    logits = logits_to_original(ramp, place((32, 64), (64, 64), "centred"), (64, 64))
    assert logits.shape == (1, 32, 64)
    x = (torch.arange(64) + 0.5) / 4 - 0.5
    torch.testing.assert_close(logits[0, 7, 2:62], x[2:62])


def test_coefficients_weigh_prototypes():
    prototypes = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]])
    assert mask_logits(torch.tensor([[1.0, 0.5], [0.0, -1.0]]), prototypes).tolist() == [[[6, 12]], [[-10, -20]]]


def test_the_modes_return_the_same_masks(tmp_path):
    path = halves_graph(tmp_path / "f.onnx")
    plain = FastSam(path).generate(SQUARE)
    for mode, kind in (("uncompressed_rle", list), ("coco_rle", str)):
        encoded = FastSam(path, FastSamOptions(output_mode=mode)).generate(SQUARE)
        for a, b in zip(plain, encoded, strict=True):
            assert isinstance(b["segmentation"]["counts"], kind)
            np.testing.assert_array_equal(record_mask(a), record_mask(b))


def test_thresholds_and_maximum_count_apply(tmp_path):
    path = halves_graph(tmp_path / "f.onnx")
    assert len(FastSam(path, FastSamOptions(min_score=0.2, nms_iou=1.0)).generate(SQUARE)) == 3
    assert len(FastSam(path, FastSamOptions(min_score=0.2)).generate(SQUARE)) == 2  # third box doubles the first
    assert len(FastSam(path, FastSamOptions(max_count=1)).generate(SQUARE)) == 1
    assert FastSam(path, FastSamOptions(min_score=0.95)).generate(SQUARE) == []


def test_more_masks_than_fit_at_once_are_all_returned(tmp_path):
    rows = np.zeros((7, CELLS), np.float32)
    rows[:, :40] = np.array([32, 32, 60, 60, 0.5, 1, 0])[:, None]
    rows[2, :40] = np.linspace(20, 60, 40)
    prototypes = np.full((1, 2, 16, 16), 9, np.float32)
    path = constant_graph(tmp_path / "m.onnx", {"output0": rows[None], "output1": prototypes})
    records = FastSam(path, FastSamOptions(nms_iou=1.0)).generate(SQUARE)
    assert len(records) == 40
    assert sorted(r["bbox"][2] for r in records) == sorted(record_mask(r).any(axis=0).sum() - 1 for r in records)


def test_feature_maps_among_the_outputs_are_not_taken_for_prototypes(tmp_path):
    prototypes = np.full((1, 2, 16, 16), 9, np.float32)
    rows = np.zeros((1, 7, CELLS), np.float32)
    rows[0, :, 0] = [32, 32, 64, 64, 0.9, 1, 0]
    outputs = {"output0": rows, "features": np.zeros((1, 67, 8, 8), np.float32), "output1": prototypes}
    (record,) = FastSam(constant_graph(tmp_path / "x.onnx", outputs)).generate(SQUARE)
    assert record["area"] == 64 * 64


def test_a_detector_without_masks_is_refused(tmp_path):
    path = constant_graph(tmp_path / "boxes.onnx", {"output0": np.zeros((1, 5, CELLS), np.float32)})
    with pytest.raises(ValueError, match=r"gives boxes without masks \(yolov8\)\. FastSam needs a segmentation export"):
        FastSam(path)


def test_an_unknown_output_mode_is_refused():
    with pytest.raises(ValueError, match=r"output_mode must be one of binary_mask, .* got 'png'"):
        FastSamOptions(output_mode="png")


def rows_record(*rows, **others):
    return make_record(np.array([[c == "#" for c in row] for row in rows]), **others)


WHOLE = rows_record("####", "####", "####", predicted_iou=0.9)
LEFT = rows_record("##..", "##..", "##..", predicted_iou=0.8)
DOT = rows_record("....", "...#", "....", predicted_iou=0.7)


def test_points_select_the_masks_that_hold_them_surest_first():
    assert select_by_points([LEFT, DOT, WHOLE], [[0.5, 0.5]]) == [WHOLE, LEFT]


def test_a_background_point_drops_the_masks_that_hold_it():
    assert select_by_points([LEFT, DOT, WHOLE], [[0.5, 0.5], [3.5, 1.5]], [1, 0]) == [LEFT]


def test_more_foreground_points_come_first():
    assert select_by_points([LEFT, DOT, WHOLE], [[0, 0], [3, 1]])[0] == WHOLE
    assert select_by_points([DOT], [[0, 0]]) == []


def test_points_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"points_xy must have shape \(P, 2\).* got \(2,\)"):
        select_by_points([LEFT], [1, 2])
    with pytest.raises(ValueError, match=r"labels must be 1 numbers, 1 foreground or 0 background; got \[2\]"):
        select_by_points([LEFT], [[1, 2]], [2])
    with pytest.raises(ValueError, match=r"labels must mark at least one point as foreground"):
        select_by_points([LEFT], [[1, 2]], [0])
    with pytest.raises(ValueError, match=r"points_xy must lie in the image of 4 x 3 pixels"):
        select_by_points([LEFT], [[9, 1]])


def test_boxes_select_the_mask_that_fills_them_best():
    assert select_by_boxes([WHOLE, LEFT, DOT], [[0, 0, 2, 3], [3, 1, 4, 2], [0, 0, 4, 3]]) == [LEFT, DOT, WHOLE]
    assert select_by_boxes([LEFT], [[2, 0, 4, 3]]) == [None]
    assert select_by_boxes([], [[2, 0, 4, 3]]) == [None]
    with pytest.raises(ValueError, match=r"boxes_xyxy must have shape \(N, 4\).* got \(4,\)"):
        select_by_boxes([LEFT], [0, 0, 2, 3])


def test_a_phrase_selects_among_fastsam_masks(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 2] = 255, 255
    records = FastSam(halves_graph(tmp_path / "f.onnx")).generate(image)
    for phrase, expected in (("red", "####...."), ("blue", "....####")):
        best, *_ = rank_records(records, image, phrase, TextScorer(ColourEncoder()), min_score=0.0)
        assert picture(best["segmentation"])[-1] == expected
