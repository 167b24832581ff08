"""The values of automatic mask generation: what the network proposes, what the filters keep, what they took away.

Letters: P clicks, N masks, H, W rows and columns of a crop of the image, g cells of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from segment_anything.masks import RLE

if TYPE_CHECKING:
    from segment_anything.modeling import Decoded
    from segment_anything.onnx.decoded import OnnxDecoded

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Proposals:
    """What the network answers for one batch of clicks in one crop, before any judgement."""

    decoded: Decoded | OnnxDecoded
    """P clicks, three masks each, in the crop's frame: logits (P, 3, 4g, 4g) and predicted IoU (P, 3). Or only those
    with a predicted IoU above a threshold: P masks of one each, and `below_iou` others that were never made."""
    points_xy: npt.NDArray[np.float64]
    """The clicks (P, 2), in original pixels of the whole image."""
    crop_box_xyxy: Box
    """The crop, in original pixels; x1 and y1 lie outside."""
    image_size_hw: tuple[int, int]
    """Size of the whole image."""
    below_iou: int = 0
    """Masks that are missing in `decoded`."""
    clicks: int | None = None
    """Number of clicks where masks are missing; None where it is P."""


@dataclass(frozen=True)
class Candidates:
    """Masks of one image that have passed some of the filters, in original pixels of the whole image."""

    rles: list[RLE]
    """N run-length encodings; counts are arrays, which take a tenth of the memory of lists."""
    boxes_xyxy: npt.NDArray[np.int64]
    """(N, 4), to the last pixel itself."""
    predicted_iou: npt.NDArray[np.float32]
    """(N,)"""
    stability_score: npt.NDArray[np.float32]
    """(N,)"""
    points_xy: npt.NDArray[np.float64]
    """(N, 2), the click that made each mask."""
    crop_boxes_xyxy: npt.NDArray[np.int64]
    """(N, 4), the crop that each was found in."""

    def __len__(self) -> int:
        return len(self.rles)

    def take(self, indices: npt.NDArray[np.int64]) -> Candidates:
        """Those named by (K,) indices, in that order."""
        return Candidates(
            [self.rles[i] for i in indices],
            self.boxes_xyxy[indices],
            self.predicted_iou[indices],
            self.stability_score[indices],
            self.points_xy[indices],
            self.crop_boxes_xyxy[indices],
        )

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """All of `parts`, one after the other; of no parts, none."""
        parts = [_NONE, *parts]
        return Candidates(
            [rle for part in parts for rle in part.rles],
            np.concatenate([part.boxes_xyxy for part in parts]),
            np.concatenate([part.predicted_iou for part in parts]),
            np.concatenate([part.stability_score for part in parts]),
            np.concatenate([part.points_xy for part in parts]),
            np.concatenate([part.crop_boxes_xyxy for part in parts]),
        )


_NONE = Candidates(
    [],
    np.zeros((0, 4), np.int64),
    np.zeros(0, np.float32),
    np.zeros(0, np.float32),
    np.zeros((0, 2), np.float64),
    np.zeros((0, 4), np.int64),
)


@dataclass(frozen=True)
class Explanation:
    """How many masks each filter took away, in the order in which the filters come. `print` it for a table."""

    clicks: int = 0
    """Points tried, in all crops."""
    proposed: int = 0
    """Masks the network answered with, three a click."""
    low_predicted_iou: int = 0
    """Not above `pred_iou_thresh`."""
    unstable: int = 0
    """Below `stability_score_thresh`."""
    at_crop_edge: int = 0
    """Cut off by the edge of a crop."""
    outside_area_range: int = 0
    """Smaller than `min_mask_area` or larger than `max_mask_area`."""
    overlapping_in_crop: int = 0
    """Suppressed by a better mask of the same crop (`box_nms_thresh`)."""
    overlapping_across_crops: int = 0
    """Suppressed by a mask of a smaller crop (`crop_nms_thresh`)."""
    overlapping_after_cleaning: int = 0
    """Equal to another once small holes and islands were gone (`min_mask_region_area`)."""
    inside_better: int = 0
    """Inside a better mask (`overlap="iomin"`)."""
    kept: int = 0
    """Records returned."""

    def __str__(self) -> str:
        return "\n".join(f"{getattr(self, name):>7} {name.replace('_', ' ')}" for name in self.__dataclass_fields__)
