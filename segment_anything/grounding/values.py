"""What grounding takes and returns: options, masks with names, and where the time went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segment_anything._amg_options import OUTPUT_MODES
from segment_anything.detectors import Detection
from segment_anything.record_formats import to_coco, to_labelme, to_yolo
from segment_anything.records import MaskRecord


@dataclass(frozen=True, kw_only=True)
class GroundingOptions:
    """Which detections become masks, and which masks are kept."""

    classes: tuple[str, ...] | None = None
    """The detector's class names to keep, letter case aside; None keeps all."""
    class_map: Mapping[str, str] = field(default_factory=dict)
    """Detector's name -> name in the result; names not in it stay."""
    min_score: float = 0.0
    """Lowest score of a detection, on top of the detector's own threshold."""
    min_predicted_iou: float = 0.0
    """Lowest predicted quality of a mask; 0 keeps all."""
    max_count: int = 300
    """Most masks an image."""
    boxes_at_once: int = 300
    """Boxes decoded together."""
    output_mode: str = "binary_mask"
    """How masks are returned: binary_mask, uncompressed_rle or coco_rle (least memory)."""

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ValueError(f"classes must be a list of names; got {self.classes!r}. Write [{self.classes!r}].")
        for name in ("max_count", "boxes_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode must be one of {', '.join(OUTPUT_MODES)}; got {self.output_mode!r}.")


@dataclass(frozen=True)
class Seconds:
    """Where the time went."""

    find: float = 0.0
    """Detector, or automatic masks and their ranking."""
    encode: float = 0.0
    """Image encoder, once an image."""
    masks: float = 0.0
    """Mask decoder, enlarging and encoding of masks."""


@dataclass(frozen=True)
class Grounded:
    """Masks with names of one image."""

    size_hw: tuple[int, int]
    """The image's height and width."""
    records: tuple[MaskRecord, ...] = ()
    """Masks with "category" and "category_score", surest first."""
    detections: tuple[Detection, ...] = ()
    """The detection behind each record, in the same order; empty where no detector was asked."""
    seconds: Seconds = field(default_factory=Seconds)
    compared: int | None = None
    """Automatic masks that were compared with the phrases; None where there was no such comparison."""

    def __len__(self) -> int:
        return len(self.records)

    def to_coco(self, **options: Any) -> list[dict[str, Any]]:
        """COCO annotations (see `record_formats.to_coco`), each with the detector's box as `detection_box` XYWH."""
        annotations = to_coco(list(self.records), **options)
        for annotation, detection in zip(annotations, self.detections, strict=False):
            x0, y0, x1, y1 = detection.box_xyxy
            annotation["detection_box"] = [x0, y0, x1 - x0, y1 - y0]
        return annotations

    def to_yolo(self, names: Sequence[str] | None = None) -> list[str]:
        """Lines of a YOLO segmentation label file; class numbers are places in `names`, by default `self.names`."""
        return to_yolo(list(self.records), names=list(self.names if names is None else names))

    def to_labelme(self, file_name: str) -> dict[str, Any]:
        """A labelme document for the image of that name."""
        return to_labelme(list(self.records), file_name=file_name, size_hw=self.size_hw)

    def overlay(self, image: np.ndarray) -> np.ndarray:
        """The image with masks, boxes, names and scores drawn over it: (H, W, 3) uint8."""
        from segment_anything.visualize import overlay

        return overlay(
            image,
            list(self.records),
            boxes_xyxy=[d.box_xyxy for d in self.detections] or None,
            names=[f"{r['category']} {r['category_score']:.2f}" for r in self.records] or None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names that occur, in alphabetical order."""
        return tuple(sorted({record["category"] for record in self.records}))
