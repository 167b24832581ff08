"""What went worst in a run, each beside its truth, on one sheet.

Rows keep scores and hardly any masks, so the few masks on the sheet are made once more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segment_anything.datasets.coco import mask_code
from segment_anything.datasets.objects import draw
from segment_anything.evaluation.bsds import BsdsImage
from segment_anything.evaluation.data import Image
from segment_anything.evaluation.detected import DetectedImage, Entry, boxes_xyxy_of
from segment_anything.evaluation.edge_scores import f_measure
from segment_anything.evaluation.edges import Edges, counts_of
from segment_anything.evaluation.instance import Instance
from segment_anything.evaluation.interact import Encoded, boxes_to_masks
from segment_anything.evaluation.metrics import Bool, iou
from segment_anything.evaluation.points_boxes import FOUND_IOU, PointsBoxes
from segment_anything.evaluation.proposals import Proposals
from segment_anything.evaluation.runs import Row
from segment_anything.evaluation.text import TextToMask
from segment_anything.images import read_image
from segment_anything.masks import box_iou, decode_rle, mask_to_box
from segment_anything.records import record_mask
from segment_anything.simulate import mask_boxes
from segment_anything.visualize import contact_sheet, overlay

WORST = 20
"""Pictures on a sheet."""
_MARGIN = 0.25
"""Of an object's longer side, shown around it."""
_CELL_PX = 400

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Failure:
    """Something that could have gone better."""

    score: float
    title: str
    picture: Callable[[], Picture]
    """Makes the picture, (h, w, 3); called for the worst alone."""


def save_worst(failures: Iterable[Failure], file: Path, cell_px: int = _CELL_PX) -> list[Path]:
    """Write the sheet of those with the lowest scores; no file where there is none."""
    worst = sorted(failures, key=lambda failure: (failure.score, failure.title))[:WORST]
    if not worst:
        return []
    sheet = contact_sheet([one.picture() for one in worst], [one.title for one in worst], cell_px=cell_px)
    PillowImage.fromarray(sheet).save(file)
    return [file]


def worst_boxes(protocol: PointsBoxes, rows: Sequence[Row], items: Sequence[Image]) -> Iterator[Failure]:
    """The masks from true boxes."""

    def picture(item: Image, index: int) -> Picture:
        sample = item.read()
        truth = sample.masks[index]
        boxes = mask_boxes(torch.from_numpy(truth[None])).double().numpy()
        [found] = boxes_to_masks(Encoded(protocol.sam, sample.image), truth[None], boxes)
        return _around(truth, sample.image, found.mask, boxes)

    by_name = {item.name: item for item in items}
    for row in rows:
        scores = row["boxes"]["truth"] if row["area_px"] else []
        for index, (score, *_) in zip(row["objects"], scores, strict=True):
            title = f"IoU {score:.2f} (mask, truth) {Path(row['image']).stem}"
            yield Failure(score, title, partial(picture, by_name[row["image"]], index))


def worst_detections(protocol: Instance, rows: Sequence[Row], items: Sequence[DetectedImage]) -> Iterator[Failure]:
    """Masks whose box was right: it overlaps that of an object (no crowd) of its category by half or more."""

    def picture(item: DetectedImage, result: Entry, annotation: Entry, box: NDArray[np.float64]) -> Picture:
        mask = decode_rle(result["segmentation"])
        return _around(_drawn(annotation, mask.shape), read_image(item.path), mask, box)

    objects: defaultdict[tuple[int, int], list[Entry]] = defaultdict(list)
    for annotation in protocol.data.truth["annotations"]:
        if not annotation.get("iscrowd", 0):
            objects[annotation["image_id"], annotation["category_id"]].append(annotation)
    names = {category["id"]: category.get("name", category["id"]) for category in protocol.data.truth["categories"]}
    by_name = {item.name: item for item in items}
    for row in rows:
        item, drawn = by_name[row["image"]], dict[int, list[Bool]]()
        for detection, result in zip(item.detections, row["results"], strict=False):  # only the best have a result
            category, size_hw = result["category_id"], result["segmentation"]["size"]
            there, box = objects[item.image_id, category], boxes_xyxy_of([detection])
            if category not in drawn:
                drawn[category] = [_drawn(annotation, size_hw) for annotation in there]
            overlaps = box_iou(box, np.array([mask_to_box(truth) for truth in drawn[category]]).reshape(-1, 4))[0]
            if overlaps.max(initial=0) >= FOUND_IOU:
                nearest = int(overlaps.argmax())
                score = iou(decode_rle(result["segmentation"]), drawn[category][nearest])
                title = f"IoU {score:.2f} (mask, truth) {names[category]}, {Path(item.name).stem}"
                yield Failure(score, title, partial(picture, item, result, there[nearest], box))


def missed_objects(protocol: Proposals, rows: Sequence[Row], items: Sequence[Image]) -> Iterator[Failure]:
    """Objects that no proposal covers well: the truth alone."""

    def picture(item: Image, index: int) -> Picture:
        sample = item.read()
        return _around(sample.masks[index], sample.image)

    by_name = {item.name: item for item in items}
    for row in rows:
        for index, score in enumerate(row["best_iou"]):
            title = f"best IoU {score:.2f} {Path(row['image']).stem}"
            yield Failure(score, title, partial(picture, by_name[row["image"]], index))


def worst_phrases(protocol: TextToMask, rows: Sequence[Row], items: Sequence[Image]) -> Iterator[Failure]:
    """First masks for phrases that are in their image."""

    def picture(item: Image, phrase: str) -> Picture:
        sample = item.read()
        records = protocol.segmenter.segment(sample.image, phrase)
        truth = sample.masks[sample.labels == protocol.classes.index(phrase)].any(axis=0)
        return _beside(sample.image, truth, record_mask(records[0]) if records else np.zeros_like(truth))

    by_name = {item.name: item for item in items}
    for row in rows:
        for answer in row["answers"]:
            if answer["present"]:
                score, phrase = answer["first_iou"], answer["phrase"]
                title = f"IoU {score:.2f} (mask, truth) {phrase}, {Path(row['image']).stem}"
                yield Failure(score, title, partial(picture, by_name[row["image"]], phrase))


def worst_edges(protocol: Edges, rows: Sequence[Row], items: Sequence[BsdsImage]) -> Iterator[Failure]:
    """Photographs with the lowest F-measure, each at its own best threshold."""

    def picture(item: BsdsImage) -> Picture:
        image, truth = item.read()
        maps = (protocol.source(item, image), np.mean(truth.boundaries, axis=0))
        drawn = [np.repeat((255 - 255 * edges).astype(np.uint8)[..., None], 3, axis=2) for edges in maps]
        return np.concatenate([image, *drawn], axis=1)

    by_name = {item.name: item for item in items}
    for row, counts in zip(rows, counts_of(rows), strict=True):
        precision, recall = counts.precision_recall()
        score = float(f_measure(precision, recall).max())
        title = f"F {score:.2f} (photograph, edges, people) {row['image']}"
        yield Failure(score, title, partial(picture, by_name[row["image"]]))


def _drawn(annotation: Entry, size_hw: Sequence[int]) -> Bool:
    return draw(mask_code(annotation["segmentation"]), (size_hw[0], size_hw[1]))


def _around(
    truth: Bool, image: Picture, mask: Bool | None = None, boxes_xyxy: NDArray[np.float64] | None = None
) -> Picture:
    """As `_beside`, of a square around the truth with a margin, as far as the image goes."""
    x0, y0, x1, y1 = (int(side) for side in mask_to_box(truth))
    side = int(max(x1 - x0, y1 - y0) * (1 + 2 * _MARGIN)) + 8
    left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
    part = slice(max(0, top), top + side), slice(max(0, left), left + side)
    origin = np.array([max(0, left), max(0, top)] * 2)
    boxes = None if boxes_xyxy is None else boxes_xyxy - origin
    return _beside(image[part], truth[part], None if mask is None else mask[part], boxes)


def _beside(
    image: Picture, truth: Bool, mask: Bool | None = None, boxes_xyxy: NDArray[np.float64] | None = None
) -> Picture:
    """The mask, if there is one, in blue with its box, and to its right the truth in orange."""
    image = np.ascontiguousarray(image)
    right = overlay(image, [np.zeros_like(truth), truth])  # the second place has another colour than the first
    return right if mask is None else np.concatenate([overlay(image, [mask], boxes_xyxy=boxes_xyxy), right], axis=1)
