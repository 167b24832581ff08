"""What each protocol may be told, apart from the protocols so that the command line reads it without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

ClickMasks = Literal["three", "paper"]
"""How many masks are asked for after a click: always three, or three after the first click and one after later ones."""

BOXES = ("truth", "noisy")
"""Kinds of boxes: around the true mask; the same with the paper's noise. Boxes of a detector come from a file."""

TOLERANCE = 0.0075
"""Farthest distance at which two boundary pixels may match, as a fraction of the image diagonal (BSDS500)."""

THRESHOLDS = 99
"""How many thresholds BSDS500 uses: k / (THRESHOLDS + 1), k from 1."""


@dataclass(frozen=True, kw_only=True)
class PointsBoxesOptions:
    """What is measured."""

    clicks: tuple[int, ...] = (1, 2, 3, 5, 9)
    """Numbers of clicks at which the IoU is reported; () for none."""
    boxes: tuple[str, ...] = BOXES
    """Kinds of boxes, of truth and noisy."""
    click_masks: ClickMasks = "three"
    """Masks asked for after a click: three, or paper (three after the first, one after later clicks)."""
    noc_limit: int = 20
    """Most clicks on the way to the target IoUs; 0 leaves the number of clicks out."""
    noc_targets: tuple[float, ...] = (0.85, 0.90)
    """IoUs to be reached."""
    min_area_px: int = 0
    """Smaller objects are left out; in original pixels."""
    max_objects: int | None = None
    """Of images with more objects, this many drawn at random; for a quick look at crowded images."""
    seed: int = 0
    """Of all that is drawn at random: noise of boxes, and which objects."""

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.clicks):
            raise ValueError(f"clicks must be numbers from 1 on, got {self.clicks}")
        if self.max_objects is not None and self.max_objects < 1:
            raise ValueError(f"max_objects must be at least 1, got {self.max_objects}")
        for kind in self.boxes:
            if kind not in BOXES:
                raise ValueError(f"boxes must be of {', '.join(BOXES)}, got {kind!r}")
        if self.click_masks not in get_args(ClickMasks):
            raise ValueError(f"click_masks must be one of {', '.join(get_args(ClickMasks))}, got {self.click_masks!r}")
        if any(not 0 < target <= 1 for target in self.noc_targets):
            raise ValueError(f"noc_targets must lie in (0, 1], got {self.noc_targets}")


@dataclass(frozen=True, kw_only=True)
class EdgeMapOptions:
    """How edges are drawn; the defaults are the paper's."""

    points_per_side: int = 16
    """Prompts along each side of the image."""
    nms_threshold: float = 0.7
    """Box overlap above which the mask with the lower predicted IoU goes."""
    points_per_batch: int = 32
    """Prompts decoded together."""

    def __post_init__(self) -> None:
        if self.points_per_side < 1 or self.points_per_batch < 1:
            raise ValueError(
                f"points_per_side and points_per_batch must be at least 1, "
                f"got {self.points_per_side} and {self.points_per_batch}"
            )
        if not 0 <= self.nms_threshold <= 1:
            raise ValueError(f"nms_threshold must lie in [0, 1], got {self.nms_threshold}")


@dataclass(frozen=True, kw_only=True)
class EdgeOptions:
    """How edges are scored; the defaults are the benchmark's."""

    thresholds: int = THRESHOLDS
    """Thresholds between 0 and 1. Fewer are faster; figures are interpolated in between."""
    tolerance: float = TOLERANCE
    """Farthest match, as a fraction of the image diagonal."""

    def __post_init__(self) -> None:
        if self.thresholds < 1:
            raise ValueError(f"thresholds must be at least 1, got {self.thresholds}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be a fraction of the diagonal in (0, 1), got {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class InstanceOptions:
    """Which masks are drawn for a detector's boxes."""

    masks: Literal["single", "best"] = "single"
    """The single mask of a box, or the best of three by predicted IoU."""
    max_detections: int = 300
    """Most boxes of an image, the best first; COCO scores 100, LVIS 300."""

    def __post_init__(self) -> None:
        if self.masks not in ("single", "best"):
            raise ValueError(f"masks must be single or best, got {self.masks!r}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, got {self.max_detections}")


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What counts as a hit."""

    hit_iou: float = 0.5
    """IoU with an object of the class from which a mask is a hit."""
    absent: int = 0
    """Classes that are not in an image and are asked for all the same, to count false alarms."""
    seed: int = 0
    """Of the choice of those classes."""

    def __post_init__(self) -> None:
        if not 0 < self.hit_iou <= 1:
            raise ValueError(f"hit_iou must lie in (0, 1], got {self.hit_iou}")
        if self.absent < 0:
            raise ValueError(f"absent must be at least 0, got {self.absent}")
