"""A model whose answers are known: on pictures of flat colours it segments whatever has the colour under the prompt.

It has the interface of `Sam` that evaluation uses, and three masks with a fixed order of confidence: the region (0.6),
the region without its left half (0.9), everything that is not black (0.3). From the second point on it is sure of the
region.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segment_anything.geometry import ImageGeometry
from segment_anything.prompts import Prompt


@dataclass(frozen=True)
class Seen:
    """The embedding: the picture itself."""

    image: np.ndarray
    geometry: ImageGeometry


@dataclass(frozen=True)
class Answer:
    """What `decode` gives."""

    low_res_logits: torch.Tensor
    iou_predictions: torch.Tensor

    def masks(self, threshold: float = 0.0) -> torch.Tensor:
        return self.low_res_logits > threshold

    def best(self) -> "Answer":
        index = self.iou_predictions.argmax(dim=1, keepdim=True)
        rows = torch.arange(len(index))[:, None]
        return Answer(self.low_res_logits[rows, index], self.iou_predictions[rows, index])


class ColourSam:
    """See the module."""

    mask_threshold = 0.0
    name = "colour"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.encoded = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def encode(self, image: np.ndarray) -> Seen:
        self.encoded += 1
        return Seen(image, ImageGeometry((image.shape[0], image.shape[1]), 64))

    def decode(self, embedding: Any, prompts: Sequence[Prompt], multimask_output: bool | None = True) -> Answer:
        masks, qualities = zip(*(self._answer(embedding.image, prompt) for prompt in prompts), strict=True)
        logits, quality = torch.stack(masks), torch.tensor(qualities)
        return Answer(logits, quality) if multimask_output else Answer(logits[:, :1], quality[:, :1])

    def postprocess_masks(self, masks: torch.Tensor, input_size: Any, original_size: Any) -> torch.Tensor:
        return masks

    def _answer(self, image: np.ndarray, prompt: Prompt) -> tuple[torch.Tensor, list[float]]:
        box, points = prompt.box_xyxy, prompt.points_xy
        if box is not None:
            x, y = (int(v) for v in (torch.as_tensor(box)[:2] + torch.as_tensor(box)[2:]) / 2)
        else:
            assert points is not None
            x, y = (int(value) for value in points[0])
        region = (image == image[y, x]).all(axis=2)
        columns, half = np.nonzero(region)[1], region.copy()
        half[:, : (columns.min() + columns.max() + 1) // 2] = False
        masks = np.stack([region, half, image.any(axis=2)])
        sure = points is not None and len(points) > 1
        return torch.from_numpy(np.where(masks, 10.0, -10.0)), [0.95, 0.9, 0.3] if sure else [0.6, 0.9, 0.3]
