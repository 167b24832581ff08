"""All masks of an image laid into one image of numbers, each pixel to one mask; and back.

Letters: H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from segment_anything.records import MaskRecord, make_record, record_mask, records_size_hw

FlattenPolicy = Literal["small_on_top", "large_on_top", "score"]


def to_label_map(
    records: Sequence[MaskRecord],
    *,
    policy: FlattenPolicy = "small_on_top",
    size_hw: tuple[int, int] | None = None,
) -> tuple[npt.NDArray[np.int32], float]:
    """Lay all masks into one image, each pixel to one of them.

    Args:
        records: all of one image.
        policy: who gets a pixel that several masks claim: the smallest, the largest, or the one with the highest
            predicted IoU ("score"). Of equals, the first.
        size_hw: the image's size, needed if there are no records.

    Returns:
        labels (H, W) int32, i + 1 for record i and 0 where no mask is; and the share of the image that masks cover.

    Raises:
        ValueError: for an unknown policy, or "score" with records that have none.
    """
    if policy not in get_args(FlattenPolicy):
        raise ValueError(f"policy must be one of {', '.join(get_args(FlattenPolicy))}, but is {policy!r}")
    if policy == "score" and not all("predicted_iou" in record for record in records):
        raise ValueError('policy "score" needs records with predicted_iou; choose "small_on_top" or "large_on_top"')
    labels = np.zeros(records_size_hw(records, size_hw), dtype=np.int32)
    ranks = [_rank(record, policy) for record in records]
    for i in sorted(range(len(records)), key=lambda i: (ranks[i], -i)):  # the last one painted lies on top
        labels[record_mask(records[i])] = i + 1
    return labels, float(np.count_nonzero(labels) / max(labels.size, 1))


def _rank(record: MaskRecord, policy: FlattenPolicy) -> float:
    if policy == "score":
        return record["predicted_iou"]
    return -record["area"] if policy == "small_on_top" else record["area"]


def from_label_map(labels: npt.NDArray[Any]) -> list[MaskRecord]:
    """A record for every value but 0 in an (H, W) image of whole numbers, in order of value."""
    return [make_record(labels == value) for value in np.unique(labels) if value != 0]
