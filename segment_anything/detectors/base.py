"""What a detector is, and what may be done with its boxes before any mask is drawn: filter, rename, limit.

A detector is anything with `detect(image)`. It knows nothing of Segment Anything; `grounding` turns boxes into masks.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Detection:
    """One named box in one image."""

    box_xyxy: tuple[float, float, float, float]
    """Corners (x0, y0, x1, y1) in original pixels, x1 >= x0 and y1 >= y0."""
    label: str
    """The detector's name for what is in the box."""
    score: float = 1.0
    """Confidence in [0, 1]; 1 for boxes drawn by people."""

    def __post_init__(self) -> None:
        box = tuple(float(value) for value in self.box_xyxy)
        if len(box) != 4 or not all(math.isfinite(value) for value in box) or box[2] < box[0] or box[3] < box[1]:
            raise ValueError(
                f"box_xyxy must be four finite numbers (x0, y0, x1, y1) with x1 >= x0 and y1 >= y0; got "
                f"{tuple(self.box_xyxy)}. For (x, y, width, height) add the size to the corner first."
            )
        object.__setattr__(self, "box_xyxy", box)
        object.__setattr__(self, "score", float(self.score))


@runtime_checkable
class Detector(Protocol):
    """Anything that finds named boxes in an image. If it has `class_names`, wanted classes are checked against them."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detections in `image`, (H, W, 3) uint8 RGB, best first. None found is an empty list."""
        ...


def class_names_of(detector: object) -> tuple[str, ...] | None:
    """The names a detector can give, or None when it does not say."""
    names = getattr(detector, "class_names", None)
    return None if names is None else tuple(names)


def check_classes(classes: Sequence[str], known: Sequence[str]) -> None:
    """Check that every name in `classes` is one of `known`, letter case aside.

    Raises:
        ValueError: naming the first unknown class, and the known ones nearest to it.
    """
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names; got the single string {classes!r}. Write [{classes!r}].")
    lower = {name.lower(): name for name in known}
    for name in classes:
        if name.lower() in lower:
            continue
        near = difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.5)
        hint = ", ".join(repr(lower[match]) for match in near) if near else ", ".join(map(repr, list(known)[:10]))
        what = "Near names" if near else f"Some of its {len(known)} names"
        raise ValueError(f"classes: this detector has no class {name!r}. {what}: {hint}.")


def select_detections(
    detections: Sequence[Detection],
    *,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    min_score: float = 0.0,
    max_count: int | None = None,
) -> list[Detection]:
    """Keep the detections asked for, best first, under the names asked for.

    Args:
        detections: in any order.
        classes: the detector's names to keep, letter case aside; None keeps all.
        class_map: detector's name -> the name to report; names not in it stay.
        min_score: lowest score kept.
        max_count: most detections kept; None keeps all.
    """
    wanted = None if classes is None else {name.lower() for name in classes}
    kept = [d for d in detections if d.score >= min_score and (wanted is None or d.label.lower() in wanted)]
    kept.sort(key=lambda d: -d.score)
    renamed = [replace(d, label=(class_map or {}).get(d.label, d.label)) for d in kept]
    return renamed if max_count is None else renamed[:max_count]
