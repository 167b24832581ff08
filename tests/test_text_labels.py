"""Automatic masks with labels."""

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from toy import toy_sam

from segment_anything import SamAutomaticMaskGenerator
from segment_anything.text import TextScorer

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
EASY = {"points_per_side": 2, "pred_iou_thresh": -9, "stability_score_thresh": 0, "box_nms_thresh": 1.0}


def test_labels_add_two_keys_to_the_same_masks():
    plain = SamAutomaticMaskGenerator(toy_sam(), **EASY).generate(IMAGE)
    scorer = TextScorer(ColourEncoder())
    labelled = SamAutomaticMaskGenerator(toy_sam(), **EASY, labels=["red", "blue"], scorer=scorer).generate(IMAGE)
    assert plain
    assert len(plain) == len(labelled)
    for before, after in zip(plain, labelled, strict=True):
        assert after.keys() - before.keys() == {"category", "category_score"}
        assert after["category"] in ("red", "blue")
        assert 0.5 <= after["category_score"] <= 1
        np.testing.assert_array_equal(before["segmentation"], after["segmentation"])
        assert before["predicted_iou"] == after["predicted_iou"]


def test_labels_work_in_every_output_mode():
    given = {**EASY, "labels": ["red", "blue"], "scorer": TextScorer(ColourEncoder())}
    by_mode = []
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        records = SamAutomaticMaskGenerator(toy_sam(), **given, output_mode=mode).generate(IMAGE)
        by_mode.append([(record["category"], record["category_score"]) for record in records])
    assert by_mode[0] == by_mode[1] == by_mode[2]


def test_labels_without_a_scorer_say_how_to_make_one():
    with pytest.raises(ValueError, match=r"scorer is needed to name masks by labels: pass scorer=TextScorer"):
        SamAutomaticMaskGenerator(toy_sam(), labels=["red"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "labels must hold at least one phrase; got an empty list"),
        (["red", " "], "labels must be a word or a few"),
        (["red", "red "], "labels must be different; 'red' is there twice"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused_before_any_mask(labels, words):
    with pytest.raises(ValueError, match=words):
        SamAutomaticMaskGenerator(toy_sam(), labels=labels, scorer=TextScorer(ColourEncoder()))


def test_an_image_without_masks_stays_without():
    scorer = TextScorer(ColourEncoder())
    strict = SamAutomaticMaskGenerator(
        toy_sam(), points_per_side=1, pred_iou_thresh=1.0, labels=["red", "blue"], scorer=scorer
    )
    assert strict.generate(IMAGE) == []
