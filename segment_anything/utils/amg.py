"""Helpers of automatic mask generation under the original package's names; the work is done in `masks`.

Letters: N masks or boxes, C planes, H rows, W columns. Boxes are x0, y0, x1, y1, where x1 and y1 are the last pixel
itself, as the original gives them (`masks.mask_to_box` counts one further).
"""

import copy
import math
from collections.abc import ItemsView, Iterator
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from segment_anything import masks as _masks
from segment_anything.masks import RLE


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


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Walk through sequences of equal length together, `batch_size` elements at a time.

    Raises:
        ValueError: if there are none, or their lengths differ.
    """
    lengths = {len(sequence) for sequence in args}
    if len(lengths) != 1:
        raise ValueError(
            f"batch_iterator needs one or more sequences of equal length, but got lengths {sorted(lengths)}"
        )
    for start in range(0, lengths.pop(), batch_size):
        yield [sequence[start : start + batch_size] for sequence in args]


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


def build_point_grid(n_per_side: int) -> npt.NDArray[np.float64]:
    """The centres of n x n equal cells of the unit square: (n * n, 2) x, y, row by row."""
    centres = np.linspace(0.5 / n_per_side, 1 - 0.5 / n_per_side, n_per_side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[npt.NDArray[np.float64]]:
    """A grid for the image and for each layer of crops, with `scale_per_layer` times fewer points a side each."""
    return [build_point_grid(int(n_per_side / scale_per_layer**layer)) for layer in range(n_layers + 1)]


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The whole image, then layers of overlapping crops, 2**layer along each side.

    Args:
        im_size: (height, width).
        n_layers: layers below the image itself.
        overlap_ratio: overlap of neighbours in the first layer, as a part of the shorter side; halved in each next one.

    Returns:
        boxes x0, y0, x1, y1 (x1, y1 outside), and the layer of each (0: the image). Crops run down the columns.
    """
    height, width = im_size
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        lefts, tops = ([(side - overlap) * i for i in range(count)] for side in (crop_width, crop_height))
        for x, y in product(lefts, tops):
            boxes.append([x, y, min(x + crop_width, width), min(y + crop_height, height)])
            layers.append(layer)
    return boxes, layers


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


def remove_small_regions(
    mask: npt.NDArray[Any], area_thresh: float, mode: Literal["holes", "islands"]
) -> tuple[npt.NDArray[np.bool_], bool]:
    """Fill the holes, or remove the islands, of a mask smaller than `area_thresh` pixels; at least one island stays.

    Args:
        mask: (H, W) bool.
        area_thresh: least area of a region (8-connected) that is left alone.
        mode: "holes" or "islands".

    Returns:
        the mask, and whether there was a region to change.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f'mode must be "holes" or "islands", but is {mode!r}')
    before = np.asarray(mask) != 0
    if mode == "holes":
        after = _masks.fill_small_holes(before, area_thresh)
        return after, not np.array_equal(before, after)
    after = _masks.drop_small_islands(before, area_thresh)
    if before.any() and not after.any():
        return _masks.largest_component(before), True
    return after, not np.array_equal(before, after)


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
