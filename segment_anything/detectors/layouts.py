"""Which family of detectors an ONNX file belongs to, read from the shapes of its own outputs.

Shapes are facts of the exports and need no library of theirs. Letters: N boxes, A grid cells of all strides, K classes,
P mask prototypes (0 without masks), Q queries. Supported:

| family        | outputs                                                   |
|---------------|-----------------------------------------------------------|
| yolox         | (1, A, 5+K), raw or already decoded                       |
| yolov5        | (1, 3A, 5+K[+P]) [, (1, P, h, w)]; YOLOv7 too             |
| yolov8        | (1, 4+K[+P], A) or its transpose [, (1, P, h, w)]; v9, v11, FastSAM |
| end2end       | (1, N, 6[+P]) with NMS inside; YOLOv10                    |
| end2end_batch | (N, 7) with NMS inside; YOLOv7                            |
| efficient_nms | (1, 1), (1, N, 4), (1, N), (1, N)                         |
| detr          | (1, Q, K) logits and (1, Q, 4) normalised cxcywh          |
| rtdetr        | (1, Q) labels, (1, Q, 4) boxes, (1, Q) scores; two inputs |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from segment_anything.detectors.letterbox import Fit

STRIDE_SETS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
FAMILIES = ("yolox", "yolov5", "yolov8", "end2end", "end2end_batch", "efficient_nms", "detr", "rtdetr")
Pixels = Literal["rgb01", "bgr255"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How to feed a detector and how to read its outputs."""

    family: str
    fit: Fit
    pixels: Pixels
    class_count: int | None
    """None where the classes are written as numbers in the output and not counted by its shape."""
    boxes: int
    """Position of the output that holds the boxes."""
    prototypes: int | None = None
    """Position of the output that holds mask prototypes (1, P, h, w)."""
    prototype_count: int = 0
    transposed: bool = False
    """True where boxes are the last axis."""
    strides: tuple[int, ...] = ()
    logits: int | None = None
    """Position of the output that holds class logits apart from the boxes (detr)."""


def cell_count(size_hw: tuple[int, int], strides: Sequence[int]) -> int:
    """Grid cells of all strides together in an input of this size."""
    return sum((size_hw[0] // stride) * (size_hw[1] // stride) for stride in strides)


def recognise(
    outputs: Mapping[str, Shape], size_hw: tuple[int, int], class_count: int | None = None, family: str | None = None
) -> Layout:
    """The layout of a graph.

    Args:
        outputs: name -> shape, in the graph's order.
        size_hw: the input's height and width.
        class_count: number of class names that came with the file, which settles the few ambiguous shapes.
        family: only this one; None tries all.

    Raises:
        ValueError: if no family fits; the message lists what was found and what is supported.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, or None to recognise it; got {family!r}.")
    names, shapes = list(outputs), list(outputs.values())
    found = [
        _several_outputs(names, shapes),
        _anchors_and_grids(shapes, size_hw, class_count),
        _nms_inside(shapes, size_hw),
    ]
    for layout in found:
        if layout is not None and (family is None or layout.family == family):
            return layout
    raise ValueError(_not_understood(outputs, size_hw, family))


def _several_outputs(names: list[str], shapes: list[Shape]) -> Layout | None:
    """Layouts told by how many outputs there are and how they fit together."""
    if len(shapes) == 4 and shapes[0] == (1, 1) and len(shapes[1]) == 3 and shapes[1][2] == 4:
        return Layout("efficient_nms", "centred", "rgb01", None, boxes=1)
    ranks = [len(shape) for shape in shapes]
    if len(shapes) == 3 and sorted(ranks) == [2, 2, 3] and shapes[ranks.index(3)][2] == 4:
        return Layout("rtdetr", "stretch", "rgb01", None, boxes=ranks.index(3))
    by_name = {name: index for index, name in enumerate(names)}
    if {"logits", "pred_boxes"} <= by_name.keys():
        boxes, logits = by_name["pred_boxes"], by_name["logits"]
        if ranks[boxes] == 3 and shapes[boxes][2] == 4 and shapes[logits][:2] == shapes[boxes][:2]:
            return Layout("detr", "stretch", "rgb01", shapes[logits][2], boxes=boxes, logits=logits)
    return None


def _prototypes(shapes: list[Shape], size_hw: tuple[int, int]) -> tuple[int | None, int]:
    """Position and number of mask prototypes, (None, 0) without.

    Some exports also give feature maps of rank 4; prototypes are those at a quarter of the input's size.
    """
    for index, shape in enumerate(shapes):
        if len(shape) == 4 and shape[0] == 1 and shape[2:] == (size_hw[0] // 4, size_hw[1] // 4):
            return index, shape[1]
    return None, 0


def _anchors_and_grids(shapes: list[Shape], size_hw: tuple[int, int], class_count: int | None) -> Layout | None:
    """YOLO layouts: one axis of the boxes is the number of grid cells, or three times that."""
    position, count = _prototypes(shapes, size_hw)
    boxes = next((index for index, shape in enumerate(shapes) if len(shape) == 3 and shape[0] == 1), None)
    if boxes is None:
        return None
    _, rows, columns = shapes[boxes]
    for strides in STRIDE_SETS:
        cells = cell_count(size_hw, strides)
        if columns == cells and rows >= 5 + count:
            return Layout(
                "yolov8", "centred", "rgb01", rows - 4 - count, boxes, position, count, transposed=True, strides=strides
            )
        if rows == 3 * cells and columns >= 6 + count:
            return Layout("yolov5", "centred", "rgb01", columns - 5 - count, boxes, position, count, strides=strides)
        if rows == cells and columns >= 5 + count:
            if count or class_count == columns - 4 or columns == 5:
                return Layout(
                    "yolov8", "centred", "rgb01", columns - 4 - count, boxes, position, count, strides=strides
                )
            return Layout("yolox", "corner", "bgr255", columns - 5, boxes, strides=strides)
    return None


def _nms_inside(shapes: list[Shape], size_hw: tuple[int, int]) -> Layout | None:
    """Layouts whose rows are final boxes."""
    position, count = _prototypes(shapes, size_hw)
    for index, shape in enumerate(shapes):
        if len(shape) == 3 and shape[0] == 1 and shape[2] == 6 + count:
            return Layout("end2end", "centred", "rgb01", None, index, position, count)
        if len(shape) == 2 and shape[1] == 7 and len(shapes) == 1:
            return Layout("end2end_batch", "centred", "rgb01", None, index)
    return None


def _not_understood(outputs: Mapping[str, Shape], size_hw: tuple[int, int], family: str | None) -> str:
    found = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
    cells = cell_count(size_hw, STRIDE_SETS[0])
    asked = f" as {family}" if family else ""
    return (
        f"The outputs of this ONNX file are not understood{asked}. Found, for an input of {size_hw[0]} x {size_hw[1]}: "
        f"{found}. Supported, with K classes and P mask prototypes: YOLOX (1, {cells}, 5+K); "
        f"YOLOv5 and v7 (1, {3 * cells}, 5+K+P); YOLOv8, v9, v11 (1, 4+K+P, {cells}) or its transpose; "
        f"with P also (1, P, h/4, w/4); NMS inside (1, N, 6+P) or (N, 7) or num, boxes, scores, classes; "
        f"logits (1, Q, K) with pred_boxes (1, Q, 4); labels, boxes, scores. "
        f"Export the detector with batch 1, or wrap it in a class with detect(image)."
    )
