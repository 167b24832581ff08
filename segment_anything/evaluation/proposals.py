"""Object proposals: recall of automatic masks over class-agnostic ground truth (Segment Anything, 7.3, D.3).

Masks are ranked by the mean of predicted IoU and stability score. A true mask is found at an overlap if a proposal
among the first K takes it, one proposal a mask; recall is averaged over the overlaps 0.50, 0.55 ... 0.95, as COCO does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment_anything.evaluation.data import Image
from segment_anything.evaluation.metrics import AREA_RANGES, COCO_THRESHOLDS, recall_hits
from segment_anything.evaluation.runs import Row, Value, median_times
from segment_anything.masks import encode_rles, rle_iou
from segment_anything.records import MaskRecord, record_rle

COUNTS = (10, 100, 1000)
"""Numbers of proposals at which recall is reported."""

PAPER_OPTIONS: Mapping[str, Any] = {
    "points_per_side": 64,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 0.9,
    "output_mode": "coco_rle",
}
"""Options of automatic masks for proposals: a dense grid, nothing filtered, only near copies removed."""


class Proposals:
    """The protocol (see `runs.EvaluationProtocol`)."""

    name = "proposals"

    def __init__(
        self,
        generate: Callable[[NDArray[np.uint8]], Sequence[MaskRecord]],
        origin: Mapping[str, Any],
        counts: Sequence[int] = COUNTS,
    ) -> None:
        """Measure the records that `generate` gives for an image; `origin` says where they come from."""
        if not counts or any(count < 1 for count in counts):
            raise ValueError(f"counts must be numbers from 1 on, got {tuple(counts)}")
        self.generate = generate
        self.origin = origin
        self.counts = tuple(counts)

    def settings(self) -> Mapping[str, Any]:
        """The numbers of proposals, and where they come from."""
        return {"counts": list(self.counts), **self.origin}

    def measure(self, item: Image) -> Row:
        """Of each size how many true masks there are, and how many the first K proposals find at each overlap; of each
        object its overlap with the proposal that covers it best."""
        sample = item.read()
        started = perf_counter()
        found = self.generate(sample.image)
        seconds = perf_counter() - started
        records = sorted(found, key=proposal_score, reverse=True)[: max(self.counts)]
        truths = encode_rles(sample.masks)
        overlap = rle_iou([record_rle(record) for record in records], truths)
        area_px = np.count_nonzero(sample.masks, axis=(1, 2))
        best = overlap.max(axis=0, initial=0.0).tolist()
        row: Row = {"proposals": len(records), "truths": {}, "hits": {}, "best_iou": best, "generate_ms": seconds * 1e3}
        for size, (low, high) in AREA_RANGES.items():
            inside = (area_px >= low) & (area_px <= high)
            row["truths"][size] = int(inside.sum())
            row["hits"][size] = {str(k): recall_hits(overlap[:k][:, inside]).tolist() for k in self.counts}
        return row

    def values(self, rows: Sequence[Row]) -> Iterator[Value]:
        """AR@K of all objects, then by size."""
        yield "images", len(rows)
        if not rows:
            return
        yield "objects", sum(row["truths"]["all"] for row in rows)
        yield "proposals_per_image", float(np.mean([row["proposals"] for row in rows]))
        for size in AREA_RANGES:
            total = sum(row["truths"][size] for row in rows)
            for count in self.counts if total else ():
                hits = np.sum([row["hits"][size][str(count)] for row in rows], axis=0)
                ending = "" if size == "all" else f"_{size}"
                yield f"ar@{count}{ending}", float(hits.sum() / (total * len(COCO_THRESHOLDS)))
        yield from median_times(rows, "generate_ms")


def proposal_score(record: MaskRecord) -> float:
    """Mean of predicted IoU and stability score; a score that is missing counts as the other one."""
    scores = [record[key] for key in ("predicted_iou", "stability_score") if key in record]
    return float(np.mean(scores)) if scores else 0.0
