"""Drawn prompts on an image without gradients: `DrawnPromptEncoder` and `PromptMixer` in fewer operations.

Exact in real arithmetic; the tests compare it with the plain modules, which stay the definition:

- The image's share of every linear step before the first activation is computed once an image.
- The last layer of the drawing and the mixer's first are linear, so their product is one layer on 32 channels.
- Maps lie channels last throughout, so a 1 x 1 convolution is a linear layer, applied to as many cells as fit a cache.
- The grounded prompt is given as cells with the image in them, which is what the decoder reads.

Letters: B objects, C channels of the embedding, H hidden channels of the drawing, g embedding cells a side.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, layer_norm

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.linear import is_watched, linear
from segment_anything.modeling.nano import DrawnPromptEncoder, MixBlock, PromptMixer
from segment_anything.modeling.prompt_encoder import Points, PromptEncoder

CELLS_AT_ONCE = 1024
"""Cells of a thread that go through a `MixBlock` together, on a CPU: their channels fit a core's cache."""

_KNOWN = {PromptMixer, MixBlock, LayerNorm2d, nn.Conv2d, nn.Hardswish, nn.GELU, nn.ReLU, nn.Sequential}


def can_mix(encoder: nn.Module) -> bool:
    """Whether `PreparedMixer` computes the same as `encoder`: known modules, and no hook on any."""
    if type(encoder) is not DrawnPromptEncoder or is_watched(encoder):
        return False
    return all(
        type(module) in _KNOWN and not is_watched(module)
        for part in (encoder.drawing, encoder.mixer)
        for module in part.modules()
    )


@dataclass(frozen=True, eq=False)
class Drawn:
    """The dense prompts of B objects before they meet the image."""

    hidden: torch.Tensor
    """(B, H, g, g), channels last: the drawing before its last layer."""
    dense: torch.Tensor
    """(B, C, g, g): the dense prompt without the drawing."""

    def __getitem__(self, part: slice) -> "Drawn":
        return Drawn(self.hidden[part], self.dense[part])


def draw(
    encoder: DrawnPromptEncoder, points: Points | None, boxes: torch.Tensor | None, masks: torch.Tensor | None
) -> tuple[torch.Tensor, Drawn]:
    """As `encoder(points, boxes, masks)`: tokens, and the dense prompts."""
    sparse, dense = PromptEncoder.forward(encoder, points, boxes, masks)
    convolution, activation, _ = encoder.drawing
    return sparse, Drawn(activation(convolution(encoder.draw(points, boxes, dense))), dense)


class PreparedMixer:
    """The mixer for the objects of one image. It changes nothing after construction: threads may share it."""

    def __init__(
        self, encoder: DrawnPromptEncoder, image_embeddings: torch.Tensor, dense_everywhere: torch.Tensor | None
    ) -> None:
        """Prepare an image.

        Args:
            encoder: for which `can_mix` holds.
            image_embeddings: (1, C, g, g).
            dense_everywhere: (C,) if all objects to come have this dense prompt in every cell beside their drawing
                (no mask prompt); None if each has its own.
        """
        self.mixer, last = encoder.mixer, encoder.drawing[2]
        assert isinstance(last, nn.Conv2d)
        self.is_shared = dense_everywhere is not None
        image = image_embeddings.contiguous(memory_format=torch.channels_last)
        if dense_everywhere is not None:
            image = image + dense_everywhere.view(1, -1, 1, 1)
        down = self.mixer.down
        self.image = image.permute(0, 2, 3, 1)  # 1 g g C
        self.image_down = conv2d(image, down.weight, down.bias, stride=2)
        self.last = last.weight.flatten(1)  # C H
        joint = torch.einsum("ocyx,ch->ohyx", down.weight, self.last)
        self.last_down = joint.contiguous(memory_format=torch.channels_last)

    def coarse(self, drawn: Drawn) -> torch.Tensor:
        """What the pyramid adds to the cells of B objects, at twice their stride: (B, C, g / 2, g / 2)."""
        mixer = self.mixer
        middle = conv2d(drawn.hidden, self.last_down, stride=2).add_(self.image_down)
        if not self.is_shared:
            dense = drawn.dense.contiguous(memory_format=torch.channels_last)
            middle += conv2d(dense, mixer.down.weight, stride=2)
        middle = mix(mixer.enter, middle)
        bottom = mixer.deeper(middle)
        for block in mixer.deep:
            bottom = mix(block, bottom)  # type: ignore[arg-type]
        middle = middle + interpolate(_pointwise(mixer.rise, bottom), scale_factor=2.0, mode="nearest")
        for block in mixer.leave:
            middle = mix(block, middle)  # type: ignore[arg-type]
        return _pointwise(mixer.up, middle)

    def cells(self, drawn: Drawn, coarse: torch.Tensor) -> torch.Tensor:
        """The image with the prompts of B objects in it: (B, g * g, C).

        Args:
            drawn: of these objects.
            coarse: of these objects, from `coarse`.
        """
        x = linear(drawn.hidden.permute(0, 2, 3, 1), self.last, None).add_(self.image)  # B g g C
        if not self.is_shared:
            x += drawn.dense.permute(0, 2, 3, 1)
        x += interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        return mix(self.mixer.local, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)


def mix(block: MixBlock, x: torch.Tensor) -> torch.Tensor:
    """`block(x)` for a map (B, C, h, w) that lies channels last in memory, as the answer does."""
    near = block.depthwise(x).permute(0, 2, 3, 1)  # B h w C
    cells, out = near.flatten(0, 2), x.permute(0, 2, 3, 1).flatten(0, 2).clone()
    widen, narrow = block.widen.weight.flatten(1), block.narrow.weight.flatten(1)
    step = CELLS_AT_ONCE * torch.get_num_threads() if x.device.type == "cpu" else max(1, len(cells))
    for start in range(0, len(cells), step):
        y = layer_norm(
            cells[start : start + step], (cells.shape[1],), block.norm.weight, block.norm.bias, block.norm.eps
        )
        y = linear(y, widen, block.widen.bias, block.act)
        out[start : start + step] += linear(y, narrow, block.narrow.bias)
    return out.view(near.shape).permute(0, 3, 1, 2)


def _pointwise(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution of a map (B, C, h, w) that lies channels last in memory, as the answer does."""
    return linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
