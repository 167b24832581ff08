"""Points and boxes: on pictures of flat colours, with a model whose answers are known."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from colour_sam import Answer, ColourSam
from PIL import Image as PillowImage

from segment_anything.detectors import BoxFile
from segment_anything.evaluation.data import images_of, open_boxes, open_images
from segment_anything.evaluation.interact import Encoded, boxes_to_masks, click_through, usable_boxes
from segment_anything.evaluation.metrics import iou
from segment_anything.evaluation.options import PointsBoxesOptions
from segment_anything.evaluation.pictures import draw_points_boxes
from segment_anything.evaluation.points_boxes import PointsBoxes, by_size, image_seed, match_boxes
from segment_anything.evaluation.runs import Shard, run
from segment_anything.prompts import Prompt

RED, GREEN = (200, 0, 0), (0, 200, 0)


def squares(folder: Path, count: int = 2) -> Path:
    """A data set of label maps: a red square of 40 x 40 and a green one of 10 x 20 on black."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, labels = np.zeros((100, 120, 3), np.uint8), np.zeros((100, 120), np.uint8)
        image[10:50, 10 + number : 50 + number], labels[10:50, 10 + number : 50 + number] = RED, 1
        image[70:80, 80:100], labels[70:80, 80:100] = GREEN, 2
        PillowImage.fromarray(image).save(folder / "images" / f"{number}.png")
        PillowImage.fromarray(labels).save(folder / "masks" / f"{number}.png")
    return folder


def measured(folder: Path, options: PointsBoxesOptions, **more: object) -> dict[str, float]:
    protocol = PointsBoxes(ColourSam(), options, **more)  # type: ignore[arg-type]
    return dict(protocol.values(run(protocol, open_images(folder)).rows))


def test_single_mask_is_scored_for_boxes_and_the_most_confident_for_clicks(tmp_path: Path) -> None:
    values = measured(squares(tmp_path), PointsBoxesOptions(clicks=(1, 2), noc_limit=0))
    assert (values["images"], values["objects"]) == (2, 4)
    assert values["box_truth_miou"] == 1  # the model's first mask is the region
    assert values["box_truth_boundary_iou"] == 1
    assert values["click1_miou"] == pytest.approx(0.5)  # its most confident one is half of it
    assert values["click1_oracle_miou"] == 1
    assert values["click2_miou"] == 1


def test_clicks_are_needed_until_the_target_and_failures_counted(tmp_path: Path) -> None:
    values = measured(squares(tmp_path), PointsBoxesOptions(clicks=(1,), noc_limit=5, noc_targets=(0.4, 0.9)))
    assert (values["noc40"], values["noc90"]) == (1, 2)
    assert values["noc90_failures"] == 0
    limited = measured(tmp_path, PointsBoxesOptions(clicks=(1,), noc_limit=1, noc_targets=(0.9,)))
    assert (limited["noc90"], limited["noc90_failures"]) == (1, 1)


def test_error_of_the_predicted_iou_is_over_boxes_and_clicks(tmp_path: Path) -> None:
    values = measured(squares(tmp_path), PointsBoxesOptions(clicks=(1,), boxes=("truth",), noc_limit=0))
    # boxes: predicted 0.6, true 1; first click: predicted 0.9, true 0.5
    assert values["predicted_iou_mae"] == pytest.approx(0.4, abs=1e-6)
    assert values["predicted_iou_bias"] == pytest.approx(0.0, abs=1e-6)
    more = measured(tmp_path, PointsBoxesOptions(clicks=(1, 2), boxes=("truth",), noc_limit=0))
    assert more["predicted_iou_mae_box_truth"] == more["predicted_iou_mae_click1"] == pytest.approx(0.4, abs=1e-6)
    assert more["predicted_iou_mae_click2"] == pytest.approx(0.05, abs=1e-6)  # predicted 0.95, true 1
    assert more["predicted_iou_mae"] == pytest.approx((0.4 + 0.4 + 0.05) / 3, abs=1e-6)


def test_small_objects_are_left_out_on_request(tmp_path: Path) -> None:
    values = measured(squares(tmp_path), PointsBoxesOptions(clicks=(), noc_limit=0, min_area_px=400))
    assert values["objects"] == 2
    assert "box_truth_miou_medium" in values
    assert "box_truth_miou_small" not in values


def test_of_many_objects_the_same_ones_are_drawn_for_the_same_seed(tmp_path: Path) -> None:
    items = open_images(squares(tmp_path, count=8))

    def drawn(seed: int) -> list[list[int]]:
        options = PointsBoxesOptions(clicks=(), boxes=(), noc_limit=0, max_objects=1, seed=seed)
        rows = run(PointsBoxes(ColourSam(), options), items).rows  # type: ignore[arg-type]
        return [row["area_px"] for row in rows]

    assert drawn(0) == drawn(0) != drawn(1)
    assert {area for areas in drawn(0) for area in areas} == {200, 1600}


def test_each_image_is_encoded_once(tmp_path: Path) -> None:
    sam = ColourSam()
    protocol = PointsBoxes(sam, PointsBoxesOptions(clicks=(1, 3), noc_limit=4))  # type: ignore[arg-type]
    run(protocol, open_images(squares(tmp_path)))
    assert sam.encoded == 2


def test_figures_do_not_depend_on_how_the_run_is_split(tmp_path: Path) -> None:
    items = open_images(squares(tmp_path / "data", count=3))

    def protocol() -> PointsBoxes:
        return PointsBoxes(ColourSam(), PointsBoxesOptions(clicks=(1,), noc_limit=0))  # type: ignore[arg-type]

    for index in range(2):
        split = run(protocol(), items, folder=tmp_path / "out", shard=Shard(index, 2))
    whole = run(protocol(), items)
    times = {"encode_ms", "decode_ms"}
    split_values, whole_values = (
        {key: value for key, value in protocol().values(rows) if key not in times} for rows in (split.rows, whole.rows)
    )
    assert split_values == whole_values


def test_boxes_of_a_detector_are_matched_to_objects(tmp_path: Path) -> None:
    squares(tmp_path / "data", count=1)
    boxes = [[12, 8, 40, 40], [110, 90, 5, 5]]  # near the red square, and nowhere
    content = {
        "images": [{"id": 1, "file_name": "images/0.png", "width": 120, "height": 100}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    options = PointsBoxesOptions(clicks=(), boxes=(), noc_limit=0)
    values = measured(tmp_path / "data", options, detections=BoxFile(tmp_path / "boxes.json"))
    assert values["box_detected_found"] == 0.5
    assert values["box_detected_miou"] == 1


def coco_results(folder: Path, *image_ids: object) -> tuple[Path, Path]:
    """The squares as a COCO data set with ids unlike the names, and a list of results as detectors write it."""
    from segment_anything.masks import encode_rle

    squares(folder, count=2)
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for number, image_id in ((0, 158), (1, 397)):
        entry = {"id": image_id, "file_name": f"images/{number}.png", "width": 120, "height": 100}
        content["images"].append(entry)
        labels = np.array(PillowImage.open(folder / f"masks/{number}.png"))
        for value in (1, 2):
            drawn = {"image_id": image_id, "category_id": 1, "segmentation": dict(encode_rle(labels == value))}
            content["annotations"].append({"id": len(content["annotations"]) + 1, **drawn})
    results = [{"image_id": key, "category_id": 1, "bbox": [12, 8, 40, 40], "score": 0.9} for key in image_ids]
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "boxes.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "boxes.json"


def test_a_list_of_results_is_matched_by_image_id(tmp_path: Path) -> None:
    truth, results = coco_results(tmp_path, 397)
    boxes = open_boxes(results, truth, open_images(truth))
    assert [name for name in boxes.images if boxes.for_image(name).detections] == ["images/1.png"]
    values = measured(truth, PointsBoxesOptions(clicks=(), boxes=(), noc_limit=0), detections=boxes)
    assert values["box_detected_found"] == 0.25  # one of four objects; the same box is not taken for image 158
    assert values["box_detected_miou"] == 1


def test_results_of_unknown_images_are_named(tmp_path: Path) -> None:
    truth, results = coco_results(tmp_path, 397, 12, 13)
    with pytest.raises(ValueError, match=r"boxes of 2 images that .*truth.json does not list, such as image_id 12"):
        open_boxes(results, truth, open_images(truth))


def test_boxes_of_no_image_of_the_data_set_are_refused(tmp_path: Path) -> None:
    items = open_images(squares(tmp_path / "data"))
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\nother.jpg,1,1,9,9\n")
    with pytest.raises(ValueError, match=r"no box of any image to be measured: it names 'other.jpg', the data set"):
        open_boxes(tmp_path / "boxes.csv", tmp_path / "data", items)


def test_an_image_without_objects_counts_and_adds_nothing(tmp_path: Path) -> None:
    squares(tmp_path, count=1)
    PillowImage.new("RGB", (30, 20)).save(tmp_path / "images/empty.png")
    PillowImage.new("L", (30, 20)).save(tmp_path / "masks/empty.png")
    values = measured(tmp_path, PointsBoxesOptions(clicks=(1,), noc_limit=0))
    assert (values["images"], values["objects"]) == (2, 2)


def test_no_objects_at_all_give_counts_only(tmp_path: Path) -> None:
    squares(tmp_path, count=1)
    values = measured(tmp_path, PointsBoxesOptions(clicks=(1,), noc_limit=0, min_area_px=10**6))
    assert values == {"images": 1, "objects": 0}


def test_a_perfect_object_gets_no_more_clicks() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[5:15, 5:15] = RED
    truth = image.any(axis=2)[None]
    [trace] = click_through(Encoded(ColourSam(), image), truth, clicks=5)  # type: ignore[arg-type]
    assert trace.chosen == [0.5, 1, 1, 1, 1]
    assert trace.oracle == [1] * 5


def test_the_paper_asks_for_one_mask_after_the_first_click() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[5:15, 5:15] = RED
    truth = image.any(axis=2)[None].copy()
    truth[0, 0, 0] = True  # never drawn by the model
    [trace] = click_through(Encoded(ColourSam(), image), truth, clicks=2, click_masks="paper")  # type: ignore[arg-type]
    assert trace.predicted == pytest.approx([0.9, 0.95])
    assert trace.chosen == pytest.approx([50 / 101, 100 / 101])
    assert trace.oracle == pytest.approx([100 / 101, 100 / 101])


@pytest.mark.parametrize("seed", range(3))
def test_clicks_found_in_a_part_of_the_image_are_those_of_the_whole(seed: int) -> None:
    from segment_anything.evaluation.interact import _next_click
    from segment_anything.simulate import next_click_farthest

    random = np.random.default_rng(seed)
    truth, predicted = np.zeros((50, 70), bool), np.zeros((50, 70), bool)
    for mask in (truth, predicted):
        for _ in range(3):
            (y, x), (h, w) = random.integers(0, 40, 2), random.integers(3, 15, 2)
            mask[y : y + h, x : x + w] = True
    clicked: list[tuple[int, int]] = []
    for shown in (None, *[predicted] * 6):
        whole = next_click_farthest(shown, truth, clicked)
        assert _next_click(shown, truth, clicked) == whole
        clicked.append(whole[0])
    assert len(set(clicked)) == 7


def test_an_object_that_never_comes_right_is_never_clicked_twice_at_a_pixel() -> None:
    seen: list[tuple[int, int]] = []

    class Stubborn(ColourSam):
        """Draws the same half of the region whatever the clicks are."""

        def decode(self, embedding: object, prompts: Sequence[Prompt], multimask_output: bool | None = True) -> Answer:
            seen[:] = [(int(x), int(y)) for x, y in prompts[0].points_xy]  # type: ignore[union-attr]
            return super().decode(embedding, [Prompt.make(points=[seen[0]], labels=[1])], multimask_output)

    image = np.zeros((30, 30, 3), np.uint8)
    image[5:25, 5:25] = RED
    encoded = Encoded(Stubborn(), image)  # type: ignore[arg-type]
    [trace] = click_through(encoded, image.any(axis=2)[None], clicks=1, limit=20, target=0.9)
    assert len(trace.chosen) == len(seen) == len(set(seen)) == 20


def test_first_click_of_a_crescent_lies_on_it() -> None:
    y, x = np.mgrid[:60, :60]
    crescent = (np.hypot(x - 30, y - 30) < 25) & (np.hypot(x - 38, y - 30) >= 20)
    image = np.where(crescent[..., None], np.array(RED, np.uint8), np.uint8(0))
    [trace] = click_through(Encoded(ColourSam(), image), crescent[None], clicks=1)  # type: ignore[arg-type]
    assert trace.oracle == [1]


def test_many_objects_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import segment_anything.evaluation.interact as interact

    image = np.zeros((16, 64, 3), np.uint8)
    truths = np.zeros((8, 16, 64), bool)
    for index in range(8):
        image[4:12, 8 * index + 1 : 8 * index + 7] = (10 + index, 0, 0)
        truths[index, 4:12, 8 * index + 1 : 8 * index + 7] = True
    boxes = np.array([[8 * k + 1, 4, 8 * k + 6, 11] for k in range(8)], np.float64)
    encoded = Encoded(ColourSam(), image)  # type: ignore[arg-type]
    at_once = boxes_to_masks(encoded, truths, boxes)
    monkeypatch.setattr(interact, "_PIXELS_AT_ONCE", 3 * 64 * 64)
    in_parts = boxes_to_masks(encoded, truths, boxes)
    assert [one.iou for one in at_once] == [one.iou for one in in_parts] == [1] * 8
    assert all(iou(one.mask, truth) == 1 for one, truth in zip(in_parts, truths, strict=True))


def test_box_of_a_detector_goes_to_the_object_it_overlaps_most() -> None:
    found = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]], np.float64)
    wanted = np.array([[1, 1, 10, 10], [80, 80, 90, 90]], np.float64)
    matched = match_boxes(found, wanted)
    assert matched[0].tolist() == [1, 1, 11, 11] or matched[0].tolist() == [0, 0, 10, 10]
    assert np.isnan(matched[1]).all()
    assert np.isnan(match_boxes(np.zeros((0, 4)), wanted)).all()


def test_noise_of_an_image_depends_on_its_name_and_the_seed_only() -> None:
    assert image_seed("a.png", 0) == image_seed("a.png", 0)
    assert len({image_seed(name, seed) for name in ("a.png", "b.png") for seed in (0, 1)}) == 4


def test_sizes_without_objects_are_not_reported() -> None:
    values = dict(by_size("iou", np.array([0.2, 0.4, 0.9]), np.array([100.0, 200.0, 10000.0])))
    assert values == {"iou_small": pytest.approx(0.3), "iou_large": pytest.approx(0.9)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clicks": (0, 1)}, "clicks must be numbers from 1 on"),
        ({"max_objects": 0}, "max_objects must be at least 1, got 0"),
        ({"boxes": ("tight",)}, "boxes must be of truth, noisy, got 'tight'"),
        ({"click_masks": "two"}, "click_masks must be one of three, paper"),
        ({"noc_targets": (85.0,)}, r"noc_targets must lie in \(0, 1\]"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PointsBoxesOptions(**options)  # type: ignore[arg-type]


def test_plots_and_the_sheet_of_worst_objects_are_drawn(tmp_path: Path) -> None:
    items = open_images(squares(tmp_path / "data"))
    protocol = PointsBoxes(ColourSam(), PointsBoxesOptions(clicks=(1, 2), noc_limit=3))  # type: ignore[arg-type]
    rows = run(protocol, items).rows
    (tmp_path / "out").mkdir()
    files = draw_points_boxes(protocol, rows, items, tmp_path / "out")  # type: ignore[arg-type]
    assert [file.name for file in files] == [f"points-boxes-{name}.png" for name in ("clicks", "reliability", "worst")]
    for file in files:
        with PillowImage.open(file) as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 3


@pytest.mark.parametrize(
    ("box", "usable"),
    [
        ((3, 2, 3, 5), (3, 2, 4, 5)),  # one pixel wide: corners at the outer pixels are the same column
        ((19, 9, 19, 9), (19, 9, 20, 10)),  # the last pixel of the image
        ((-4, -4, 30, 30), (0, 0, 20, 10)),
        ((40, 40, 60, 60), (19, 9, 20, 10)),  # outside
    ],
)
def test_boxes_are_clipped_and_at_least_a_pixel_wide_and_high(
    box: tuple[float, ...], usable: tuple[float, ...]
) -> None:
    assert usable_boxes(np.array([box], float), (10, 20)).tolist() == [list(usable)]


def test_an_object_one_pixel_wide_is_measured_by_its_box(tmp_path: Path) -> None:
    folder = squares(tmp_path, count=1)
    image, labels = np.zeros((100, 120, 3), np.uint8), np.zeros((100, 120), np.uint8)
    image[10:50, 30], labels[10:50, 30] = RED, 1
    PillowImage.fromarray(image).save(folder / "images/0.png")
    PillowImage.fromarray(labels).save(folder / "masks/0.png")
    values = measured(folder, PointsBoxesOptions(clicks=(1,), boxes=("truth", "noisy"), noc_limit=0))
    assert values["objects"] == 1
    assert 0 <= values["box_truth_miou"] <= 1


def test_items_of_a_data_set_keep_its_order(shared: Path) -> None:
    from segment_anything.datasets import open_dataset

    dataset = open_dataset(shared / "data/eval/coco_nc")
    items = images_of(dataset)
    assert [item.name for item in items] == [sample.name for sample in dataset.samples]
