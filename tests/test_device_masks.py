"""Masks measured where they are: by the kernel (in Triton's interpreter on a CPU), plainly, and as a filter."""

from collections import Counter

import numpy as np
import pytest
import torch
from test_fast_masks import SIZES, blobs, proposals
from triton_kernels import DEVICE, needs_triton

from segment_anything._amg_cuda import DeviceMeasure
from segment_anything._amg_filters import filter_proposals, measure_plain
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import run_lengths
from segment_anything.modeling.cuda.mask_measures import (
    MaskMeasures,
    as_measures,
    measure_by_kernel,
    measure_masks,
    measure_plainly,
    run_lengths_of,
)
from segment_anything.modeling.decoded import upscale_masks


def written_out(logits: torch.Tensor, geometry: ImageGeometry, threshold: float, offset: float) -> list[list[int]]:
    """Areas and boxes by looking at masks of full size."""
    values = upscale_masks(logits[:, None], geometry)[:, 0].cpu().numpy()
    rows = []
    for value in values:
        areas = [int((value > threshold + shift).sum()) for shift in (offset, 0.0, -offset)]
        ys, xs = np.nonzero(value > threshold)
        box = [xs.min(), ys.min(), xs.max(), ys.max()] if len(ys) else [0, 0, 0, 0]
        rows.append([*areas, *map(int, box)])
    return rows


def as_rows(found: MaskMeasures) -> list[list[int]]:
    columns = [found.strict[:, None], found.areas[:, None], found.loose[:, None], found.boxes_xyxy]
    rows: list[list[int]] = np.concatenate(columns, axis=1).tolist()
    return rows


def some_masks(low: int) -> torch.Tensor:
    """Outlines of every kind, an empty mask and a full one."""
    ends = torch.stack([torch.full((low, low), -9.0), torch.full((low, low), 9.0)])
    return torch.cat([blobs(3, low, seed=low), ends]).to(DEVICE)


@pytest.mark.parametrize(("height", "width", "side", "low"), SIZES)
def test_masks_made_a_few_at_a_time_are_measured(height: int, width: int, side: int, low: int) -> None:
    logits, geometry = some_masks(low), ImageGeometry((height, width), side)
    two_masks = 2 * (4 * side * side + 7 * height * width)
    found = as_measures(*measure_plainly(logits, geometry, 0.5, 1.0, chunk_bytes=two_masks))
    assert (
        as_rows(found) == as_rows(measure_masks(logits, geometry, 0.5, 1.0)) == written_out(logits, geometry, 0.5, 1.0)
    )


@needs_triton
@pytest.mark.parametrize(("height", "width", "side", "low"), [SIZES[0], SIZES[3], SIZES[4], SIZES[6], (1, 90, 64, 16)])
def test_the_kernel_measures_masks_that_nobody_makes(height: int, width: int, side: int, low: int) -> None:
    logits, geometry = some_masks(low), ImageGeometry((height, width), side)
    areas, boxes = measure_by_kernel(logits, geometry, 0.5, 1.0, tile_hw=(16, 32) if height < 60 else (32, 64))
    plain_areas, plain_boxes = measure_plainly(logits, geometry, 0.5, 1.0)
    assert (areas - plain_areas).abs().max() <= 1  # a pixel on a threshold may fall to either side
    there = plain_areas[:, 1] > 0
    assert torch.equal(boxes[there], plain_boxes[there])
    assert there.tolist() == [*[True] * 3, False, True]


@needs_triton
def test_the_kernel_knows_tiles_whose_logits_are_alike_without_looking_at_pixels() -> None:
    half = torch.full((1, 16, 16), -5.0)
    half[:, :, 8:] = 5.0
    geometry = ImageGeometry((64, 64), 64)
    areas, boxes = measure_by_kernel(half.to(DEVICE), geometry, 0.0, 1.0, tile_hw=(32, 16))
    assert areas[0, 1] == 64 * 32
    assert boxes[0].tolist() == [32, 0, 63, 63]


@pytest.mark.parametrize(("height", "width", "side", "low"), SIZES)
def test_run_lengths_are_those_of_masks_at_full_size(height: int, width: int, side: int, low: int) -> None:
    logits, geometry = some_masks(low), ImageGeometry((height, width), side)
    expected = run_lengths((upscale_masks(logits[:, None], geometry)[:, 0] > 0).cpu())
    found = run_lengths_of(logits, geometry, 0.0)
    assert [runs.tolist() for runs in found] == [runs.tolist() for runs in expected]


def test_run_lengths_of_a_crop_lie_where_the_crop_lies() -> None:
    logits, geometry = some_masks(16), ImageGeometry((20, 30), 64)
    masks = torch.zeros(5, 50, 60, dtype=torch.bool)
    masks[:, 10:30, 25:55] = (upscale_masks(logits[:, None], geometry)[:, 0] > 0).cpu()
    found = run_lengths_of(logits, geometry, 0.0, (25, 10), (50, 60))
    assert [runs.tolist() for runs in found] == [runs.tolist() for runs in run_lengths(masks)]


@pytest.mark.parametrize("crop", [None, (25, 10, 55, 30)])
def test_the_filter_on_a_device_keeps_what_the_plain_one_keeps(crop: tuple[int, int, int, int] | None) -> None:
    geometry = ImageGeometry((20, 30), 64)
    options = AutomaticMaskOptions(
        pred_iou_thresh=0.2, stability_score_thresh=0.5, box_nms_thresh=0.9, min_mask_area=20, max_mask_area=550
    )
    batches = (
        [proposals(some_masks(16), geometry, crop, (50, 60)) for _ in range(2)]
        if crop
        else [proposals(torch.cat([some_masks(16), blobs(20, 16, seed=3).to(DEVICE)]), geometry)]
    )
    plain, plain_counts = filter_proposals(batches, options, measure=measure_plain)
    found, counts = filter_proposals(batches, options, measure=DeviceMeasure())
    assert counts == plain_counts
    assert [np.asarray(rle["counts"]).tolist() for rle in found.rles] == [
        np.asarray(rle["counts"]).tolist() for rle in plain.rles
    ]
    assert [rle["size"] for rle in found.rles] == [rle["size"] for rle in plain.rles]
    for name in ("boxes_xyxy", "predicted_iou", "stability_score", "points_xy", "crop_boxes_xyxy"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-6)


def test_run_lengths_are_found_together_and_only_for_masks_that_are_left() -> None:
    geometry = ImageGeometry((20, 30), 64)
    measure, options = DeviceMeasure(), AutomaticMaskOptions(stability_score_thresh=0)
    batch = proposals(blobs(6, 16).to(DEVICE), geometry)
    found = measure(batch.decoded, batch.points_xy, batch, options, 0.0, Counter())  # type: ignore[arg-type]
    (waiting,) = measure._waiting.values()
    assert len(waiting) == len(found) == 6
    left = found.take(np.array([1, 4]))
    del found
    assert len(waiting) == 2
    np.asarray(left.rles[0]["counts"])
    assert len(waiting) == 0
    assert all(rle["counts"].runs is not None and rle["counts"].logits is None for rle in left.rles)


def test_no_mask_at_all_is_measured() -> None:
    batch = proposals(torch.zeros(0, 16, 16), ImageGeometry((20, 30), 64))
    found = DeviceMeasure()(batch.decoded, batch.points_xy, batch, AutomaticMaskOptions(), 0.0, Counter())  # type: ignore[arg-type]
    assert len(found) == 0
    assert run_lengths_of(torch.zeros(0, 16, 16), ImageGeometry((20, 30), 64), 0.0) == []
