"""Detectors of the transformers library, with tiny random models from a local folder."""

import logging

import numpy as np
import pytest
import tiny_transformers

from segment_anything.detectors import HuggingFaceDetector, OpenVocabularyDetector, load_detector
from segment_anything.detectors.hub import load_pretrained
from segment_anything.detectors.hugging_face import nearest_phrase
from segment_anything.masks import box_iou

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module", params=["save_rtdetr", "save_dfine"])
def closed_vocabulary(request, tmp_path_factory):
    return getattr(tiny_transformers, request.param)(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["save_owlv2", "save_grounding_dino"])
def open_vocabulary(request, tmp_path_factory):
    return getattr(tiny_transformers, request.param)(tmp_path_factory.mktemp(request.param))


def test_a_folder_with_a_transformers_model_is_a_detector_of_its_classes(closed_vocabulary):
    detector = load_detector(closed_vocabulary, min_score=0.0)
    detections = detector.detect(IMAGE)
    assert detector.class_names == ("cat", "dog")
    assert {d.label for d in detections} <= {"cat", "dog"}
    assert detections
    for d in detections:
        x0, y0, x1, y1 = d.box_xyxy
        assert 0 <= x0 < x1 <= 60
        assert 0 <= y0 < y1 <= 40
    scores = [d.score for d in detections]
    assert scores == sorted(scores, reverse=True)


def test_a_high_threshold_leaves_an_empty_list(closed_vocabulary):
    assert HuggingFaceDetector(closed_vocabulary, min_score=0.999).detect(IMAGE) == []


def test_phrases_become_the_labels_as_they_were_written(open_vocabulary):
    detector = OpenVocabularyDetector(open_vocabulary, min_score=0.0)
    bound = detector.for_phrases(["a Red cat", "blue square."])
    detections = bound.detect(IMAGE)
    assert bound.class_names == ("a Red cat", "blue square.")
    assert detections
    assert {d.label for d in detections} <= {"a Red cat", "blue square."}


def test_boxes_of_one_phrase_do_not_overlap_much(tmp_path):
    folder = tiny_transformers.save_owlv2(tmp_path)
    everything = OpenVocabularyDetector(folder, ["dog"], min_score=0.0, nms_iou=1.0).detect(IMAGE)
    thinned = OpenVocabularyDetector(folder, ["dog"], min_score=0.0, nms_iou=0.1).detect(IMAGE)
    boxes = np.array([d.box_xyxy for d in thinned])
    overlaps = box_iou(boxes, boxes) - np.eye(len(boxes))
    assert len(thinned) < len(everything)
    assert overlaps.max() <= 0.1 + 1e-6


def test_a_detector_without_phrases_asks_for_them(open_vocabulary):
    with pytest.raises(ValueError, match=r"made without phrases: call for_phrases\(\[\.\.\.\]\)\.detect\(image\)"):
        OpenVocabularyDetector(open_vocabulary).detect(IMAGE)


@pytest.mark.parametrize(
    ("answer", "phrase"), [("cat", "a red cat"), ("red", "a red cat"), ("dog", "dog"), ("a red cat dog", "a red cat")]
)
def test_a_partial_answer_goes_to_the_phrase_it_shares_most_words_with(answer, phrase):
    assert nearest_phrase(answer, ["a red cat", "dog"]) == phrase


def test_a_name_that_is_nowhere_says_what_to_download(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"'nobody/nothing-here' is no local folder, and the Hugging Face hub did not give it .*`hf download"
    with pytest.raises(ValueError, match=message):
        HuggingFaceDetector("nobody/nothing-here")


@pytest.mark.parametrize("path", ["./gone", "models/a/gone", "/gone"])
def test_a_path_that_is_nowhere_is_no_hub_name(path):
    with pytest.raises(ValueError, match=rf"No such folder: {path}\. Give the folder of a saved model, or a hub name"):
        HuggingFaceDetector(path)


def test_the_hub_librarys_own_lines_are_held_back_and_come_again_afterwards(caplog):
    logger = logging.getLogger("huggingface_hub")

    def loader(name):
        logger.warning("retrying")
        raise OSError("no network")

    with pytest.raises(ValueError, match=r"did not give it \(no network\)"):
        load_pretrained(loader, "nobody/nothing-here")
    assert not caplog.records
    logger.warning("later")
    assert [record.message for record in caplog.records] == ["later"]


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model: it has no config\.json"):
        OpenVocabularyDetector(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path):
    folder = tiny_transformers.save_clip(tmp_path)
    with pytest.raises(ValueError, match=r"The model in .* cannot be loaded"):
        HuggingFaceDetector(folder)
