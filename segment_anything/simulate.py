"""A person who clicks, simulated: training and evaluation share these rules.

Training (Segment Anything, https://arxiv.org/abs/2304.02643, appendix A "Training algorithm") draws points uniformly
from where the mask is wrong. Evaluation (same paper, section 7.1, after https://arxiv.org/abs/2102.06583) clicks where
an error is largest, at the point farthest from its border.

Coordinates are (x, y) of pixel centres in the frame of the masks that are passed. Letters: N masks of H x W.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from segment_anything._optional import require

BoolMask = npt.NDArray[np.bool_]


def random_points(masks: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """A point of every mask, each of its pixels equally likely.

    Args:
        masks: (N, H, W) bool.
        generator: source of randomness, on the device of `masks`.

    Returns:
        (N, 2) float32 x, y. An empty mask gives (0, 0): check with `masks.any` where it matters.
    """
    count, _, width = masks.shape
    weight = torch.rand(masks.shape, generator=generator, device=masks.device) + 1e-6
    index = torch.where(masks, weight, 0.0).view(count, -1).argmax(dim=1)
    return torch.stack([index % width, index // width], dim=1).float()


def random_error_points(
    predicted: torch.Tensor, truth: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next training click of every object: uniform over the pixels where the prediction is wrong.

    Where nothing is wrong, the point is drawn from the truth (or, if that is empty, from the whole image).

    Args:
        predicted, truth: (N, H, W) bool.
        generator: source of randomness.

    Returns:
        Points (N, 2) float32 and labels (N,) int64: 1 where the object was missed, 0 where background was taken.
    """
    wrong = predicted ^ truth
    nothing_wrong = ~wrong.flatten(1).any(dim=1)
    empty = ~truth.flatten(1).any(dim=1)
    candidates = torch.where(nothing_wrong[:, None, None], truth | empty[:, None, None], wrong)
    points = random_points(candidates, generator)
    x, y = points.long().unbind(1)
    labels = truth[torch.arange(len(truth), device=truth.device), y, x].long()
    return points, labels


def mask_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Tight boxes (N, 4) XYXY float32 of (N, H, W) bool masks, corners at the outermost pixels; empty: zeros."""
    _, height, width = masks.shape
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    y, x = torch.arange(height, device=masks.device), torch.arange(width, device=masks.device)
    x0 = torch.where(columns, x, width).amin(dim=1)
    y0 = torch.where(rows, y, height).amin(dim=1)
    x1 = torch.where(columns, x, -1).amax(dim=1)
    y1 = torch.where(rows, y, -1).amax(dim=1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * columns.any(dim=1)[:, None]


def noisy_boxes(
    boxes_xyxy: torch.Tensor,
    size_hw: tuple[int, int],
    generator: torch.Generator | None = None,
    relative: float | torch.Tensor = 0.1,
    at_most: float = 20.0,
) -> torch.Tensor:
    """Boxes as a person draws them: every coordinate off by noise of 10 % of the side, at most 20 pixels.

    Args:
        boxes_xyxy: (N, 4).
        size_hw: height and width that the result is clipped to.
        generator: source of randomness.
        relative: standard deviation as a share of the box's width (x) or height (y); (N, 1) for each box its own.
        at_most: largest shift in pixels.

    Returns:
        (N, 4), every box at least one pixel wide and high.
    """
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=1.0).repeat(1, 2)
    noise = torch.randn(boxes_xyxy.shape, generator=generator, device=boxes_xyxy.device) * relative * sides
    moved = boxes_xyxy + noise.clamp(-at_most, at_most)
    limit = torch.tensor([size_hw[1] - 1, size_hw[0] - 1] * 2, device=moved.device, dtype=moved.dtype)
    moved = torch.minimum(moved.clamp(min=0), limit)
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    low = torch.minimum(low, limit[:2] - 1).clamp(min=0)
    return torch.cat([low, torch.maximum(high, low + 1)], dim=1)


def farthest_point(region: BoolMask, clicked: Sequence[tuple[int, int]] = ()) -> tuple[tuple[int, int], float]:
    """The pixel of `region` (H, W) farthest from its border, the image's edge counting as border, and its distance.

    The first such pixel in row order if several are equally far. Pixels (x, y) of `clicked` count as distance 0.

    Raises:
        ValueError: if the region is empty.
    """
    if not region.any():
        raise ValueError("region must hold at least one pixel, got an empty mask")
    ndimage = require("scipy.ndimage", extra="eval")
    distance = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    for x, y in clicked:
        distance[y, x] = 0
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return (int(column), int(row)), float(distance[row, column])


def next_click_farthest(
    predicted: BoolMask | None, truth: BoolMask, clicked: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[int, int], int]:
    """The next evaluation click: centre of the largest error, by distance to its border.

    Missed parts and wrongly taken parts compete; the larger distance wins, a missed part wins a tie. As in the
    benchmarks of interactive segmentation, no pixel is clicked twice while another one is wrong.

    Args:
        predicted: (H, W) bool, or None for the first click.
        truth: (H, W) bool, not empty.
        clicked: (x, y) of the clicks so far.

    Returns:
        The point (x, y) and its label, 1 on the object, 0 on background. A perfect prediction is clicked at the centre
        of the object.
    """
    missed = truth if predicted is None else truth & ~predicted
    taken = np.zeros_like(truth) if predicted is None else predicted & ~truth
    if not missed.any() and not taken.any():
        return farthest_point(truth)[0], 1
    best_missed = farthest_point(missed, clicked) if missed.any() else ((0, 0), 0.0)
    best_taken = farthest_point(taken, clicked) if taken.any() else ((0, 0), 0.0)
    if clicked and best_missed[1] == best_taken[1] == 0:  # every wrong pixel was clicked already
        return next_click_farthest(predicted, truth)
    if best_missed[1] >= best_taken[1]:
        return best_missed[0], 1
    return best_taken[0], 0
