"""Writes the same tiny data set in every format that the package reads.

Two photos of 12 x 8 pixels with rectangles: polygons, run lengths, label maps and mask files agree to the pixel.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from segment_anything.masks import encode_rle, rle_to_coco

HEIGHT, WIDTH = 8, 12
CLASSES = ("cat", "dog")
# For each photo: class index and box x0, y0, x1, y1 of every object.
OBJECTS: dict[str, list[tuple[int, tuple[int, int, int, int]]]] = {
    "a": [(0, (1, 1, 5, 4)), (1, (6, 2, 11, 7))],
    "b": [(1, (0, 0, 3, 8))],
}


def mask(box: tuple[int, int, int, int]) -> np.ndarray:
    """(8, 12) bool, true inside a box."""
    x0, y0, x1, y1 = box
    out = np.zeros((HEIGHT, WIDTH), dtype=bool)
    out[y0:y1, x0:x1] = True
    return out


def photo(stem: str) -> np.ndarray:
    """(8, 12, 3) uint8: grey, every object brighter than the last."""
    image = np.full((HEIGHT, WIDTH, 3), 40, dtype=np.uint8)
    for number, (_, box) in enumerate(OBJECTS[stem]):
        image[mask(box)] = 120 + 60 * number
    return image


def label_map(stem: str, by_class: bool = False) -> np.ndarray:
    """(8, 12) uint8: 1, 2, ... by object, or class index + 1."""
    out = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, (label, box) in enumerate(OBJECTS[stem], 1):
        out[mask(box)] = label + 1 if by_class else number
    return out


def corners(box: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """The polygon of a box."""
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_json(path: Path, content: object) -> None:
    """Write JSON, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root: Path) -> None:
    """COCO: annotations.json and images/; one object as run lengths."""
    annotations = []
    for image_id, stem in enumerate(OBJECTS, 1):
        save(root / f"images/{stem}.png", photo(stem))
        for label, box in OBJECTS[stem]:
            flat = [value for point in corners(box) for value in point]
            segmentation = encode_rle(mask(box)) if label == 1 else [flat]
            entry = {"image_id": image_id, "category_id": 10 * (label + 1), "segmentation": segmentation, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    images = [{"id": i, "file_name": f"{s}.png", "height": HEIGHT, "width": WIDTH} for i, s in enumerate(OBJECTS, 1)]
    categories = [{"id": 10 * (index + 1), "name": name} for index, name in enumerate(CLASSES)]
    save_json(root / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})


def write_sa1b(root: Path) -> None:
    """SA-1B: a JSON file beside each image, compressed run lengths."""
    for stem, objects in OBJECTS.items():
        save(root / f"{stem}.jpg", photo(stem))
        codes = [{"size": [HEIGHT, WIDTH], "counts": rle_to_coco(encode_rle(mask(box)))} for _, box in objects]
        image = {"file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH, "image_id": 1}
        save_json(root / f"{stem}.json", {"image": image, "annotations": [{"segmentation": code} for code in codes]})


def write_labelme(root: Path) -> None:
    """labelme: a polygon, a rectangle and a mask."""
    for stem, objects in OBJECTS.items():
        save(root / f"{stem}.png", photo(stem))
        shapes = [_labelme_shape(stem, label, box) for label, box in objects]
        content = {"shapes": shapes, "imagePath": f"{stem}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        save_json(root / f"{stem}.json", content)


def _labelme_shape(stem: str, label: int, box: tuple[int, int, int, int]) -> dict[str, object]:
    x0, y0, x1, y1 = box
    if stem == "b":
        file = io.BytesIO()
        Image.fromarray(np.full((y1 - y0, x1 - x0), 255, dtype=np.uint8)).save(file, "PNG")
        code = base64.b64encode(file.getvalue()).decode()
        points: object = [(x0, y0), (x1 - 1, y1 - 1)]
        return {"label": CLASSES[label], "points": points, "shape_type": "mask", "mask": code, "group_id": None}
    if label == 0:
        return {"label": CLASSES[label], "points": [(x0, y0), (x1, y1)], "shape_type": "rectangle", "group_id": None}
    return {"label": CLASSES[label], "points": corners(box), "shape_type": "polygon", "group_id": None}


def write_yolo(root: Path) -> None:
    """YOLO-seg: data.yaml, images/train and labels/train."""
    for stem, objects in OBJECTS.items():
        save(root / f"images/train/{stem}.png", photo(stem))
        lines = [
            " ".join([str(label), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in corners(box))])
            for label, box in objects
        ]
        (root / "labels/train").mkdir(parents=True, exist_ok=True)
        (root / f"labels/train/{stem}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: images/train\nnames:\n  0: cat\n  1: dog  # barks\n")


def write_voc(root: Path) -> None:
    """PASCAL VOC with a void border value and own class names."""
    for stem in OBJECTS:
        save(root / f"JPEGImages/{stem}.jpg", photo(stem))
        for folder, by_class in (("SegmentationObject", False), ("SegmentationClass", True)):
            values = label_map(stem, by_class)
            values[values == 0] = np.where(np.arange((values == 0).sum()) % 2, 0, 255)
            save(root / folder / f"{stem}.png", values)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    (root / "labels.txt").write_text("cat\ndog\n")


def write_davis(root: Path) -> None:
    """Two films of one frame each, in two splits."""
    for stem, film in zip(OBJECTS, ("bear", "cows"), strict=True):
        save(root / f"JPEGImages/480p/{film}/{stem}.jpg", photo(stem))
        save(root / f"Annotations/480p/{film}/{stem}.png", label_map(stem))
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\n")
    (lists / "val.txt").write_text("cows\n")


def write_labelmap(root: Path) -> None:
    """PNG label maps, values are objects."""
    for stem in OBJECTS:
        save(root / f"images/{stem}.png", photo(stem))
        save(root / f"masks/{stem}.png", label_map(stem))


def write_pairs(root: Path) -> None:
    """A folder of black and white masks for photo a, one file for photo b."""
    for stem, objects in OBJECTS.items():
        save(root / f"images/{stem}.png", photo(stem))
        for number, (_, box) in enumerate(objects):
            name = f"{stem}/{number}" if len(objects) > 1 else f"{stem}_mask"
            save(root / f"masks/{name}.png", mask(box).astype(np.uint8) * 255)


def write_csv(root: Path) -> None:
    """A CSV list with labels and splits."""
    rows = ["image,mask,split,label"]
    for stem, objects in OBJECTS.items():
        save(root / f"{stem}.png", photo(stem))
        for number, (label, box) in enumerate(objects):
            save(root / f"{stem}{number}_mask.png", mask(box).astype(np.uint8) * 255)
            split = "train" if stem == "a" else "val"
            rows.append(f"{stem}.png,{stem}{number}_mask.png,{split},{CLASSES[label]}")
    (root / "list.csv").write_text("\n".join(rows))


def write_index(root: Path) -> None:
    """index.jsonl with label maps and class names."""
    lines = []
    for stem, objects in OBJECTS.items():
        save(root / f"images/{stem}.png", photo(stem))
        save(root / f"masks/{stem}.png", label_map(stem))
        labels = [CLASSES[label] for label, _ in objects]
        lines.append(json.dumps({"image": f"images/{stem}.png", "mask": f"masks/{stem}.png", "labels": labels}))
    lines.append(json.dumps({"image": "images/unlabelled.png", "mask": None}))
    (root / "index.jsonl").write_text("\n".join(lines))


WRITERS: dict[str, Callable[[Path], None]] = {
    "coco": write_coco,
    "csv": write_csv,
    "davis": write_davis,
    "index": write_index,
    "labelmap": write_labelmap,
    "labelme": write_labelme,
    "pairs": write_pairs,
    "sa1b": write_sa1b,
    "voc": write_voc,
    "yolo": write_yolo,
}
WITHOUT_CLASSES = ("davis", "labelmap", "pairs", "sa1b")
