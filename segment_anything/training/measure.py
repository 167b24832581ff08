"""IoU of the masks that a model draws for simulated clicks and boxes, in original pixels, by the evaluation's rules.

The first click takes of three masks the one with the highest predicted IoU; later ones get the single mask, with the
mask before as a prompt. A box gets the single mask (Segment Anything, https://arxiv.org/abs/2304.02643, section 7.1).

Letters: N objects, H and W original pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch

from segment_anything.embedding import ImageEmbedding
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Decoded, Sam
from segment_anything.prompts import Prompt
from segment_anything.simulate import next_click_farthest

PIXELS_AT_ONCE = 1 << 25
"""Full-size logits held at a time (128 MiB of float32)."""


def iou_of_boxes(sam: Sam, embedding: ImageEmbedding, truths: np.ndarray) -> np.ndarray:
    """(N,) IoU with truths (N, H, W) bool, none empty, of the masks drawn for their tight boxes."""
    result = np.zeros(len(truths))
    for part in _parts(embedding, len(truths)):
        prompts = [Prompt.make(box=mask_to_box(truth)) for truth in truths[part]]
        result[part] = _iou(_masks(sam, _decode(sam, embedding, prompts, three=False)), truths[part])
    return result


def iou_of_clicks(sam: Sam, embedding: ImageEmbedding, truths: np.ndarray, clicks: int) -> np.ndarray:
    """(clicks, N) IoU with truths (N, H, W) bool, none empty, after each click in the middle of the largest error."""
    result = np.zeros((clicks, len(truths)))
    for part in _parts(embedding, len(truths)):
        wanted = truths[part]
        points: list[list[tuple[int, int]]] = [[] for _ in wanted]
        labels: list[list[int]] = [[] for _ in wanted]
        masks: np.ndarray | None = None
        logits: Sequence[torch.Tensor | None] = [None] * len(wanted)
        for number in range(clicks):
            for index, truth in enumerate(wanted):
                point, label = _next_click(None if masks is None else masks[index], truth)
                points[index].append(point)
                labels[index].append(label)
            prompts = [
                Prompt.make(points=p, labels=label, mask_logits=mask)
                for p, label, mask in zip(points, labels, logits, strict=True)
            ]
            decoded = _decode(sam, embedding, prompts, three=number == 0).best()
            masks, logits = _masks(sam, decoded), list(decoded.low_res_logits)
            result[number, part] = _iou(masks, wanted)
    return result


def _parts(embedding: ImageEmbedding, count: int) -> list[slice]:
    """Objects decoded together, so that full-size logits stay within bounds."""
    pixels = max(int(np.prod(embedding.geometry.original_size_hw)), embedding.geometry.image_size**2)
    step = max(1, PIXELS_AT_ONCE // pixels)
    return [slice(start, start + step) for start in range(0, count, step)]


def _decode(sam: Sam, embedding: ImageEmbedding, prompts: Sequence[Prompt], three: bool) -> Decoded:
    with torch.inference_mode():
        return sam.decode(embedding, prompts, multimask_output=three)


def _masks(sam: Sam, decoded: Decoded) -> np.ndarray:
    """(N, H, W) bool."""
    with torch.inference_mode():
        return np.asarray(decoded.masks(sam.mask_threshold)[:, 0].cpu().numpy())


def _iou(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    overlap, union = (masks & truths).sum(axis=(1, 2)), (masks | truths).sum(axis=(1, 2))
    return np.asarray(overlap / np.maximum(union, 1))


def _next_click(predicted: np.ndarray | None, truth: np.ndarray) -> tuple[tuple[int, int], int]:
    """`next_click_farthest`, looked for where anything is."""
    x0, y0, x1, y1 = mask_to_box(truth if predicted is None else truth | predicted)
    part = (slice(y0, y1), slice(x0, x1))
    (x, y), label = next_click_farthest(None if predicted is None else predicted[part], truth[part])
    return (int(x + x0), int(y + y0)), label
