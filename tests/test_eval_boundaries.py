"""Boundary pixels: thinning, boundaries of label maps, one-to-one matching."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment_anything.evaluation.boundaries import label_boundaries, match_boundaries, thin


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def test_thick_line_becomes_one_pixel_wide() -> None:
    thick = drawn("........", ".######.", ".######.", ".######.", "........")
    thinned = thin(thick)
    assert thinned.sum(axis=0).max() == 1
    assert not (thinned & ~thick).any()
    assert thinned[2].sum() >= 4


def test_thin_line_stays_as_it_is() -> None:
    line = drawn("#....", ".#...", "..#..", "...##")
    assert np.array_equal(thin(line), line)


def test_ring_stays_a_ring() -> None:
    ring = drawn(".......", ".#####.", ".#####.", ".##.##.", ".#####.", ".#####.", ".......")
    thinned = thin(ring)
    assert not thinned[3, 3]
    assert thinned[:3, 3].sum() == thinned[4:, 3].sum() == thinned[3, :3].sum() == thinned[3, 4:].sum() == 1


def test_thinning_an_empty_map_gives_an_empty_map() -> None:
    assert not thin(np.zeros((4, 5), bool)).any()


def test_mask_that_fills_the_image_is_thinned_without_error() -> None:
    assert thin(np.ones((5, 7), bool)).sum() < 35


def test_label_boundary_lies_on_the_upper_left_side_of_the_crack() -> None:
    labels = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert np.array_equal(label_boundaries(labels), drawn(".#.", "###", "..."))


def test_pixels_match_one_to_one_and_not_many_to_one() -> None:
    two, one = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    two[50, 50] = two[50, 51] = one[50, 50] = True
    match = match_boundaries(two, one, tolerance=0.02)
    assert match.in_first.sum() == match.in_second.sum() == 1
    assert match.in_first[50, 50]
    assert match.total_distance_px == 0


def test_more_pairs_win_over_shorter_distances() -> None:
    # Columns:  first at 0 and 2, second at 2 and 4. Taking the pair at distance 0 would leave 0 and 4 without partners.
    first, second = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
    first[0, [0, 2]] = second[0, [2, 4]] = True
    match = match_boundaries(first, second, tolerance=0.021)
    assert match.in_first.sum() == 2
    assert match.total_distance_px == 4


def test_pixels_beyond_the_tolerance_stay_alone() -> None:
    first, second = np.zeros((60, 80), bool), np.zeros((60, 80), bool)  # diagonal 100
    first[10, 10] = second[10, 13] = True
    assert match_boundaries(first, second, tolerance=0.029).in_first.sum() == 0
    assert match_boundaries(first, second, tolerance=0.03).in_first.sum() == 1


def test_nothing_matches_an_empty_map() -> None:
    first = drawn("##", "..")
    assert not match_boundaries(first, np.zeros((2, 2), bool)).in_first.any()
    assert not match_boundaries(np.zeros((2, 2), bool), first).in_second.any()


def test_maps_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size \(H, W\), got \(2, 2\) and \(3, 2\)"):
        match_boundaries(np.zeros((2, 2), bool), np.zeros((3, 2), bool))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.05, 0.6), st.floats(0.05, 0.6))
def test_matching_equals_a_dense_assignment(seed: int, density_a: float, density_b: float) -> None:
    from scipy.optimize import linear_sum_assignment

    random = np.random.default_rng(seed)
    first, second = random.random((9, 12)) < density_a, random.random((9, 12)) < density_b
    radius = 0.15 * np.hypot(9, 12)
    a, b = np.argwhere(first), np.argwhere(second)
    distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    outlier = 100 * radius
    # every pixel of both maps has an outlier of its own; two outliers pair for nothing
    cost = np.full((len(a) + len(b), len(a) + len(b)), 1e9)
    cost[: len(a), : len(b)] = np.where(distance <= radius, distance, 1e9)
    cost[np.arange(len(a)), len(b) + np.arange(len(a))] = outlier
    cost[len(a) + np.arange(len(b)), np.arange(len(b))] = outlier
    cost[len(a) :, len(b) :] = 0
    rows, columns = linear_sum_assignment(cost)
    real = (rows < len(a)) & (columns < len(b))
    match = match_boundaries(first, second, tolerance=0.15)
    assert match.in_first.sum() == match.in_second.sum() == real.sum()
    assert match.total_distance_px == pytest.approx(cost[rows[real], columns[real]].sum())
