"""Mask records: made from masks, laid into one image, and through the formats of other tools and back."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from segment_anything.label_map import from_label_map, to_label_map
from segment_anything.masks import encode_rle, rle_to_coco
from segment_anything.record_formats import (
    category_ids,
    from_coco,
    from_labelme,
    from_sa1b,
    from_yolo,
    to_coco,
    to_labelme,
    to_sa1b,
    to_yolo,
)
from segment_anything.records import MaskRecord, make_record, record_mask, record_rle, records_size_hw


def picture(*rows: str) -> np.ndarray:
    """A mask drawn with # and . characters."""
    return np.array([[letter == "#" for letter in row] for row in rows])


RING = picture("####..", "#..#..", "####..", "......")
PARTS = picture(".....#", ".....#", "......", "##....")
BAR = picture("......", "......", "######", "......")


def records() -> list[MaskRecord]:
    """Three masks, one of each kind of segmentation, that overlap."""
    rle = encode_rle(PARTS)
    compact = {"size": [4, 6], "counts": rle_to_coco(encode_rle(BAR))}
    score = {"predicted_iou": 0.9, "stability_score": 0.97, "point_coords": [[1.5, 2.0]], "crop_box": [0, 0, 6, 4]}
    return [
        make_record(RING, **score, category="ring", category_score=0.6),
        make_record(rle, **(score | {"predicted_iou": 0.8}), category="dots"),
        make_record(compact, **(score | {"predicted_iou": 0.95})),
    ]


def same_masks(a: list[MaskRecord], b: list[MaskRecord]) -> bool:
    return len(a) == len(b) and all(np.array_equal(record_mask(x), record_mask(y)) for x, y in zip(a, b, strict=True))


def test_a_record_measures_its_mask_in_every_kind_of_segmentation() -> None:
    ring, parts, bar = records()
    assert [record["area"] for record in (ring, parts, bar)] == [10, 4, 6]
    assert ring["bbox"] == [0, 0, 3, 2]
    assert parts["bbox"] == [0, 0, 5, 3]
    for record, mask in ((ring, RING), (parts, PARTS), (bar, BAR)):
        assert np.array_equal(record_mask(record), mask)
        assert record_rle(record)["size"] == [4, 6]


def test_an_empty_mask_has_an_empty_box() -> None:
    record = make_record(picture("..", ".."))
    assert (record["area"], record["bbox"]) == (0, [0, 0, 0, 0])


def test_the_size_of_the_image_comes_from_the_records() -> None:
    assert records_size_hw(records()) == (4, 6)
    assert records_size_hw([], (3, 2)) == (3, 2)
    with pytest.raises(ValueError, match=r"there are no records: pass size_hw"):
        records_size_hw([])
    with pytest.raises(ValueError, match=r"found \[\(4, 6\), \(6, 4\)\]"):
        records_size_hw(records(), (6, 4))


# label maps


def test_the_smallest_mask_lies_on_top() -> None:
    labels, coverage = to_label_map(records())
    assert labels.tolist() == [[1, 1, 1, 1, 0, 2], [1, 0, 0, 1, 0, 2], [3, 3, 3, 3, 3, 3], [2, 2, 0, 0, 0, 0]]
    assert coverage == pytest.approx(16 / 24)


def test_the_largest_or_the_best_mask_can_lie_on_top() -> None:
    assert to_label_map(records(), policy="large_on_top")[0][2].tolist() == [1, 1, 1, 1, 3, 3]
    assert to_label_map(records(), policy="score")[0][2].tolist() == [3] * 6


def test_of_equals_the_first_lies_on_top() -> None:
    twice = [make_record(BAR), make_record(BAR)]
    assert to_label_map(twice)[0].max() == 1


def test_no_records_give_an_empty_label_map() -> None:
    labels, coverage = to_label_map([], size_hw=(2, 3))
    assert (labels.shape, labels.any(), coverage) == ((2, 3), False, 0.0)


def test_a_label_map_gives_back_its_masks() -> None:
    labels, _ = to_label_map(records())
    assert np.array_equal(to_label_map(from_label_map(labels))[0], labels)


def test_label_maps_refuse_what_they_cannot_rank() -> None:
    with pytest.raises(ValueError, match="policy must be one of small_on_top, large_on_top, score"):
        to_label_map(records(), policy="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs records with predicted_iou"):
        to_label_map([make_record(BAR)], policy="score")


# COCO and SA-1B


def test_coco_annotations_are_json_and_measured_as_pycocotools_measures() -> None:
    annotations = json.loads(json.dumps(to_coco(records(), image_id=7, first_id=10)))
    assert [a["id"] for a in annotations] == [10, 11, 12]
    assert {a["image_id"] for a in annotations} == {7}
    for annotation in annotations:
        assert annotation["area"] == coco.area(annotation["segmentation"])
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()


def test_coco_annotations_turn_back_into_the_same_records() -> None:
    numbers = category_ids(records())
    assert numbers == {"dots": 1, "object": 2, "ring": 3}
    annotations = json.loads(json.dumps(to_coco(records(), categories=numbers)))
    back = from_coco(annotations, categories=numbers)
    assert same_masks(back, records())
    for ours, record in zip(back, records(), strict=True):
        for key in ("area", "bbox", "predicted_iou", "stability_score", "point_coords", "crop_box"):
            assert ours.get(key) == record.get(key)
    assert [record.get("category") for record in back] == ["ring", "dots", "object"]
    assert back[0].get("category_score") == 0.6


def test_coco_polygons_are_filled() -> None:
    polygon = {"segmentation": [[0, 2, 6, 2, 6, 3, 0, 3]], "category_id": 3}
    (record,) = from_coco([polygon], size_hw=(4, 6), categories={"bar": 3})
    assert np.array_equal(record_mask(record), BAR)
    assert record.get("category") == "bar"
    with pytest.raises(ValueError, match=r"size_hw=.* is needed to fill the polygons"):
        from_coco([polygon])


def test_a_class_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"categories must number every class, but 'ring' is not among \['dots'\]"):
        to_coco(records(), categories={"dots": 1})


def test_sa1b_documents_hold_the_original_keys_and_turn_back() -> None:
    document = json.loads(json.dumps(to_sa1b(records(), image_id=5, file_name="sa_5.jpg")))
    assert document["image"] == {"image_id": 5, "width": 6, "height": 4, "file_name": "sa_5.jpg"}
    keys = {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "point_coords", "crop_box"}
    assert all(keys <= set(annotation) for annotation in document["annotations"])
    back = from_sa1b(document)
    assert same_masks(back, records())
    assert back[0] == records()[0] | {"segmentation": document["annotations"][0]["segmentation"]}


def test_an_image_without_masks_makes_a_document_too() -> None:
    assert to_sa1b([], image_id=1, file_name="a.jpg", size_hw=(2, 3))["annotations"] == []
    assert to_labelme([], file_name="a.jpg", size_hw=(2, 3))["imageHeight"] == 2


# YOLO and labelme


def test_yolo_lines_keep_holes_and_separate_regions() -> None:
    lines = to_yolo(records()[:2], names=["dots", "ring"])
    assert [line.split()[0] for line in lines] == ["1", "0"]
    assert all(0 <= float(value) <= 1 for line in lines for value in line.split()[1:])
    back = from_yolo([*lines, ""], (4, 6), names=["dots", "ring"])
    assert same_masks(back, records()[:2])
    assert [record.get("category") for record in back] == ["ring", "dots"]


def test_yolo_lines_without_names_have_class_0_and_leave_out_empty_masks() -> None:
    assert to_yolo([make_record(BAR), make_record(BAR & False)]) == ["0 0 0.5 1 0.5 1 0.75 0 0.75"]
    with pytest.raises(ValueError, match=r"names must hold every record's class, but 'ring' is not among \['cat'\]"):
        to_yolo(records()[:1], names=["cat"])


def test_labelme_documents_group_the_regions_of_a_mask_and_turn_back() -> None:
    document = json.loads(json.dumps(to_labelme(records(), file_name="photo.jpg")))
    assert [(s["label"], s["group_id"]) for s in document["shapes"]] == [
        ("ring", None),
        ("dots", 2),
        ("dots", 2),
        ("object", None),
    ]
    back = from_labelme(document)
    assert same_masks(back, records())
    assert [record.get("category") for record in back] == ["ring", "dots", "object"]
