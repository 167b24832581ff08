"""The BSDS500 evaluator, against the benchmark's own expected outputs and on cases that can be worked out by hand."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segment_anything.datasets import SampleError
from segment_anything.evaluation.boundaries import label_boundaries, thin
from segment_anything.evaluation.bsds import open_bsds, read_mat, read_truth
from segment_anything.evaluation.edge_scores import (
    EdgeCounts,
    best_counts,
    count_boundary_maps,
    count_soft_edges,
    default_thresholds,
    f_measure,
    score_edges,
)
from segment_anything.evaluation.region_scores import (
    RegionCounts,
    contingency,
    count_regions,
    rand_index,
    score_regions,
    segmentation_from_ucm,
    variation_of_information,
)

IMAGES = ("2018", "3063", "5096", "6046", "8068")
# What each of the benchmark's test cases scores (contour maps, their PNG files, segmentations) where it has figures.
EDGE_CASES = {"test_1": "ucm", "test_2": "png", "test_3": "segs", "test_4": "segs"}
REGION_CASES = {"test_1": "ucm", "test_4": "segs", "test_5": "segs"}
TOLERANCE = 0.002
"""The benchmark's matching is itself random in the third decimal: its test cases 2 and 3 have the same boundaries."""


@pytest.fixture(scope="module")
def bench(shared: Path) -> Path:
    return shared / "data/eval/bsds500/bench"


def expected(bench: Path, case: str, name: str) -> np.ndarray:
    """The benchmark's own table; its first column, a threshold or a number, is left out."""
    return np.loadtxt(bench / case / f"{name}.txt", ndmin=2)[:, 1:]


@cache
def edge_counts(bench: Path, kind: str) -> list[EdgeCounts]:
    counts = []
    for name in IMAGES:
        truths = read_truth(bench / f"groundTruth/{name}.mat").boundaries
        if kind == "segs":
            maps = [label_boundaries(labels.astype(int)) for labels in read_mat(bench / f"segs/{name}.mat", "segs")[0]]
            counts.append(count_boundary_maps(maps, truths))
        else:
            edges = (
                np.asarray(Image.open(bench / f"png/{name}.png")) / 255
                if kind == "png"
                else read_mat(bench / f"ucm2/{name}.mat", "ucm2")[2::2, 2::2]
            )
            counts.append(count_soft_edges(edges, truths, default_thresholds(5)))
    return counts


@pytest.mark.parametrize("case", EDGE_CASES)
def test_edge_scores_equal_the_benchmarks_own(bench: Path, case: str) -> None:
    counts = edge_counts(bench, EDGE_CASES[case])
    scores = score_edges(counts, default_thresholds(5))
    found = (
        *(scores.ods_recall, scores.ods_precision, scores.ods),
        *(scores.ois_recall, scores.ois_precision, scores.ois),
        scores.ap,
    )
    assert found == pytest.approx(expected(bench, case, "eval_bdry")[0], abs=TOLERANCE)
    precision, recall = sum(counts[1:], counts[0]).precision_recall()
    curve = np.stack([recall, precision, f_measure(precision, recall)], axis=1)
    assert curve == pytest.approx(expected(bench, case, "eval_bdry_thr"), abs=TOLERANCE)
    best = [score_edges([one], default_thresholds(5)) for one in counts]
    each = np.array([[one.ods_recall, one.ods_precision, one.ods] for one in best])
    assert each == pytest.approx(expected(bench, case, "eval_bdry_img")[:, 1:], abs=3 * TOLERANCE)


@cache
def region_counts(bench: Path, kind: str) -> list[RegionCounts]:
    counts = []
    for name in IMAGES:
        truths = read_truth(bench / f"groundTruth/{name}.mat").segmentations
        if kind == "segs":
            segmentations = [labels.astype(int) for labels in read_mat(bench / f"segs/{name}.mat", "segs")[0]]
        else:
            ucm = read_mat(bench / f"ucm2/{name}.mat", "ucm2")
            segmentations = [segmentation_from_ucm(ucm, level) for level in default_thresholds(5)]
        counts.append(count_regions(segmentations, truths))
    return counts


@pytest.mark.parametrize("case", REGION_CASES)
def test_region_scores_equal_the_benchmarks_own(bench: Path, case: str) -> None:
    counts = region_counts(bench, REGION_CASES[case])
    scores = score_regions(counts)
    covering = (scores.covering_ods, scores.covering_ois, scores.covering_best)
    assert covering == pytest.approx(expected(bench, case, "eval_cover")[0], abs=1e-5)
    pairs = expected(bench, case, "eval_RI_VOI")[0]  # the fourth figure is a threshold
    assert (scores.rand_ods, scores.rand_ois) == pytest.approx(pairs[:2], abs=1e-5)
    assert (scores.variation_ods, scores.variation_ois) == pytest.approx(pairs[3:], abs=1e-5)
    assert (scores.covering_ods_index, scores.rand_ods_index, scores.variation_ods_index) == (1, 0, 1)
    each = expected(bench, case, "eval_cover_img")  # threshold, at the best threshold, with the best of all regions
    assert [one.covering.max() for one in counts] == pytest.approx(each[:, 1], abs=1e-5)
    by_level = expected(bench, case, "eval_RI_VOI_thr")
    assert np.mean([one.rand_index for one in counts], axis=0) == pytest.approx(by_level[:, 0], abs=1e-5)
    assert np.mean([one.variation for one in counts], axis=0) == pytest.approx(by_level[:, 1], abs=1e-5)
    weight = np.array([one.area_px.sum() for one in counts])
    whole = weight @ np.array([one.covering for one in counts]) / weight.sum()
    assert whole == pytest.approx(expected(bench, case, "eval_cover_th")[:, 0], abs=1e-5)


def test_human_boundaries_are_the_thinned_boundaries_of_the_human_segmentations(bench: Path) -> None:
    truth = read_truth(bench / "groundTruth/3063.mat")
    for labels, boundary in zip(truth.segmentations, truth.boundaries, strict=True):
        assert np.array_equal(thin(label_boundaries(labels)), boundary)


def test_all_test_photographs_are_found_with_their_truth(shared: Path) -> None:
    items = open_bsds(shared / "data/eval/bsds500")
    assert len(items) == 200
    image, truth = items[0].read()
    assert image.shape[:2] == truth.boundaries[0].shape == truth.segmentations[0].shape


def counts_of(*rows: tuple[int, int, int, int]) -> EdgeCounts:
    return EdgeCounts(*np.array(rows, np.int64).T)


def test_perfect_edges_score_one() -> None:
    truth = np.zeros((30, 30), bool)
    truth[10] = True
    counts = count_soft_edges(truth.astype(float), [truth, truth], default_thresholds(3))
    scores = score_edges([counts], default_thresholds(3))
    assert (scores.ods, scores.ois, scores.r50) == (1, 1, 1)
    assert counts.recall_total.tolist() == [60, 60, 60]


def test_edge_drawn_by_one_of_two_people_is_precise_and_half_recalled() -> None:
    one, other = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    one[5], other[30] = True, True
    counts = count_soft_edges(one.astype(float), [one, other], np.array([0.5]))
    (precision,), (recall,) = counts.precision_recall()
    assert (precision, recall) == (1.0, 0.5)


def test_best_threshold_of_the_set_lies_between_the_measured_ones() -> None:
    # precision 1, recall 0.2 and precision 0.2, recall 1: at half way both are 0.6
    counts = counts_of((100, 100, 20, 100), (20, 100, 100, 100))
    scores = score_edges([counts], np.array([0.2, 0.4]))
    assert scores.ods == pytest.approx(0.6)
    assert scores.ods_threshold == pytest.approx(0.3)


def test_each_image_takes_its_own_best_threshold() -> None:
    first, second = counts_of((9, 10, 9, 10), (1, 10, 1, 10)), counts_of((1, 10, 1, 10), (8, 10, 8, 10))
    assert best_counts([first, second]).recall_hits.tolist() == [17]
    scores = score_edges([first, second], np.array([0.3, 0.6]))
    assert scores.ois == pytest.approx(0.85)
    assert scores.ods == pytest.approx(0.5)


def test_recall_at_half_precision_is_read_from_the_curve() -> None:
    counts = counts_of((80, 100, 20, 100), (40, 100, 80, 100))  # precision 0.2 at recall 0.8, 0.8 at 0.4
    assert score_edges([counts], np.array([0.1, 0.9])).r50 == pytest.approx(0.6)


def test_no_edges_at_all_score_zero_without_warnings() -> None:
    truth = np.zeros((20, 20), bool)
    truth[3] = True
    counts = count_soft_edges(np.zeros((20, 20)), [truth], default_thresholds(4))
    scores = score_edges([counts], default_thresholds(4))
    assert (scores.ods, scores.ois, scores.ap, scores.r50) == (0, 0, 0, 0)


def test_scores_need_an_image_and_a_person() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        score_edges([], default_thresholds(2))
    with pytest.raises(ValueError, match="at least one human boundary map"):
        count_soft_edges(np.zeros((3, 3)), [])


def test_equal_segmentations_agree_fully_whatever_their_numbers() -> None:
    labels = np.array([[1, 1, 2], [3, 3, 2]])
    table = contingency(labels, labels * 10)
    assert rand_index(table) == 1
    assert variation_of_information(table) == pytest.approx(0)
    assert count_regions([labels], [labels * 10]).covering.tolist() == [1.0]


def test_rand_index_counts_pairs_of_pixels() -> None:
    a, b = np.array([[1, 1, 2, 2]]), np.array([[1, 2, 2, 2]])
    pairs = [(i, j) for i in range(4) for j in range(i)]
    agree = sum((a[0, i] == a[0, j]) == (b[0, i] == b[0, j]) for i, j in pairs)
    assert rand_index(contingency(a, b)) == pytest.approx(agree / len(pairs))


def test_one_region_against_two_halves_costs_one_bit() -> None:
    halves = np.array([[1, 1, 2, 2]])
    assert variation_of_information(contingency(np.ones_like(halves), halves)) == pytest.approx(1)


def test_folder_that_is_not_bsds_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not BSDS500, expected the folders images and groundTruth"):
        open_bsds(tmp_path)


def test_photograph_without_truth_is_named(tmp_path: Path) -> None:
    for folder in ("images/test", "groundTruth/test"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images/test/7.png")
    with pytest.raises(ValueError, match=r"1 of 1 photographs have no ground truth, such as 7\.mat"):
        open_bsds(tmp_path)


def test_damaged_truth_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "7.mat").write_bytes(b"not a matlab file")
    with pytest.raises(SampleError, match=r"7\.mat: not a BSDS500 ground truth"):
        read_truth(tmp_path / "7.mat")
    with pytest.raises(SampleError, match=r"8\.mat is missing"):
        read_truth(tmp_path / "8.mat")
