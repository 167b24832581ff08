"""Instance segmentation, proposals and text: protocols whose scores can be worked out, and bad input."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_sam import ColourSam
from PIL import Image

from segment_anything.evaluation.data import open_images
from segment_anything.evaluation.detected import open_detected
from segment_anything.evaluation.instance import Instance, average_precision, precision_over_recall
from segment_anything.evaluation.options import InstanceOptions, PointsBoxesOptions, TextOptions
from segment_anything.evaluation.pictures import draw_instance
from segment_anything.evaluation.points_boxes import PointsBoxes
from segment_anything.evaluation.proposals import Proposals, proposal_score
from segment_anything.evaluation.runs import run
from segment_anything.evaluation.text import TextToMask
from segment_anything.records import MaskRecord, make_record

COLOURS = {"cat": (200, 0, 0), "dog": (0, 200, 0)}
BLUE = (0, 0, 200)


def coco(folder: Path, images: int = 3) -> dict[str, Any]:
    """A COCO data set: in each picture a red cat of 30 x 40 pixels, in the first also a green dog of 20 x 20."""
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    for number in range(1, images + 1):
        picture = np.zeros((100, 100, 3), np.uint8)
        boxes = [(10, 20, 30, 40, 3), (60, 60, 20, 20, 8)][: 2 if number == 1 else 1]
        for x, y, width, height, category in boxes:
            picture[y : y + height, x : x + width] = COLOURS["cat" if category == 3 else "dog"]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                    "iscrowd": 0,
                }
            )
        Image.fromarray(picture).save(folder / f"images/{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 100})
    (folder / "annotations.json").write_text(json.dumps(content))
    return content


def detections(content: dict[str, Any], score: float = 0.9) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "bbox")
    return [{**{key: annotation[key] for key in keys}, "score": score} for annotation in content["annotations"]]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def instance_values(folder: Path, results: Any, options: InstanceOptions | None = None) -> dict[str, float]:
    data = open_detected(folder / "annotations.json", write(folder / "boxes.json", results), folder / "images")
    protocol = Instance(ColourSam(), data, options)  # type: ignore[arg-type]
    return dict(protocol.values(run(protocol, data.images).rows))


def test_perfect_boxes_and_masks_score_full_precision(tmp_path: Path) -> None:
    values = instance_values(tmp_path, detections(coco(tmp_path)))
    assert (values["images"], values["detections"]) == (3, 4)
    assert values["ap"] == pytest.approx(1)
    assert values["ap_medium"] == pytest.approx(1)
    assert values["ap_small"] == pytest.approx(1)


def test_best_of_three_takes_the_most_confident_mask(tmp_path: Path) -> None:
    values = instance_values(tmp_path, detections(coco(tmp_path)), InstanceOptions(masks="best"))
    assert values["ap50"] == pytest.approx(1)  # half of each region: IoU 0.5
    assert values["ap75"] == 0


def test_a_missed_category_halves_precision(tmp_path: Path) -> None:
    results = [one for one in detections(coco(tmp_path)) if one["category_id"] == 3]
    assert instance_values(tmp_path, results)["ap"] == pytest.approx(0.5)


def add_crowd(folder: Path, content: dict[str, Any]) -> None:
    """A blue field in picture 2, annotated as a crowd of cats."""
    from segment_anything.masks import encode_rle

    picture = np.array(Image.open(folder / "images/2.png"))
    picture[70:95, 10:60] = BLUE
    Image.fromarray(picture).save(folder / "images/2.png")
    code = dict(encode_rle(region(picture, BLUE)))
    crowd = {"id": 99, "image_id": 2, "category_id": 3, "bbox": [10, 70, 50, 25], "area": 1250, "iscrowd": 1}
    content["annotations"].append({**crowd, "segmentation": code})
    write(folder / "annotations.json", content)


def test_crowds_are_neither_hit_nor_missed(tmp_path: Path) -> None:
    content = coco(tmp_path)
    results = detections(content)
    inside = {"image_id": 2, "category_id": 3, "bbox": [12, 72, 40, 20], "score": 0.99}
    add_crowd(tmp_path, content)
    assert instance_values(tmp_path, results)["ap"] == pytest.approx(1)  # not missed
    assert instance_values(tmp_path, [*results, inside])["ap"] == pytest.approx(1)  # no mistake, though the first
    content["annotations"].pop()
    write(tmp_path / "annotations.json", content)
    assert instance_values(tmp_path, [*results, inside])["ap"] < 0.9  # without the crowd it is one


def test_crowds_are_no_objects_for_clicks_boxes_and_proposals(tmp_path: Path) -> None:
    add_crowd(tmp_path, coco(tmp_path))
    protocol = PointsBoxes(ColourSam(), PointsBoxesOptions(clicks=(1,), noc_limit=0))  # type: ignore[arg-type]
    assert dict(protocol.values(run(protocol, open_images(tmp_path)).rows))["objects"] == 4
    proposals = Proposals(lambda _: [], {})
    assert dict(proposals.values(run(proposals, open_images(tmp_path)).rows))["objects"] == 4


def test_boxes_outside_the_image_or_without_width_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    results = detections(coco(tmp_path))
    outside = [[-20, -20, 200, 300], [500, 500, 10, 10], [99, 99, 0, 0]]
    results += [{"image_id": 2, "category_id": 3, "bbox": box, "score": 0.01} for box in outside]
    values = instance_values(tmp_path, results)
    assert values["detections"] == 7
    assert values["ap"] == pytest.approx(1)  # they come last


def test_no_detections_score_zero(tmp_path: Path) -> None:
    coco(tmp_path)
    values = instance_values(tmp_path, [])
    assert (values["detections"], values["ap"]) == (0, 0)


def test_only_the_best_detections_of_an_image_are_drawn(tmp_path: Path) -> None:
    results = detections(coco(tmp_path))
    results[0]["score"] = 0.1
    values = instance_values(tmp_path, results, InstanceOptions(max_detections=1))
    assert values["detections"] == 3


def test_precision_is_over_the_measured_images_only(tmp_path: Path) -> None:
    results = detections(coco(tmp_path))
    data = open_detected(tmp_path / "annotations.json", write(tmp_path / "b.json", results), tmp_path / "images")
    protocol = Instance(ColourSam(), data)  # type: ignore[arg-type]
    values = dict(protocol.values(run(protocol, data.images[1:]).rows))
    assert (values["images"], values["ap"]) == (2, pytest.approx(1))


def test_precision_over_recall_of_half_found_objects(tmp_path: Path) -> None:
    content = coco(tmp_path, images=2)
    results = [{**one, "segmentation": None} for one in detections(content) if one["image_id"] == 1]
    data = open_detected(tmp_path / "annotations.json", write(tmp_path / "b.json", results), tmp_path / "images")
    protocol = Instance(ColourSam(), data)  # type: ignore[arg-type]
    rows = run(protocol, data.images).rows
    curve = precision_over_recall(*protocol.measured(rows))["IoU 0.50"]
    assert curve[:51].tolist() == [1] * 51  # the dog, and one of two cats
    assert curve[51:].tolist() == [0.5] * 50
    file, _ = draw_instance(protocol, rows, data.images, tmp_path)
    with Image.open(file) as picture:
        assert min(picture.size) > 300


def test_average_precision_equals_pycocotools(tmp_path: Path) -> None:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from segment_anything.masks import encode_rle, rle_to_coco

    content = coco(tmp_path, images=6)
    random = np.random.default_rng(1)
    results = []
    for one in detections(content):
        for _ in range(4):
            x, y, width, height = (np.array(one["bbox"]) + random.integers(-6, 7, 4)).clip(0, 95)
            mask = np.zeros((100, 100), bool)
            mask[y : y + height, x : x + width] = True
            code = encode_rle(mask)
            coded = {"size": code["size"], "counts": rle_to_coco(code)}
            results.append({**one, "score": float(random.random()), "segmentation": coded})
    for one in results:
        del one["bbox"]
    ours = average_precision(content, results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "annotations.json"))
        official = COCOeval(truth, truth.loadRes([dict(one) for one in results]), "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert "ap_large" not in ours
    assert 0 < ours["ap"] < 1
    for name, value in zip(names, official.stats[:6], strict=True):
        assert ours.get(name, -1) == pytest.approx(value)  # no large objects here: the official tools give -1
    assert ours["ar@100"] == pytest.approx(official.stats[8])


def test_an_lvis_file_is_scored_by_the_rules_of_lvis(tmp_path: Path) -> None:
    content = coco(tmp_path)
    results = [*detections(content), {"image_id": 3, "category_id": 8, "bbox": [10, 20, 30, 40], "score": 1.0}]
    for image in content["images"]:
        # A dog in image 3 is a mistake only if somebody checked that there is none.
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    for category in content["categories"]:
        category["frequency"] = {3: "f", 8: "r"}[category["id"]]
    write(tmp_path / "annotations.json", content)
    unchecked = instance_values(tmp_path, results)
    assert unchecked["ap"] == pytest.approx(1)
    assert unchecked["ap_rare"] == pytest.approx(1)
    content["images"][2]["neg_category_ids"] = [8]
    write(tmp_path / "annotations.json", content)
    checked = instance_values(tmp_path, results)
    assert checked["ap_rare"] < 0.6
    assert checked["ap_frequent"] == pytest.approx(1)
    # Where not all dogs were drawn, a dog too many is no mistake.
    content["images"][0]["not_exhaustive_category_ids"] = [8]
    content["images"][2]["neg_category_ids"] = []
    write(tmp_path / "annotations.json", content)
    too_many = {"image_id": 1, "category_id": 8, "bbox": [10, 20, 30, 40], "score": 1.0}
    assert instance_values(tmp_path, [*results, too_many])["ap_rare"] == pytest.approx(1)
    content["images"][0]["not_exhaustive_category_ids"] = []
    write(tmp_path / "annotations.json", content)
    assert instance_values(tmp_path, [*results, too_many])["ap_rare"] < 0.6


def test_images_of_an_lvis_file_are_found_in_the_folders_of_their_splits(tmp_path: Path) -> None:
    content = coco(tmp_path)
    for image, split in zip(content["images"], ("train2017", "val2017", ""), strict=True):
        (tmp_path / "images" / split).mkdir(exist_ok=True)
        (tmp_path / "images" / image["file_name"]).rename(tmp_path / "images" / split / image["file_name"])
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        image["coco_url"] = f"http://images.cocodataset.org/{split or 'val2017'}/{image.pop('file_name')}"
    for category in content["categories"]:
        category["frequency"] = "f"
    write(tmp_path / "annotations.json", content)
    assert instance_values(tmp_path, detections(content))["ap"] == pytest.approx(1)
    items = open_images(tmp_path / "annotations.json")  # the same file as a data set
    assert [item.name for item in items] == ["train2017/1.png", "val2017/2.png", "val2017/3.png"]
    assert [len(item.read().masks) for item in items] == [2, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 77}, "result 0 is of image 77, which the truth does not list"),
        ({"category_id": 0}, r"result 0 is of category 0, which the truth does not list \(are the ids"),
        ({"score": None}, "result 0 has no score"),
        ({"bbox": [1, 2, 3]}, r"result 0 needs a bbox of x, y, width, height and a score, all finite, got \[1, 2, 3\]"),
        ({"bbox": [1, 2, -3, 4]}, r"result 0 needs a bbox"),
        ({"score": float("nan")}, "all finite"),
        ({"score": "0.5"}, "all finite"),
        ({"bbox": "a box"}, "got a box and 0.9"),
        ({"image_id": "1"}, "result 0 is of image '1', which the truth does not list"),
    ],
)
def test_detections_that_do_not_fit_the_truth_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    results = detections(coco(tmp_path))
    results[0] = {key: value for key, value in (results[0] | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        instance_values(tmp_path, results)


def test_truth_that_is_no_coco_file_or_holds_no_objects_is_named(tmp_path: Path) -> None:
    coco(tmp_path)
    boxes = write(tmp_path / "boxes.json", [])
    with pytest.raises(ValueError, match="a COCO file needs images, annotations and categories"):
        open_detected(boxes, boxes, tmp_path)
    empty = write(tmp_path / "empty.json", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(ValueError, match="holds no objects"):
        open_detected(empty, boxes, tmp_path)
    with pytest.raises(ValueError, match="result 0 is no JSON object, got 7"):
        open_detected(tmp_path / "annotations.json", write(boxes, [7]), tmp_path)
    with pytest.raises(ValueError, match="detections are a JSON list of results, got dict"):
        open_detected(tmp_path / "annotations.json", write(boxes, {}), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        open_detected(tmp_path / "broken.json", boxes, tmp_path)


@pytest.mark.parametrize(
    ("key", "lost", "words"),
    [
        ("annotations", "area", "annotation 1 has no area; masks cannot be scored"),
        ("annotations", "segmentation", "annotation 1 has no segmentation"),
        ("images", "file_name", r"an image needs an id and a file_name \(LVIS: coco_url\), got {'id': 1"),
    ],
)
def test_truth_without_what_the_official_tools_need_is_named(tmp_path: Path, key: str, lost: str, words: str) -> None:
    content = coco(tmp_path)
    results = detections(content)
    del content[key][0][lost]
    write(tmp_path / "annotations.json", content)
    with pytest.raises(ValueError, match=words):
        instance_values(tmp_path, results)


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_two_entries_of_one_id_are_named(tmp_path: Path, key: str) -> None:
    content = coco(tmp_path)
    content[key].append(dict(content[key][0]))
    write(tmp_path / "annotations.json", content)
    with pytest.raises(ValueError, match=f"two {key} have the id 1"):
        instance_values(tmp_path, [])


def test_an_image_of_another_size_than_its_truth_is_skipped_and_named(tmp_path: Path) -> None:
    content = coco(tmp_path, images=12)
    Image.new("RGB", (60, 80)).save(tmp_path / "images/2.png")
    boxes = write(tmp_path / "boxes.json", detections(content))
    data = open_detected(tmp_path / "annotations.json", boxes, tmp_path / "images")
    done = run(Instance(ColourSam(), data), data.images)  # type: ignore[arg-type]
    assert done.skipped == ("2.png: its ground truth is 100 x 100 pixels, the image 60 x 80.",)
    assert len(done.rows) == 11


def region(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((picture == np.array(colour)).all(axis=2))


def test_recall_of_proposals_counts_the_first_of_them(tmp_path: Path) -> None:
    coco(tmp_path)

    def generate(picture: np.ndarray) -> list[MaskRecord]:
        """Eleven empty guesses, then the objects."""
        wrong = np.zeros(picture.shape[:2], bool)
        wrong[0, 0] = True
        guesses = [make_record(wrong, predicted_iou=0.9, stability_score=0.9) for _ in range(11)]
        good = [make_record(region(picture, c), predicted_iou=0.5, stability_score=0.7) for c in COLOURS.values()]
        return [*good, *guesses]

    protocol = Proposals(generate, {})
    values = dict(protocol.values(run(protocol, open_images(tmp_path)).rows))
    assert (values["objects"], values["proposals_per_image"]) == (4, 13)
    assert (values["ar@10"], values["ar@100"], values["ar@1000"]) == (0, 1, 1)
    assert values["ar@100_small"] == values["ar@100_medium"] == 1
    assert "ar@100_large" not in values


def test_proposals_are_ranked_by_the_mean_of_both_scores() -> None:
    mask = np.ones((2, 2), bool)
    assert proposal_score(make_record(mask, predicted_iou=0.5, stability_score=0.9)) == pytest.approx(0.7)
    assert proposal_score(make_record(mask, predicted_iou=0.5)) == 0.5
    assert proposal_score(make_record(mask)) == 0


def test_proposal_counts_must_be_numbers_from_one_on() -> None:
    with pytest.raises(ValueError, match="counts must be numbers from 1 on"):
        Proposals(lambda _: [], {}, counts=(0,))


class ByName:
    """Finds cats and dogs by their colour, and takes every dog for a cat too."""

    def segment(self, image: np.ndarray, phrase: str) -> Sequence[MaskRecord]:
        masks = [region(image, COLOURS[phrase])]
        if phrase == "cat":
            masks.insert(0, region(image, COLOURS["dog"]))
        return [make_record(mask) for mask in masks if mask.any()]


def test_hit_rate_of_the_first_and_of_any_mask_for_a_phrase(tmp_path: Path) -> None:
    coco(tmp_path)
    protocol = TextToMask(ByName(), ("cat", "dog"), {"model": "by name"}, TextOptions(absent=1))
    values = dict(protocol.values(run(protocol, open_images(tmp_path)).rows))
    assert values["phrases"] == 4  # three cats and a dog
    assert values["hit_rate"] == 0.75  # where there is a dog, the first mask for "cat" is the dog
    assert values["hit_rate_any"] == 1
    assert values["no_answer_rate"] == 0
    assert values["false_alarm_rate"] == 0


def test_text_options_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"hit_iou must lie in \(0, 1\]"):
        TextOptions(hit_iou=50)
    with pytest.raises(ValueError, match="absent must be at least 0"):
        TextOptions(absent=-1)
