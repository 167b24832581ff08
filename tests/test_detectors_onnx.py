"""Detectors in ONNX files: every family against a graph whose answer is known, and one real file."""

import numpy as np
import pytest
from onnx_graphs import constant_graph, grid_rows, mean_red_graph

from segment_anything.detectors import OnnxDetector, OnnxDetectorOptions, load_detector

IMAGE = np.full((64, 64, 3), 51, np.uint8)
WIDE = np.full((60, 120, 3), 51, np.uint8)  # scale 64/120: 32 rows of picture, padded by 16 above and below
CELLS = 8 * 8 + 4 * 4 + 2 * 2


def found(detector, image=IMAGE):
    return [(d.label, round(d.score, 3), tuple(round(v, 2) for v in d.box_xyxy)) for d in detector.detect(image)]


def yolov8_rows(classes=2, extra=0):
    """(4+K+P, A): a strong box of class 1, a weaker copy of it, a box of class 0 and nothing else."""
    rows = np.zeros((4 + classes + extra, CELLS), np.float32)
    rows[:4, 10] = [32, 32, 20, 10]
    rows[5, 10] = 0.9
    rows[:4, 11] = [33, 32, 20, 10]
    rows[5, 11] = 0.8
    rows[:4, 40] = [10, 20, 8, 8]
    rows[4, 40] = 0.6
    return rows


V8_ANSWER = [("dog", 0.9, (22, 27, 42, 37)), ("cat", 0.6, (6, 16, 14, 24))]


def test_yolov8_boxes_are_decoded_and_doubles_suppressed(tmp_path):
    path = constant_graph(tmp_path / "v8.onnx", {"output0": yolov8_rows()[None]})
    detector = OnnxDetector(path, class_names=["cat", "dog"])
    assert detector.family == "yolov8"
    assert found(detector) == V8_ANSWER


def test_a_transposed_yolov8_is_told_from_yolox_by_its_names(tmp_path):
    path = constant_graph(
        tmp_path / "t.onnx", {"output0": yolov8_rows().T[None].copy()}, metadata={"names": "{0: 'cat', 1: 'dog'}"}
    )
    detector = OnnxDetector(path)
    assert detector.family == "yolov8"
    assert found(detector) == V8_ANSWER


def test_a_segmentation_yolov8_gives_its_boxes(tmp_path):
    outputs = {"output0": yolov8_rows(extra=32)[None], "output1": np.zeros((1, 32, 16, 16), np.float32)}
    detector = OnnxDetector(constant_graph(tmp_path / "seg.onnx", outputs), class_names=["cat", "dog"])
    assert found(detector) == V8_ANSWER


def test_names_in_the_metadata_are_used(tmp_path):
    path = constant_graph(
        tmp_path / "m.onnx", {"output0": yolov8_rows()[None]}, metadata={"names": "{0: 'cat', 1: 'dog'}"}
    )
    assert OnnxDetector(path).class_names == ("cat", "dog")


def test_a_graph_with_open_sizes_is_recognised_by_running_it(tmp_path):
    path = constant_graph(
        tmp_path / "open.onnx",
        {"output0": yolov8_rows()[None]},
        size_hw=("height", "width"),
        metadata={"imgsz": "[64, 64]", "names": "['cat', 'dog']"},
    )
    assert found(OnnxDetector(path)) == V8_ANSWER


def test_an_open_size_can_be_given(tmp_path):
    path = constant_graph(tmp_path / "o.onnx", {"output0": yolov8_rows()[None]}, size_hw=("h", "w"))
    options = OnnxDetectorOptions(input_size_hw=(64, 64))
    assert found(OnnxDetector(path, class_names=["cat", "dog"], options=options)) == V8_ANSWER


def test_boxes_of_a_wide_image_lose_the_letterbox(tmp_path):
    rows = np.zeros((6, CELLS), np.float32)
    rows[:, 0] = [32, 32, 32, 16, 0, 0.9]
    detector = OnnxDetector(constant_graph(tmp_path / "w.onnx", {"output0": rows[None]}), class_names=["a", "b"])
    assert found(detector, WIDE) == [("b", 0.9, (30, 15, 90, 45))]


def yolov5_rows(extra=0):
    rows = np.zeros((3 * CELLS, 5 + 2 + extra), np.float32)
    rows[100, :7] = [32, 32, 20, 10, 0.9, 0.1, 1.0]
    rows[101, :7] = [32, 32, 20, 10, 0.5, 0.1, 1.0]
    rows[7, :7] = [10, 20, 8, 8, 0.8, 0.75, 0.2]
    return rows


@pytest.mark.parametrize("prototypes", [0, 32])
def test_yolov5_multiplies_objectness_with_class(tmp_path, prototypes):
    outputs = {"output": yolov5_rows(prototypes)[None]}
    if prototypes:
        outputs["output1"] = np.zeros((1, prototypes, 16, 16), np.float32)
    detector = OnnxDetector(constant_graph(tmp_path / "v5.onnx", outputs), class_names=["cat", "dog"])
    assert detector.family == "yolov5"
    assert found(detector) == V8_ANSWER


def yolox_rows():
    """Raw YOLOX output whose only box is that of class 1 at centre (36, 20), size 16 x 8."""
    rows = np.zeros((CELLS, 7), np.float32)
    cell = 2 * 8 + 4  # stride 8, x = 4, y = 2
    rows[cell] = [0.5, 0.5, np.log(16 / 8), np.log(8 / 8), 0.9, 0.1, 1.0]
    return rows


def test_raw_yolox_is_placed_on_its_grids(tmp_path):
    detector = OnnxDetector(constant_graph(tmp_path / "x.onnx", {"output": yolox_rows()[None]}))
    assert detector.family == "yolox"
    assert found(detector) == [("class 1", 0.9, (28, 16, 44, 24))]


def test_yolox_decoded_inside_the_graph_is_not_decoded_twice(tmp_path):
    rows, grid = yolox_rows(), grid_rows(64)
    rows[:, :2] = (rows[:, :2] + grid[:, :2]) * grid[:, 2:]
    rows[:, 2:4] = np.exp(rows[:, 2:4]) * grid[:, 2:]
    detector = OnnxDetector(constant_graph(tmp_path / "xd.onnx", {"output": rows[None]}))
    assert found(detector) == [("class 1", 0.9, (28, 16, 44, 24))]


def test_yolox_pads_the_end_only(tmp_path):
    detector = OnnxDetector(constant_graph(tmp_path / "x.onnx", {"output": yolox_rows()[None]}))
    assert found(detector, WIDE) == [("class 1", 0.9, (52.5, 30, 82.5, 45))]


def test_final_boxes_with_nms_inside_are_taken_as_they_are(tmp_path):
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, :2] = [[22, 27, 42, 37, 0.9, 1], [6, 16, 14, 24, 0.6, 0]]
    detector = OnnxDetector(constant_graph(tmp_path / "v10.onnx", {"output0": rows}), class_names=["cat", "dog"])
    assert detector.family == "end2end"
    assert found(detector) == V8_ANSWER


def test_rows_with_a_batch_number_are_understood(tmp_path):
    rows = np.array([[0, 22, 27, 42, 37, 1, 0.9], [0, 6, 16, 14, 24, 0, 0.6]], np.float32)
    detector = OnnxDetector(constant_graph(tmp_path / "v7.onnx", {"output": rows}), class_names=["cat", "dog"])
    assert detector.family == "end2end_batch"
    assert found(detector) == V8_ANSWER


def test_four_outputs_of_a_built_in_nms_are_understood(tmp_path):
    outputs = {
        "num_dets": np.array([[2]], np.int32),
        "det_boxes": np.array([[[22, 27, 42, 37], [6, 16, 14, 24], [0, 0, 9, 9]]], np.float32),
        "det_scores": np.array([[0.9, 0.6, 0.99]], np.float32),
        "det_classes": np.array([[1, 0, 0]], np.int32),
    }
    detector = OnnxDetector(constant_graph(tmp_path / "nms.onnx", outputs), class_names=["cat", "dog"])
    assert detector.family == "efficient_nms"
    assert found(detector) == V8_ANSWER


def test_detr_logits_and_normalised_boxes_are_stretched_to_the_image(tmp_path):
    logits = np.full((1, 5, 2), -9, np.float32)
    logits[0, 3, 1] = np.log(0.9 / 0.1)
    boxes = np.zeros((1, 5, 4), np.float32)
    boxes[0, 3] = [0.5, 0.5, 0.5, 0.5]
    path = constant_graph(tmp_path / "d.onnx", {"logits": logits, "pred_boxes": boxes})
    detector = OnnxDetector(path, class_names=["cat", "dog"])
    assert detector.family == "detr"
    assert found(detector, WIDE) == [("dog", 0.9, (30, 15, 90, 45))]


def test_rtdetr_with_a_second_input_is_understood(tmp_path):
    outputs = {
        "labels": np.array([[1, 0]], np.int64),
        "boxes": np.array([[[16, 16, 48, 48], [0, 0, 9, 9]]], np.float32),
        "scores": np.array([[0.9, 0.1]], np.float32),
    }
    path = constant_graph(tmp_path / "rt.onnx", outputs, extra_input=True)
    detector = OnnxDetector(path, class_names=["cat", "dog"])
    assert detector.family == "rtdetr"
    assert found(detector, WIDE) == [("dog", 0.9, (30, 15, 90, 45))]


def test_the_picture_reaches_the_network_as_rgb_between_0_and_1(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0], image[..., 2] = 153, 255
    detector = load_detector(mean_red_graph(tmp_path / "red.onnx"))
    assert found(detector, image) == [("person", 0.6, (8, 8, 24, 40))]


def test_two_names_of_one_object_become_its_better_name(tmp_path):
    rows = yolov8_rows()
    rows[:6, 50] = [32, 32, 20, 10, 0.7, 0.0]  # a cat where the dog is
    path = constant_graph(tmp_path / "two.onnx", {"output0": rows[None]})
    both = OnnxDetector(path, class_names=["cat", "dog"], options=OnnxDetectorOptions(same_object_iou=None))
    assert [d.label for d in both.detect(IMAGE)] == ["dog", "cat", "cat"]
    assert found(OnnxDetector(path, class_names=["cat", "dog"])) == V8_ANSWER


def test_zero_detections_are_an_empty_list(tmp_path):
    path = constant_graph(tmp_path / "none.onnx", {"output0": np.zeros((1, 6, CELLS), np.float32)})
    assert OnnxDetector(path).detect(IMAGE) == []


def test_at_most_max_count_boxes_come_back(tmp_path):
    path = constant_graph(tmp_path / "m.onnx", {"output0": yolov8_rows()[None]})
    detector = OnnxDetector(path, class_names=["cat", "dog"], options=OnnxDetectorOptions(max_count=1))
    assert found(detector) == V8_ANSWER[:1]


def test_outputs_not_understood_are_printed_with_what_is_supported(tmp_path):
    path = constant_graph(tmp_path / "odd.onnx", {"heat": np.zeros((1, 17, 16, 16), np.float32)})
    with pytest.raises(ValueError, match=r"understood\. Found, .*64 x 64: heat \(1, 17, 16, 16\)\. Supported.*YOLOX"):
        OnnxDetector(path)


def test_a_forced_family_that_does_not_fit_is_refused(tmp_path):
    path = constant_graph(tmp_path / "v8.onnx", {"output0": yolov8_rows()[None]})
    with pytest.raises(ValueError, match=r"not understood as yolov5\. Found"):
        OnnxDetector(path, options=OnnxDetectorOptions(family="yolov5"))
    with pytest.raises(ValueError, match=r"family must be one of yolox, yolov5, .* got 'yolo'"):
        OnnxDetectorOptions(family="yolo")


def test_a_wrong_number_of_names_is_refused(tmp_path):
    path = constant_graph(tmp_path / "v8.onnx", {"output0": yolov8_rows()[None]})
    with pytest.raises(ValueError, match=r"class_names holds 3 names, and this yolov8 file has 2 classes"):
        OnnxDetector(path, class_names=["a", "b", "c"])


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"No such ONNX file: .*gone\.onnx"):
        OnnxDetector(tmp_path / "gone.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"broken\.onnx cannot be loaded by ONNX Runtime"):
        OnnxDetector(tmp_path / "broken.onnx")


def test_an_option_outside_its_range_is_named():
    with pytest.raises(ValueError, match=r"nms_iou must lie in \[0, 1\]; got 1\.5"):
        OnnxDetectorOptions(nms_iou=1.5)


def test_yolox_nano_finds_the_truck(shared):
    from segment_anything.images import read_image

    detector = load_detector(shared / "models" / "yolox_nano_coco.onnx")
    (truck,) = detector.detect(read_image(shared / "images" / "truck.jpg"))
    assert (detector.family, truck.label) == ("yolox", "truck")
    assert truck.score > 0.85
    np.testing.assert_allclose(truck.box_xyxy, (86, 274, 1713, 853), atol=10)
