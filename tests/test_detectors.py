"""Boxes with names: what may be done with them, whoever found them."""

import numpy as np
import pytest

from segment_anything.detectors import Detection, Detector, _providers, check_classes, load_detector, select_detections
from segment_anything.detectors.letterbox import FILL, fit_image, place
from segment_anything.detectors.names import known_names, names_for, read_names

DOG, CAT, CAR = (
    Detection((0, 0, 10, 10), "dog", 0.9),
    Detection((5, 5, 20, 20), "cat", 0.5),
    Detection((1, 2, 3, 4), "car", 0.7),
)


def test_detections_come_back_best_first():
    assert select_detections([CAT, DOG, CAR]) == [DOG, CAR, CAT]


def test_a_class_filter_ignores_letter_case():
    assert select_detections([DOG, CAT, CAR], classes=["CAT", "dog"]) == [DOG, CAT]


def test_a_class_map_renames_after_the_filter():
    (only,) = select_detections([DOG, CAT], classes=["cat"], class_map={"cat": "animal", "dog": "animal"})
    assert (only.label, only.box_xyxy) == ("animal", CAT.box_xyxy)


def test_a_threshold_and_a_maximum_count_keep_the_best():
    assert select_detections([DOG, CAT, CAR], min_score=0.6) == [DOG, CAR]
    assert select_detections([DOG, CAT, CAR], max_count=1) == [DOG]


def test_no_detections_stay_no_detections():
    assert select_detections([], classes=["dog"], min_score=0.5, max_count=3) == []


def test_an_unknown_class_lists_near_names():
    with pytest.raises(ValueError, match=r"no class 'trcuk'\. Near names: 'truck'"):
        check_classes(["car", "trcuk"], names_for(80))


def test_an_unknown_class_without_near_names_lists_some():
    with pytest.raises(ValueError, match=r"no class 'zzzz'\. Some of its 2 names: 'cat', 'dog'"):
        check_classes(["zzzz"], ["cat", "dog"])


def test_one_string_as_classes_is_refused():
    with pytest.raises(ValueError, match=r"classes must be a list of names; got the single string 'dog'"):
        check_classes("dog", ["dog"])


def test_a_box_given_as_width_and_height_is_refused():
    with pytest.raises(ValueError, match=r"x1 >= x0 and y1 >= y0; got \(50, 50, 10, 10\)"):
        Detection((50, 50, 10, 10), "dog")


def test_anything_with_detect_is_a_detector():
    class Mine:
        def detect(self, image):
            return [DOG]

    assert isinstance(Mine(), Detector)
    assert not isinstance(object(), Detector)


def test_coco_and_open_images_names_are_known_by_their_count():
    assert names_for(80)[7] == "truck"
    assert names_for(80)[79] == "toothbrush"
    open_images = known_names(601)
    assert open_images is not None
    assert (open_images[0], open_images[600], len(set(open_images))) == ("Accordion", "Zucchini", 601)
    assert names_for(3) == ("class 0", "class 1", "class 2")


def test_names_are_read_from_a_text_file_and_from_json(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\ndog\n", encoding="utf-8")
    (tmp_path / "names.json").write_text('{"1": "dog", "0": "cat"}', encoding="utf-8")
    assert read_names(tmp_path / "names.txt") == read_names(tmp_path / "names.json") == ("cat", "dog")


def test_names_with_a_gap_in_their_ids_are_refused():
    with pytest.raises(ValueError, match=r"ids must be 0 to 1 without gaps; got \[0, 2\]"):
        read_names({0: "cat", 2: "dog"})


def test_a_missing_file_of_names_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"class_names: no such file: .*none\.txt"):
        read_names(tmp_path / "none.txt")


@pytest.mark.parametrize("fit", ["centred", "corner", "stretch"])
def test_boxes_come_back_from_the_network_frame(fit):
    placement = place((120, 200), (64, 96), fit)
    boxes = np.array([[10, 20, 150, 110], [0, 0, 200, 120]], np.float32)
    np.testing.assert_allclose(placement.boxes_to_original(placement.boxes_to_network(boxes)), boxes, atol=1e-3)


def test_a_centred_letterbox_pads_both_sides_and_a_corner_one_the_end():
    image = np.full((10, 20, 3), 255, np.uint8)
    centred, _ = fit_image(image, (40, 40), "centred")
    corner, _ = fit_image(image, (40, 40), "corner")
    stretched, _ = fit_image(image, (40, 40), "stretch")
    column = lambda picture: "".join("#" if value == 255 else "." for value in picture[::5, 20, 0])  # noqa: E731
    assert column(centred) == "..####.."
    assert column(corner) == "####...."
    assert column(stretched) == "########"
    assert centred[0, 0, 0] == FILL


def test_boxes_outside_the_image_are_clipped_to_it():
    placement = place((10, 20), (40, 40), "centred")
    np.testing.assert_allclose(placement.boxes_to_original(np.array([[0.0, 0, 40, 40]])), [[0, 0, 20, 10]])


def test_a_file_of_another_kind_is_no_detector(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.pt is no detector this reads\. Export the model to ONNX"):
        load_detector(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"No such file: .*gone\.pt"):
        load_detector(tmp_path / "gone.pt")


def test_an_onnx_file_runs_on_cuda_only_where_it_is_asked_for_and_there():
    available = pytest.importorskip("onnxruntime").get_available_providers()
    gpu = [name for name in available if name.startswith("CUDA")]
    assert _providers("cpu") == ["CPUExecutionProvider"]
    assert _providers("cuda:0") == _providers("auto") == [*gpu, "CPUExecutionProvider"]
