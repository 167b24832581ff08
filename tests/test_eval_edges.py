"""Edge maps from masks, and the protocol on BSDS500."""

from pathlib import Path

import numpy as np
import pytest
import torch
from colour_sam import ColourSam
from PIL import Image

from segment_anything.datasets import SampleError
from segment_anything.evaluation.boundaries import label_boundaries, thin
from segment_anything.evaluation.bsds import BsdsImage, open_bsds
from segment_anything.evaluation.edge_maps import edge_map, edge_nms, mask_edges, normalise
from segment_anything.evaluation.edges import Edges, read_edge_map
from segment_anything.evaluation.options import EdgeMapOptions, EdgeOptions
from segment_anything.evaluation.pictures import draw_edges
from segment_anything.evaluation.runs import run


def bsds(folder: Path, count: int = 2) -> Path:
    """A folder like BSDS500: a red rectangle on blue, drawn alike by two people."""
    from scipy.io import savemat

    for part in ("images/test", "groundTruth/test"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        labels = np.ones((80, 120), np.uint16)
        labels[20:60, 30 + 8 * number : 90] = 2
        image = np.where((labels == 2)[..., None], np.array([200, 0, 0]), np.array([0, 0, 90])).astype(np.uint8)
        Image.fromarray(image).save(folder / f"images/test/{number}.png")
        person = {"Segmentation": labels, "Boundaries": thin(label_boundaries(labels.astype(int))).astype(np.uint8)}
        people = np.empty((1, 2), object)
        people[0, :] = [person, person]
        savemat(folder / f"groundTruth/test/{number}.mat", {"groundTruth": people})
    return folder


def test_edges_of_a_mask_lie_outside_its_border_and_are_strongest_where_it_is_sharp() -> None:
    logits = torch.full((1, 20, 30), -10.0)
    logits[0, 5:15, 8:20] = 10.0
    edges = mask_edges(logits)
    mask = logits[0] > 0
    assert not (edges[mask] > 0).any()
    assert (edges[4, 9:19] > 3.9).all()  # Sobel of a step of one is 4
    assert (edges > 0).sum() == 2 * (10 + 12) + 4
    soft = mask_edges(logits / 20)
    assert soft[4, 12] < edges[4, 12]


def test_edges_are_the_largest_sobel_slopes_on_the_outer_boundaries_of_the_masks() -> None:
    from scipy import ndimage

    logits = ndimage.gaussian_filter(np.random.default_rng(3).normal(0, 40, (4, 37, 52)), (0, 3, 3))
    expected = np.zeros((37, 52))
    for one in logits:
        probability, mask = 1 / (1 + np.exp(-one)), one > 0.5
        slope = np.hypot(*(ndimage.sobel(probability, axis, mode="nearest") for axis in (0, 1)))
        outside = ndimage.binary_dilation(mask, np.ones((3, 3))) & ~mask
        expected = np.maximum(expected, slope * outside)
    assert mask_edges(torch.from_numpy(logits).float(), 0.5).numpy() == pytest.approx(expected, abs=1e-5)
    assert 0.2 < (expected > 0).mean() < 0.8


def test_the_edge_of_the_image_is_no_edge() -> None:
    assert mask_edges(torch.full((1, 8, 8), 10.0)).max() == 0


def test_normalise_stretches_to_zero_and_one() -> None:
    assert normalise(np.array([[2.0, 4.0], [3.0, 2.0]])).tolist() == [[0.0, 1.0], [0.5, 0.0]]
    assert normalise(np.full((2, 2), 7.0)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 135])
def test_edge_nms_leaves_the_crest_of_a_ridge(degrees: int) -> None:
    y, x = np.mgrid[:61, :61] - 30.0
    angle = np.deg2rad(degrees)
    distance = np.abs(x * np.sin(angle) - y * np.cos(angle))
    ridge = np.exp(-((distance / 3) ** 2))
    kept = edge_nms(ridge) > 0
    inside = (slice(10, -10), slice(10, -10))
    assert distance[inside][kept[inside]].max() < 1.0
    assert kept[inside].sum() >= 41  # no gaps along the line


def test_model_finds_the_borders_of_coloured_regions(tmp_path: Path) -> None:
    image, truth = open_bsds(bsds(tmp_path))[0].read()
    edges = edge_map(ColourSam(), image, EdgeMapOptions(points_per_side=4))  # type: ignore[arg-type]
    assert edges.shape == (80, 120)
    assert (edges.min(), edges.max()) == (0, 1)
    near = np.zeros_like(truth.boundaries[0])
    for y, x in np.argwhere(truth.boundaries[0]):
        near[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = True
    strong = edges > 0.5
    half = strong & ~near  # the model's masks without the left half of a region end in its middle
    assert strong[near].sum() > 100
    assert np.unique(np.argwhere(half)[:, 1]).size <= 8


def test_perfect_maps_score_one(tmp_path: Path) -> None:
    items = open_bsds(bsds(tmp_path / "data"))
    for item in items:
        _, truth = item.read()
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(truth.boundaries[0].astype(np.uint8) * 255).save(tmp_path / f"maps/{item.name}.png")
    protocol = Edges.of_folder(tmp_path / "maps", EdgeOptions(thresholds=3))
    rows = run(protocol, items).rows
    values = dict(protocol.values(rows))
    assert (values["images"], values["ods"], values["ois"]) == (2, 1, 1)
    plot, _ = draw_edges(protocol, rows, items, tmp_path)
    with Image.open(plot) as picture:
        assert min(picture.size) > 300


def test_protocol_runs_with_a_model(tmp_path: Path) -> None:
    protocol = Edges.of_model(
        ColourSam(),  # type: ignore[arg-type]
        EdgeOptions(thresholds=5),
        EdgeMapOptions(points_per_side=2),
    )
    values = dict(protocol.values(run(protocol, open_bsds(bsds(tmp_path, count=1))).rows))
    assert values["ods_recall"] > 0.95
    assert 0.5 < values["ods"] < 1  # the halves are wrong


def test_missing_or_wrong_edge_map_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"1\.png: no edge map can be read"):
        read_edge_map(tmp_path / "1.png", (4, 4))
    Image.new("L", (5, 4)).save(tmp_path / "1.png")
    with pytest.raises(SampleError, match="the edge map is 5 x 4 pixels, the photograph 4 x 4"):
        read_edge_map(tmp_path / "1.png", (4, 4))
    with pytest.raises(ValueError, match="no folder with edge maps"):
        Edges.of_folder(tmp_path / "none")


def test_photograph_and_truth_of_different_size_are_one_line(tmp_path: Path) -> None:
    item = open_bsds(bsds(tmp_path, count=1))[0]
    Image.new("RGB", (120, 81)).save(item.image_path)
    with pytest.raises(SampleError, match="0: the photograph is 120 x 81 pixels, its ground truth 120 x 80"):
        item.read()
    with pytest.raises(SampleError, match="No such file"):
        BsdsImage(tmp_path / "9.png", item.truth_path).read()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EdgeOptions(thresholds=0), "thresholds must be at least 1"),
        (lambda: EdgeOptions(tolerance=4.3), "fraction of the diagonal"),
        (lambda: EdgeMapOptions(points_per_side=0), "at least 1, got 0"),
        (lambda: EdgeMapOptions(nms_threshold=7), r"nms_threshold must lie in \[0, 1\]"),
    ],
)
def test_options_out_of_range_are_named(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
