"""A model's encoder and decoder as recorded calls, at the few shapes that they are asked for.

Letters: B images, S side of the input, N objects, P points of each, g embedding cells a side.
"""

import threading

import torch
from torch import nn

from segment_anything.modeling.cuda.batch_decoder import decode_batch
from segment_anything.modeling.cuda.recorded_calls import CudaGraphs, RecordedCalls, Recorder
from segment_anything.modeling.linear import plain_wanted
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import Points, PromptEncoder
from segment_anything.modeling.weights_watch import WeightsWatch

MOST_OBJECTS = 64
"""Objects decoded in one call."""
MOST_IMAGES = 8
"""Images encoded in one recorded call; more keep the device busy without."""


def bucket(count: int) -> int:
    """The number of objects that a recording for `count` of them has: 1, 2, 4, ..., 64."""
    return 1 << (count - 1).bit_length()


class _Part:
    """Some modules of a model, and the recorded calls of what they are now."""

    def __init__(self, recorder: Recorder, turns: "threading.RLock") -> None:
        self._recorder = recorder
        self._calls = RecordedCalls(recorder, turns)
        self._watch: WeightsWatch | None = None
        self._lock = threading.Lock()

    def calls(self, device: torch.device, *modules: nn.Module) -> RecordedCalls | None:
        """To call functions of these modules; None where calls cannot be recorded.

        That is with gradients, for an export, under autocast, in training, and where somebody hooked into a module.
        """
        if not self._recorder.takes(device) or plain_wanted() or torch.is_autocast_enabled(device.type):
            return None
        with self._lock:
            if self._watch is None or self._watch.modules != modules or not self._watch.unchanged():
                self._calls.clear()
                self._watch = WeightsWatch(*modules)
            is_plain = not any(module.training for module in modules) and not self._watch.has_hooks()
        return self._calls if is_plain else None


class RecordedSam:
    """Replays a model's calls where a recorder takes the device. Threads may share it; copies of it start empty."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        """Args: recorder: None for CUDA's."""
        recorder = CudaGraphs() if recorder is None else recorder
        turns = threading.RLock()  # one image may be encoded while another is decoded
        self._encoder, self._decoder = _Part(recorder, turns), _Part(recorder, turns)

    def __reduce__(self) -> tuple[type["RecordedSam"], tuple[()]]:
        return RecordedSam, ()

    def encode(self, encoder: nn.Module, images: torch.Tensor) -> torch.Tensor | None:
        """The encoder's embeddings (B, C, g, g) of inputs (B, 3, S, S); None where the call cannot be recorded."""
        calls = self._encoder.calls(images.device, encoder) if len(images) <= MOST_IMAGES else None
        return None if calls is None else calls("encode", lambda x: (encoder(x),), [images], images.device)[0]

    def decode(
        self,
        encoder: PromptEncoder,
        decoder: MaskDecoder,
        features: torch.Tensor,
        points: Points | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`decode_batch`, whose prompts may be on any device; None where the call cannot be recorded.

        The number of prompts is filled up to the next power of two with copies of the last.
        """
        weight = encoder.no_mask_embed.weight
        calls = self._decoder.calls(weight.device, encoder, decoder)
        given = [*(points or (None, None)), boxes, masks]
        kinds = tuple(tensor is not None for tensor in given)
        types = torch.float32, torch.int64, torch.float32, weight.dtype
        prompts = [tensor.to(kind) for tensor, kind in zip(given, types, strict=True) if tensor is not None]
        count = len(prompts[0]) if prompts else 1
        if calls is None or count == 0 or len(features) != 1:
            return None

        def decode(features: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rest = iter(tensors)
            coords, labels, boxes, masks = (next(rest) if kind else None for kind in kinds)
            points = None if coords is None or labels is None else (coords, labels)
            return decode_batch(encoder, decoder, features, points, boxes, masks, multimask_output)

        name, image = ("decode", kinds, multimask_output), features.to(weight.device, weight.dtype)
        parts = []
        for start in range(0, count, MOST_OBJECTS):
            some = [tensor[start : start + MOST_OBJECTS] for tensor in prompts]
            size = len(some[0]) if some else 1
            filled = [filled_up(tensor, bucket(size)) for tensor in some]
            parts.append([found[:size] for found in calls(name, decode, [image, *filled], weight.device)])
        logits, iou = parts[0] if len(parts) == 1 else [torch.cat(found) for found in zip(*parts, strict=True)]
        return logits, iou


def filled_up(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The first axis at `size`, by copies of the last entry."""
    missing = size - len(tensor)
    return tensor if not missing else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
