"""Files with boxes drawn before are detectors too."""

import json

import numpy as np
import pytest

from segment_anything.detectors import BoxFile, Detection, load_detector

IMAGE = np.zeros((50, 100, 3), np.uint8)
ANSWER = [Detection((10, 20, 40, 40), "dog", 0.9), Detection((0, 0, 50, 25), "cat", 0.6)]


def coco(tmp_path, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "photos/a.jpg", "width": 100, "height": 50},
            {"id": 8, "file_name": "photos/empty.jpg", "width": 100, "height": 50},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 50, 25], "score": 0.6},
            {"image_id": 7, "category_id": 5, "bbox": [10, 20, 30, 20], "score": 0.9},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content | changes), encoding="utf-8")
    return BoxFile(tmp_path / "boxes.json")


@pytest.mark.parametrize("name", ["photos/a.jpg", "/somewhere/else/a.jpg", "a.png"])
def test_boxes_of_a_coco_file_are_found_by_the_images_name(tmp_path, name):
    assert coco(tmp_path).for_image(name).detect(IMAGE) == ANSWER


def test_a_coco_file_knows_its_classes_and_images(tmp_path):
    file = coco(tmp_path)
    assert (file.class_names, file.images) == (("cat", "dog"), ("photos/a.jpg", "photos/empty.jpg"))


def test_an_image_without_boxes_gives_none(tmp_path):
    assert coco(tmp_path).for_image("empty.jpg").detect(IMAGE) == []


def test_an_image_that_coco_does_not_list_is_refused_with_near_names(tmp_path):
    with pytest.raises(ValueError, match=r"does not list the image 'photos/b\.jpg'\. Near names: 'photos/a\.jpg'"):
        coco(tmp_path).for_image("photos/b.jpg")


def test_an_image_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image is 50 x 100 pixels, and the box file says 100 x 50"):
        coco(tmp_path).for_image("a.jpg").detect(np.zeros((100, 50, 3), np.uint8))


def test_a_file_of_many_images_asks_which(tmp_path):
    with pytest.raises(ValueError, match=r"boxes of 2 images: say which with for_image\(name\)"):
        coco(tmp_path).detect(IMAGE)


def test_a_name_that_fits_two_images_is_refused(tmp_path):
    images = [{"id": 7, "file_name": "x/a.jpg"}, {"id": 8, "file_name": "y/a.jpg"}]
    with pytest.raises(ValueError, match=r"may be any of \['x/a\.jpg', 'y/a\.jpg'\]"):
        coco(tmp_path, images=images).for_image("a.jpg")


def test_a_json_that_is_not_coco_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"shapes": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not a COCO data set: it has no 'images'\. Found: \['shapes'\]"):
        BoxFile(tmp_path / "other.json")


def test_coco_results_are_read_with_names_given(tmp_path):
    rows = [
        {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 20], "score": 0.9},
        {"image_id": 7, "category_id": 0, "bbox": [0, 0, 50, 25], "score": 0.6},
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    file = load_detector(tmp_path / "results.json", class_names=["cat", "dog"])
    assert file.detect(IMAGE) == ANSWER
    assert file.for_image("9").detect(IMAGE) == []


def test_yolo_files_are_scaled_by_the_image(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("0 0.25 0.25 0.5 0.5 0.6\n1 0.25 0.6 0.3 0.4 0.9\n\n", encoding="utf-8")
    file = load_detector(tmp_path)
    assert file.class_names == ("cat", "dog")
    for got, expected in zip(file.for_image("dir/a.jpg").detect(IMAGE), ANSWER, strict=True):
        assert (got.label, got.score) == (expected.label, expected.score)
        np.testing.assert_allclose(got.box_xyxy, expected.box_xyxy, atol=1e-9)


def test_a_yolo_polygon_becomes_its_extent_and_an_unnamed_class_its_number(tmp_path):
    (tmp_path / "a.txt").write_text("4 0.1 0.2 0.4 0.2 0.4 0.8 0.1 0.8\n", encoding="utf-8")
    (only,) = BoxFile(tmp_path / "a.txt").detect(IMAGE)
    assert only.label == "class 4"
    np.testing.assert_allclose(only.box_xyxy, (10, 10, 40, 40))


def test_a_broken_yolo_line_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.1 0.1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt line 1: expected `class cx cy w h \[score\]`.* got '0 0\.1 0\.1'"):
        BoxFile(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "text",
    [
        "image,label,score,x0,y0,x1,y1\na.jpg,dog,0.9,10,20,40,40\na.jpg,cat,0.6,0,0,50,25\n",
        "filename,class,confidence,x,y,width,height\na.jpg,dog,0.9,10,20,30,20\na.jpg,cat,0.6,0,0,50,25\n",
        "ymax,xmax,ymin,xmin,class,image,conf\n40,40,20,10,1,a.jpg,0.9\n25,50,0,0,0,a.jpg,0.6\n",
    ],
)
def test_a_csv_is_read_by_the_names_of_its_columns(tmp_path, text):
    (tmp_path / "boxes.csv").write_text(text, encoding="utf-8")
    assert load_detector(tmp_path / "boxes.csv", class_names=["cat", "dog"]).for_image("a.jpg").detect(IMAGE) == ANSWER


def test_a_csv_without_a_header_is_refused(tmp_path):
    (tmp_path / "boxes.csv").write_text("a.jpg,10,20,40,40,dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"first line must name the columns: image, label.*Found: a\.jpg, 10"):
        BoxFile(tmp_path / "boxes.csv")


def test_a_csv_with_words_for_numbers_names_the_line(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\na.jpg,dog,ten,20,40,40\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"boxes\.csv line 2: the box and the score must be numbers"):
        BoxFile(tmp_path / "boxes.csv")


def test_a_missing_box_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"No such box file: .*gone\.csv"):
        load_detector(tmp_path / "gone.csv")


def test_a_table_of_fractions_as_open_images_writes_it_is_scaled_by_the_image(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax\na,Dog,0.5,0.1,0.6,0.25,1\n")
    (found,) = BoxFile(path).for_image("a.jpg").detect(np.zeros((40, 100, 3), np.uint8))
    assert (found.label, found.score) == ("Dog", 0.5)
    np.testing.assert_allclose(found.box_xyxy, (10, 10, 60, 40))


def test_a_file_that_is_cut_off_and_a_box_that_cannot_be_say_where(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"boxes\.json is not JSON: Expecting value"):
        BoxFile(path)
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\na.jpg,dog,9,9,3,3\n")
    with pytest.raises(ValueError, match=r"boxes\.csv line 2: box_xyxy must be four finite numbers"):
        BoxFile(tmp_path / "boxes.csv")
