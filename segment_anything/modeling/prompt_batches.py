"""Prompts of people -> batches of tensors: only objects whose prompts have the same parts are decoded together.

Letters: N objects, P points of each, g embedding cells a side.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from segment_anything.geometry import ImageGeometry
from segment_anything.modeling.prompt_encoder import Points
from segment_anything.prompts import Prompt, Prompts

Tensors = tuple[Points | None, torch.Tensor | None, torch.Tensor | None]
"""Points, boxes and masks in the input's frame, as `PromptEncoder.forward` takes them."""


def batches(
    geometry: ImageGeometry,
    prompts: Prompts | Prompt | Sequence[Prompt],
    multimask_output: bool | None,
    batch_size: int,
) -> Iterator[tuple[list[int], list[Prompt]]]:
    """Checked prompts, and their indices, in batches of the same parts.

    Raises:
        ValueError: if a prompt does not fit the image, or `batch_size` is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    prompts = Prompts([prompts] if isinstance(prompts, Prompt) else prompts)
    for prompt in prompts:
        prompt.check_inside(geometry.original_size_hw)
    completed = [prompt.completed() for prompt in prompts]
    groups: dict[object, list[int]] = {}
    for index, prompt in enumerate(completed):  # only objects with the same number of tokens share a batch
        groups.setdefault(_signature(prompt, multimask_output), []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            yield batch, [completed[i] for i in batch]


def to_tensors(geometry: ImageGeometry, prompts: Sequence[Prompt], mask_side: int) -> Tensors:
    """Points (N, P, 2) with labels, boxes (N, 4) and masks (N, 1, 4g, 4g) of N prompts that have the same parts.

    Args:
        geometry: of the image.
        prompts: completed (`Prompt.completed`).
        mask_side: 4g.
    """
    points = boxes = masks = None
    if len(prompts[0]):
        coords = torch.from_numpy(np.stack([p.points_xy for p in prompts]))  # type: ignore[misc]
        labels = torch.from_numpy(np.stack([p.labels for p in prompts]))  # type: ignore[misc]
        points = geometry.points_to_input(coords), labels
    if prompts[0].box_xyxy is not None:
        boxes = geometry.boxes_to_input(torch.from_numpy(np.stack([p.box_xyxy for p in prompts])))  # type: ignore[misc]
    logits = [p.low_res_logits(geometry, mask_side) for p in prompts]
    if logits[0] is not None:
        masks = torch.stack(logits)  # type: ignore[arg-type]
    return points, boxes, masks


def _signature(prompt: Prompt, multimask_output: bool | None) -> tuple[int, bool, bool, bool]:
    has_mask = prompt.mask is not None or prompt.mask_logits is not None
    return len(prompt), prompt.box_xyxy is not None, has_mask, multimask_output is None and prompt.is_ambiguous
