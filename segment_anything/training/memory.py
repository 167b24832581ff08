"""How much memory a training step will take, found before it is run.

The step is traced with tensors that have shapes and no numbers, and what autograd would keep for the backward pass is
added up; weights, gradients and the optimiser's two moments are counted. What operations need while they run is not
seen; it is taken as a share of what autograd keeps, as measured on a CPU (benchmarks/training.py compares).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segment_anything.modeling import Sam
from segment_anything.training.losses import interactive_loss
from segment_anything.training.prepare import encoder_blocks
from segment_anything.training.rounds import AT_ONCE

WORKING_SHARE = {"fp32": 0.5, "bf16": 1.0}
"""Memory of operations while they run, as a share of what autograd keeps; bf16 makes copies of what it reads."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    encoder: int
    """Kept by the encoder for all images of a batch; 0 where it is frozen."""
    decoder: int
    """Kept by one round of prompts for all objects of one image."""
    working: int
    """Needed by operations while they run."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.encoder + self.decoder + self.working

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "encoder", "decoder", "working")
        listed = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        return f"about {self.total / 2**30:.1f} GiB ({listed})"


def estimate_memory(sam: Sam, *, batch_size: int, objects: int, precision: str) -> MemoryEstimate:
    """Peak memory of a training step of `sam` as it is prepared (`requires_grad`, low rank, checkpointed blocks).

    Args:
        sam: nothing is computed on it, and it is not changed.
        batch_size: images at once.
        objects: of one image; those that are decoded together count (`rounds.AT_ONCE`).
        precision: "fp32" or "bf16".
    """
    parameters = list(sam.parameters())
    trained = [p for p in parameters if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    learns = any(p.requires_grad for p in sam.image_encoder.parameters())
    with FakeTensorMode():
        fake = _as_fake(sam)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            encoder = _encoder_bytes(fake, batch_size if learns else 1, learns)
            decoder = _decoder_bytes(fake, min(objects, AT_ONCE.get(sam.device.type, AT_ONCE["cuda"])), learns)
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        gradients=gradients,
        optimizer=2 * gradients,
        encoder=encoder,
        decoder=decoder,
        working=int(WORKING_SHARE[precision] * (encoder + decoder)),
    )


def _as_fake(sam: Sam) -> Sam:
    """A copy of the model on the CPU whose parameters and buffers have no numbers."""
    memo: dict[int, Any] = {id(sam._fingerprint): None}  # it is of the numbers, which the copy does not have
    for tensor in [*sam.parameters(), *sam.buffers()]:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
        memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(sam, memo)


def _encoder_bytes(sam: Sam, images: int, learns: bool) -> int:
    """What the encoder keeps; with checkpointed blocks also what the largest keeps while it is computed again."""
    if not learns:
        return 0
    inputs = torch.empty(images, 3, sam.image_size, sam.image_size)
    with _kept(sam) as kept:
        sam.image_encoder(inputs)
    checkpointed = [block for block in encoder_blocks(sam.image_encoder) if "forward" in vars(block)]
    if not checkpointed:
        return kept.total
    sizes: list[int] = []
    with _kept(sam) as whole:
        for block in checkpointed:
            del block.forward  # the class has one
            block.register_forward_pre_hook(lambda *_: sizes.append(-whole.total))
            block.register_forward_hook(lambda *_: sizes.append(whole.total))
        sam.image_encoder(inputs)
    return kept.total + max(before + after for before, after in zip(sizes[::2], sizes[1::2], strict=True))


def _decoder_bytes(sam: Sam, objects: int, learns: bool) -> int:
    encoder = sam.prompt_encoder
    cells, side = encoder.image_embedding_size, sam.mask_input_size
    features = torch.empty(1, encoder.embed_dim, *cells, requires_grad=learns)
    points = torch.empty(objects, 8, 2), torch.ones(objects, 8, dtype=torch.int64)
    with _kept(sam) as kept:
        sparse, dense = encoder(points, None, torch.empty(objects, 1, side, side))
        logits, iou = sam.mask_decoder.predict_masks(features, encoder.get_dense_pe(), sparse, dense)
        _ = interactive_loss(logits[:, 1:], iou[:, 1:], torch.empty(objects, 1, side, side)).total
    return kept.total


@dataclass
class _Kept:
    total: int = 0


@contextmanager
def _kept(sam: Sam) -> Iterator[_Kept]:
    """Adds up the bytes that autograd keeps while the context lasts, each storage once, without the model's own."""
    kept = _Kept()
    seen = {t.untyped_storage()._cdata for t in [*sam.parameters(), *sam.buffers()]}
    alive: list[torch.Tensor] = []  # as long as they live no other storage gets their address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.total += storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
