"""Areas of boxes XYXY, and greedy suppression."""

import torch


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """(N, 4) -> (N,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices to keep, best score first: of two boxes whose IoU is above the threshold the better."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    sides = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - torch.maximum(
        boxes[:, None, :2], boxes[None, :, :2]
    )
    overlap = sides.clamp(min=0).prod(dim=2)
    area = box_area(boxes)
    close = overlap / (area[:, None] + area[None, :] - overlap) > iou_threshold
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for index in range(len(boxes)):
        if kept[index]:
            kept[index + 1 :] &= ~close[index, index + 1 :]
    return order[kept]


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """`nms` inside each group: groups are moved so far apart that they cannot overlap."""
    if len(boxes) == 0:
        return torch.empty(0, dtype=torch.int64)
    apart = groups.to(boxes) * (boxes.max() - boxes.min() + 1)
    return nms(boxes + apart[:, None], scores, iou_threshold)
