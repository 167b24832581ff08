"""The automatic mask generator on a toy network: options, records, crops, output modes, bad input."""

import inspect
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything import Prompts, SamAutomaticMaskGenerator
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything.masks import decode_rle, mask_to_box
from segment_anything.modeling import Sam
from segment_anything.records import record_mask
from segment_anything.utils.amg import MaskData, build_point_grid, mask_to_rle_pytorch

KEEP_ALL: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
KEYS = {"segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return toy_sam().eval()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_the_originals_options_keep_their_order_and_defaults() -> None:
    parameters = list(inspect.signature(SamAutomaticMaskGenerator.__init__).parameters.values())[1:]
    assert {p.name: p.default for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD} == {
        "model": inspect.Parameter.empty,
        "points_per_side": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "point_grids": None,
        "min_mask_region_area": 0,
        "output_mode": "binary_mask",
    }
    assert [p.name for p in parameters if p.kind == p.KEYWORD_ONLY] == [
        "min_mask_area",
        "max_mask_area",
        "overlap",
        "explain",
        "labels",
        "scorer",
    ]


def test_every_option_of_the_dataclass_is_an_argument_of_the_generator() -> None:
    parameters = inspect.signature(SamAutomaticMaskGenerator.__init__).parameters
    assert {field.name for field in fields(AutomaticMaskOptions)} <= set(parameters)


def test_records_have_the_originals_keys_and_plain_values(sam: Sam, image: np.ndarray) -> None:
    records = SamAutomaticMaskGenerator(sam, 3, **KEEP_ALL).generate(image)
    assert len(records) == 3 * 3 * 3
    for record in records:
        assert set(record) == KEYS
        mask = record["segmentation"]
        assert isinstance(mask, np.ndarray)
        assert (mask.shape, mask.dtype) == ((48, 64), np.dtype(bool))
        x0, y0, x1, y1 = mask_to_box(mask).tolist()
        assert record["area"] == mask.sum()
        assert record["bbox"] == ([x0, y0, x1 - x0 - 1, y1 - y0 - 1] if mask.any() else [0, 0, 0, 0])
        assert record["crop_box"] == [0, 0, 64, 48]
        assert [type(record[key]) for key in ("area", "predicted_iou", "stability_score")] == [int, float, float]
        assert {type(side) for side in record["bbox"] + record["crop_box"]} == {int}
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)


def test_masks_and_scores_are_the_decoders(sam: Sam, image: np.ndarray) -> None:
    records = SamAutomaticMaskGenerator(sam, 2, **KEEP_ALL).generate(image)
    clicks = Prompts.from_points(np.array([[16.0, 12.0], [48.0, 12.0], [16.0, 36.0], [48.0, 36.0]]))
    with torch.no_grad():
        decoded = sam.decode(sam.encode(image), clicks, True)
    ious, masks = decoded.iou_predictions.flatten(), decoded.masks().flatten(0, 1)
    for record, i in zip(records, ious.argsort(descending=True, stable=True).tolist(), strict=True):
        assert record["predicted_iou"] == pytest.approx(float(ious[i]), abs=1e-5)
        assert np.mean(record_mask(record) != masks[i].numpy()) < 0.01


def test_clicks_come_back_in_original_pixels(sam: Sam, image: np.ndarray) -> None:
    records = SamAutomaticMaskGenerator(sam, 2, **KEEP_ALL).generate(image)
    clicks = {tuple(record["point_coords"][0]) for record in records}
    assert clicks == {(16.0, 12.0), (48.0, 12.0), (16.0, 36.0), (48.0, 36.0)}


def test_the_size_of_a_batch_changes_nothing_but_rounding(sam: Sam, image: np.ndarray) -> None:
    whole = SamAutomaticMaskGenerator(sam, 3, 64, **KEEP_ALL).generate(image)
    parts = SamAutomaticMaskGenerator(sam, 3, 2, **KEEP_ALL).generate(image)
    assert len(whole) == len(parts)
    for key in ("predicted_iou", "stability_score"):
        assert [r[key] for r in whole] == pytest.approx([r[key] for r in parts], abs=1e-4)  # type: ignore[literal-required]


def test_all_output_modes_hold_the_same_masks(sam: Sam, image: np.ndarray) -> None:
    modes = ("binary_mask", "uncompressed_rle", "coco_rle")
    binary, plain, compact = (
        SamAutomaticMaskGenerator(sam, 2, output_mode=mode, **KEEP_ALL).generate(image) for mode in modes
    )
    for a, b, c in zip(binary, plain, compact, strict=True):
        assert isinstance(b["segmentation"], dict)
        assert isinstance(c["segmentation"], dict)
        assert isinstance(b["segmentation"]["counts"], list)
        assert isinstance(c["segmentation"]["counts"], str)
        assert np.array_equal(a["segmentation"], record_mask(b))
        assert np.array_equal(a["segmentation"], record_mask(c))


def test_crops_add_masks_of_their_own_in_the_frame_of_the_image(sam: Sam, image: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(
        sam, 4, crop_n_layers=1, crop_n_points_downscale_factor=2, crop_nms_thresh=1.0, **KEEP_ALL
    )
    batches = list(generator.propose(image))
    assert [len(batch.points_xy) for batch in batches] == [16, 4, 4, 4, 4]
    for batch in batches:
        x0, y0, x1, y1 = batch.crop_box_xyxy
        assert ((batch.points_xy > [x0, y0]) & (batch.points_xy < [x1, y1])).all()
    for record in generator.generate(image):
        x, y, width, height = record["crop_box"]
        outside = record_mask(record).copy()
        outside[y : y + height, x : x + width] = False
        assert outside.shape == (48, 64)
        assert not outside.any()


def test_proposals_judged_again_equal_a_fresh_run(sam: Sam, image: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(sam, 3, **KEEP_ALL)
    batches = list(generator.propose(image))
    for options in ({"box_nms_thresh": 0.3}, {"stability_score_thresh": 0.5, "min_mask_area": 50}):
        other = SamAutomaticMaskGenerator(sam, 3, **(KEEP_ALL | options))
        again, _ = other.filter(batches)
        fresh = other.generate(image)
        assert len(again) == len(fresh)
        assert all(np.array_equal(a["segmentation"], b["segmentation"]) for a, b in zip(again, fresh, strict=True))


def test_no_masks_give_an_empty_list_in_every_mode(sam: Sam, image: np.ndarray) -> None:
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        generator = SamAutomaticMaskGenerator(
            sam,
            2,
            pred_iou_thresh=1.0,
            stability_score_thresh=1.0,
            min_mask_area=1e9,
            crop_n_layers=1,
            min_mask_region_area=10,
            output_mode=mode,
        )
        assert generator.generate(image) == []


def test_what_each_filter_took_is_explained_on_demand(sam: Sam, image: np.ndarray) -> None:
    silent = SamAutomaticMaskGenerator(sam, 2, **KEEP_ALL)
    silent.generate(image)
    assert silent.last_explanation is None
    generator = SamAutomaticMaskGenerator(sam, 2, min_mask_area=1e9, explain=True, **KEEP_ALL)
    assert generator.generate(image) == []
    assert generator.last_explanation is not None
    assert generator.last_explanation.proposed == generator.last_explanation.outside_area_range == 12
    assert "     12 outside area range" in str(generator.last_explanation)


def test_own_clicks_replace_the_grid(sam: Sam, image: np.ndarray) -> None:
    grids = [np.array([[0.25, 0.5]]), build_point_grid(1)]
    generator = SamAutomaticMaskGenerator(
        sam, None, point_grids=grids, crop_n_layers=1, crop_nms_thresh=1.0, **KEEP_ALL
    )
    first, *crops = generator.propose(image)
    assert first.points_xy.tolist() == [[16.0, 24.0]]
    assert len(crops) == 4


def test_an_embedding_at_hand_is_used_and_a_stale_one_refused(sam: Sam, image: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(sam, 2, crop_n_layers=1, output_mode="coco_rle", **KEEP_ALL)
    with torch.no_grad():
        embedding = sam.encode(image)
    assert generator.generate(image, embedding=embedding) == generator.generate(image)
    with pytest.raises(ValueError, match="made from another image"):
        generator.generate(image[::-1], embedding=embedding)


def test_options_can_be_read_and_set_on_the_generator(sam: Sam) -> None:
    generator = SamAutomaticMaskGenerator(sam, 2)
    generator.pred_iou_thresh = 0.5
    assert (generator.pred_iou_thresh, generator.options.pred_iou_thresh) == (0.5, 0.5)
    assert generator.predictor.model is sam
    with pytest.raises(ValueError, match="output_mode"):
        generator.output_mode = "png"


def test_gradients_are_neither_kept_nor_switched_off_for_others(sam: Sam, image: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(sam, 2, **KEEP_ALL)
    for batch in generator.propose(image):
        assert torch.is_grad_enabled()
        assert not batch.decoded.low_res_logits.requires_grad


def test_small_regions_are_cleaned_in_the_originals_container() -> None:
    clean = np.zeros((20, 20), dtype=bool)
    clean[2:12, 2:12] = True
    dirty = clean.copy()
    dirty[4, 4], dirty[18, 18] = False, True
    far = np.roll(clean, 8, axis=1)
    masks = torch.from_numpy(np.stack([dirty, far, clean]))
    data = MaskData(
        rles=mask_to_rle_pytorch(masks), boxes=torch.tensor([[2, 2, 18, 18], [10, 2, 19, 11], [2, 2, 11, 11]])
    )
    data["names"] = ["dirty", "far", "clean"]
    result = SamAutomaticMaskGenerator.postprocess_small_regions(data, 5, 0.9)
    assert result["names"] == ["far", "clean"]
    assert result["boxes"].tolist() == [[10, 2, 19, 11], [2, 2, 11, 11]]
    data = MaskData(rles=mask_to_rle_pytorch(masks[:1]), boxes=torch.tensor([[2, 2, 18, 18]]))
    result = SamAutomaticMaskGenerator.postprocess_small_regions(data, 5, 0.9)
    assert np.array_equal(decode_rle(result["rles"][0]), clean)
    assert result["boxes"].tolist() == [[2, 2, 11, 11]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points_per_side": None}, "points_per_side must be a whole number unless point_grids is given"),
        ({"point_grids": [build_point_grid(2)]}, "points_per_side must be None where point_grids is given, but is 32"),
        (
            {"points_per_side": None, "point_grids": [build_point_grid(2)], "crop_n_layers": 1},
            r"point_grids must hold a grid for the image and one for each of the 1 layers .* but holds 1",
        ),
        (
            {"points_per_side": None, "point_grids": [np.array([[3.0, 4.0]])]},
            r"point_grids\[0\] must be \(N, 2\) shares of width and height in 0..1",
        ),
        ({"output_mode": "png"}, "output_mode must be one of binary_mask, uncompressed_rle, coco_rle"),
        ({"points_per_batch": 0}, "points_per_batch must be a whole number of at least 1"),
        ({"overlap": "giou"}, "overlap must be one of iou, iomin"),
    ],
)
def test_options_outside_their_range_are_refused(sam: Sam, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamAutomaticMaskGenerator(sam, **options)


def test_an_image_of_wrong_type_is_refused(sam: Sam) -> None:
    with pytest.raises(ValueError, match=r"image must be a numpy array of shape \(H, W, 3\) and type uint8"):
        SamAutomaticMaskGenerator(sam, 2).generate(np.zeros((8, 8, 3), dtype=np.float32))  # type: ignore[arg-type]
