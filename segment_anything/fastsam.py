"""FastSAM from an ONNX file: every mask of an image in one run, then chosen by points, boxes or a phrase.

FastSAM (https://arxiv.org/abs/2306.12156) is a YOLO detector whose boxes carry 32 coefficients; a mask is the sum of 32
prototype maps weighted by them (YOLACT, https://arxiv.org/abs/1904.02689, section 3), cut to its box. Any YOLOv5- or
YOLOv8-shaped segmentation export works. Masks come as the records of automatic mask generation; a phrase ranks them
with `text.rank_records`.

Letters: N masks, P prototypes, h and w the prototypes' size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segment_anything._amg_options import OUTPUT_MODES
from segment_anything.detectors.decode import Candidates
from segment_anything.detectors.letterbox import Placement
from segment_anything.detectors.onnx_file import OnnxDetectorOptions, OnnxGraph
from segment_anything.images import check_image_array
from segment_anything.masks import mask_to_box, rle_to_coco, run_lengths
from segment_anything.records import MaskRecord, make_record, record_mask
from segment_anything.utils.amg import calculate_stability_score

_MASKS_AT_ONCE = 16  # full-size logits held at a time


@dataclass(frozen=True, kw_only=True)
class FastSamOptions:
    """What FastSAM keeps."""

    min_score: float = 0.4
    """Lowest confidence of a mask."""
    nms_iou: float = 0.9
    """Overlap of boxes above which the less sure mask goes."""
    max_count: int = 300
    """Most masks an image."""
    input_size_hw: tuple[int, int] = (1024, 1024)
    """Input size of a graph that leaves it open."""
    output_mode: str = "binary_mask"
    """How masks are returned: binary_mask, uncompressed_rle or coco_rle (least memory)."""

    def __post_init__(self) -> None:
        if self.output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode must be one of {', '.join(OUTPUT_MODES)}; got {self.output_mode!r}.")


class FastSam:
    """A segmentation model in an ONNX file that finds every mask at once."""

    def __init__(
        self,
        path: str | Path,
        options: FastSamOptions | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load the file.

        Raises:
            ValueError: if it is missing, not understood, or gives boxes without masks.
            ImportError: if onnxruntime is not installed.
        """
        self.options = options or FastSamOptions()
        detector_options = OnnxDetectorOptions(
            min_score=self.options.min_score,
            nms_iou=self.options.nms_iou,
            max_count=self.options.max_count,
            input_size_hw=self.options.input_size_hw,
            same_object_iou=None,
        )
        self.graph = OnnxGraph(path, detector_options, class_count=1, providers=providers)
        if self.graph.layout.prototypes is None:
            raise ValueError(
                f"{path} gives boxes without masks ({self.graph.layout.family}). FastSam needs a segmentation export "
                f"with mask prototypes (1, P, h/4, w/4); for boxes use detectors.OnnxDetector and a Sam."
            )

    def generate(self, image: np.ndarray) -> list[MaskRecord]:
        """Every mask of an image, surest first, with the keys of `SamAutomaticMaskGenerator.generate`.

        `predicted_iou` holds the detector's confidence; `point_coords` the centre of the box, as there was no click.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        candidates, placement, outputs = self.graph.run(check_image_array(image))
        assert self.graph.layout.prototypes is not None
        prototypes = torch.from_numpy(outputs[self.graph.layout.prototypes][0].astype(np.float32))
        records = []
        for start in range(0, len(candidates), _MASKS_AT_ONCE):
            chunk = candidates[np.arange(start, min(start + _MASKS_AT_ONCE, len(candidates)))]
            records.extend(self._records(chunk, prototypes, placement))
        return records

    def _records(self, candidates: Candidates, prototypes: torch.Tensor, placement: Placement) -> list[MaskRecord]:
        height, width = placement.original_size_hw
        boxes = placement.boxes_to_original(candidates.boxes_xyxy)
        low_res = mask_logits(torch.from_numpy(candidates.coefficients), prototypes)
        logits = logits_to_original(low_res, placement, self.graph.size_hw)
        masks = (logits > 0) & _inside_boxes(boxes, height, width)
        stability = calculate_stability_score(logits, 0.0, 1.0).tolist()
        return [
            make_record(
                _in_mode(mask, self.options.output_mode),
                predicted_iou=float(score),
                stability_score=float(stable),
                point_coords=[[float((x0 + x1) / 2), float((y0 + y1) / 2)]],
                crop_box=[0, 0, width, height],
            )
            for mask, score, stable, (x0, y0, x1, y1) in zip(masks, candidates.scores, stability, boxes, strict=True)
            if bool(mask.any())
        ]


def mask_logits(coefficients: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Weighted sums of prototypes: (N, P) and (P, h, w) -> (N, h, w)."""
    return torch.einsum("np,phw->nhw", coefficients.to(prototypes.dtype), prototypes)


def logits_to_original(logits: torch.Tensor, placement: Placement, network_size_hw: tuple[int, int]) -> torch.Tensor:
    """Cut off the letterbox and enlarge: (N, h, w) -> (N, H, W) float32 in original pixels.

    Bilinear sampling at the exact place of every original pixel, for the letterbox rarely ends between two cells.
    """
    height, width = placement.original_size_hw
    (scale_x, scale_y), (offset_x, offset_y) = placement.scale_xy, placement.offset_xy
    x = ((torch.arange(width) + 0.5) * scale_x + offset_x) / network_size_hw[1] * 2 - 1
    y = ((torch.arange(height) + 0.5) * scale_y + offset_y) / network_size_hw[0] * 2 - 1
    grid = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1)
    return torch.nn.functional.grid_sample(
        logits[None], grid[None].to(logits.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def _inside_boxes(boxes_xyxy: np.ndarray, height: int, width: int) -> torch.Tensor:
    """(N, H, W) bool: pixels whose centre lies in the box."""
    x0, y0, x1, y1 = (torch.from_numpy(boxes_xyxy[:, i, None, None]) for i in range(4))
    x = torch.arange(width)[None, None, :] + 0.5
    y = torch.arange(height)[None, :, None] + 0.5
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _in_mode(mask: torch.Tensor, mode: str) -> Any:
    if mode == "binary_mask":
        return mask.numpy()
    rle: Any = {"size": list(mask.shape), "counts": run_lengths(mask[None])[0].tolist()}
    return rle if mode == "uncompressed_rle" else {"size": rle["size"], "counts": rle_to_coco(rle)}


def select_by_points(records: Sequence[MaskRecord], points_xy: Any, labels: Any = None) -> list[MaskRecord]:
    """The masks that hold foreground points and no background point.

    Args:
        records: masks of one image.
        points_xy: (P, 2) original pixels.
        labels: (P,) 1 for foreground, 0 for background; None means all foreground.

    Returns:
        Masks with the most foreground points first, then the surest.

    Raises:
        ValueError: if shapes do not fit, a point lies outside the image, or no point is foreground.
    """
    points = np.asarray(points_xy, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points_xy must have shape (P, 2), x and y in original pixels; got {points.shape}.")
    marks = np.ones(len(points), dtype=int) if labels is None else np.asarray(labels)
    if marks.shape != (len(points),) or not np.isin(marks, (0, 1)).all():
        raise ValueError(f"labels must be {len(points)} numbers, 1 foreground or 0 background; got {marks.tolist()}.")
    if not marks.any():
        raise ValueError("labels must mark at least one point as foreground (1).")
    held = [(record, _held_points(record_mask(record), points)) for record in records]
    kept = [(record, held_by[marks == 1].sum()) for record, held_by in held if not held_by[marks == 0].any()]
    kept = [(record, count) for record, count in kept if count]
    kept.sort(key=lambda pair: (-pair[1], -pair[0].get("predicted_iou", 0.0)))
    return [record for record, _ in kept]


def _held_points(mask: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    """(P,) bool: whether the mask holds each point."""
    height, width = mask.shape
    x, y = np.floor(points_xy).astype(int).T
    if (x < 0).any() or (y < 0).any() or (x >= width).any() or (y >= height).any():
        raise ValueError(f"points_xy must lie in the image of {width} x {height} pixels; got {points_xy.tolist()}.")
    return np.asarray(mask[y, x])


def select_by_boxes(records: Sequence[MaskRecord], boxes_xyxy: Any) -> list[MaskRecord | None]:
    """For each box the mask with the highest IoU of mask and box, None where no mask touches it.

    Args:
        records: masks of one image.
        boxes_xyxy: (N, 4) original pixels.

    Raises:
        ValueError: if the shape does not fit.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes_xyxy must have shape (N, 4), x0 y0 x1 y1 in original pixels; got {boxes.shape}.")
    if not records:
        return [None] * len(boxes)
    scores = np.stack([_iou_with_boxes(record_mask(record), boxes) for record in records])
    best = scores.argmax(axis=0)
    return [records[index] if scores[index, column] > 0 else None for column, index in enumerate(best)]


def _iou_with_boxes(mask: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """(N,) IoU of one mask with filled boxes."""
    height, width = mask.shape
    x0, y0, x1, y1 = mask_to_box(mask)
    part, area = mask[y0:y1, x0:x1], int(mask.sum())
    result = np.zeros(len(boxes_xyxy))
    for index, box in enumerate(boxes_xyxy):
        left, top = (max(0, round(side)) for side in box[:2])
        right, bottom = min(width, round(box[2])), min(height, round(box[3]))
        box_area = max(0, right - left) * max(0, bottom - top)
        inside = part[max(0, top - y0) : max(0, bottom - y0), max(0, left - x0) : max(0, right - x0)]
        shared = int(inside.sum())
        result[index] = shared / (area + box_area - shared) if shared else 0.0
    return result
