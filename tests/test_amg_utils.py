"""The helpers of automatic mask generation that programs import from utils.amg."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segment_anything.utils.amg import (
    MaskData,
    area_from_rle,
    batch_iterator,
    batched_mask_to_box,
    box_xyxy_to_xywh,
    build_all_layer_point_grids,
    build_point_grid,
    calculate_stability_score,
    coco_encode_rle,
    generate_crop_boxes,
    is_box_near_crop_edge,
    mask_to_rle_pytorch,
    remove_small_regions,
    rle_to_mask,
    uncrop_boxes_xyxy,
    uncrop_masks,
    uncrop_points,
)


def picture(*rows: str) -> np.ndarray:
    """A mask drawn with # and . characters."""
    return np.array([[letter == "#" for letter in row] for row in rows])


# MaskData


def columns() -> MaskData:
    return MaskData(scores=torch.tensor([0.1, 0.2, 0.3]), names=["a", "b", "c"], ids=np.array([1, 2, 3]))


def test_mask_data_filters_all_columns_by_a_mask() -> None:
    data = columns()
    data.filter(torch.tensor([True, False, True]))
    assert (data["names"], data["ids"].tolist()) == (["a", "c"], [1, 3])
    assert data["scores"].tolist() == pytest.approx([0.1, 0.3])


def test_mask_data_reorders_all_columns_by_indices() -> None:
    data = columns()
    data.filter(torch.tensor([2, 0]))
    assert (data["names"], data["ids"].tolist()) == (["c", "a"], [3, 1])
    assert data["scores"].tolist() == pytest.approx([0.3, 0.1])


def test_mask_data_appends_copies() -> None:
    data, more = MaskData(), columns()
    data.cat(more)
    data.cat(columns())
    assert data["names"] == ["a", "b", "c"] * 2
    assert data["ids"].tolist() == [1, 2, 3] * 2
    assert len(data["scores"]) == 6
    assert more["names"] == ["a", "b", "c"]


def test_mask_data_becomes_numpy_even_from_bfloat16() -> None:
    data = MaskData(scores=torch.tensor([0.5], dtype=torch.bfloat16), names=["a"])
    data.to_numpy()
    assert data["scores"].dtype == np.float32
    assert dict(data.items())["names"] == ["a"]


def test_mask_data_drops_columns_and_refuses_what_is_none() -> None:
    data = columns()
    del data["names"]
    assert [name for name, _ in data.items()] == ["scores", "ids"]
    with pytest.raises(ValueError, match="best must be a list, numpy array or tensor, but is a float"):
        data["best"] = 0.3


# grids, crops, frames


def test_a_point_grid_holds_the_centres_of_equal_cells_row_by_row() -> None:
    assert build_point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert build_point_grid(1).tolist() == [[0.5, 0.5]]


def test_grids_of_crops_have_fewer_points() -> None:
    assert [len(grid) for grid in build_all_layer_point_grids(8, 2, 2)] == [64, 16, 4]


def test_crops_overlap_and_cover_the_image_to_its_edges() -> None:
    boxes, layers = generate_crop_boxes((1200, 1800), 1, 512 / 1500)
    # overlap int(512 / 1500 * 1200) = 409; width ceil((409 + 1800) / 2) = 1105; height ceil((409 + 1200) / 2) = 805
    assert boxes == [
        [0, 0, 1800, 1200],
        [0, 0, 1105, 805],
        [0, 396, 1105, 1200],
        [696, 0, 1800, 805],
        [696, 396, 1800, 1200],
    ]
    assert layers == [0, 1, 1, 1, 1]


def test_each_layer_of_crops_has_twice_as_many_along_each_side() -> None:
    boxes, layers = generate_crop_boxes((90, 60), 2, 0.3)
    assert [layers.count(layer) for layer in range(3)] == [1, 4, 16]
    covered = np.zeros((90, 60), dtype=int)
    for x0, y0, x1, y1 in boxes[5:]:
        covered[y0:y1, x0:x1] += 1
    assert covered.min() == 1


def test_boxes_points_and_masks_move_from_a_crop_into_the_image() -> None:
    crop = [2, 1, 4, 3]
    assert uncrop_boxes_xyxy(torch.tensor([[0, 0, 1, 1]]), crop).tolist() == [[2, 1, 3, 2]]
    assert uncrop_points(torch.tensor([[0.5, 1.0]]), crop).tolist() == [[2.5, 2.0]]
    placed = uncrop_masks(torch.ones(1, 2, 2, dtype=torch.bool), crop, 4, 5)
    assert np.array_equal(placed[0].numpy(), picture(".....", "..##.", "..##.", "....."))
    whole = torch.ones(1, 4, 5)
    assert uncrop_masks(whole, [0, 0, 5, 4], 4, 5) is whole


def test_boxes_at_the_crops_edge_are_found_unless_the_image_ends_there() -> None:
    crop, image = [0, 0, 500, 500], [0, 0, 1000, 500]
    boxes = torch.tensor([[100, 100, 481, 300], [100, 100, 479, 300], [5, 5, 300, 495]])
    assert is_box_near_crop_edge(boxes, crop, image).tolist() == [True, False, False]
    shifted = torch.tensor([[10, 100, 200, 200]])
    assert is_box_near_crop_edge(shifted, [500, 0, 1000, 500], image).tolist() == [True]


def test_a_box_turns_from_corners_to_corner_and_size() -> None:
    box = torch.tensor([2, 3, 10, 20])
    assert box_xyxy_to_xywh(box).tolist() == [2, 3, 8, 17]
    assert box.tolist() == [2, 3, 10, 20]
    assert box_xyxy_to_xywh([2, 3, 10, 20]) == [2, 3, 8, 17]


def test_batches_walk_through_sequences_together() -> None:
    batches = list(batch_iterator(2, [1, 2, 3], np.array([4, 5, 6])))
    assert [(list(a), list(b)) for a, b in batches] == [([1, 2], [4, 5]), ([3], [6])]
    with pytest.raises(ValueError, match=r"equal length, but got lengths \[1, 2\]"):
        list(batch_iterator(2, [1], [1, 2]))


# masks


def test_run_lengths_come_as_lists_and_decode_again() -> None:
    masks = torch.from_numpy(np.stack([picture(".#", "##"), picture("..", "..")]))
    rles = mask_to_rle_pytorch(masks)
    assert rles == [{"size": [2, 2], "counts": [1, 3]}, {"size": [2, 2], "counts": [4]}]
    assert np.array_equal(rle_to_mask(rles[0]), masks[0].numpy())
    assert [area_from_rle(rle) for rle in rles] == [3, 0]


def test_the_compact_encoding_is_cocos() -> None:
    mask = np.random.default_rng(0).random((40, 50)) < 0.3
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = coco_encode_rle(mask_to_rle_pytorch(torch.from_numpy(mask[None]))[0])
    assert ours == {"size": [40, 50], "counts": theirs["counts"].decode()}


def test_the_stability_score_is_the_overlap_of_a_high_and_a_low_cut() -> None:
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[2.0, 2.0, -2.0, -2.0]], [[-9.0, -9.0, -9.0, -9.0]]])
    assert calculate_stability_score(logits, 0.0, 1.0).tolist() == pytest.approx([1 / 3, 1, 0])
    assert calculate_stability_score(logits[0, None], 0.0, 1.0).shape == (1,)


def test_boxes_of_masks_hold_first_and_last_pixels() -> None:
    masks = torch.from_numpy(np.stack([picture("....", ".##.", "..#."), picture("....", "....", "....")]))
    assert batched_mask_to_box(masks).tolist() == [[1, 1, 2, 2], [0, 0, 0, 0]]
    assert batched_mask_to_box(masks[0]).tolist() == [1, 1, 2, 2]
    assert batched_mask_to_box(masks[None]).shape == (1, 2, 4)
    assert batched_mask_to_box(torch.zeros(2, 0, 3)).tolist() == [[0, 0, 0, 0]] * 2
    assert batched_mask_to_box(torch.zeros(0, 2, 3)).shape == (0, 4)


def test_small_holes_are_filled() -> None:
    mask, changed = remove_small_regions(picture("###", "#.#", "###"), 2, "holes")
    assert (mask.all(), changed) == (True, True)
    mask, changed = remove_small_regions(picture("###", "#.#", "###"), 1, "holes")
    assert (mask.sum(), changed) == (8, False)


def test_small_islands_go_but_the_largest_stays() -> None:
    mask, changed = remove_small_regions(picture("#.##", "...."), 2, "islands")
    assert np.array_equal(mask, picture("..##", "...."))
    assert changed
    mask, changed = remove_small_regions(picture("#.##", "...."), 9, "islands")
    assert np.array_equal(mask, picture("..##", "...."))
    assert changed


def test_an_empty_mask_has_no_region_to_remove() -> None:
    mask, changed = remove_small_regions(picture("..", ".."), 9, "islands")
    assert (mask.any(), changed) == (False, False)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match='mode must be "holes" or "islands", but is \'gaps\''):
        remove_small_regions(picture("#"), 2, "gaps")  # type: ignore[arg-type]
