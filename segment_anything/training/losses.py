"""The paper's losses: focal and dice 20 : 1 on the best of the masks, and the error of the predicted IoU.

Segment Anything (https://arxiv.org/abs/2304.02643), section 3 "Losses and training" and appendix A "Losses"; focal loss
https://arxiv.org/abs/1708.02002; dice loss https://arxiv.org/abs/1606.04797.

Letters: N objects, K masks predicted for each, h x w logits.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from segment_anything.simulate import mask_boxes

FOCAL_WEIGHT = 20.0
DICE_WEIGHT = 1.0
IOU_WEIGHT = 1.0
NEAR_WEIGHT = 1.5
"""Of the cross-entropy near the object, where it stands in for the focal loss; dice keeps weight 1."""


def focal_loss(
    logits: torch.Tensor, truth: torch.Tensor, alpha: float | None = None, gamma: float = 2.0
) -> torch.Tensor:
    """Mean focal loss of every mask.

    Args:
        logits: (N, K, h, w).
        truth: (N, 1, h, w) in 0..1, the same type as `logits`.
        alpha: weight of foreground pixels, background gets 1 - alpha. The paper names none; 0.25, usual in
            detection, draws boundaries inwards.
        gamma: how strongly easy pixels are discounted.

    Returns:
        (N, K).
    """
    truth = truth.expand_as(logits)
    cross_entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    miss = probability + truth - 2 * probability * truth  # 1 - p_t
    loss = cross_entropy * miss**gamma
    if alpha is not None:
        loss = loss * ((1 - alpha) + (2 * alpha - 1) * truth)
    return loss.mean(dim=(2, 3))


def near_cross_entropy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in which every object counts the same, small or large; not from the paper.

    Two parts are the mean over the object's box grown by half of its sides, one part the mean over everything. A mean
    over everything alone leaves an object of 3 % of the image with 3 % of the gradient (docs/log.md).

    Args:
        logits: (N, K, h, w).
        truth: (N, 1, h, w) in 0..1, the same type as `logits`.

    Returns:
        (N, K).
    """
    boxes = mask_boxes(truth[:, 0] > 0)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2] + 1) * 0.75 + 2
    y = torch.arange(truth.shape[-2], device=truth.device)[None, :]
    x = torch.arange(truth.shape[-1], device=truth.device)[None, :]
    near_x = (x - middle[:, :1]).abs() <= half[:, :1]  # N w
    near_y = (y - middle[:, 1:]).abs() <= half[:, 1:]  # N h
    near = (near_y[:, :, None] & near_x[:, None, :]).to(logits.dtype)
    weight = 2 / 3 * near / near.sum((1, 2), keepdim=True).clamp(min=1) + 1 / 3 / near[0].numel()
    each = binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")
    return (each * weight[:, None]).sum((2, 3))


def dice_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """1 - dice coefficient of every mask, smoothed by one pixel: (N, K, h, w) and (N, 1, h, w) -> (N, K)."""
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return 1 - (2 * overlap + 1) / (total + 1)


def true_iou(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU of every thresholded mask with the truth: (N, K, h, w), (N, 1, h, w) -> (N, K). Two empty masks score 0."""
    predicted, wanted = logits > 0, truth > 0.5
    overlap = (predicted & wanted).sum(dim=(2, 3))
    union = (predicted | wanted).sum(dim=(2, 3))
    return overlap / union.clamp(min=1)


@dataclass(frozen=True)
class MaskLoss:
    """The loss of one round, and what is worth showing of it."""

    total: torch.Tensor
    """Scalar to differentiate."""
    iou: torch.Tensor
    """(N, K) true IoU of every mask, without gradient."""
    mask: torch.Tensor
    """(N,) loss of the mask with the lowest one, predicted IoU left out, without gradient."""


def interactive_loss(
    logits: torch.Tensor, iou_predictions: torch.Tensor, truth: torch.Tensor, near: bool = False
) -> MaskLoss:
    """The loss of one round: the best mask's focal and dice loss, and the squared error of every predicted IoU.

    Args:
        logits: (N, K, h, w).
        iou_predictions: (N, K).
        truth: (N, 1, h, w) in 0..1.
        near: cross-entropy near the object instead of focal loss over everything.
    """
    logits, truth = logits.float(), truth.float()
    by_pixel = NEAR_WEIGHT * near_cross_entropy(logits, truth) if near else FOCAL_WEIGHT * focal_loss(logits, truth)
    each = by_pixel + DICE_WEIGHT * dice_loss(logits, truth)  # N K
    lowest = each.min(dim=1).values
    iou = true_iou(logits.detach(), truth)
    error = (iou_predictions.float() - iou).square().mean()
    return MaskLoss(lowest.mean() + IOU_WEIGHT * error, iou, lowest.detach())
