"""Stability, area, box and run lengths of proposed masks on a GPU, where they are.

As `_amg_fast` on a CPU: masks are measured without making them, and only those that survive non-maximum suppression are
turned into run lengths, all together. `_amg_filters.measure_plain` is the same thing the plain way.
"""

from collections import Counter
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch

from segment_anything._amg_clicks import near_crop_edge
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Candidates, Proposals
from segment_anything.geometry import ImageGeometry
from segment_anything.masks import RLE
from segment_anything.modeling import Decoded
from segment_anything.modeling.cuda.mask_measures import measure_masks, run_lengths_of

Ints = npt.NDArray[np.int64]


class Waiting:
    """Masks of one crop whose run lengths nobody has asked for yet.

    Masks that are dropped leave by themselves; the first question is answered for all that are left.
    """

    def __init__(
        self, geometry: ImageGeometry, threshold: float, corner_xy: tuple[int, int], image_size_hw: tuple[int, int]
    ) -> None:
        """Args: as `run_lengths_of`."""
        self._where = geometry, threshold, corner_xy, image_size_hw
        self._masks: WeakSet[DeviceMask] = WeakSet()

    def __len__(self) -> int:
        return len(self._masks)

    def add(self, logits: torch.Tensor) -> "DeviceMask":
        """A mask of low-resolution logits (4g, 4g), which waits."""
        mask = DeviceMask(logits, self)
        self._masks.add(mask)
        return mask

    def answer(self) -> None:
        """Find the run lengths of all masks that are left."""
        masks = [mask for mask in self._masks if mask.logits is not None]
        self._masks.clear()
        logits = torch.stack([mask.logits for mask in masks if mask.logits is not None])
        for mask, runs in zip(masks, run_lengths_of(logits, *self._where), strict=True):
            mask.runs, mask.logits = runs, None


class DeviceMask:
    """One mask at low resolution on a device. `np.asarray` gives its COCO run lengths."""

    def __init__(self, logits: torch.Tensor, waiting: Waiting) -> None:
        self.logits: torch.Tensor | None = logits
        self.runs: Ints | None = None
        self._waiting = waiting

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self.runs is None:
            self._waiting.answer()
        assert self.runs is not None
        return self.runs.astype(dtype or np.int64, copy=bool(copy))


class DeviceMeasure:
    """Measures the masks of one image, batch by batch: an `_amg_filters.Measure`."""

    def __init__(self) -> None:
        self._waiting: dict[object, Waiting] = {}

    def __call__(
        self,
        decoded: Decoded,
        points_xy: npt.NDArray[np.float64],
        batch: Proposals,
        options: AutomaticMaskOptions,
        mask_threshold: float,
        counts: Counter[str],
    ) -> Candidates:
        """As `_amg_filters.measure_plain`. The run lengths in the result are computed when they are asked for."""
        if len(decoded) == 0:
            return Candidates.join([])
        logits, crop, size_hw = decoded.low_res_logits[:, 0], batch.crop_box_xyxy, batch.image_size_hw
        found = measure_masks(logits, decoded.geometry, mask_threshold, options.stability_score_offset)
        stability = (found.strict / np.maximum(found.loose, 1)).astype(np.float32)
        stable = stability >= np.float32(max(options.stability_score_thresh, 0))
        whole = stable & ~near_crop_edge(found.boxes_xyxy, crop, size_hw)
        largest = np.inf if options.max_mask_area is None else options.max_mask_area
        kept = whole & (found.areas >= options.min_mask_area) & (found.areas <= largest)
        counts["unstable"] += int((~stable).sum())
        counts["at_crop_edge"] += int((stable & ~whole).sum())
        counts["outside_area_range"] += int((whole & ~kept).sum())
        places = np.flatnonzero(kept)
        waiting = self._waiting.setdefault(
            (crop, decoded.geometry), Waiting(decoded.geometry, mask_threshold, (crop[0], crop[1]), size_hw)
        )
        # each on its own: a view would keep alive what belongs to masks that are dropped
        masks = [waiting.add(logits[int(place)].clone()) for place in places]
        return Candidates(
            [RLE(size=list(size_hw), counts=mask) for mask in masks],
            found.boxes_xyxy[places] + np.array([*crop[:2], *crop[:2]]),
            decoded.iou_predictions[:, 0].float().cpu().numpy()[places],
            stability[places],
            points_xy[places],
            np.tile(np.array(crop, dtype=np.int64), (len(places), 1)),
        )
