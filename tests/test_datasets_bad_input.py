"""What is wrong with a data set is said in one line, and one bad image does not stop the others."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_data

from segment_anything.datasets import SampleError, SegmentationSample, Skipped, SkippedSamples, open_dataset
from segment_anything.datasets.simple_yaml import read_simple_yaml


def test_folder_without_a_known_format_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"format of this data set could not be told.*--format"):
        open_dataset(tmp_path)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")


def test_unknown_format_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be auto or one of coco, csv"):
        open_dataset(tmp_path, format="pascal")


def test_empty_data_set(tmp_path: Path) -> None:
    toy_data.save_json(tmp_path / "annotations.json", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(ValueError, match="the data set is empty"):
        open_dataset(tmp_path)


def test_unknown_split(tmp_path: Path) -> None:
    toy_data.write_csv(tmp_path)
    with pytest.raises(ValueError, match=r"no samples in split 'test'; the data set has: train, valid"):
        open_dataset(tmp_path, split="test")


def test_annotations_that_name_missing_files_are_skipped_and_counted(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    for number in range(30):
        toy_data.save(tmp_path / f"images/n{number}.png", toy_data.photo("b"))
        content["images"].append({"id": 100 + number, "file_name": f"n{number}.png"})
    content["images"].append({"id": 999, "file_name": "gone.png"})
    toy_data.save_json(tmp_path / "annotations.json", content)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 32
    assert [item.name for item in dataset.skipped] == ["gone.png"]


def test_more_than_a_tenth_missing_fails(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    (tmp_path / "images/b.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 2 samples cannot be used, more than 10%(.|\n)*b.png: the image .* is missing"
    ):
        open_dataset(tmp_path)


def test_mask_of_another_size_than_its_image(tmp_path: Path) -> None:
    toy_data.write_labelmap(tmp_path)
    toy_data.save(tmp_path / "masks/a.png", np.ones((4, 4), dtype=np.uint8))
    with pytest.raises(SampleError, match=r"images/a.png: a.png is 4 x 4 pixels, the image 12 x 8"):
        open_dataset(tmp_path)[0]


def test_mask_with_swapped_sides_names_the_camera_rotation(tmp_path: Path) -> None:
    toy_data.write_labelmap(tmp_path)
    toy_data.save(tmp_path / "masks/a.png", toy_data.label_map("a").T)
    with pytest.raises(SampleError, match="EXIF"):
        open_dataset(tmp_path)[0]


def test_class_id_out_of_range(tmp_path: Path) -> None:
    toy_data.write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("7 0 0 0.5 0 0.5 0.5")
    with pytest.raises(SampleError, match=r"class id 7 is out of range, the data set names 2 classes \(0 to 1\)"):
        open_dataset(tmp_path)[0]


def test_coco_category_that_is_not_listed(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][0]["category_id"] = 99
    toy_data.save_json(tmp_path / "annotations.json", content)
    with pytest.raises(SampleError, match="class id -1 is out of range"):
        open_dataset(tmp_path)[0]


def test_unreadable_image(tmp_path: Path) -> None:
    toy_data.write_pairs(tmp_path)
    (tmp_path / "images/a.png").write_bytes(b"not an image")
    with pytest.raises(SampleError, match=r"images/a.png: .*not an image"):
        open_dataset(tmp_path)[0]


def test_damaged_mask_file(tmp_path: Path) -> None:
    toy_data.write_labelmap(tmp_path)
    whole = (tmp_path / "masks/a.png").read_bytes()
    (tmp_path / "masks/a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SampleError, match=r"images/a.png: a.png is damaged|a.png is not an image"):
        open_dataset(tmp_path)[0]


def test_polygon_outside_the_image_is_cut_off_or_left_out(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][0]["segmentation"] = [[-5, -5, 3, -5, 3, 3, -5, 3]]
    content["annotations"][1]["segmentation"] = [[50, 50, 60, 50, 60, 60]]
    toy_data.save_json(tmp_path / "annotations.json", content)
    assert np.array_equal(open_dataset(tmp_path)[0].masks, [toy_data.mask((0, 0, 3, 3))])


def test_coco_image_without_file_name(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    del content["images"][0]["file_name"]
    toy_data.save_json(tmp_path / "annotations.json", content)
    with pytest.raises(ValueError, match=r"annotations.json: an image or annotation lacks .*'file_name'"):
        open_dataset(tmp_path)


def test_annotation_of_a_form_nobody_expected_spoils_its_image_only(tmp_path: Path) -> None:
    toy_data.write_labelme(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["shapes"][1]["points"] = [[1, 2], [3]]
    toy_data.save_json(tmp_path / "a.json", content)
    dataset = open_dataset(tmp_path)
    with pytest.raises(SampleError, match=r"a.json: its annotation cannot be read"):
        dataset[0]
    assert len(dataset[1].masks) == 1


def test_run_lengths_that_do_not_fill_the_image(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][1]["segmentation"]["counts"] = [3, 4]
    toy_data.save_json(tmp_path / "annotations.json", content)
    with pytest.raises(SampleError, match=r"a.png: a mask is damaged"):
        open_dataset(tmp_path)[0]


def test_csv_with_missing_columns(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("picture,mask\na.png,b.png\n")
    with pytest.raises(
        ValueError, match=r"missing the column\(s\) image, split; needs image, mask, split, found picture"
    ):
        open_dataset(tmp_path)


def test_csv_with_one_image_in_two_splits(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,mask,split\na.png,b.png,train\na.png,c.png,test\n")
    with pytest.raises(ValueError, match=r"a.png is in the splits test, train"):
        open_dataset(tmp_path)


def test_csv_with_an_unknown_split(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,mask,split\na.png,b.png,trian\n")
    with pytest.raises(ValueError, match=r"unknown split 'trian' of a.png; use train, valid or test"):
        open_dataset(tmp_path)


def test_yolo_boxes_are_refused(tmp_path: Path) -> None:
    toy_data.write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2")
    with pytest.raises(SampleError, match=r"a.txt line 1: a box, not a polygon"):
        open_dataset(tmp_path)[0]


def test_yolo_line_that_is_not_numbers(tmp_path: Path) -> None:
    toy_data.write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("0 0.1 0.2 x 0.2 0.5 0.5")
    with pytest.raises(SampleError, match=r"a.txt line 1: not a list of numbers"):
        open_dataset(tmp_path)[0]


def test_json_that_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [')
    with pytest.raises(ValueError, match=r"annotations.json: not valid JSON"):
        open_dataset(tmp_path)


def test_labelme_file_that_is_damaged_is_skipped(tmp_path: Path) -> None:
    for number in range(12):
        toy_data.write_labelme(tmp_path / str(number))
    (tmp_path / "0" / "a.json").write_text("{")
    dataset = open_dataset(tmp_path, format="labelme")
    assert len(dataset) == 23
    assert [item.name for item in dataset.skipped] == ["0/a.json"]


def test_division_that_leaves_one_side_empty(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    with pytest.raises(ValueError, match=r"valid_fraction must leave images on both sides, got 0.9 of 2 images"):
        open_dataset(tmp_path).divide(0.9)


def test_skipped_samples_are_counted_once_and_named_at_the_end() -> None:
    skipped = SkippedSamples(total=30, skipped=[Skipped("z", "z: gone")])
    skipped.add("a", "a: damaged")
    skipped.add("a", "a: damaged")
    assert skipped.summary() == "2 of 31 samples were skipped:\n  a: damaged\n  z: gone"


def test_too_many_skipped_samples_fail() -> None:
    skipped = SkippedSamples(total=10)
    skipped.add("a", "a: damaged")
    with pytest.raises(ValueError, match=r"2 of 10 samples cannot be used, more than 10%(.|\n)*a: damaged"):
        skipped.add("b", "b: damaged")


def test_sample_checks_its_shapes() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"masks must be bool of shape \(N, 4, 5\)"):
        SegmentationSample(image, np.zeros((1, 5, 4), bool), np.zeros(1, np.int64), "x")
    with pytest.raises(ValueError, match=r"labels must be of shape \(1,\)"):
        SegmentationSample(image, np.zeros((1, 4, 5), bool), np.zeros(2, np.int64), "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [a, 'b, c']", {"names": ["a", "b, c"]}),
        ("names:\n  - a\n  - b # comment", {"names": ["a", "b"]}),
        ("names:\n- a\n- b", {"names": ["a", "b"]}),
        ("path: ../x#y\nnames: {0: a, 1: b}", {"path": "../x#y", "names": {"0": "a", "1": "b"}}),
    ],
)
def test_simple_yaml(text: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert read_simple_yaml(tmp_path / "data.yaml") == expected


def test_simple_yaml_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names:\n  - a\n  b: c\n")
    with pytest.raises(ValueError, match="line 3: only lists and one-level mappings are read"):
        read_simple_yaml(tmp_path / "data.yaml")
