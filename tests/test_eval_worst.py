"""The sheets of what went worst: which scores come first, and what their pictures show."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_sam import ColourSam
from PIL import Image
from test_eval_edges import bsds
from test_eval_masks import COLOURS, ByName, add_crowd, coco, detections, region, write

from segment_anything.evaluation.bsds import open_bsds
from segment_anything.evaluation.data import open_images
from segment_anything.evaluation.detected import open_detected
from segment_anything.evaluation.edges import Edges
from segment_anything.evaluation.instance import Instance
from segment_anything.evaluation.options import EdgeOptions, InstanceOptions, TextOptions
from segment_anything.evaluation.pictures import draw_edges, draw_instance, draw_proposals, draw_text
from segment_anything.evaluation.proposals import Proposals
from segment_anything.evaluation.runs import run
from segment_anything.evaluation.text import TextToMask
from segment_anything.evaluation.worst import (
    WORST,
    Failure,
    missed_objects,
    save_worst,
    worst_detections,
    worst_edges,
    worst_phrases,
)
from segment_anything.records import make_record
from segment_anything.visualize import colour


def grey(value: int) -> np.ndarray:
    return np.full((10, 10, 3), value, np.uint8)


def is_tinted(pixel: np.ndarray, place: int) -> bool:
    """Whether a pixel of a cat or a dog has the tint of the mask in that place: 0 what was found, 1 the truth."""
    tints = [0.55 * np.array(base) + 0.45 * np.array(colour(place)) for base in COLOURS.values()]
    return any(np.abs(pixel - tint).max() < 3 for tint in tints)


def worst_first(failures: Sequence[Failure]) -> list[Failure]:
    return sorted(failures, key=lambda failure: failure.score)


def test_a_sheet_holds_the_lowest_scores_alone_and_nothing_else_is_drawn(tmp_path: Path) -> None:
    drawn: list[int] = []

    def picture(number: int) -> np.ndarray:
        drawn.append(number)
        return grey(number)

    failures = [Failure(number / 100, f"object {number}", partial(picture, number)) for number in range(50)]
    [file] = save_worst(reversed(failures), tmp_path / "sheet.png", cell_px=40)
    assert drawn == list(range(WORST))
    with Image.open(file) as sheet:
        assert sheet.width < 6 * 60


def test_without_failures_there_is_no_sheet(tmp_path: Path) -> None:
    assert save_worst([], tmp_path / "sheet.png") == []
    assert not (tmp_path / "sheet.png").exists()


def instance(folder: Path, results: Sequence[dict[str, Any]]) -> tuple[Instance, Any, Any]:
    data = open_detected(folder / "annotations.json", write(folder / "b.json", results), folder / "images")
    protocol = Instance(ColourSam(), data, InstanceOptions(masks="best"))  # type: ignore[arg-type]
    return protocol, run(protocol, data.images).rows, data.images


def test_masks_of_good_boxes_are_shown_beside_their_truth(tmp_path: Path) -> None:
    failures = list(worst_detections(*instance(tmp_path, detections(coco(tmp_path)))))
    # The most confident mask of the model lacks the left half.
    assert [failure.score for failure in failures] == pytest.approx([0.5] * 4)
    assert {failure.title for failure in failures} == {
        *(f"IoU 0.50 (mask, truth) cat, {number}" for number in (1, 2, 3)),
        "IoU 0.50 (mask, truth) dog, 1",
    }
    picture = failures[2].picture()  # a cat of 30 x 40 pixels on black
    height, width = picture.shape[0], picture.shape[1] // 2
    left, right = picture[:, :width], picture[:, width:]
    middle = height // 2
    assert not is_tinted(left[middle, width // 2 - 6], 0)
    assert is_tinted(left[middle, width // 2 + 6], 0)
    assert is_tinted(right[middle, width // 2 - 6], 1)
    assert is_tinted(right[middle, width // 2 + 6], 1)


def test_boxes_of_another_category_elsewhere_or_on_a_crowd_are_no_failures_of_masks(tmp_path: Path) -> None:
    content = coco(tmp_path)
    add_crowd(tmp_path, content)
    keys = {"image_id": 2, "score": 0.9}
    results = [
        {**keys, "category_id": 8, "bbox": [10, 20, 30, 40]},  # a dog where the cat is
        {**keys, "category_id": 3, "bbox": [60, 5, 30, 40]},  # a cat where nothing is
        {**keys, "category_id": 3, "bbox": [12, 72, 40, 20]},  # in the crowd of cats
    ]
    assert list(worst_detections(*instance(tmp_path, results))) == []


def test_objects_without_a_proposal_come_first(tmp_path: Path) -> None:
    coco(tmp_path)
    protocol = Proposals(lambda picture: [make_record(region(picture, COLOURS["cat"]), predicted_iou=0.9)], {})
    items = open_images(tmp_path)
    rows = run(protocol, items).rows
    failures = worst_first(list(missed_objects(protocol, rows, items)))
    assert [failure.score for failure in failures] == [0, 1, 1, 1]
    assert failures[0].title == "best IoU 0.00 1"
    picture = failures[0].picture()  # the dog, alone
    assert is_tinted(picture[picture.shape[0] // 2, picture.shape[1] // 2], 1)
    assert [file.name for file in draw_proposals(protocol, rows, items, tmp_path)] == [
        "proposals-recall.png",
        "proposals-worst.png",
    ]


def test_images_without_any_proposal_miss_all(tmp_path: Path) -> None:
    coco(tmp_path)
    protocol, items = Proposals(lambda _: [], {}), open_images(tmp_path)
    failures = list(missed_objects(protocol, run(protocol, items).rows, items))
    assert [failure.score for failure in failures] == [0, 0, 0, 0]


def test_a_wrong_first_mask_for_a_phrase_is_shown_beside_all_that_it_names(tmp_path: Path) -> None:
    coco(tmp_path)
    protocol = TextToMask(ByName(), ("cat", "dog"), {}, TextOptions(absent=1))
    items = open_images(tmp_path)
    rows = run(protocol, items).rows
    failures = worst_first(list(worst_phrases(protocol, rows, items)))
    assert [failure.score for failure in failures] == [0, 1, 1, 1]
    assert failures[0].title == "IoU 0.00 (mask, truth) cat, 1"
    picture = failures[0].picture()  # 100 x 100 twice: the dog was taken for the cat
    assert picture.shape == (100, 200, 3)
    assert is_tinted(picture[70, 70], 0)
    assert not is_tinted(picture[40, 25], 0)
    assert is_tinted(picture[40, 125], 1)
    assert [file.name for file in draw_text(protocol, rows, items, tmp_path)] == ["text-hits.png", "text-worst.png"]


def test_a_phrase_without_an_answer_is_shown_with_its_truth(tmp_path: Path) -> None:
    class Mute:
        def segment(self, image: np.ndarray, phrase: str) -> list[Any]:
            return []

    coco(tmp_path, images=1)
    protocol, items = TextToMask(Mute(), ("cat", "dog"), {}), open_images(tmp_path)
    picture = next(worst_phrases(protocol, run(protocol, items).rows, items)).picture()
    assert (picture[:, :100] == np.asarray(Image.open(tmp_path / "images/1.png"))).all()
    assert is_tinted(picture[40, 125], 1)


def test_photographs_with_wrong_edges_come_first_beside_what_people_drew(tmp_path: Path) -> None:
    items = open_bsds(bsds(tmp_path / "data"))
    (tmp_path / "maps").mkdir()
    for item in items:
        _, truth = item.read()
        edges = truth.boundaries[0] * 255 if item.name == "0" else np.zeros((80, 120))
        Image.fromarray(edges.astype(np.uint8)).save(tmp_path / f"maps/{item.name}.png")
    protocol = Edges.of_folder(tmp_path / "maps", EdgeOptions(thresholds=3))
    rows = run(protocol, items).rows
    failures = worst_first(list(worst_edges(protocol, rows, items)))
    assert [(failure.score, failure.title[-1]) for failure in failures] == [(0, "1"), (1, "0")]
    photograph, edges, people = np.split(failures[0].picture(), 3, axis=1)
    assert (photograph == items[1].read()[0]).all()
    assert (edges == 255).all()
    assert ((people == 0).all(axis=2) == items[1].read()[1].boundaries[0]).all()
    assert [file.name for file in draw_edges(protocol, rows, items, tmp_path)] == [
        "edges-precision-recall.png",
        "edges-worst.png",
    ]


def test_an_average_precision_is_reported_with_a_sheet(tmp_path: Path) -> None:
    protocol, rows, items = instance(tmp_path, detections(coco(tmp_path)))
    files = draw_instance(protocol, rows, items, tmp_path)
    assert [file.name for file in files] == ["instance-precision-recall.png", "instance-worst.png"]
