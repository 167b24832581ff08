"""What automatic mask generation returns: one plain dict a mask, with the original package's keys.

Knows how to make such a record from any mask and how to read its mask back. `record_formats` turns records into what
other tools read, `label_map` lays them into one image.
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import numpy.typing as npt

from segment_anything.masks import RLE, decode_rle, encode_rle, rle_area, rle_to_box

Segmentation = npt.NDArray[np.bool_] | RLE


class MaskRecord(TypedDict):
    """One mask of an image. Lengths and positions are in original pixels."""

    segmentation: Segmentation
    """(H, W) bool, or an RLE of the whole image with a plain list or COCO's compact string for its counts."""
    area: int
    """Pixels of the mask."""
    bbox: list[int]
    """x, y, width, height from the first to the last pixel itself, as the original package: one less than COCO."""
    predicted_iou: NotRequired[float]
    """The model's own estimate of the mask's IoU with the object."""
    stability_score: NotRequired[float]
    """How little the mask changes when its cut-off moves (`utils.amg.calculate_stability_score`)."""
    point_coords: NotRequired[list[list[float]]]
    """The clicks that made the mask, [[x, y]]."""
    crop_box: NotRequired[list[int]]
    """x, y, width, height of the crop it was found in."""
    category: NotRequired[str]
    """Name of its class, where something has named it."""
    category_score: NotRequired[float]
    """How sure that is, 0 to 1."""


def make_record(segmentation: Any, **others: Any) -> MaskRecord:
    """A record of a mask, with its area and box measured.

    Args:
        segmentation: (H, W) bool array or tensor, or an RLE of either kind. It is kept as it is.
        others: further keys of `MaskRecord`.

    Raises:
        ValueError: if the mask has another shape or type.
    """
    rle: RLE = segmentation if isinstance(segmentation, dict) else encode_rle(segmentation)  # type: ignore[assignment]
    x0, y0, x1, y1 = (int(side) for side in rle_to_box(rle))
    area = rle_area(rle)
    bbox = [x0, y0, x1 - x0 - 1, y1 - y0 - 1] if area else [0, 0, 0, 0]
    record = {"segmentation": segmentation, "area": area, "bbox": bbox, **others}
    return cast(MaskRecord, record)


def record_mask(record: MaskRecord) -> npt.NDArray[np.bool_]:
    """The (H, W) bool mask of a record in any output mode."""
    segmentation = record["segmentation"]
    return decode_rle(segmentation) if isinstance(segmentation, dict) else np.asarray(segmentation, dtype=np.bool_)


def record_rle(record: MaskRecord) -> RLE:
    """The RLE of a record in any output mode; one that is there is returned as it is."""
    segmentation = record["segmentation"]
    return segmentation if isinstance(segmentation, dict) else encode_rle(segmentation)


def records_size_hw(records: Sequence[MaskRecord], size_hw: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of the image that records belong to.

    Args:
        records: all of one image.
        size_hw: the answer for an image without records; checked against the others.

    Raises:
        ValueError: if the sizes differ, or there is neither a record nor `size_hw`.
    """
    sizes = {_size_hw(record["segmentation"]) for record in records} | ({size_hw} if size_hw else set())
    if len(sizes) != 1:
        found = f"found {sorted(sizes)}" if sizes else "there are no records: pass size_hw=(height, width)"
        raise ValueError(f"records must all belong to one image of one size, but {found}")
    return sizes.pop()


def _size_hw(segmentation: Segmentation) -> tuple[int, int]:
    height, width = segmentation["size"] if isinstance(segmentation, dict) else segmentation.shape
    return int(height), int(width)
