"""One image, its true masks, and a model: simulated clicks and boxes -> IoU of the masks the model draws.

It knows nothing of data sets and of averages; `points_boxes.py` puts its traces together.

Letters: N objects, C masks per prompt (3 or 1), H and W original pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

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


class Encoded:
    """A model that has seen an image, and the time it takes to answer."""

    def __init__(self, sam: Sam, image: NDArray[np.uint8]) -> None:
        """Encode `image`, (H, W, 3) uint8 RGB."""
        self.sam = sam
        started = perf_counter()
        with torch.inference_mode():
            self.embedding: ImageEmbedding = sam.encode(image)
        if sam.device.type == "cuda":
            torch.cuda.synchronize(sam.device)
        self.encode_seconds = perf_counter() - started
        self.decode_seconds = 0.0
        self.prompts = 0

    def at_once(self, masks: int) -> int:
        """How many objects may be decoded together so that their full-size logits stay within bounds."""
        geometry = self.embedding.geometry
        pixels = max(int(np.prod(geometry.original_size_hw)), geometry.image_size**2)
        return max(1, _PIXELS_AT_ONCE // (masks * pixels))

    def decode(
        self, prompts: Sequence[Prompt], *, three: bool
    ) -> tuple[Bool, NDArray[np.float32], NDArray[np.float32]]:
        """Masks (N, C, H, W) bool, predicted IoU (N, C), low-resolution logits (N, C, 4g, 4g)."""
        started = perf_counter()
        with torch.inference_mode():
            decoded = self.sam.decode(self.embedding, prompts, multimask_output=three)
            masks = decoded.masks(self.sam.mask_threshold).cpu().numpy()
            quality = decoded.iou_predictions.float().cpu().numpy()
        self.decode_seconds += perf_counter() - started
        self.prompts += len(prompts)
        return masks, quality, decoded.low_res_logits.float().cpu().numpy()


def weights_of(sam: Sam) -> str:
    """A short name of all weights; `Sam.fingerprint` tells those of the image encoder only."""
    return fingerprint_weights(dict(sam.state_dict()))[:16]


@dataclass(frozen=True)
class BoxResult:
    """The single mask drawn for one box."""

    iou: float
    predicted: float
    boundary_iou: float
    mask: Bool
    """(H, W) bool."""


def boxes_to_masks(encoded: Encoded, truths: Bool, boxes_xyxy: NDArray[np.float64]) -> list[BoxResult]:
    """Draw a single mask for each box (N, 4) in original pixels, and compare it with its truth (N, H, W) bool."""
    results: list[BoxResult] = []
    step = encoded.at_once(masks=1)
    for start in range(0, len(truths), step):
        boxes = usable_boxes(boxes_xyxy[start : start + step], truths.shape[1:])
        masks, predicted, _ = encoded.decode([Prompt.make(box=box) for box in boxes], three=False)
        for mask, quality, truth in zip(masks[:, 0], predicted[:, 0], truths[start : start + step], strict=True):
            results.append(BoxResult(iou(mask, truth), float(quality), boundary_iou(mask, truth), mask))
    return results


def usable_boxes(boxes_xyxy: NDArray[np.float64], size_hw: tuple[int, ...]) -> NDArray[np.float64]:
    """Boxes (N, 4) clipped to the image and at least one pixel wide and high, as a prompt must be."""
    height, width = size_hw
    low = np.clip(boxes_xyxy[:, :2], 0, [width - 1, height - 1])
    high = np.clip(boxes_xyxy[:, 2:], 0, [width, height])
    return np.concatenate([low, np.maximum(high, low + 1)], axis=1)


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


def click_through(
    encoded: Encoded,
    truths: Bool,
    *,
    clicks: int,
    click_masks: ClickMasks = "three",
    limit: int = 0,
    target: float = 1.0,
) -> list[ClickTrace]:
    """Click on each object: first where it is farthest from its border, then in the middle of the largest error.

    Args:
        encoded: the model and the image.
        truths: (N, H, W) bool, none empty.
        clicks: clicks given to every object.
        click_masks: how many masks are asked for after the first click.
        limit: objects whose chosen mask never reached `target` are clicked on up to this number.
        target: IoU at which clicking beyond `clicks` ends.

    Returns:
        One trace an object, of at least `clicks` entries.
    """
    step = encoded.at_once(masks=3)
    traces: list[ClickTrace] = []
    for start in range(0, len(truths), step):
        objects = [_Clicked(truth) for truth in truths[start : start + step]]
        for number in range(1, max(clicks, limit) + 1):
            open_objects = [item for item in objects if item.goes_on(number, clicks, target)]
            if not open_objects:
                break
            _click_once(encoded, open_objects, three=click_masks == "three" or number == 1)
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
        self.low_res: NDArray[np.float32] | None = None
        self.perfect = False

    def goes_on(self, number: int, clicks: int, target: float) -> bool:
        return not self.perfect and (number <= clicks or max(self.trace.chosen) < target)

    def click(self) -> Prompt:
        """Add the next click; all clicks so far and the last mask are the prompt."""
        point, label = _next_click(self.mask, self.truth, self.points)
        self.points.append(point)
        self.labels.append(label)
        return Prompt.make(points=self.points, labels=self.labels, mask_logits=self.low_res)

    def note(self, masks: Bool, predicted: NDArray[np.float32], low_res: NDArray[np.float32]) -> None:
        ious = [iou(mask, self.truth) for mask in masks]
        best = int(np.argmax(predicted))
        self.trace.chosen.append(ious[best])
        self.trace.predicted.append(float(predicted[best]))
        self.trace.oracle.append(max(ious))
        # copies, so that the masks not chosen can be freed
        self.mask, self.low_res = masks[best].copy(), low_res[best : best + 1].copy()
        self.perfect = ious[best] == 1.0


def _click_once(encoded: Encoded, objects: Sequence[_Clicked], three: bool) -> None:
    masks, predicted, low_res = encoded.decode([item.click() for item in objects], three=three)
    for item, mask, quality, logits in zip(objects, masks, predicted, low_res, strict=True):
        item.note(mask, quality, logits)


def _next_click(predicted: Bool | None, truth: Bool, clicked: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], int]:
    """`next_click_farthest` on the part of the image where anything is: the same click, found much faster."""
    x0, y0, x1, y1 = (int(side) for side in mask_to_box(truth if predicted is None else truth | predicted))
    part = (slice(y0, y1), slice(x0, x1))
    inside = [(x - x0, y - y0) for x, y in clicked if x0 <= x < x1 and y0 <= y < y1]
    (x, y), label = next_click_farthest(None if predicted is None else predicted[part], truth[part], inside)
    return (x + x0, y + y0), label
