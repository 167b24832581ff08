"""Helpers of automatic mask generation under the original package's names; the work is done in `masks`.

Letters: N masks or boxes, C planes, H rows, W columns. Boxes are x0, y0, x1, y1, where x1 and y1 are the last pixel
itself, as the original gives them (`masks.mask_to_box` counts one further).
"""

import copy
from collections.abc import ItemsView
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segment_anything import masks as _masks
from segment_anything._amg_clicks import (
    batch_iterator,
    build_all_layer_point_grids,
    build_point_grid,
    generate_crop_boxes,
)
from segment_anything.masks import RLE
from segment_anything.masks.components import remove_small_regions

__all__ = [
    "MaskData",
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "calculate_stability_score",
    "coco_encode_rle",
    "generate_crop_boxes",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
    "uncrop_boxes_xyxy",
    "uncrop_masks",
    "uncrop_points",
]


class MaskData:
    """Columns of equal length (tensors, arrays or lists), filtered and joined together."""

    def __init__(self, **kwargs: Any) -> None:
        self._stats: dict[str, Any] = {}
        for key, value in kwargs.items():
            self[key] = value

    def __setitem__(self, key: str, item: Any) -> None:
        if not isinstance(item, list | np.ndarray | torch.Tensor):
            raise ValueError(f"{key} must be a list, numpy array or tensor, but is a {type(item).__name__}")
        self._stats[key] = item

    def __getitem__(self, key: str) -> Any:
        return self._stats[key]

    def __delitem__(self, key: str) -> None:
        del self._stats[key]

    def items(self) -> ItemsView[str, Any]:
        """Names and columns."""
        return self._stats.items()

    def filter(self, keep: torch.Tensor) -> None:
        """Keep the rows that `keep` names: (N,) bool, or indices in the order wanted."""
        chosen = keep.detach().cpu().numpy()  # once for all columns: a wait for the device each would be slow
        rows = np.flatnonzero(chosen).tolist() if chosen.dtype == np.bool_ else chosen.tolist()
        for key, column in self._stats.items():
            if isinstance(column, torch.Tensor):
                self._stats[key] = column[keep.to(column.device)]
            else:
                self._stats[key] = column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in rows]

    def cat(self, new_stats: "MaskData") -> None:
        """Append the rows of `new_stats`, whose columns are copied."""
        for key, column in new_stats.items():
            mine = self._stats.get(key)
            if mine is None:
                self._stats[key] = copy.deepcopy(column)
            elif isinstance(column, torch.Tensor):
                self._stats[key] = torch.cat([mine, column])
            elif isinstance(column, np.ndarray):
                self._stats[key] = np.concatenate([mine, column])
            else:
                self._stats[key] = mine + copy.deepcopy(column)

    def to_numpy(self) -> None:
        """Turn every tensor into a numpy array."""
        for key, column in self._stats.items():
            if isinstance(column, torch.Tensor):
                self._stats[key] = column.detach().cpu().to(_numpy_dtype(column.dtype)).numpy()


def _numpy_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def is_box_near_crop_edge(
    boxes: torch.Tensor, crop_box: list[int], orig_box: list[int], atol: float = 20.0
) -> torch.Tensor:
    """Which boxes come within `atol` of an edge of the crop that is not the image's edge too: (N, 4) -> (N,) bool.

    The boxes are in the crop's pixels. An object cut off there is whole in a neighbouring crop.
    """
    crop, image = (torch.as_tensor(box, dtype=torch.float32, device=boxes.device) for box in (crop_box, orig_box))
    placed = uncrop_boxes_xyxy(boxes, crop_box).float()
    near_crop, near_image = ((placed - box).abs() <= atol for box in (crop, image))
    return (near_crop & ~near_image).any(dim=1)


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """A copy of one box as x, y, width, height (tensor, array or list)."""
    box = copy.deepcopy(box_xyxy)
    box[2], box[3] = box[2] - box[0], box[3] - box[1]
    return box


def mask_to_rle_pytorch(tensor: torch.Tensor) -> list[dict[str, Any]]:
    """Run-length encode (N, H, W) bool masks in one pass on their device: plain lists of runs, column by column."""
    return [dict(rle) for rle in _masks.encode_rles(tensor)]


def rle_to_mask(rle: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """The (H, W) bool mask of an RLE."""
    return _masks.decode_rle(_as_rle(rle))


def area_from_rle(rle: dict[str, Any]) -> int:
    """Pixels of the mask of an RLE."""
    return _masks.rle_area(_as_rle(rle))


def coco_encode_rle(uncompressed_rle: dict[str, Any]) -> dict[str, Any]:
    """The RLE with COCO's compact string for its counts, ready for JSON."""
    rle = _as_rle(uncompressed_rle)
    return {"size": list(rle["size"]), "counts": _masks.rle_to_coco(rle)}


def _as_rle(rle: dict[str, Any]) -> RLE:
    return RLE(size=rle["size"], counts=rle["counts"])


def calculate_stability_score(masks: torch.Tensor, mask_threshold: float, threshold_offset: float) -> torch.Tensor:
    """How little each mask changes when its cut-off moves: IoU of the masks cut higher and lower by the offset.

    Args:
        masks: (..., H, W) logits.
        mask_threshold: the cut-off that makes the mask.
        threshold_offset: how far it moves to either side.

    Returns:
        (...) float32 in [0, 1] (one cut lies inside the other, so counting pixels is enough). 0 where both are empty.
    """
    strict, loose = (_count_true(masks > mask_threshold + offset) for offset in (threshold_offset, -threshold_offset))
    return strict / loose.clamp(min=1)


def _count_true(flags: torch.Tensor) -> torch.Tensor:
    """(..., H, W) bool -> (...) int64 (numpy counts bools some fifty times faster than torch on a CPU)."""
    if flags.device.type != "cpu":
        return flags.sum(dim=(-1, -2))
    planes = flags.reshape(-1, *flags.shape[-2:]).numpy()
    counts = [int(np.count_nonzero(plane)) for plane in planes]
    return torch.tensor(counts, dtype=torch.int64).reshape(flags.shape[:-2])


def uncrop_boxes_xyxy(boxes: torch.Tensor, crop_box: list[int]) -> torch.Tensor:
    """(..., 4) boxes from a crop's pixels to the image's."""
    return boxes + torch.tensor([crop_box[0], crop_box[1]] * 2, device=boxes.device)


def uncrop_points(points: torch.Tensor, crop_box: list[int]) -> torch.Tensor:
    """(..., 2) points from a crop's pixels to the image's."""
    return points + torch.tensor([crop_box[0], crop_box[1]], device=points.device)


def uncrop_masks(masks: torch.Tensor, crop_box: list[int], orig_h: int, orig_w: int) -> torch.Tensor:
    """(..., H, W) masks of a crop laid into the image, 0 around it; masks of the whole image come back as given."""
    x0, y0, x1, y1 = crop_box
    if (x0, y0, x1, y1) == (0, 0, orig_w, orig_h):
        return masks
    return torch.nn.functional.pad(masks, (x0, orig_w - x1, y0, orig_h - y1), value=0)


def batched_mask_to_box(masks: torch.Tensor) -> torch.Tensor:
    """(..., H, W) bool masks -> (..., 4) int64 boxes of their first and last pixels; zeros for an empty mask."""
    if masks.numel() == 0:
        return torch.zeros(*masks.shape[:-2], 4, dtype=torch.int64, device=masks.device)
    # the greatest byte of a line: `any` over bools takes torch thirty times longer
    columns, rows = (masks.bool().view(torch.uint8).amax(dim=dim) for dim in (-2, -1))
    (x0, x1), (y0, y1) = _first_and_last(columns), _first_and_last(rows)
    return torch.stack([x0, y0, x1, y1], dim=-1) * rows.amax(dim=-1)[..., None]


def _first_and_last(line: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., L) of 0 and 1 -> positions of the first and of the last 1, (...) each; meaningless where there is none."""
    return line.argmax(dim=-1), line.shape[-1] - 1 - line.flip(-1).argmax(dim=-1)
