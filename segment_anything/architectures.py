"""The networks that exist, by name: their sizes, and how their parts are put together into a `Sam`.

Every size is written here once. `build_sam` adds weights.
"""

from __future__ import annotations

import abc
import difflib
import functools
import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TinyViT, TwoWayTransformer
from segment_anything.modeling.nano import build_nano_parts

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet, in RGB order, on the scale 0 to 255."""


Parts = tuple[nn.Module, PromptEncoder, MaskDecoder]
"""Image encoder, prompt encoder and mask decoder."""


@dataclass(frozen=True, kw_only=True)
class Architecture(abc.ABC):
    """What a caller must know of every network; the defaults are those of the published models."""

    image_size: int = 1024
    """Side of the square input, in pixels, that its weights were trained at."""
    size_step: int = 16
    """Legal input sizes are the multiples of this many pixels."""
    stride: int = 16
    """Input pixels per embedding cell."""

    @abc.abstractmethod
    def parts(self, image_size: int) -> Parts:
        """The three networks, with fresh weights, for a square input of `image_size` pixels."""


@dataclass(frozen=True, kw_only=True)
class Vit(Architecture):
    """A plain ViT with windows of 14 tokens and four blocks of global attention (paper, appendix A)."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]

    def parts(self, image_size: int) -> Parts:
        encoder = ImageEncoderViT(
            img_size=image_size,
            patch_size=self.stride,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            mlp_ratio=4,
            out_chans=256,
            qkv_bias=True,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=self.global_blocks,
        )
        return encoder, *published_heads(image_size, image_size // self.stride)


@dataclass(frozen=True, kw_only=True)
class TinyVit(Architecture):
    """MobileSAM: TinyViT-5M before SAM's prompt encoder and decoder."""

    def parts(self, image_size: int) -> Parts:
        return TinyViT(img_size=image_size, out_chans=256), *published_heads(image_size, image_size // self.stride)


@dataclass(frozen=True, kw_only=True)
class Nano(Architecture):
    """The bundled model, trained by this project."""

    image_size: int = 512
    size_step: int = 32
    stride: int = 8

    def parts(self, image_size: int) -> Parts:
        return build_nano_parts(image_size)


def published_heads(image_size: int, cells: int) -> tuple[PromptEncoder, MaskDecoder]:
    """Prompt encoder and mask decoder of all published models, for an embedding of `cells` x `cells` cells."""
    prompt_encoder = PromptEncoder(
        embed_dim=256,
        image_embedding_size=(cells, cells),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(
        transformer_dim=256,
        transformer=transformer,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    return prompt_encoder, decoder


ARCHITECTURES: dict[str, Architecture] = {
    "vit_h": Vit(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "vit_l": Vit(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_b": Vit(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_t": TinyVit(),
    "nano": Nano(),
}
"""Every network by its name."""


def architecture(name: str) -> Architecture:
    """The sizes of the model called `name`.

    Raises:
        ValueError: if there is none; the message lists the names, and the closest one.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), ARCHITECTURES, n=1)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise ValueError(f"name must be one of {', '.join(sorted(ARCHITECTURES))}; got {name!r}.{hint}")


def check_image_size(name: str, image_size: int) -> int:
    """`image_size`, if the model called `name` can be built for it.

    Raises:
        ValueError: if it is not a positive multiple of the model's step; the message names the nearest legal sizes.
    """
    step = architecture(name).size_step
    try:
        image_size = operator.index(image_size)
    except TypeError as error:
        raise ValueError(f"image_size must be a whole number of pixels; got {image_size!r}.") from error
    if image_size < step or image_size % step:
        below = max(image_size // step, 1) * step
        around = f"{below}" if image_size < step else f"{below} and {below + step}"
        raise ValueError(
            f"image_size of {name} must be a positive multiple of {step} pixels "
            f"({step}, {2 * step}, {3 * step}, ...; trained at {architecture(name).image_size}); got {image_size}. "
            f"The nearest legal: {around}."
        )
    return image_size


def assemble(name: str, image_size: int | None = None) -> Sam:
    """A randomly initialised `Sam`, in training mode as torch makes modules.

    Args:
        name: key of `ARCHITECTURES`.
        image_size: side of the square input in pixels; None for the size of the published weights.

    Raises:
        ValueError: for an unknown name or an illegal size.
    """
    network = architecture(name)
    size = check_image_size(name, network.image_size if image_size is None else image_size)
    image_encoder, prompt_encoder, mask_decoder = network.parts(size)
    sam = Sam(image_encoder, prompt_encoder, mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD))
    sam.name = name
    return sam


@functools.cache
def entries(name: str, image_size: int | None = None) -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the model's state dict."""
    with without_initialisation():  # ten times faster than the meta device, whose first use loads decompositions
        sam = assemble(name, image_size)
    return {entry: tuple(tensor.shape) for entry, tensor in sam.state_dict().items()}


def parameter_count(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers the entries of `shapes` hold."""
    return sum(math.prod(shape) for shape in shapes.values())


class _Uninitialised(TorchFunctionMode):
    """While active in this thread, parameters keep whatever is in their memory instead of being drawn at random."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and _fills(func):
            return target
        return func(*args, **kwargs)


def _fills(func: Any) -> bool:
    return getattr(func, "__module__", "") == "torch.nn.init" or func in (
        torch.Tensor.uniform_,
        torch.Tensor.normal_,
        torch.Tensor.fill_,
        torch.Tensor.zero_,
    )


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build a model whose every parameter is about to be replaced, in a tenth of the time.

    Buffers are still computed. The memory of the parameters is never touched, so it is never really taken.
    """
    with _Uninitialised():
        yield
