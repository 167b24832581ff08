"""Every format gives the same objects, is recognised, and reads what its tools really write."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_data
from PIL import Image

from segment_anything.datasets import FORMATS, detect_format, open_dataset

ALL = sorted(toy_data.WRITERS)


def test_every_format_has_a_toy_data_set() -> None:
    assert sorted(FORMATS) == ALL


@pytest.mark.parametrize("name", ALL)
def test_format_is_recognised(name: str, tmp_path: Path) -> None:
    toy_data.WRITERS[name](tmp_path)
    assert detect_format(tmp_path) == name


@pytest.mark.parametrize("name", ALL)
def test_every_format_gives_the_same_objects(name: str, tmp_path: Path) -> None:
    toy_data.WRITERS[name](tmp_path)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2
    assert dataset.classes == (("object",) if name in toy_data.WITHOUT_CLASSES else toy_data.CLASSES)
    for sample in dataset:
        stem = Path(sample.name).stem
        expected = toy_data.OBJECTS[stem]
        assert sample.image.shape == (8, 12, 3)
        found = {(int(label), mask.tobytes()) for label, mask in zip(sample.labels, sample.masks, strict=True)}
        use = (lambda label: 0) if name in toy_data.WITHOUT_CLASSES else (lambda label: label)
        assert found == {(use(label), toy_data.mask(box).tobytes()) for label, box in expected}


@pytest.mark.parametrize("name", ["csv", "davis", "voc"])
def test_splits_are_read(name: str, tmp_path: Path) -> None:
    toy_data.WRITERS[name](tmp_path)
    assert open_dataset(tmp_path).splits == ("train", "valid")
    assert [Path(sample.name).stem for sample in open_dataset(tmp_path, split="valid")] == ["b"]
    train, valid = open_dataset(tmp_path).divide(valid_fraction=0.5)
    assert (len(train), len(valid)) == (1, 1)


def test_coco_with_a_file_in_every_split_folder(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        toy_data.write_coco(tmp_path / split)
        (tmp_path / split / "annotations.json").rename(tmp_path / split / "_annotations.coco.json")
        for image in (tmp_path / split / "images").iterdir():
            image.rename(tmp_path / split / image.name)
    dataset = open_dataset(tmp_path)
    assert dataset.format == "coco"
    assert [sample.split for sample in dataset.samples] == ["train", "train", "valid", "valid"]


def test_coco_with_the_official_layout(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations.json").rename(tmp_path / "annotations" / "instances_val2017.json")
    (tmp_path / "images").rename(tmp_path / "val2017")
    dataset = open_dataset(tmp_path)
    assert [sample.split for sample in dataset.samples] == ["valid", "valid"]
    assert len(dataset[0].masks) == 2


def test_coco_crowds_and_boxes_are_left_out(tmp_path: Path) -> None:
    toy_data.write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"] = []
    toy_data.save_json(tmp_path / "annotations.json", content)
    assert [len(sample.masks) for sample in open_dataset(tmp_path)] == [0, 1]


def test_labelme_joins_shapes_of_one_group(tmp_path: Path) -> None:
    toy_data.write_labelme(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    for shape in content["shapes"]:
        shape.update(label="cat", group_id=7)
    content["shapes"].append({"label": "nose", "points": [[1, 1]], "shape_type": "point", "group_id": None})
    toy_data.save_json(tmp_path / "a.json", content)
    sample = open_dataset(tmp_path)[0]
    boxes = [box for _, box in toy_data.OBJECTS["a"]]
    assert np.array_equal(sample.masks, [toy_data.mask(boxes[0]) | toy_data.mask(boxes[1])])


def test_labelme_circle(tmp_path: Path) -> None:
    toy_data.write_labelme(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["shapes"] = [{"label": "cat", "points": [[5, 4], [8, 4]], "shape_type": "circle"}]
    toy_data.save_json(tmp_path / "a.json", content)
    (mask,) = open_dataset(tmp_path)[0].masks
    assert mask.sum() == pytest.approx(np.pi * 9, abs=4)
    assert not mask[0].any()


def test_yolo_finds_roboflow_folders(tmp_path: Path) -> None:
    toy_data.write_yolo(tmp_path)
    for old, new in (("images/train", "train/images"), ("labels/train", "train/labels")):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / old).rename(tmp_path / new)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ''\nnc: 2\nnames: ['cat', 'dog']\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert [len(sample.masks) for sample in dataset] == [2, 1]


def test_yolo_image_without_label_file_shows_no_object(tmp_path: Path) -> None:
    toy_data.write_yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").unlink()
    assert [len(sample.masks) for sample in open_dataset(tmp_path)] == [2, 0]


def test_voc_without_instances_takes_each_class_as_an_object(tmp_path: Path) -> None:
    toy_data.write_voc(tmp_path)
    for file in (tmp_path / "SegmentationObject").iterdir():
        file.unlink()
    (tmp_path / "SegmentationObject").rmdir()
    assert [sample.labels.tolist() for sample in open_dataset(tmp_path)] == [[0, 1], [1]]


def test_label_map_values_are_classes_with_a_list_of_classes(tmp_path: Path) -> None:
    for stem in toy_data.OBJECTS:
        toy_data.save(tmp_path / f"images/{stem}.png", toy_data.photo(stem))
        toy_data.save(tmp_path / f"labels/{stem}.png", toy_data.label_map(stem, by_class=True))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    dataset = open_dataset(tmp_path)
    assert dataset.format == "labelmap"
    assert [sample.labels.tolist() for sample in dataset] == [[0, 1], [1]]


@pytest.mark.parametrize("kind", ["palette", "16 bits", "colours"])
def test_label_maps_of_every_depth(kind: str, tmp_path: Path) -> None:
    toy_data.write_labelmap(tmp_path)
    ids = toy_data.label_map("a")
    image = Image.fromarray(ids)
    if kind == "palette":
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    if kind == "16 bits":
        image = Image.fromarray(ids.astype(np.uint16) * 300)
    if kind == "colours":
        image = Image.fromarray(np.stack([ids, ids * 7, ids * 0], axis=-1))
    image.save(tmp_path / "masks/a.png")
    expected = [toy_data.mask(box) for _, box in toy_data.OBJECTS["a"]]
    assert np.array_equal(open_dataset(tmp_path)[0].masks, expected)


def test_masks_saved_as_jpeg_are_black_and_white(tmp_path: Path) -> None:
    toy_data.write_pairs(tmp_path)
    Image.fromarray(np.kron(toy_data.mask((0, 0, 3, 8)), np.ones((16, 16))).astype(np.uint8) * 255).save(
        tmp_path / "masks/b_mask.jpg", quality=60
    )
    (tmp_path / "masks/b_mask.png").unlink()
    Image.fromarray(np.kron(toy_data.photo("b"), np.ones((16, 16, 1), np.uint8))).save(tmp_path / "images/b.png")
    (mask,) = open_dataset(tmp_path)[1].masks
    assert mask[:, :40].all()
    assert not mask[:, 56:].any()


def test_index_takes_overlapping_polygons_from_the_coco_file(tmp_path: Path) -> None:
    toy_data.write_index(tmp_path)
    box = [0, 0, 12, 0, 12, 8, 0, 8]
    content = {
        "images": [{"id": 1, "file_name": "images/a.png", "height": 8, "width": 12}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [box]}],
    }
    for line in ("index.jsonl",):
        text = (
            (tmp_path / line).read_text().replace(', "labels": ["cat", "dog"]', "").replace(', "labels": ["dog"]', "")
        )
        (tmp_path / line).write_text(text)
    toy_data.save_json(tmp_path / "annotations.json", content)
    first, second = open_dataset(tmp_path)
    assert first.masks.all()
    assert len(second.masks) == 1


def test_shared_sets_open(shared: Path) -> None:
    dataset = open_dataset(shared / "data/eval/car_parts")
    train, valid = dataset.divide(valid_fraction=0.4)
    assert (len(train), len(valid)) == (30, 20)
    assert max(sample.name for sample in train.samples) < min(sample.name for sample in valid.samples)
    sample = train[0]
    assert sample.masks.any(axis=(1, 2)).all()
    assert len(sample.labels) == len(sample.masks)


def test_davis_2016_lists_name_frames_and_every_value_is_an_object(tmp_path: Path) -> None:
    toy_data.write_davis(tmp_path)
    for file, film, stem in (("train", "cows", "b"), ("val", "bear", "a")):
        line = f"/JPEGImages/480p/{film}/{stem}.jpg /Annotations/480p/{film}/{stem}.png\n"
        (tmp_path / f"ImageSets/2017/{file}.txt").write_text(line)
    [sample] = open_dataset(tmp_path, split="valid").samples
    assert sample.name == "480p/bear/a.jpg"
    labels = toy_data.label_map("a")
    labels[labels == 2] = 255
    toy_data.save(tmp_path / "Annotations/480p/bear/a.png", labels)
    assert sample.read().masks.sum(axis=(1, 2)).tolist() == [12, 25]


def test_davis_label_maps_without_frames_are_refused(tmp_path: Path) -> None:
    toy_data.write_davis(tmp_path)
    (tmp_path / "JPEGImages/480p/bear/a.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 2 samples cannot be used"):
        open_dataset(tmp_path)
