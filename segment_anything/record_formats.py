"""Mask records as other tools keep them: COCO, SA-1B, YOLO, labelme; and back.

Everything here is plain values for one image: reading and writing files of whole data sets is `datasets`' business.
Boxes in COCO annotations are measured on the masks (x1 - x0 counts pixels), not copied from the records.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segment_anything.masks import (
    RLE,
    as_ring,
    mask_to_polygons,
    mask_to_ring,
    polygons_to_mask,
    rle_to_box,
    rle_to_coco,
)
from segment_anything.records import MaskRecord, make_record, record_mask, record_rle, records_size_hw

NO_CLASS = "object"
"""Class name of records that have none, for formats that need one."""

_CARRIED = ("predicted_iou", "stability_score", "point_coords", "crop_box", "category", "category_score")


def _carried(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in _CARRIED if key in source}


def _compact(record: MaskRecord) -> RLE:
    rle = record_rle(record)
    return RLE(size=[int(side) for side in rle["size"]], counts=rle_to_coco(rle))


def category_ids(records: Iterable[MaskRecord]) -> dict[str, int]:
    """Class names of records, numbered from 1 in alphabetical order; a record without a class is an "object"."""
    names = sorted({record.get("category", NO_CLASS) for record in records})
    return {name: i for i, name in enumerate(names, start=1)}


def to_coco(
    records: Sequence[MaskRecord],
    *,
    image_id: int = 1,
    first_id: int = 1,
    categories: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """COCO annotations with compact RLE, ready for JSON; the keys a record has beyond COCO's are kept.

    Args:
        records: all of one image.
        image_id: the image's number in the COCO file.
        first_id: number of the first annotation; the others follow.
        categories: number of each class name; by default `category_ids(records)`.

    Raises:
        ValueError: if a record's class is not in `categories`.
    """
    numbers = category_ids(records) if categories is None else categories
    annotations = []
    for i, record in enumerate(records):
        name = record.get("category", NO_CLASS)
        if name not in numbers:
            raise ValueError(f"categories must number every class, but {name!r} is not among {sorted(numbers)}")
        x0, y0, x1, y1 = (int(side) for side in rle_to_box(record_rle(record)))
        annotation = {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": numbers[name],
            "segmentation": _compact(record),
            "area": record["area"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }
        if "predicted_iou" in record:
            annotation["score"] = record.get("category_score", record["predicted_iou"])
        annotations.append(annotation | _carried(record))
    return annotations


def from_coco(
    annotations: Iterable[Mapping[str, Any]],
    *,
    size_hw: tuple[int, int] | None = None,
    categories: Mapping[str, int] | None = None,
) -> list[MaskRecord]:
    """Records of the COCO annotations of one image.

    Args:
        annotations: with RLE of either kind, or polygons.
        size_hw: the image's size, needed for polygons.
        categories: number of each class name, to name classes.

    Raises:
        ValueError: for polygons without `size_hw`.
    """
    names = {number: name for name, number in (categories or {}).items()}
    records = []
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            mask: Any = RLE(size=list(segmentation["size"]), counts=segmentation["counts"])
        elif size_hw is None:
            raise ValueError("size_hw=(height, width) is needed to fill the polygons of an annotation")
        else:
            mask = polygons_to_mask(segmentation, *size_hw)
        others = _carried(annotation)
        if annotation.get("category_id") in names:
            others["category"] = names[annotation["category_id"]]
        records.append(make_record(mask, **others))
    return records


def to_sa1b(
    records: Sequence[MaskRecord], *, image_id: int, file_name: str, size_hw: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The JSON document that SA-1B keeps beside each image (https://ai.meta.com/datasets/segment-anything/).

    Args:
        records: all of one image.
        image_id: the image's number.
        file_name: the image's file name.
        size_hw: the image's size, needed if there are no records.
    """
    height, width = records_size_hw(records, size_hw)
    annotations = [
        {"id": i, "segmentation": _compact(record), "bbox": record["bbox"], "area": record["area"], **_carried(record)}
        for i, record in enumerate(records, start=1)
    ]
    image = {"image_id": image_id, "width": width, "height": height, "file_name": file_name}
    return {"image": image, "annotations": annotations}


def from_sa1b(document: Mapping[str, Any]) -> list[MaskRecord]:
    """Records of an SA-1B document."""
    return from_coco(document["annotations"])


def to_yolo(records: Sequence[MaskRecord], *, names: Sequence[str] | None = None, tolerance: float = 0.0) -> list[str]:
    """Lines of a YOLO segmentation label file: class index, then x y x y ... as shares of width and height.

    Args:
        records: all of one image. Empty masks are left out.
        names: the data set's class names in order; without them every class index is 0.
        tolerance: see `masks.mask_to_polygons`. Holes and separate regions are kept, joined by cuts of no width.

    Raises:
        ValueError: if a record's class is not in `names`.
    """
    lines = []
    for record in records:
        mask = record_mask(record)
        ring = mask_to_ring(mask, tolerance) / [mask.shape[1], mask.shape[0]]
        if len(ring):
            numbers = " ".join(f"{value:.8g}" for value in ring.reshape(-1))
            lines.append(f"{_class_index(record, names)} {numbers}")
    return lines


def _class_index(record: MaskRecord, names: Sequence[str] | None) -> int:
    if names is None:
        return 0
    name = record.get("category", NO_CLASS)
    if name not in names:
        raise ValueError(f"names must hold every record's class, but {name!r} is not among {list(names)}")
    return list(names).index(name)


def from_yolo(
    lines: Iterable[str], size_hw: tuple[int, int], *, names: Sequence[str] | None = None
) -> list[MaskRecord]:
    """Records of the lines of a YOLO segmentation label file of an image of (height, width)."""
    height, width = size_hw
    records = []
    for line in filter(str.strip, lines):
        index, *numbers = line.split()
        ring = as_ring([float(number) for number in numbers]) * [width, height]
        others = {} if names is None else {"category": names[int(index)]}
        records.append(make_record(polygons_to_mask([ring], height, width), **others))
    return records


def to_labelme(
    records: Sequence[MaskRecord],
    *,
    file_name: str,
    tolerance: float = 0.0,
    size_hw: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """A labelme document: a polygon for every region of every mask, regions of one mask sharing a group.

    Args:
        records: all of one image. A record without a class is an "object".
        file_name: the image's path, relative to the document.
        tolerance: see `masks.mask_to_polygons`; holes are bridged.
        size_hw: the image's size, needed if there are no records.
    """
    height, width = records_size_hw(records, size_hw)
    shapes = []
    for i, record in enumerate(records, start=1):
        polygons = mask_to_polygons(record_mask(record), tolerance)
        for polygon in polygons:
            shapes.append(
                {
                    "label": record.get("category", NO_CLASS),
                    "points": polygon.tolist(),
                    "group_id": i if len(polygons) > 1 else None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                }
            )
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def from_labelme(document: Mapping[str, Any]) -> list[MaskRecord]:
    """Records of the polygons of a labelme document; shapes that share a group and a label are one mask."""
    height, width = document["imageHeight"], document["imageWidth"]
    objects: dict[Any, list[Any]] = {}
    for i, shape in enumerate(document["shapes"]):
        if shape.get("shape_type", "polygon") == "polygon":
            group = shape.get("group_id")
            key = (shape["label"], f"shape {i}" if group is None else group)
            objects.setdefault(key, []).append(shape["points"])
    return [
        make_record(polygons_to_mask(polygons, height, width), category=label)
        for (label, _), polygons in objects.items()
    ]
