"""Masks: run lengths, overlaps, regions, outlines and borders, against pycocotools, scipy and hand-drawn pictures."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy import ndimage

from segment_anything.masks import (
    RLE,
    boundary,
    box_iou,
    connected_components,
    decode_rle,
    drop_small_islands,
    encode_rle,
    encode_rles,
    fill_small_holes,
    largest_component,
    mask_areas,
    mask_iou,
    mask_nms,
    mask_to_box,
    mask_to_polygons,
    mask_to_ring,
    nms,
    polygons_to_mask,
    rle_area,
    rle_counts,
    rle_intersections,
    rle_iou,
    rle_to_box,
    rle_to_coco,
    simplify,
)


def picture(*rows: str) -> np.ndarray:
    """A mask drawn with # and . characters."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def random_masks(count: int, seed: int = 0) -> list[np.ndarray]:
    """Small masks of any density, half of them in blobs."""
    rng = np.random.default_rng(seed)
    masks = []
    for i in range(count):
        mask = rng.random(rng.integers(1, 30, 2)) < rng.random()
        masks.append(ndimage.binary_dilation(mask) if i % 2 else mask)
    return masks


# run lengths


def test_runs_go_down_the_columns_and_start_with_background() -> None:
    assert encode_rle(picture(".#", "##")) == {"size": [2, 2], "counts": [1, 3]}
    assert encode_rle(picture("#.", ".#")) == {"size": [2, 2], "counts": [0, 1, 2, 1]}


def test_a_run_continues_over_the_foot_of_a_column() -> None:
    assert encode_rle(picture("..#", ".#.", ".#."))["counts"] == [4, 3, 2]


def test_empty_and_full_masks_are_one_run() -> None:
    assert encode_rle(np.zeros((2, 3), dtype=bool))["counts"] == [6]
    assert encode_rle(np.ones((2, 3), dtype=bool))["counts"] == [0, 6]


def test_decoding_undoes_encoding() -> None:
    for mask in random_masks(100):
        assert np.array_equal(decode_rle(encode_rle(mask)), mask)


def test_many_masks_encode_as_one_by_one_whether_array_or_tensor() -> None:
    masks = np.random.default_rng(0).random((5, 7, 9)) < 0.4
    single = [encode_rle(mask) for mask in masks]
    assert encode_rles(masks) == single
    assert encode_rles(torch.from_numpy(masks)) == single
    assert encode_rles(masks[:0]) == []


def test_masks_of_one_row_or_one_column_encode() -> None:
    assert encode_rle(picture("#..#"))["counts"] == [0, 1, 2, 1]
    assert encode_rle(picture("#", ".", "#"))["counts"] == [0, 1, 1, 1]


def test_the_compact_string_is_cocos_in_both_directions() -> None:
    for mask in random_masks(100):
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = encode_rle(mask)
        assert rle_to_coco(ours) == theirs["counts"].decode()
        assert rle_counts(theirs).tolist() == ours["counts"]
        assert np.array_equal(decode_rle(theirs), mask)


def test_the_compact_string_holds_runs_of_millions_of_pixels() -> None:
    rle = RLE(size=[5000, 6000], counts=[12_345_678, 3, 9_000_000, 1, 2, 8_654_316])
    theirs = coco.frPyObjects(rle, 5000, 6000)
    assert rle_to_coco(rle) == theirs["counts"].decode()
    assert rle_counts(theirs).tolist() == rle["counts"]


def test_area_and_box_of_runs_are_those_of_the_mask() -> None:
    for mask in random_masks(100):
        rle = encode_rle(mask)
        assert rle_area(rle) == mask.sum()
        assert np.array_equal(rle_to_box(rle), mask_to_box(mask))


def test_overlaps_of_runs_are_those_of_the_masks() -> None:
    masks = np.random.default_rng(1).random((6, 11, 13)) < 0.5
    masks[2] = False
    rles = encode_rles(masks)
    expected = [int((masks[0] & other).sum()) for other in masks]
    assert rle_intersections(rles[0], rles).tolist() == expected
    assert np.allclose(rle_iou(rles[:4], rles[1:]), mask_iou(masks[:4], masks[1:]))


def test_runs_that_do_not_fill_the_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sum to height \* width = 2 \* 3 = 6, but they sum to 5"):
        decode_rle({"size": [2, 3], "counts": [2, 3]})


def test_a_damaged_compact_string_is_refused() -> None:
    whole = rle_to_coco(encode_rle(np.eye(50, dtype=bool)))
    with pytest.raises(ValueError, match="damaged"):
        decode_rle({"size": [50, 50], "counts": whole[:-1] + "Q"})


def test_float_masks_are_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="holds float32; threshold it first"):
        encode_rle(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"hold torch\.float32; threshold them first"):
        encode_rles(torch.zeros(1, 2, 2))


def test_a_mask_of_wrong_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(H, W\), but has shape \(1, 2, 2\)"):
        encode_rle(np.zeros((1, 2, 2), dtype=bool))
    with pytest.raises(ValueError, match=r"add an axis with mask\[None\]"):
        mask_iou(np.zeros((2, 2), dtype=bool), np.zeros((1, 2, 2), dtype=bool))


# overlaps


def test_mask_iou_counts_pixels() -> None:
    a = np.stack([picture("##", ".."), picture("..", "..")])
    b = np.stack([picture("#.", "#."), picture("##", ".."), picture("..", "..")])
    assert np.allclose(mask_iou(a, b), [[1 / 3, 1, 0], [0, 0, 0]])
    assert mask_areas(b).tolist() == [2, 2, 0]


def test_mask_iou_refuses_different_sizes() -> None:
    with pytest.raises(ValueError, match="same height and width"):
        mask_iou(np.zeros((1, 2, 2), dtype=bool), np.zeros((1, 2, 3), dtype=bool))


def test_a_mask_box_ends_one_past_the_last_pixel() -> None:
    assert mask_to_box(picture("....", ".##.", "..#.")).tolist() == [1, 1, 3, 3]
    assert mask_to_box(np.zeros((3, 4), dtype=bool)).tolist() == [0, 0, 0, 0]


def test_box_iou_of_boxes_side_by_side_is_zero() -> None:
    assert box_iou([[0, 0, 2, 2]], [[2, 0, 4, 2], [1, 0, 3, 2], [0, 0, 2, 2]]).tolist() == [[0, 1 / 3, 1]]


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """The definition, box by box."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(box_iou(boxes[[i]], boxes[[j]])[0, 0] <= threshold for j in kept):
            kept.append(int(i))
    return kept


def random_boxes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 40, (count, 2)), rng.integers(1, 40, (count, 2))
    return np.concatenate([corner, corner + size], axis=1), rng.integers(0, 30, count) / 30


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_is_the_definition(threshold: float) -> None:
    boxes, scores = random_boxes(80)
    assert nms(boxes, scores, threshold).tolist() == plain_nms(boxes, scores, threshold)
    assert nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist() == plain_nms(
        boxes, scores, threshold
    )


def test_nms_keeps_the_first_of_equal_scores() -> None:
    assert nms([[0, 0, 9, 9], [0, 0, 9, 9]], [0.5, 0.5], 0.5).tolist() == [0]


def test_nms_of_nothing_is_nothing() -> None:
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []
    assert nms([], [], 0.5).tolist() == []


def test_nms_keeps_classes_apart() -> None:
    boxes, scores = random_boxes(60)
    classes = np.arange(60) % 3
    together = nms(boxes, scores, 0.3, classes=classes)
    apart = [np.flatnonzero(classes == k)[nms(boxes[classes == k], scores[classes == k], 0.3)] for k in range(3)]
    assert sorted(together.tolist()) == sorted(np.concatenate(apart).tolist())
    assert (np.diff(scores[together]) <= 0).all()


def test_iomin_removes_a_box_inside_a_better_one() -> None:
    boxes = [[0, 0, 10, 10], [1, 1, 3, 3], [9, 9, 12, 12]]
    assert nms(boxes, [0.9, 0.8, 0.7], 0.5).tolist() == [0, 1, 2]
    assert nms(boxes, [0.9, 0.8, 0.7], 0.5, overlap="iomin").tolist() == [0, 2]


def test_mask_nms_goes_by_pixels_not_boxes() -> None:
    ring, dot, arc = picture("####", "#..#", "####"), picture("....", ".#..", "...."), picture("##..", "#...", "....")
    rles = [encode_rle(mask) for mask in (ring, dot, arc)]
    assert mask_nms(rles, [0.9, 0.8, 0.7], 0.5, overlap="iomin").tolist() == [0, 1]
    assert mask_nms(rles, [0.9, 0.8, 0.7], 0.5).tolist() == [0, 1, 2]
    assert mask_nms([], [], 0.5).tolist() == []


def test_nms_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(ValueError, match=r"scores must have shape \(1,\)"):
        nms([[0, 0, 1, 1]], [0.1, 0.2], 0.5)
    with pytest.raises(ValueError, match="1 of 1 are NaN"):
        nms([[0, 0, 1, 1]], [float("nan")], 0.5)
    with pytest.raises(ValueError, match=r'overlap must be "iou" or "iomin"'):
        nms([[0, 0, 1, 1]], [0.1], 0.5, overlap="giou")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\)"):
        nms([[0, 0, 1]], [0.1], 0.5)


# regions


@pytest.mark.parametrize("connectivity", [4, 8])
def test_regions_are_numbered_and_measured_as_scipy_does(connectivity: int) -> None:
    structure = np.ones((3, 3)) if connectivity == 8 else None
    for mask in [*random_masks(100), np.ones((3, 3), dtype=bool), np.zeros((3, 3), dtype=bool)]:
        labels, areas = connected_components(mask, connectivity)
        expected, count = ndimage.label(mask, structure)
        assert np.array_equal(labels, expected)
        assert areas.tolist() == ndimage.sum(mask, expected, range(1, count + 1)).astype(int).tolist()


def test_a_long_spiral_is_one_region() -> None:
    side = 101
    mask = np.ones((side, side), dtype=bool)
    for k in range(1, side // 2, 2):
        mask[k, k - 1 : side - k] = False
        mask[k : side - k, side - k - 1] = False
        mask[side - k - 1, k : side - k] = False
        mask[k + 2 : side - k, k] = False
    labels, areas = connected_components(mask, 4)
    assert ndimage.label(mask)[1] == len(areas)
    assert labels.max() == len(areas)


def test_small_holes_are_filled_and_large_ones_stay() -> None:
    mask = picture("#######", "#.##..#", "####..#", "#######")
    assert np.array_equal(fill_small_holes(mask, 2), picture("#######", "####..#", "####..#", "#######"))
    assert np.array_equal(fill_small_holes(mask, 1), mask)


def test_small_islands_are_dropped_and_the_mask_given_is_not_changed() -> None:
    mask = picture("##...", "##..#", ".....")
    before = mask.copy()
    assert np.array_equal(drop_small_islands(mask, 2), picture("##...", "##...", "....."))
    assert not drop_small_islands(mask, 100).any()
    assert np.array_equal(mask, before)


def test_the_largest_region_counts_corners_as_touching() -> None:
    assert np.array_equal(largest_component(picture("#..##", ".#...", "..#..")), picture("#....", ".#...", "..#.."))


def test_connectivity_other_than_4_or_8_is_refused() -> None:
    with pytest.raises(ValueError, match="connectivity must be 4 or 8, but is 6"):
        connected_components(picture("#"), 6)


# polygons


def test_polygons_fill_as_coco_fills_them() -> None:
    rng = np.random.default_rng(0)
    for i in range(300):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        ring = rng.uniform(-10, 70, (rng.integers(3, 9), 2))
        ring = np.round(ring) if i % 3 == 0 else np.round(5 * ring) / 5 if i % 3 == 1 else ring
        theirs = coco.merge(coco.frPyObjects([ring.reshape(-1).tolist()], height, width))
        assert np.array_equal(polygons_to_mask([ring], height, width), decode_rle(theirs))


def test_overlapping_polygons_join_or_cancel() -> None:
    square, inner = [0, 0, 4, 0, 4, 4, 0, 4], [1, 1, 3, 1, 3, 3, 1, 3]
    assert polygons_to_mask([square, inner], 4, 4).all()
    assert np.array_equal(
        polygons_to_mask([square, inner], 4, 4, rule="even_odd"), picture("####", "#..#", "#..#", "####")
    )


@pytest.mark.parametrize(("holes", "rule"), [("bridge", "union"), ("separate", "even_odd")])
def test_outlines_fill_to_the_same_mask(holes: str, rule: str) -> None:
    for mask in random_masks(150):
        polygons = mask_to_polygons(mask, holes=holes)  # type: ignore[arg-type]
        assert np.array_equal(polygons_to_mask(polygons, *mask.shape, rule=rule), mask)  # type: ignore[arg-type]


def test_bridged_outlines_keep_their_holes_in_coco() -> None:
    mask = picture("######", "#.##.#", "######", "#....#", "######")
    (ring,) = mask_to_polygons(mask)
    theirs = coco.merge(coco.frPyObjects([ring.reshape(-1).tolist()], *mask.shape))
    assert np.array_equal(decode_rle(theirs), mask)


def test_a_region_gives_one_outline_of_its_corners() -> None:
    (ring,) = mask_to_polygons(picture("....", ".##.", ".#.."))
    assert ring.tolist() == [[1, 1], [3, 1], [3, 2], [2, 2], [2, 3], [1, 3]]


def test_pixels_that_touch_at_a_corner_share_an_outline() -> None:
    assert len(mask_to_polygons(picture("#.", ".#"))) == 1
    assert len(mask_to_polygons(picture(".#", "#."))) == 1


def test_holes_can_be_dropped() -> None:
    (ring,) = mask_to_polygons(picture("###", "#.#", "###"), holes="drop")
    assert polygons_to_mask([ring], 3, 3).all()


def test_a_whole_mask_becomes_one_ring_with_its_parts_and_holes() -> None:
    for mask in random_masks(60):
        ring = mask_to_ring(mask)
        assert np.array_equal(polygons_to_mask([ring], *mask.shape) if len(ring) else np.zeros_like(mask), mask)


def test_a_mask_with_hundreds_of_holes_and_parts_becomes_one_ring() -> None:
    mask = np.random.default_rng(3).random((60, 70)) < 0.5
    assert len(mask_to_polygons(mask, holes="separate")) > 200
    assert np.array_equal(polygons_to_mask([mask_to_ring(mask)], 60, 70), mask)
    assert np.array_equal(polygons_to_mask(mask_to_polygons(mask), 60, 70), mask)


def test_tolerance_bounds_the_distance_and_saves_points() -> None:
    y, x = np.mgrid[:80, :80]
    disc = (x - 40) ** 2 + (y - 40) ** 2 < 30**2
    (exact,), (thin,) = mask_to_polygons(disc), mask_to_polygons(disc, 1.0)
    assert len(thin) < len(exact) / 4
    assert mask_iou(polygons_to_mask([thin], 80, 80)[None], disc[None])[0, 0] > 0.97


def test_thinning_keeps_the_corners_of_a_square() -> None:
    ring = np.array([[0, 0], [1, 0.1], [2, 0], [4, 0], [4, 4], [2, 3.9], [0, 4]], dtype=float)
    assert simplify(ring, 0.5).tolist() == [[0, 0], [4, 0], [4, 4], [0, 4]]


def test_what_is_no_polygon_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        polygons_to_mask([[0, 0, 1, 1]], 4, 4)
    with pytest.raises(ValueError, match="must be finite"):
        polygons_to_mask([[0, 0, 1, 1, np.nan, 2]], 4, 4)
    with pytest.raises(ValueError, match="rule must be"):
        polygons_to_mask([], 4, 4, rule="xor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be"):
        mask_to_polygons(picture("#"), -1)
    with pytest.raises(ValueError, match="holes must be"):
        mask_to_polygons(picture("#"), holes="keep")  # type: ignore[arg-type]


# borders


def test_the_boundary_is_a_band_inside_the_mask() -> None:
    mask = np.zeros((7, 7), dtype=bool)
    mask[1:6, 1:6] = True
    expected = mask.copy()
    expected[2:5, 2:5] = False
    assert np.array_equal(boundary(mask, 0.1), expected)


def test_the_boundary_runs_along_the_image_edge_too() -> None:
    for mask in [*random_masks(50), np.ones((9, 5), dtype=bool)]:
        for ratio in (0.02, 0.1, 0.2):
            distance = max(1, round(ratio * float(np.hypot(*mask.shape))))
            inner = ndimage.binary_erosion(mask, np.ones((2 * distance + 1,) * 2))
            assert np.array_equal(boundary(mask, ratio), mask & ~inner)


def test_a_boundary_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="dilation_ratio must be"):
        boundary(picture("#"), 0)
