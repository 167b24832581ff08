"""Prompts as exported decoders take them: one padded list of labelled points, and masks with a flag each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segment_anything.geometry import ImageGeometry
from segment_anything.prompts import Prompt

ABSENT, PADDING, FIRST_CORNER = -2, -1, 2
"""Labels of points besides 1 and 0; the second corner of a box follows the first (`modeling.labelled_prompts`)."""

Floats = npt.NDArray[np.float32]


def labelled_points(prompts: Sequence[Prompt], geometry: ImageGeometry) -> tuple[Floats, Floats]:
    """Points and corners of boxes of N objects in input pixels: coordinates (N, P, 2) and labels (N, P).

    An object with points and no box gets a padding point, as the network was trained; shorter lists are filled up with
    absent points, which take no part. P is at least 1.
    """
    lists = [_points_of(prompt) for prompt in prompts]
    length = max(1, *(len(labels) for _, labels in lists))
    coords = np.zeros((len(lists), length, 2), dtype=np.float32)
    labels = np.full((len(lists), length), ABSENT, dtype=np.float32)
    scale = np.array(geometry.scale_xy, dtype=np.float32)
    for row, (points_xy, roles) in enumerate(lists):
        coords[row, : len(roles)] = points_xy * scale
        labels[row, : len(roles)] = roles
    coords[labels == PADDING] = 0
    return coords, labels


def _points_of(prompt: Prompt) -> tuple[Floats, list[int]]:
    points, labels = [], []
    if prompt.points_xy is not None and prompt.labels is not None:
        points.append(prompt.points_xy)
        labels += prompt.labels.tolist()
    if prompt.box_xyxy is not None:
        points.append(prompt.box_xyxy.reshape(2, 2))
        labels += [FIRST_CORNER, FIRST_CORNER + 1]
    elif points:
        points.append(np.zeros((1, 2), dtype=np.float32))
        labels.append(PADDING)
    return np.concatenate(points or [np.zeros((0, 2), dtype=np.float32)]).astype(np.float32), labels


def mask_prompts(prompts: Sequence[Prompt], geometry: ImageGeometry, size: int) -> tuple[Floats, Floats]:
    """Masks of N objects at low resolution: logits (N, 1, size, size), and 1 or 0 (N,) for whether there is one.

    Raises:
        ValueError: if logits have another size.
    """
    logits = np.zeros((len(prompts), 1, size, size), dtype=np.float32)
    has_mask = np.zeros(len(prompts), dtype=np.float32)
    for row, prompt in enumerate(prompts):
        given = prompt.low_res_array(geometry, size)
        if given is not None:
            logits[row], has_mask[row] = given, 1
    return logits, has_mask
