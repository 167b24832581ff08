"""Outputs of a detector to candidate boxes in the network's pixels, one function a family, and non-maximum suppression.

The decoding rules are those published with the models: YOLOX (https://arxiv.org/abs/2107.08430, section 2.1: centre =
(cell + offset) * stride, size = exp(output) * stride, score = objectness * class); later YOLOs decode in the graph.
"""

from dataclasses import dataclass

import numpy as np

from segment_anything.detectors.layouts import Layout
from segment_anything.masks import nms


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image before they are mapped back to original pixels."""

    boxes_xyxy: np.ndarray
    """(N, 4) float32, network pixels."""
    scores: np.ndarray
    """(N,) float32."""
    class_ids: np.ndarray
    """(N,) int64."""
    coefficients: np.ndarray
    """(N, P) float32, weights of the mask prototypes; P = 0 without masks."""

    def __getitem__(self, keep: np.ndarray) -> "Candidates":
        return Candidates(self.boxes_xyxy[keep], self.scores[keep], self.class_ids[keep], self.coefficients[keep])

    def __len__(self) -> int:
        return len(self.scores)


def decode(layout: Layout, outputs: list[np.ndarray], size_hw: tuple[int, int]) -> Candidates:
    """Every candidate box of every family, unfiltered and before suppression.

    Args:
        layout: what `recognise` found.
        outputs: the graph's outputs for one image, in its order.
        size_hw: the network's input size.
    """
    if layout.family in ("yolox", "yolov5", "yolov8"):
        return _decode_yolo(layout, outputs, size_hw)
    if layout.family == "detr":
        return _decode_detr(layout, outputs, size_hw)
    return _decode_final(layout, outputs, size_hw)


def suppress(
    candidates: Candidates,
    layout: Layout,
    *,
    min_score: float,
    nms_iou: float,
    same_object_iou: float | None,
    max_count: int,
) -> Candidates:
    """Drop low scores, overlapping boxes of one class and second names of one object; what stays comes best first."""
    candidates = candidates[np.flatnonzero(candidates.scores >= min_score)]
    if layout.family in ("yolox", "yolov5", "yolov8"):
        candidates = candidates[nms(candidates.boxes_xyxy, candidates.scores, nms_iou, classes=candidates.class_ids)]
    if same_object_iou is not None:
        candidates = candidates[nms(candidates.boxes_xyxy, candidates.scores, same_object_iou)]
    return candidates[np.argsort(-candidates.scores, kind="stable")[:max_count]]


def _decode_yolo(layout: Layout, outputs: list[np.ndarray], size_hw: tuple[int, int]) -> Candidates:
    rows = outputs[layout.boxes][0].astype(np.float32)
    rows = rows.T if layout.transposed else rows
    classes = layout.class_count or 0
    objectness = 0 if layout.family == "yolov8" else 1
    if layout.family == "yolox":
        rows = _place_yolox_on_grid(rows, size_hw, layout.strides)
    class_scores = rows[:, 4 + objectness : 4 + objectness + classes]
    class_ids = class_scores.argmax(axis=1)
    scores = class_scores[np.arange(len(rows)), class_ids]
    if objectness:
        scores = scores * rows[:, 4]
    return Candidates(_cxcywh_to_xyxy(rows[:, :4]), scores, class_ids, rows[:, 4 + objectness + classes :])


def _place_yolox_on_grid(rows: np.ndarray, size_hw: tuple[int, int], strides: tuple[int, ...]) -> np.ndarray:
    """Raw offsets and log sizes to network pixels; rows that are in pixels already come back unchanged."""
    cells, steps = _grid(size_hw, strides)
    # Exports differ in whether this step is inside the graph and nothing in its shapes says so. Decoded centres follow
    # the grid over the whole input; raw offsets stay within a few cells of zero.
    grid_x = (cells[:, 0] + 0.5) * steps
    if np.abs(rows[:, 0] - grid_x).mean() < np.abs(rows[:, 0]).mean():
        return rows
    centres = (rows[:, :2] + cells) * steps[:, None]
    sizes = np.exp(rows[:, 2:4]) * steps[:, None]
    return np.concatenate([centres, sizes, rows[:, 4:]], axis=1)


def _grid(size_hw: tuple[int, int], strides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Cells (A, 2) as (x, y), row by row and stride by stride, and the stride of each (A,)."""
    cells, steps = [], []
    for stride in strides:
        ys, xs = np.mgrid[: size_hw[0] // stride, : size_hw[1] // stride]
        cells.append(np.stack([xs.ravel(), ys.ravel()], axis=1))
        steps.append(np.full(xs.size, stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)


def _decode_detr(layout: Layout, outputs: list[np.ndarray], size_hw: tuple[int, int]) -> Candidates:
    boxes = _cxcywh_to_xyxy(outputs[layout.boxes][0].astype(np.float32))
    boxes = boxes * np.array([size_hw[1], size_hw[0]] * 2, dtype=np.float32)
    assert layout.logits is not None
    probabilities = 1 / (1 + np.exp(-outputs[layout.logits][0].astype(np.float32)))
    class_ids = probabilities.argmax(axis=1)
    return _without_masks(boxes, probabilities[np.arange(len(boxes)), class_ids], class_ids)


def _decode_final(layout: Layout, outputs: list[np.ndarray], size_hw: tuple[int, int]) -> Candidates:
    """Families whose rows are boxes already."""
    if layout.family == "end2end":
        rows = outputs[layout.boxes][0].astype(np.float32)
        return Candidates(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), rows[:, 6:])
    if layout.family == "end2end_batch":
        rows = outputs[layout.boxes].astype(np.float32)
        return _without_masks(rows[:, 1:5], rows[:, 6], rows[:, 5])
    if layout.family == "efficient_nms":
        count = int(outputs[0][0, 0])
        return _without_masks(outputs[1][0, :count], outputs[2][0, :count], outputs[3][0, :count])
    boxes = outputs[layout.boxes][0].astype(np.float32)
    labels, scores = (output[0] for index, output in enumerate(outputs) if index != layout.boxes)
    if np.issubdtype(scores.dtype, np.integer):
        labels, scores = scores, labels
    return _without_masks(boxes, scores, labels)


def _without_masks(boxes_xyxy: np.ndarray, scores: np.ndarray, class_ids: np.ndarray) -> Candidates:
    return Candidates(
        boxes_xyxy.astype(np.float32),
        scores.astype(np.float32),
        class_ids.astype(np.int64),
        np.zeros((len(scores), 0), dtype=np.float32),
    )


def _cxcywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
