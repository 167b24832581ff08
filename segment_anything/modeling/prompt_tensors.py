"""Checks prompts that come as tensors in the input's frame: `Sam.forward` and `SamPredictor.predict_torch`.

Prompts in original pixels are checked by `segment_anything.prompts`.

Letters: N objects, P points of each, g embedding cells a side.
"""

import torch

Points = tuple[torch.Tensor, torch.Tensor]


def paired(coords: torch.Tensor | None, labels: torch.Tensor | None) -> Points | None:
    """Points with their labels, or None.

    Raises:
        ValueError: if one came without the other.
    """
    if coords is None and labels is None:
        return None
    if coords is None:
        raise ValueError("point_labels came without point_coords: give both, or neither.")
    if labels is None:
        raise ValueError(
            "point_labels must be supplied if point_coords is supplied: 1 on the object, 0 on background, -1 padding."
        )
    return coords, labels


def check_shapes(
    points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None, mask_side: int
) -> tuple[Points | None, torch.Tensor | None, torch.Tensor | None]:
    """Refuse prompts that do not fit together.

    Args:
        points: coordinates (N, P, 2) and labels (N, P), or None.
        boxes: (N, 4), or (N, 1, 4) as some programs have it, or None.
        masks: (N, 1, 4g, 4g) logits, or None.
        mask_side: 4g.

    Returns:
        the same, boxes as (N, 4).

    Raises:
        ValueError: naming the argument, what was expected, what came, and the cure.
    """
    counts: dict[str, int] = {}
    if points is not None:
        coords, labels = points
        if coords.ndim != 3 or coords.shape[2] != 2:
            raise ValueError(
                f"point_coords must have shape (N, P, 2): N objects of P points each, got {tuple(coords.shape)}. "
                "One object of P points is points[None]; P objects of one point are points[:, None]."
            )
        if labels.shape != coords.shape[:2]:
            raise ValueError(
                f"point_labels must have shape {tuple(coords.shape[:2])}, one for each point, "
                f"got {tuple(labels.shape)}. One object's labels are labels[None]."
            )
        counts["point_coords"] = coords.shape[0]
    if boxes is not None:
        if boxes.ndim == 3 and boxes.shape[1] == 1:
            boxes = boxes[:, 0]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"boxes must have shape (N, 4): x0, y0, x1, y1 for each of N objects, got {tuple(boxes.shape)}. "
                "One box is box[None]."
            )
        counts["boxes"] = boxes.shape[0]
    if masks is not None:
        if masks.ndim != 4 or tuple(masks.shape[1:]) != (1, mask_side, mask_side):
            raise ValueError(
                f"mask_input must have shape (N, 1, {mask_side}, {mask_side}): low-resolution logits of earlier "
                f"predictions, got {tuple(masks.shape)}. Of several masks pick one: low_res_logits[:, :1]."
            )
        counts["mask_input"] = masks.shape[0]
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} for {count}" for name, count in counts.items())
        raise ValueError(f"all prompts must be for the same number of objects, got {each}.")
    return points, boxes, masks


def check_values(points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None) -> None:
    """Refuse numbers that no prompt can have; on a GPU this waits for it.

    Args:
        points, boxes, masks: as in `check_shapes`.

    Raises:
        ValueError: naming the argument and the cure.
    """
    given = {"point_coords": None if points is None else points[0], "boxes": boxes, "mask_input": masks}
    for name, tensor in given.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite numbers, got NaN or infinity among them: leave such rows out.")
    if points is not None and not bool(((points[1] >= -1) & (points[1] <= 1) & (points[1] == points[1].round())).all()):
        raise ValueError(
            "point_labels must be 1 (on the object), 0 (background) or -1 (padding), "
            f"got values from {points[1].min():g} to {points[1].max():g}."
        )
