"""One image, its true masks, and a model: simulated clicks and boxes -> IoU of the masks the model draws.

It knows nothing of data sets and of averages; `points_boxes.py` puts its traces together.

Letters: N objects, C masks per prompt (3 or 1), H and W original pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from segment_anything.embedding import ImageEmbedding, fingerprint_weights
from segment_anything.evaluation.metrics import Bool, boundary_iou, iou
from segment_anything.evaluation.options import ClickMasks
from segment_anything.masks import mask_to_box
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompt
from segment_anything.simulate import next_click_farthest

_PIXELS_AT_ONCE = 1 << 26
"""Full-size logits held at a time (256 MiB of float32)."""


@dataclass
class ClickTrace:
    """What came of each click on one object, from the first on."""

    chosen: list[float] = field(default_factory=list)
    """True IoU of the mask with the highest predicted IoU; the next click corrects this mask."""
    predicted: list[float] = field(default_factory=list)
    """Its predicted IoU."""
    oracle: list[float] = field(default_factory=list)
    """True IoU of the best of the masks."""

    def extend_to(self, count: int) -> None:
        """Repeat the last values up to `count` clicks: a perfect mask needs no more clicks."""
        for values in (self.chosen, self.predicted, self.oracle):
            values += values[-1:] * (count - len(values))


@dataclass(frozen=True)
class BoxResult:
    """The single mask drawn for one box."""

    iou: float
    predicted: float
    boundary_iou: float
    mask: Bool
    """(H, W) bool."""


def weights_of(sam: Sam) -> str:
    """A short name of all weights; `Sam.fingerprint` tells those of the image encoder only."""
    return fingerprint_weights(dict(sam.state_dict()))[:16]


def usable_boxes(boxes_xyxy: NDArray[np.float64], size_hw: tuple[int, ...]) -> NDArray[np.float64]:
    """Boxes (N, 4) clipped to the image and at least one pixel wide and high, as a prompt must be."""
    height, width = size_hw
    low = np.clip(boxes_xyxy[:, :2], 0, [width - 1, height - 1])
    high = np.clip(boxes_xyxy[:, 2:], 0, [width, height])
    return np.concatenate([low, np.maximum(high, low + 1)], axis=1)


def objects_at_once(size_hw: tuple[int, int], masks: int = 3) -> int:
    """How many objects may be decoded together so that full-size logits stay within bounds."""
    return max(1, _PIXELS_AT_ONCE // (masks * size_hw[0] * size_hw[1]))


def boxes_to_masks(
    sam: Sam, embedding: ImageEmbedding, truths: Bool, boxes_xyxy: NDArray[np.float64]
) -> list[BoxResult]:
    """Draw a single mask for each box, and compare it with its truth.

    Args:
        sam: the model.
        embedding: of the image.
        truths: (N, H, W) bool.
        boxes_xyxy: (N, 4) in original pixels.
    """
    results: list[BoxResult] = []
    step = objects_at_once(embedding.geometry.original_size_hw, masks=1)
    for start in range(0, len(truths), step):
        boxes = usable_boxes(boxes_xyxy[start : start + step], truths.shape[1:])
        prompts = [Prompt.make(box=box) for box in boxes]
        masks, predicted, _ = _decode(sam, embedding, prompts, multimask=False)
        for mask, quality, truth in zip(masks[:, 0], predicted[:, 0], truths[start : start + step], strict=True):
            results.append(BoxResult(iou(mask, truth), float(quality), boundary_iou(mask, truth), mask))
    return results


def click_through(
    sam: Sam,
    embedding: ImageEmbedding,
    truths: Bool,
    *,
    clicks: int,
    click_masks: ClickMasks = "three",
    limit: int = 0,
    target: float = 1.0,
) -> list[ClickTrace]:
    """Click on each object: first where it is farthest from its border, then in the middle of the largest error.

    Args:
        sam: the model.
        embedding: of the image.
        truths: (N, H, W) bool, none empty.
        clicks: clicks given to every object.
        click_masks: how many masks are asked for after the first click.
        limit: objects whose chosen mask never reached `target` are clicked on up to this number.
        target: IoU at which clicking beyond `clicks` ends.

    Returns:
        One trace an object, of at least `clicks` entries.
    """
    step = objects_at_once(embedding.geometry.original_size_hw)
    traces: list[ClickTrace] = []
    for start in range(0, len(truths), step):
        objects = [_Clicked(truth) for truth in truths[start : start + step]]
        for number in range(1, max(clicks, limit) + 1):
            open_objects = [o for o in objects if o.goes_on(number, clicks, target)]
            if not open_objects:
                break
            _click_once(sam, embedding, open_objects, three=click_masks == "three" or number == 1)
        for item in objects:
            item.trace.extend_to(clicks)
        traces += [item.trace for item in objects]
    return traces


class _Clicked:
    """One object while it is clicked on."""

    def __init__(self, truth: Bool) -> None:
        self.truth = truth
        self.trace = ClickTrace()
        self.points: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self.mask: Bool | None = None
        self.low_res: torch.Tensor | None = None
        self.perfect = False

    def goes_on(self, number: int, clicks: int, target: float) -> bool:
        return not self.perfect and (number <= clicks or max(self.trace.chosen) < target)

    def add_click(self) -> None:
        point, label = _next_click(self.mask, self.truth)
        self.points.append(point)
        self.labels.append(label)

    def prompt(self) -> Prompt:
        return Prompt.make(points=self.points, labels=self.labels, mask_logits=self.low_res)

    def note(self, masks: Bool, predicted: NDArray[np.float32], low_res: torch.Tensor) -> None:
        ious = [iou(mask, self.truth) for mask in masks]
        best = int(np.argmax(predicted))
        self.trace.chosen.append(ious[best])
        self.trace.predicted.append(float(predicted[best]))
        self.trace.oracle.append(max(ious))
        self.mask, self.low_res = masks[best].copy(), low_res[best : best + 1].clone()
        self.perfect = ious[best] == 1.0


def _next_click(predicted: Bool | None, truth: Bool) -> tuple[tuple[int, int], int]:
    """`next_click_farthest` on the part of the image where anything is: the same click, found much faster."""
    where = mask_to_box(truth if predicted is None else truth | predicted)
    x0, y0, x1, y1 = (int(value) for value in where)
    part = (slice(y0, y1), slice(x0, x1))
    (x, y), label = next_click_farthest(None if predicted is None else predicted[part], truth[part])
    return (x + x0, y + y0), label


def _click_once(sam: Sam, embedding: ImageEmbedding, objects: Sequence[_Clicked], three: bool) -> None:
    for item in objects:
        item.add_click()
    masks, predicted, low_res = _decode(sam, embedding, [item.prompt() for item in objects], multimask=three)
    for item, mask, quality, logits in zip(objects, masks, predicted, low_res, strict=True):
        item.note(mask, quality, logits)


def _decode(
    sam: Sam, embedding: ImageEmbedding, prompts: Sequence[Prompt], multimask: bool
) -> tuple[Bool, NDArray[np.float32], torch.Tensor]:
    """Masks (N, C, H, W) bool, predicted IoU (N, C), low-resolution logits (N, C, 4g, 4g)."""
    with torch.inference_mode():
        decoded = sam.decode(embedding, prompts, multimask_output=multimask)
        masks = decoded.masks(sam.mask_threshold).cpu().numpy()
    return masks, decoded.iou_predictions.float().cpu().numpy(), decoded.low_res_logits
