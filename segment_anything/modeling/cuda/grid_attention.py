"""Attention over a grid of tokens as one operator of PyTorch: Triton kernels on CUDA, the plain version elsewhere.

`segment_anything::grid_attention` never holds the scores of all keys, reads queries, keys and values where the layer
wrote them, and leaves its result where the next layer reads it. Gradients are those of the plain version, computed anew
for a few heads at a time. Where the kernels cannot run (no Triton, another type or size, a device they do not fit),
the plain version answers: the results differ by rounding.

Letters: B batch, H x W token grid, C = M * d channels of M heads, S window side.
"""

import importlib.util
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from segment_anything.modeling.attention import grid_attention_plain, resampled

MOST_WIDTH = 256
"""Widest head that the kernels hold on chip."""


@dataclass(frozen=True)
class Launch:
    """How the attention kernel is cut; compared by `benchmarks/gpu.py --tune`."""

    queries: int
    """Queries of one program, a power of two, at least 16."""
    keys: int
    """Keys of one step; 0 for one row of keys."""
    warps: int
    stages: int
    """Steps whose keys are under way at once."""

    def key_block(self, window_w: int) -> int:
        """Keys of one step, a power of two."""
        return self.keys or power_of_two(window_w)


# Not measured: chosen by the shape of the tensor cores and the registers that a program may have.
WHOLE_GRID = Launch(queries=128, keys=0, warps=8, stages=3)
"""Many keys in wide rows."""
WINDOW = Launch(queries=64, keys=32, warps=4, stages=2)
"""196 keys of 14 x 14 fill seven steps of 32 but for 28 places."""
EXACT = {True: Launch(queries=16, keys=0, warps=8, stages=1), False: Launch(queries=32, keys=32, warps=8, stages=1)}
"""The same in float32, whose products do not run on tensor cores: whether rows are wide, and the launch."""


def power_of_two(size: int) -> int:
    """The least power of two that holds `size`, and that a product of the GPU takes."""
    return max(16, 1 << (size - 1).bit_length())


def split_width(width: int) -> tuple[int, int]:
    """A head's width as a power of two and the rest: 80 -> (64, 16), 64 -> (64, 0)."""
    first = max(16, 1 << (width.bit_length() - 1))
    return first, 0 if width <= first else power_of_two(width - first)


def choose_launch(size_hw: tuple[int, int], dtype: torch.dtype) -> Launch:
    """The launch for windows of `size_hw`."""
    row = power_of_two(size_hw[1])
    is_wide = 32 <= row <= 128 and 4 * size_hw[1] >= 3 * row  # few places of a row of keys stay empty
    if dtype == torch.float32:
        return EXACT[is_wide]
    return WHOLE_GRID if is_wide else WINDOW


@torch.library.custom_op("segment_anything::grid_attention", mutates_args=())
def grid_attention(
    qkv: torch.Tensor,
    padding: torch.Tensor | None,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    heads: int,
    window: int,
) -> torch.Tensor:
    """Attention with decomposed relative positions.

    Args:
        qkv: (B, H, W, 3C), of the real tokens.
        padding: (3C,), what tokens outside the grid have in windows that stick out of it; None for zeros.
        table_h, table_w: relative tables of rows and columns, (L, d) each.
        heads: M.
        window: side S of the windows, 0 for the whole grid.

    Returns:
        (B, H, W, C), contiguous.
    """
    return _plain(qkv, padding, table_h, table_w, heads, window)


def _plain(
    qkv: torch.Tensor,
    padding: torch.Tensor | None,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    heads: int,
    window: int,
) -> torch.Tensor:
    """The plain version, in the type of `qkv`: under autocast the parameters have another."""
    padding = None if padding is None else padding.to(qkv.dtype)
    tables = table_h.to(qkv.dtype), table_w.to(qkv.dtype)
    return grid_attention_plain(qkv, padding, *tables, heads, window).contiguous()


@grid_attention.register_fake
def _(
    qkv: torch.Tensor,
    padding: torch.Tensor | None,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    heads: int,
    window: int,
) -> torch.Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@grid_attention.register_kernel("cuda")
def _(
    qkv: torch.Tensor,
    padding: torch.Tensor | None,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    heads: int,
    window: int,
) -> torch.Tensor:
    if kernels_can(qkv, heads):
        try:
            return launch(qkv, padding, table_h, table_w, heads, window)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's or a driver's, of whatever class: the answer does not depend on it
            give_up(qkv, heads, error)
    return _plain(qkv, padding, table_h, table_w, heads, window)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    qkv, padding, table_h, table_w, ctx.heads, ctx.window = inputs
    ctx.has_padding = padding is not None
    ctx.save_for_backward(qkv, table_h, table_w, *([padding] if ctx.has_padding else []))


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients by the plain version, a head at a time: no more than one head's scores are held."""
    qkv, table_h, table_w, *padding = ctx.saved_tensors
    heads: int = ctx.heads
    by_head = qkv.unflatten(3, (3, heads, -1))
    padding_by_head = [tensor.view(3, heads, -1) for tensor in padding]
    d_out = gradient.unflatten(3, (heads, -1))
    d_qkv = torch.empty_like(by_head)
    d_padding = [torch.empty_like(tensor) for tensor in padding_by_head]
    d_tables = torch.zeros_like(table_h), torch.zeros_like(table_w)
    for head in range(heads):
        inputs = [by_head[..., head, :].flatten(3), table_h, table_w]
        inputs += [tensor[:, head].flatten() for tensor in padding_by_head]
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            out = _plain(inputs[0], inputs[3] if padding else None, inputs[1], inputs[2], 1, ctx.window)
        found = torch.autograd.grad(out, inputs, d_out[..., head, :].to(out.dtype), materialize_grads=True)
        d_qkv[..., head, :] = found[0].unflatten(3, (3, -1))
        for total, part in zip(d_tables, found[1:3], strict=True):
            total += part
        for total, part in zip(d_padding, found[3:], strict=True):
            total[:, head] = part.view(3, -1)
    return d_qkv.flatten(3), d_padding[0].flatten() if padding else None, *d_tables, None, None


grid_attention.register_autograd(_backward, setup_context=_remember)


Kind = tuple[torch.device, torch.dtype, int]
"""Device, type and width of a head, by which kernels are compiled."""

_failed: set[Kind] = set()


def kernels_can(qkv: torch.Tensor, heads: int, failed: set[Kind] = _failed) -> bool:
    """Whether the kernels are written for such a tensor, are there, and have not failed for its kind."""
    width = qkv.shape[3] // (3 * heads)
    return (
        qkv.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and qkv.numel() > 0
        and width <= MOST_WIDTH
        and has_triton()
        and (qkv.device, qkv.dtype, width) not in failed
    )


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def give_up(qkv: torch.Tensor, heads: int, error: Exception, failed: set[Kind] = _failed) -> None:
    """Remember that the kernels fail for tensors of this kind, and say so."""
    failed.add((qkv.device, qkv.dtype, qkv.shape[3] // (3 * heads)))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"fused attention does not run on {qkv.device} in {qkv.dtype}: {reason} Plain attention runs.", stacklevel=2
    )


def launch(
    qkv: torch.Tensor,
    padding: torch.Tensor | None,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    heads: int,
    window: int,
    plan: Launch | None = None,
) -> torch.Tensor:
    """Run the kernels; arguments as `grid_attention`, and how to cut the work if not by `choose_launch`."""
    from segment_anything.modeling.cuda.attention_kernels import attention_kernel, relative_scores_kernel

    batch, height, width, channels = qkv.shape
    head_width = channels // (3 * heads)
    size_h, size_w = (window, window) if window else (height, width)
    windows_y, windows_x = -(-height // size_h), -(-width // size_w)
    is_cut = bool(height % size_h or width % size_w)
    d0, d1 = split_width(head_width)
    plan = choose_launch((size_h, size_w), qkv.dtype) if plan is None else plan
    precision = "ieee" if qkv.dtype == torch.float32 else "tf32"  # which says nothing about 16-bit types
    qkv = qkv.contiguous()
    tables = torch.cat([resampled(table_h, 2 * size_h - 1), resampled(table_w, 2 * size_w - 1)]).to(qkv.dtype)
    padding = None if padding is None else padding.to(qkv.dtype).contiguous()
    places = batch * windows_y * windows_x * heads
    scores = torch.empty((places, size_h * size_w, size_h + size_w), dtype=qkv.dtype, device=qkv.device)
    out = torch.empty((batch, height, width, channels // 3), dtype=qkv.dtype, device=qkv.device)
    numbers = height, width, heads, windows_y, windows_x
    line = power_of_two(max(size_h, size_w))
    with torch.cuda.device_of(qkv):
        relative_scores_kernel[(places * (size_h + size_w),)](
            *(qkv, tables, scores, *numbers),
            SH=size_h,
            SW=size_w,
            WIDTH=head_width,
            D0=d0,
            D1=d1,
            LINE=line,
            PRECISION=precision,
            num_warps=8 if qkv.dtype == torch.float32 else 4,
        )
        attention_kernel[(places * -(-size_h * size_w // plan.queries),)](
            *(qkv, qkv if padding is None else padding, scores, out, *numbers, head_width**-0.5),
            SH=size_h,
            SW=size_w,
            WIDTH=head_width,
            D0=d0,
            D1=d1,
            BLOCK_Q=plan.queries,
            BLOCK_K=plan.key_block(size_w),
            LINES=0 if plan.keys == 0 else power_of_two(size_h + size_w),
            CUT=is_cut,
            PAD=is_cut and padding is not None,
            PRECISION=precision,
            num_warps=plan.warps,
            num_stages=plan.stages,
        )
    return out
