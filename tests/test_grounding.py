"""Detections and phrases become masks with names."""

import json

import numpy as np
import pytest
import tiny_transformers
import torch
from box_sam import BoxSam
from colour_encoder import COLOURS, ColourEncoder
from toy import toy_sam

from segment_anything.detectors import BoxFile, Detection, OpenVocabularyDetector
from segment_anything.grounding import (
    DEFAULT_PHRASE_MODEL,
    GroundingOptions,
    load_phrase_model,
    segment,
    segment_detections,
)
from segment_anything.modeling.text_prompt import attach_text
from segment_anything.records import make_record, record_mask
from segment_anything.text import RelationWarning, ScorerOptions, TextScorer, TransformersEncoder
from segment_anything.text.prompting import TextPrompter

IMAGE = np.full((64, 64, 3), 90, np.uint8)
DOG = Detection((8, 8, 40, 24), "dog", 0.7)
CAT = Detection((32, 32, 64, 64), "cat", 0.9)


class Fixed:
    """A detector that always answers the same."""

    class_names = ("cat", "dog", "truck")

    def __init__(self, *detections):
        self.detections = list(detections)
        self.asked = []

    def detect(self, image):
        return self.detections

    def for_phrases(self, phrases):
        self.asked.append(list(phrases))
        return self


def picture(mask, step=8):
    return ["".join(".#"[int(v)] for v in row[step // 2 :: step]) for row in mask[step // 2 :: step]]


def test_each_detection_gets_a_mask_with_its_name_and_both_scores_best_first():
    cat, dog = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT)).records
    assert (cat["category"], cat["category_score"]) == ("cat", 0.9)
    assert cat["predicted_iou"] == pytest.approx(0.25, abs=0.02)
    assert (dog["category"], dog["category_score"]) == ("dog", 0.7)
    assert picture(dog["segmentation"]) == ["........", ".####...", ".####..."] + ["........"] * 5
    assert picture(cat["segmentation"]) == ["........"] * 4 + ["....####"] * 4


def test_each_record_keeps_the_link_to_its_detection():
    grounded = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT))
    assert grounded.detections == (CAT, DOG)
    assert [a["detection_box"] for a in grounded.to_coco()] == [[32, 32, 32, 32], [8, 8, 32, 16]]


def test_one_encoder_run_and_one_decoder_call_for_three_hundred_boxes():
    sam = BoxSam()
    many = [Detection((i % 20, i // 20, i % 20 + 30, i // 20 + 30), "dog", 0.5) for i in range(300)]
    grounded = segment_detections(sam, IMAGE, Fixed(*many))
    assert (len(grounded), sam.encoded, sam.decoded) == (300, [1], [300])


def test_a_real_network_encodes_an_image_once_for_three_hundred_boxes():
    sam, runs = toy_sam(), []
    sam.image_encoder.register_forward_hook(lambda *_: runs.append("encoder"))
    sam.mask_decoder.transformer.register_forward_hook(lambda _, given, answer: runs.append(len(answer[0])))
    many = [Detection((i % 20, i // 20, i % 20 + 30, i // 20 + 30), "dog", 0.5) for i in range(300)]
    segment_detections(sam, IMAGE, Fixed(*many))
    encoder, *decoder = runs
    assert encoder == "encoder"
    assert sum(decoder) == 300  # a few at a time on a CPU, which is faster


def test_fewer_boxes_at_once_give_the_same_masks():
    together = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT))
    single = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT), GroundingOptions(boxes_at_once=1))
    for a, b in zip(together.records, single.records, strict=True):
        np.testing.assert_array_equal(a["segmentation"], b["segmentation"])


def test_zero_detections_are_an_empty_result_without_a_network_run():
    sam = BoxSam()
    grounded = segment_detections(sam, IMAGE, Fixed())
    assert (len(grounded), grounded.to_coco(), grounded.to_yolo(), sam.encoded) == (0, [], [], [])
    assert grounded.to_labelme("a.jpg")["shapes"] == []
    np.testing.assert_array_equal(grounded.overlay(IMAGE), IMAGE)


def test_classes_thresholds_counts_and_names_are_applied():
    def labels(**options):
        return [
            r["category"]
            for r in segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT), GroundingOptions(**options)).records
        ]

    assert labels(classes=("DOG",)) == ["dog"]
    assert labels(min_score=0.8) == ["cat"]
    assert labels(max_count=1) == ["cat"]
    assert labels(class_map={"dog": "animal"}) == ["cat", "animal"]
    assert labels(min_predicted_iou=0.2) == ["cat"]


def test_an_unknown_class_lists_near_names():
    with pytest.raises(ValueError, match=r"no class 'turck'\. Near names: 'truck'"):
        segment_detections(BoxSam(), IMAGE, Fixed(DOG), GroundingOptions(classes=("turck",)))


def test_boxes_over_the_edge_are_cut_off_and_boxes_outside_dropped():
    over, outside = Detection((-20, 40, 300, 90), "dog", 0.5), Detection((70, 70, 90, 90), "cat", 0.9)
    (record,) = segment_detections(BoxSam(), IMAGE, Fixed(over, outside)).records
    assert picture(record["segmentation"]) == ["........"] * 5 + ["########"] * 3


def test_output_modes_hold_the_same_masks():
    plain = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT)).records
    for mode, kind in (("uncompressed_rle", list), ("coco_rle", str)):
        encoded = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT), GroundingOptions(output_mode=mode)).records
        for a, b in zip(plain, encoded, strict=True):
            assert isinstance(b["segmentation"]["counts"], kind)
            np.testing.assert_array_equal(record_mask(a), record_mask(b))
            assert {k: v for k, v in a.items() if k != "segmentation"} == {
                k: v for k, v in b.items() if k != "segmentation"
            }


def test_time_is_told_apart():
    seconds = segment_detections(BoxSam(), IMAGE, Fixed(DOG)).seconds
    assert seconds.find > 0
    assert seconds.encode > 0
    assert seconds.masks > 0


def test_results_are_written_as_coco_yolo_and_labelme():
    grounded = segment_detections(BoxSam(), IMAGE, Fixed(DOG, CAT))
    json.dumps(grounded.to_coco())
    assert [a["score"] for a in grounded.to_coco()] == [0.9, 0.7]
    assert grounded.names == ("cat", "dog")
    first, second = grounded.to_yolo()
    assert (first.split()[0], second.split()[0]) == ("0", "1")
    assert grounded.to_yolo(names=["truck", "dog", "cat"])[0].startswith("2 ")
    assert [s["label"] for s in grounded.to_labelme("a.jpg")["shapes"]] == ["cat", "dog"]


def test_the_overlay_shows_masks_and_names():
    drawn = segment_detections(BoxSam(), IMAGE, Fixed(CAT)).overlay(IMAGE)
    assert drawn.shape == IMAGE.shape
    assert (drawn[40:60, 40:60] != IMAGE[40:60, 40:60]).any()


def test_a_box_file_of_many_images_is_asked_by_name(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\na.jpg,dog,8,8,40,24\nb.jpg,cat,0,0,9,9\n")
    grounded = segment_detections(BoxSam(), IMAGE, BoxFile(tmp_path / "boxes.csv"), name="photos/a.jpg")
    assert [(r["category"], picture(r["segmentation"])[1]) for r in grounded.records] == [("dog", ".####...")]


def test_a_real_network_takes_the_boxes_in_original_pixels():
    image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
    grounded = segment_detections(toy_sam(), image, Fixed(DOG, CAT))
    assert all(record_mask(r).shape == (50, 90) for r in grounded.records)


def test_options_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"classes must be a list of names; got 'dog'"):
        GroundingOptions(classes="dog")
    with pytest.raises(ValueError, match=r"max_count must be at least 1; got 0"):
        GroundingOptions(max_count=0)
    with pytest.raises(ValueError, match=r"output_mode must be one of .* got 'png'"):
        GroundingOptions(output_mode="png")


def test_a_phrase_goes_to_the_open_vocabulary_detector():
    detector = Fixed(DOG)
    grounded = segment(IMAGE, "a dog", detector, sam=BoxSam())
    assert detector.asked == [["a dog"]]
    assert len(grounded) == 1


class Squares:
    """A generator of masks: one square of each colour."""

    def generate(self, image):
        found = [(image == rgb).all(axis=2) for rgb in COLOURS.values()]
        return [make_record(mask, predicted_iou=0.5) for mask in found if mask.any()]


def coloured():
    image = np.full((64, 64, 3), 128, np.uint8)
    image[8:24, 8:24] = COLOURS["red"]
    image[8:24, 40:56] = COLOURS["blue"]
    return image


def test_a_phrase_ranks_automatic_masks():
    grounded = segment(coloured(), "a blue square", ColourEncoder(), generator=Squares())
    assert [(r["category"], r["bbox"][0]) for r in grounded.records] == [("a blue square", 40)]
    assert (grounded.detections, grounded.compared) == ((), 2)
    strict = segment(
        coloured(), "blue", ColourEncoder(), generator=Squares(), options=GroundingOptions(min_score=0.9999)
    )
    assert len(strict) == 0


def test_a_scorer_can_be_given_with_its_own_styles():
    scorer = TextScorer(ColourEncoder(), ScorerOptions(styles=("masked",)))
    grounded = segment(coloured(), ["red", "blue"], scorer, generator=Squares())
    assert {r["category"] for r in grounded.records} == {"red", "blue"}


def test_a_phrase_prompts_a_model_trained_with_text():
    sam = toy_sam()
    torch.manual_seed(0)
    attach_text(sam.prompt_encoder, 3)
    with torch.no_grad():  # every pixel is object, whatever the prompt
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.zero_()
            mlp.layers[-1].bias.zero_()
    sam.mask_threshold = -1.0
    grounded = segment(IMAGE, ["red", "blue"], TextPrompter(sam, ColourEncoder()))
    assert {r["category"] for r in grounded.records} == {"red", "blue"}
    assert all(r["area"] == 64 * 64 and 0 <= r["category_score"] <= 1 for r in grounded.records)


@pytest.mark.parametrize("phrase", ["", " ", []])
def test_an_empty_phrase_is_refused(phrase):
    with pytest.raises(ValueError, match=r"phrase must (be a word or a few|hold at least one phrase)"):
        segment(IMAGE, phrase, Fixed(), sam=BoxSam())


def test_a_relation_is_warned_about_and_the_objects_still_come():
    with pytest.warns(RelationWarning, match=r"speaks of a relation \(second, left\)"):
        grounded = segment(IMAGE, "the second dog from the left", Fixed(DOG), sam=BoxSam())
    assert len(grounded) == 1


def test_a_route_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"by must be an open-vocabulary detector .* hub name of a model; got int"):
        segment(IMAGE, "dog", 3, sam=BoxSam())


def test_a_model_can_be_given_by_its_folder(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    owl = tiny_transformers.save_owlv2(tmp_path / "owl")
    low, high = (
        segment(image, "a cat", owl, sam=toy_sam(), options=GroundingOptions(min_score=score)) for score in (1e-6, 1.0)
    )
    assert {r["category"] for r in low.records} == {"a cat"}
    assert len(high) == 0
    clip = str(tiny_transformers.save_clip(tmp_path / "clip"))
    ranked = segment(coloured(), "dog", clip, generator=Squares(), options=GroundingOptions(min_score=1e-6))
    assert len(ranked) == 2


def test_a_phrase_alone_asks_the_default_model_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"hf download {DEFAULT_PHRASE_MODEL} --local-dir FOLDER"):
        segment(IMAGE, "a dog")


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        ("save_owlv2", OpenVocabularyDetector),
        ("save_grounding_dino", OpenVocabularyDetector),
        ("save_clip", TransformersEncoder),
    ],
)
def test_a_models_configuration_says_which_route_it_is_for(tmp_path, save, kind):
    assert isinstance(load_phrase_model(getattr(tiny_transformers, save)(tmp_path)), kind)


def test_all_routes_run_on_real_networks(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    detector = OpenVocabularyDetector(tiny_transformers.save_owlv2(tmp_path / "owl"), min_score=0.0)
    boxes = segment(image, ["a cat", "dog"], detector, sam=toy_sam())
    assert boxes.records
    assert {r["category"] for r in boxes.records} <= {"a cat", "dog"}
    encoder = TransformersEncoder(tiny_transformers.save_clip(tmp_path / "clip"))
    ranked = segment(coloured(), "dog", encoder, generator=Squares(), options=GroundingOptions(min_score=1e-6))
    assert len(ranked) == 2


def test_yolox_and_sam_cut_out_the_truck(shared):
    from segment_anything.detectors import load_detector
    from segment_anything.images import read_image

    image = read_image(shared / "images" / "truck.jpg")
    detector = load_detector(shared / "models" / "yolox_nano_coco.onnx")
    grounded = segment_detections(BoxSam(), image, detector)
    (truck,) = grounded.records
    assert truck["category"] == "truck"
    x, y, width, height = truck["bbox"]
    x0, y0, x1, y1 = grounded.detections[0].box_xyxy
    # The toy's masks have 16 x 16 cells: 112 pixels each here.
    assert np.abs(np.array([x - x0, y - y0, x + width - x1, y + height - y1])).max() < 112
