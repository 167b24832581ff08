"""Builds a `Sam` by name, random or with weights: the registry of the original package, and `load_sam`."""

import os
import warnings
from collections.abc import Callable

import torch

from segment_anything._recognise import made_for
from segment_anything.architectures import architecture, assemble, without_initialisation
from segment_anything.checkpoints import fetch_checkpoint, load_checkpoint, read_checkpoint
from segment_anything.modeling import Sam
from segment_anything.modeling.compiled import check_compiler, compile_encoder
from segment_anything.modeling.int8 import quantise_linear_layers

Checkpoint = str | os.PathLike[str]

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""Words for the types that weights may have."""


def _build(name: str, checkpoint: Checkpoint | None, image_size: int | None) -> Sam:
    if checkpoint is None:
        return assemble(name, image_size).eval()
    file = read_checkpoint(checkpoint)
    size = made_for(file, name) if image_size is None else image_size
    with without_initialisation():
        sam = assemble(name, size)
    load_checkpoint(sam, file, assign=True)
    return sam.eval()


def build_sam_vit_h(checkpoint: Checkpoint | None = None, *, image_size: int | None = None) -> Sam:
    """SAM with the ViT-H encoder, the largest of the published models, in eval mode.

    Args:
        checkpoint: weights (path, or name of a file in the cache folder); None leaves the model random.
        image_size: side of the square input in pixels, a multiple of 16; None for what the weights were made for.

    Raises:
        ValueError: for an illegal size, or a file that is not weights for this model.
    """
    return _build("vit_h", checkpoint, image_size)


def build_sam_vit_l(checkpoint: Checkpoint | None = None, *, image_size: int | None = None) -> Sam:
    """SAM with the ViT-L encoder; see `build_sam_vit_h`."""
    return _build("vit_l", checkpoint, image_size)


def build_sam_vit_b(checkpoint: Checkpoint | None = None, *, image_size: int | None = None) -> Sam:
    """SAM with the ViT-B encoder, the smallest of the published models; see `build_sam_vit_h`."""
    return _build("vit_b", checkpoint, image_size)


def build_sam_vit_t(checkpoint: Checkpoint | None = None, *, image_size: int | None = None) -> Sam:
    """MobileSAM: SAM with the TinyViT encoder; see `build_sam_vit_h`."""
    return _build("vit_t", checkpoint, image_size)


def build_sam_nano(checkpoint: Checkpoint | None = None, *, image_size: int | None = None) -> Sam:
    """The small model of this project; see `build_sam_vit_h`. `image_size` is a multiple of 32.

    Without a checkpoint it is random like the others; `load_sam("nano")` brings the bundled weights.
    """
    return _build("nano", checkpoint, image_size)


build_sam = build_sam_vit_h

sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam_vit_h,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_t": build_sam_vit_t,
    "nano": build_sam_nano,
}
"""Builders by name; each takes `checkpoint` and `image_size`."""


INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16"), "int8": ("avx512_vnni", "avx_vnni", "amx_int8")}
"""What an x86 processor needs, one of them at least, for products of a type: without, they take many times as long."""


def load_sam(
    name: str = "nano",
    checkpoint: Checkpoint | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    image_size: int | None = None,
    compile: bool = False,
) -> Sam:
    """A model with weights, on a device, ready to use.

    Args:
        name: `nano` (bundled), `vit_t`, `vit_b`, `vit_l` or `vit_h` (downloaded once into the cache folder).
        checkpoint: other weights (path, or name of a file in the cache folder); "random" for seeded random ones.
        device: "auto" takes CUDA, else Apple's GPU, else the CPU.
        dtype: "float32", "bf16" or "fp16", or torch's types. fp16 needs a GPU. bf16 is fast on GPUs, and on CPUs with
            AVX512_BF16 or AMX. "int8", for CPUs with VNNI: the image encoder's linear layers in 8 bits, the rest
            float32. A processor without them is warned of. All but float32 are approximate (docs/performance.md).
        image_size: side of the square input in pixels; None for what the weights were made for. Smaller is faster and
            coarser; position tables are resampled.
        compile: let `torch.compile` make the image encoder faster, block by block: the first image then waits for it.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: for an unknown name, device or dtype, an illegal size, weights that are missing or do not fit, or
            if there is no compiler.
    """
    name = "vit_h" if name == "default" else name
    architecture(name)
    chosen_device = _device(device)
    is_int8 = dtype in ("int8", torch.int8)
    chosen_dtype = torch.float32 if is_int8 else _dtype(dtype, chosen_device)
    if is_int8 and chosen_device.type != "cpu":
        raise ValueError(f'dtype int8 is for the CPU, and device is {chosen_device}. Take "bf16", or device="cpu".')
    if checkpoint == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sam = _build(name, None, image_size)
    else:
        sam = _build(name, fetch_checkpoint(name) if checkpoint is None else checkpoint, image_size)
    sam.to(device=chosen_device, dtype=chosen_dtype)
    if chosen_device.type == "cpu" and (is_int8 or chosen_dtype == torch.bfloat16):
        _warn_if_slow("int8" if is_int8 else "bf16")
    if is_int8:
        quantise_linear_layers(sam.image_encoder)
    if compile:
        check_compiler(chosen_device)
        compile_encoder(sam.image_encoder)
    return sam


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device {device!r} cannot be used here: {reason} Take "auto", or "cpu".') from error
    return chosen


def _warn_if_slow(dtype: str) -> None:
    """Warn where the processor lacks the instructions for a type."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # an older PyTorch
    wanted = INSTRUCTIONS[dtype]
    if found.get("architecture") == "x86_64" and not any(found.get(name) for name in wanted):
        warnings.warn(
            f'dtype "{dtype}" is many times slower than float32 on this processor ({found.get("cpu_name")}), which has '
            f'none of {", ".join(wanted)}. Take "float32".',
            stacklevel=3,
        )


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    chosen = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values() or chosen is None:
        raise ValueError(f"dtype must be float32, bfloat16 (bf16), float16 (fp16) or int8; got {dtype!r}.")
    if chosen == torch.float16 and device.type == "cpu":
        raise ValueError('dtype float16 is for GPUs: on the CPU it is slow and inexact. Take "bf16" or "float32".')
    return chosen
