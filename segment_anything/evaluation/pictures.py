"""The pictures of each protocol's report, as PNG files in its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything.evaluation.data import Image
from segment_anything.evaluation.edge_scores import default_thresholds, score_edges
from segment_anything.evaluation.edges import Edges, counts_of
from segment_anything.evaluation.instance import Instance, precision_over_recall
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
from segment_anything.evaluation.worst import (
    missed_objects,
    save_worst,
    worst_boxes,
    worst_detections,
    worst_edges,
    worst_phrases,
)

WIDE_CELL_PX = 800
"""Of three pictures side by side on a sheet."""


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
    if "truth" in options.boxes:
        files += save_worst(worst_boxes(protocol, rows, items), folder / f"{protocol.name}-worst.png")
    return files


def draw_edges(protocol: Edges, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Precision over recall of all images together, the best F-measure marked; and the photographs with the worst."""
    if not rows:
        return []
    counts = counts_of(rows)
    scores = score_edges(counts, default_thresholds(protocol.options.thresholds))
    precision, recall = sum(counts[1:], counts[0]).precision_recall()
    shown = precision > 0  # at thresholds without any edge there is no precision
    best = (scores.ods_recall, scores.ods_precision)
    file = folder / f"{protocol.name}-precision-recall.png"
    plot = plot_precision_recall({"edges": (recall[shown], precision[shown])}, file, best)
    sheet = folder / f"{protocol.name}-worst.png"
    return [plot, *save_worst(worst_edges(protocol, rows, items), sheet, cell_px=WIDE_CELL_PX)]


def draw_instance(protocol: Instance, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Precision over recall, mean over the categories, at two overlaps; and the worst masks of good boxes."""
    truth, results = protocol.measured(rows)
    curves = precision_over_recall(truth, results, lvis=protocol.data.lvis)
    if not curves:
        return []
    recall = np.linspace(0, 1, 101)
    file = folder / f"{protocol.name}-precision-recall.png"
    plot = plot_precision_recall({name: (recall, values) for name, values in curves.items()}, file)
    return [plot, *save_worst(worst_detections(protocol, rows, items), folder / f"{protocol.name}-worst.png")]


def draw_proposals(protocol: Proposals, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Recall by overlap, for each number of proposals; and the objects that were missed most."""
    total = sum(row["truths"]["all"] for row in rows)
    if not total:
        return []
    curves = {
        f"{count} proposals": np.sum([row["hits"]["all"][str(count)] for row in rows], axis=0) / total
        for count in protocol.counts
    }
    plot = plot_hits(curves, np.asarray(COCO_THRESHOLDS), folder / f"{protocol.name}-recall.png")
    return [plot, *save_worst(missed_objects(protocol, rows, items), folder / f"{protocol.name}-worst.png")]


def draw_text(protocol: TextToMask, rows: Sequence[Row], items: Sequence[Any], folder: Path) -> list[Path]:
    """Hit rate by overlap, of the first mask for a phrase and of any; and the worst first masks."""
    answers = [answer for row in rows for answer in row["answers"] if answer["present"]]
    if not answers:
        return []
    overlaps = np.linspace(0.05, 0.95, 19)
    curves = {
        name: np.mean([[answer[key] >= overlap for overlap in overlaps] for answer in answers], axis=0)
        for name, key in (("first mask", "first_iou"), ("any mask", "best_iou"))
    }
    plot = plot_hits(curves, overlaps, folder / f"{protocol.name}-hits.png")
    return [plot, *save_worst(worst_phrases(protocol, rows, items), folder / f"{protocol.name}-worst.png")]
