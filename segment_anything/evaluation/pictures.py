"""The pictures of each protocol's report, as PNG files in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage

from segment_anything.evaluation.data import Image
from segment_anything.evaluation.edge_scores import default_thresholds, score_edges
from segment_anything.evaluation.edges import Edges, counts_of
from segment_anything.evaluation.instance import Instance, precision_over_recall
from segment_anything.evaluation.interact import Encoded, boxes_to_masks
from segment_anything.evaluation.metrics import COCO_THRESHOLDS, calibration
from segment_anything.evaluation.plots import (
    mean_curve,
    plot_clicks,
    plot_hits,
    plot_precision_recall,
    plot_reliability,
)
from segment_anything.evaluation.points_boxes import PointsBoxes, predicted_and_actual
from segment_anything.evaluation.proposals import Proposals
from segment_anything.evaluation.runs import Row
from segment_anything.evaluation.text import TextToMask
from segment_anything.masks import mask_to_box
from segment_anything.simulate import mask_boxes
from segment_anything.visualize import contact_sheet, overlay

WORST = 20
"""Objects on the sheet of failures."""
_MARGIN = 0.25
"""Of an object's longer side, shown around it."""


def draw_points_boxes(protocol: PointsBoxes, rows: Sequence[Row], items: Sequence[Image], folder: Path) -> list[Path]:
    """IoU over clicks, reliability of the predicted IoU, and the objects whose masks from true boxes are worst."""
    files = []
    rows = [row for row in rows if row["area_px"]]
    traces = [trace for row in rows for trace in row["clicks"]]
    options = protocol.options
    if traces:
        length = max(max(options.clicks, default=1), options.noc_limit)
        curves = {
            name: mean_curve(
                [trace[key] for trace in traces], max(options.clicks, default=1) if key == "oracle" else length
            )
            for name, key in (("highest predicted IoU", "chosen"), ("best of the masks", "oracle"))
        }
        files.append(plot_clicks(curves, folder / f"{protocol.name}-clicks.png"))
    predicted, actual = predicted_and_actual(rows, options.clicks)
    if len(predicted):
        files.append(plot_reliability(calibration(predicted, actual), folder / f"{protocol.name}-reliability.png"))
    if rows and "truth" in options.boxes:
        sheet = worst_boxes(protocol, rows, {item.name: item for item in items})
        files.append(folder / f"{protocol.name}-worst.png")
        PillowImage.fromarray(sheet).save(files[-1])
    return files


def worst_boxes(
    protocol: PointsBoxes, rows: Sequence[Row], items: Mapping[str, Image], count: int = WORST
) -> np.ndarray:
    """A sheet (h, w, 3) uint8 of the objects with the lowest IoU from their true box: mask and truth side by side."""
    scores = [
        (score[0], row["image"], index)
        for row in rows
        for index, score in zip(row["objects"], row["boxes"]["truth"], strict=True)
    ]
    pictures, titles = [], []
    for score, name, index in sorted(scores)[:count]:
        sample = items[name].read()
        truth = sample.masks[index : index + 1]
        boxes = mask_boxes(torch.from_numpy(truth)).double().numpy()
        mask = boxes_to_masks(Encoded(protocol.sam, sample.image), truth, boxes)[0].mask
        part = _around(truth[0])
        shown = np.ascontiguousarray(sample.image[part])
        origin = np.array([part[1].start, part[0].start] * 2)
        # The second place has another colour than the first: the mask blue, its truth orange.
        nothing = np.zeros_like(mask[part])
        sides = [
            overlay(shown, [mask[part]], boxes_xyxy=boxes - origin),
            overlay(shown, [nothing, truth[0][part]]),
        ]
        pictures.append(np.concatenate(sides, axis=1))
        titles.append(f"IoU {score:.2f} (mask, truth) {Path(name).stem}")
    return contact_sheet(pictures, titles)


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a square around a mask, with a margin, as far as the image goes."""
    x0, y0, x1, y1 = (int(side) for side in mask_to_box(mask))
    side = int(max(x1 - x0, y1 - y0) * (1 + 2 * _MARGIN)) + 8
    left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
    return slice(max(0, top), min(mask.shape[0], top + side)), slice(max(0, left), min(mask.shape[1], left + side))


def draw_edges(protocol: Edges, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Precision over recall of all images together, the best F-measure marked."""
    if not rows:
        return []
    counts = counts_of(rows)
    scores = score_edges(counts, default_thresholds(protocol.options.thresholds))
    precision, recall = sum(counts[1:], counts[0]).precision_recall()
    shown = precision > 0  # at thresholds without any edge there is no precision
    best = (scores.ods_recall, scores.ods_precision)
    file = folder / f"{protocol.name}-precision-recall.png"
    return [plot_precision_recall({"edges": (recall[shown], precision[shown])}, file, best)]


def draw_instance(protocol: Instance, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Precision over recall, mean over the categories, at two overlaps."""
    truth, results = protocol.measured(rows)
    curves = precision_over_recall(truth, results, lvis=protocol.data.lvis)
    if not curves:
        return []
    recall = np.linspace(0, 1, 101)
    file = folder / f"{protocol.name}-precision-recall.png"
    return [plot_precision_recall({name: (recall, values) for name, values in curves.items()}, file)]


def draw_proposals(protocol: Proposals, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Recall by overlap, for each number of proposals."""
    total = sum(row["truths"]["all"] for row in rows)
    if not total:
        return []
    curves = {
        f"{count} proposals": np.sum([row["hits"]["all"][str(count)] for row in rows], axis=0) / total
        for count in protocol.counts
    }
    return [plot_hits(curves, np.asarray(COCO_THRESHOLDS), folder / f"{protocol.name}-recall.png")]


def draw_text(protocol: TextToMask, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Hit rate by overlap, of the first mask for a phrase and of any."""
    answers = [answer for row in rows for answer in row["answers"] if answer["present"]]
    if not answers:
        return []
    overlaps = np.linspace(0.05, 0.95, 19)
    curves = {
        name: np.mean([[answer[key] >= overlap for overlap in overlaps] for answer in answers], axis=0)
        for name, key in (("first mask", "first_iou"), ("any mask", "best_iou"))
    }
    return [plot_hits(curves, overlaps, folder / f"{protocol.name}-hits.png")]
