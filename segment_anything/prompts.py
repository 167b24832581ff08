"""What a person asks for: points, a box, a mask, for one object or for many.

All coordinates are original pixels, (x, y). Nothing here knows a model; what depends on the image's size is checked
when a prompt meets an image (`Prompt.check_inside`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segment_anything.geometry import ImageGeometry
from segment_anything.masks._arrays import is_tensor, to_numpy

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float32]

OUTSIDE_SHARE = 0.1
"""How far outside the image a coordinate may lie, as a share of the longest side: hands slip, detectors overshoot."""

MASK_LOGIT = 10.0
"""Logit written for the inside of a binary mask, and its negative for the outside."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompt for one object: any mix of points, one box and one mask. Make it with `Prompt.make`."""

    points_xy: FloatArray | None = None
    """(P, 2) in original pixels."""
    labels: npt.NDArray[np.int64] | None = None
    """(P,): 1 on the object, 0 on background."""
    box_xyxy: FloatArray | None = None
    """(4,) x0, y0, x1, y1 in original pixels."""
    mask: npt.NDArray[np.bool_] | None = None
    """(H, W) in original pixels."""
    mask_logits: FloatArray | None = None
    """(1, 4g, 4g) low-resolution logits of an earlier prediction."""

    @classmethod
    def make(
        cls, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None, mask_logits: Any = None
    ) -> Prompt:
        """Check and convert what a caller gives: lists, numpy arrays or tensors.

        Args:
            points: (P, 2) x, y in original pixels.
            labels: (P,) 1 on the object, 0 on background.
            box: x0, y0, x1, y1 in original pixels.
            mask: (H, W) bool mask in original pixels.
            mask_logits: (1, 4g, 4g) low-resolution logits of an earlier prediction.

        Raises:
            ValueError: naming the argument, what was expected, what came, and the cure.
        """
        if mask is not None and mask_logits is not None:
            raise ValueError(
                "mask and mask_logits came together: both fill the one mask prompt. Give the binary mask, "
                "or the logits of an earlier prediction."
            )
        points_xy = None if points is None else _checked_points(points)
        return cls(
            points_xy,
            _checked_labels(labels, points_xy),
            None if box is None else _checked_box(box),
            None if mask is None else _checked_mask(mask),
            None if mask_logits is None else _checked_logits(mask_logits),
        )

    @property
    def is_ambiguous(self) -> bool:
        """Whether the paper asks for three masks: a single point and nothing else."""
        return len(self) == 1 and self.box_xyxy is None and self.mask is None and self.mask_logits is None

    def __len__(self) -> int:
        """Number of points."""
        return 0 if self.points_xy is None else len(self.points_xy)

    def check_inside(self, size_hw: tuple[int, int]) -> None:
        """Refuse coordinates far outside an image of this size, and a mask of another size.

        Raises:
            ValueError: naming the first offender and the image's size.
        """
        height, width = size_hw
        margin = OUTSIDE_SHARE * max(size_hw)
        low, high = np.array([-margin, -margin]), np.array([width + margin, height + margin])
        for name, corners in (("point_coords", self.points_xy), ("box", self.box_xyxy)):
            if corners is None:
                continue
            pairs = corners.reshape(-1, 2)
            outside = ((pairs < low) | (pairs > high)).any(axis=1)
            if outside.any():
                x, y = pairs[outside][0]
                swapped = bool((low <= [y, x]).all() and ([y, x] <= high).all())
                hint = " Are x and y swapped? Coordinates are (x, y)." if swapped else " Give original pixels."
                raise ValueError(
                    f"{name} must lie in the image, {width} pixels wide and {height} high, "
                    f"but has ({x:g}, {y:g}).{hint}"
                )
        if self.mask is not None and self.mask.shape != (height, width):
            raise ValueError(
                f"mask must have the image's shape ({height}, {width}), got {self.mask.shape}: resize it, or give the "
                "low-resolution logits of an earlier prediction as mask_logits."
            )

    def low_res_logits(self, geometry: ImageGeometry, size: int) -> torch.Tensor | None:
        """`low_res_array` as a tensor."""
        import torch  # here, because the ONNX runtime of this package lives without it

        logits = self.low_res_array(geometry, size)
        return None if logits is None else torch.from_numpy(logits)

    def low_res_array(self, geometry: ImageGeometry, size: int) -> FloatArray | None:
        """(1, size, size) float32 logits of the mask prompt, in the frame of low-resolution masks, or None.

        Raises:
            ValueError: if `mask_logits` have another size.
        """
        if self.mask_logits is not None:
            if self.mask_logits.shape != (1, size, size):
                raise ValueError(
                    f"mask_input must have shape (1, {size}, {size}), the low-resolution logits of an earlier "
                    f"prediction; got {self.mask_logits.shape}. A binary mask goes to Prompt.make(mask=...)."
                )
            return self.mask_logits
        if self.mask is None:
            return None
        height, width = geometry.input_size_hw
        scale = size / geometry.image_size
        target_hw = max(1, round(height * scale)), max(1, round(width * scale))
        covered = Image.fromarray(self.mask.astype(np.float32))  # the share of each cell; Pillow's filter averages
        share = np.asarray(covered.resize(target_hw[::-1], Image.Resampling.BILINEAR))
        logits = np.full((1, size, size), -MASK_LOGIT, dtype=np.float32)
        logits[:, : target_hw[0], : target_hw[1]] = (2 * share - 1) * MASK_LOGIT
        return logits

    def completed(self) -> Prompt:
        """The prompt as a model should see it: a binary mask alone is given its bounding box as well.

        The published models were trained with masks only beside points or a box; a mask alone is half ignored
        (https://github.com/facebookresearch/segment-anything/issues/169).
        """
        if self.mask is None or self.box_xyxy is not None or len(self) or not self.mask.any():
            return self
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float32)
        return Prompt(self.points_xy, self.labels, box, self.mask, self.mask_logits)


class Prompts(Sequence[Prompt]):
    """The prompts of many objects in one image; each may have another mix."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        """Args: prompts: one for each object."""
        self._prompts = tuple(prompts)
        for index, prompt in enumerate(self._prompts):
            if not isinstance(prompt, Prompt):
                raise ValueError(f"prompts[{index}] must be a Prompt (see Prompt.make), got {type(prompt).__name__}.")

    @classmethod
    def from_points(cls, points_xy: Any) -> Prompts:
        """One object for each of (N, 2) foreground points in original pixels."""
        points = _checked_points(points_xy)
        one = np.ones(1, dtype=np.int64)
        return cls(Prompt(points[i : i + 1], one) for i in range(len(points)))

    @classmethod
    def from_boxes(cls, boxes_xyxy: Any) -> Prompts:
        """One object for each of (N, 4) boxes in original pixels."""
        boxes = _as_floats("boxes", boxes_xyxy)
        if boxes.size == 0:  # a detector that found nothing
            return cls([])
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"boxes must have shape (N, 4), one row x0, y0, x1, y1 for each object, got shape {boxes.shape}. "
                "One box is boxes[None]."
            )
        return cls(Prompt(box_xyxy=_checked_box(box, f"boxes[{index}]")) for index, box in enumerate(boxes))

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: Any) -> Any:
        return Prompts(self._prompts[index]) if isinstance(index, slice) else self._prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)


def _as_floats(name: str, value: Any) -> FloatArray:
    """A float32 array of numbers, all finite."""
    if is_tensor(value):
        value = to_numpy(value)
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused below
            array = np.array(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in rows of one length, got {value!r}.") from error
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite numbers, got {array[~np.isfinite(array)][0]} among them: leave such rows out."
        )
    return array


def _checked_points(points: Any) -> FloatArray:
    array = _as_floats("point_coords", points)
    if array.ndim == 1 and array.size == 2:
        x, y = array
        raise ValueError(
            f"point_coords must have shape (P, 2), one row x, y for each point, got shape (2,): "
            f"did you mean np.array([[{x:g}, {y:g}]])?"
        )
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(
            f"point_coords must have shape (P, 2), one row x, y for each point, got shape {array.shape}. "
            "For many objects make one Prompt each."
        )
    return array


def _checked_labels(labels: Any, points_xy: FloatArray | None) -> npt.NDArray[np.int64] | None:
    if points_xy is None:
        if labels is not None:
            raise ValueError("point_labels came without point_coords: give both, or neither.")
        return None
    if labels is None:
        raise ValueError(
            "point_labels must be supplied if point_coords is supplied: 1 on the object, 0 on background, "
            f"here {len(points_xy)} of them."
        )
    array = _as_floats("point_labels", labels)
    if array.shape != (len(points_xy),):
        raise ValueError(
            f"point_labels must have shape ({len(points_xy)},), one for each point, got shape {array.shape}: "
            f"for {len(points_xy)} points on the object it is np.ones({len(points_xy)})."
        )
    is_known = (array == 0) | (array == 1)
    if not is_known.all():
        wrong = array[~is_known][0]
        raise ValueError(
            f"point_labels must be 1 (on the object) or 0 (background), got {wrong:g} among them. "
            "Padding is not needed: every object may have another number of points."
        )
    return array.astype(np.int64)


def _checked_box(box: Any, name: str = "box") -> FloatArray:
    array = _as_floats(name, box)
    if array.shape == (1, 4):
        array = array[0]
    if array.shape != (4,):
        raise ValueError(
            f"{name} must be four numbers x0, y0, x1, y1, got shape {array.shape}. "
            "For many boxes use predict_many(Prompts.from_boxes(boxes))."
        )
    x0, y0, x1, y1 = (float(value) for value in array)
    if x0 >= x1 or y0 >= y1:
        meant = []
        if x1 > 0 and y1 > 0:
            meant.append(f"[{x0:g}, {y0:g}, {x0 + x1:g}, {y0 + y1:g}], if this is x, y, width, height (XYWH)")
        if x0 != x1 and y0 != y1:
            corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
            meant.append(f"[{', '.join(f'{value:g}' for value in corners)}], if these are two corners")
        raise ValueError(
            f"{name} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got [{x0:g}, {y0:g}, {x1:g}, {y1:g}]. "
            + (f"Did you mean {', or '.join(meant)}?" if meant else "It has no area.")
        )
    return array


def _checked_mask(mask: Any) -> npt.NDArray[np.bool_]:
    array = to_numpy(mask)
    if array.ndim != 2:
        cure = f"One of {array.shape[0]} masks is mask[0]." if array.ndim == 3 else "It covers the whole image."
        raise ValueError(f"mask must have shape (H, W), got shape {array.shape}. {cure}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1, 255)).all():
        raise ValueError(
            f"mask must be binary (bool, 0/1 or 0/255), got values from {array.min()} to {array.max()}. "
            "Logits of an earlier prediction go to mask_logits; one object of a label map is labels == number."
        )
    return array.astype(np.bool_)


def _checked_logits(logits: Any) -> FloatArray:
    array = _as_floats("mask_input", logits)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] != 1:
        raise ValueError(
            f"mask_input must have shape (1, H, W), low-resolution logits of one mask, got shape {array.shape}. "
            "Of several masks pick one, for instance logits[scores.argmax()][None]."
        )
    return array
