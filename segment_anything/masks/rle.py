"""Run-length encoding of masks, in COCO's order: down the columns, the first run counts background.

Knows both of COCO's kinds, the plain list of runs and the compact string, and computes areas, boxes and overlaps on the
runs without decoding (format: https://github.com/cocodataset/cocoapi, file common/maskApi.h).

Letters: N masks, H rows, W columns, R runs. A flat position is x * H + y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from segment_anything.masks._arrays import ArrayLike, BoolArray, FloatArray, IntArray, as_bool, is_tensor, to_numpy

if TYPE_CHECKING:
    import torch

_MAX_NONZERO = 2**31 - 1  # elements one CUDA `nonzero` can look through


class RLE(TypedDict):
    """A run-length encoded mask."""

    size: list[int]
    """[height, width]."""
    counts: Any
    """Runs as a list (or array) of integers, or COCO's compact string (str or bytes)."""


def encode_rle(mask: ArrayLike) -> RLE:
    """Encode one mask.

    Args:
        mask: (H, W) bool, array or tensor.

    Returns:
        `{"size": [H, W], "counts": [...]}` with a plain list of runs.

    Raises:
        ValueError: if `mask` is not two-dimensional or holds floats.
    """
    return encode_rles(as_bool(mask, 2)[None])[0]


def encode_rles(masks: ArrayLike) -> list[RLE]:
    """Encode (N, H, W) bool masks in one pass; a tensor is searched for its runs on its own device.

    Raises:
        ValueError: if `masks` is not three-dimensional or holds floats.
    """
    size = [int(side) for side in masks.shape[-2:]]
    return [RLE(size=list(size), counts=counts.tolist()) for counts in run_lengths(masks)]


def run_lengths(masks: ArrayLike) -> list[IntArray]:
    """Runs of (N, H, W) bool masks as one int64 array a mask; they take a tenth of the memory of lists."""
    masks = _as_bool_tensor(masks) if is_tensor(masks) else as_bool(masks, 3, "masks")
    count, height, width = masks.shape
    pixels = height * width
    if pixels == 0:
        return [np.zeros(0, dtype=np.int64) for _ in range(count)]
    step = max(1, _MAX_NONZERO // pixels)
    return [runs for start in range(0, count, step) for runs in _run_lengths_chunk(masks[start : start + step])]


def _as_bool_tensor(masks: torch.Tensor) -> torch.Tensor:
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape (N, H, W), but have shape {tuple(masks.shape)}")
    if masks.is_floating_point():
        raise ValueError(f"masks must hold bools, but hold {masks.dtype}; threshold them first, for example masks > 0")
    return masks.bool()


def _run_lengths_chunk(masks: Any) -> list[IntArray]:
    """Find where the value changes, then order those few positions: far cheaper than transposing every mask."""
    count, height, width = masks.shape
    pixels = height * width
    # (N, H-1, W): a change between a pixel and the one below it; row-major index -> mask, y, x
    mask, rest = _divmod(_true_positions(masks[:, 1:] ^ masks[:, :-1]), max(1, (height - 1) * width))
    y, x = _divmod(rest, width)
    within = mask * pixels + x * height + y + 1
    # (N, W-1): a change between the foot of a column and the head of the next
    mask, x = _divmod(_true_positions(masks[:, 0, 1:] ^ masks[:, -1, :-1]), max(1, width - 1))
    across = mask * pixels + (x + 1) * height
    changes = np.sort(np.concatenate([within, across]))

    starts_true = to_numpy(masks[:, 0, 0])
    first = np.searchsorted(changes, np.arange(count + 1) * pixels)
    runs = []
    for i in range(count):
        ends = np.concatenate([changes[first[i] : first[i + 1]] - i * pixels, [pixels]])
        counts = np.diff(ends, prepend=0)
        runs.append(np.concatenate([[0], counts]) if starts_true[i] else counts)
    return runs


def _true_positions(flags: ArrayLike) -> IntArray:
    """Flat row-major positions of the true elements (numpy's search is six times faster than torch's on a CPU)."""
    if not is_tensor(flags) or flags.device.type == "cpu":
        return np.flatnonzero(flags)
    return np.asarray(flags.flatten().nonzero().squeeze(1).cpu().numpy(), dtype=np.int64)


def _divmod(positions: IntArray, divisor: int) -> tuple[IntArray, IntArray]:
    quotient = positions // divisor
    return quotient, positions - quotient * divisor


def rle_counts(rle: RLE) -> IntArray:
    """The runs of either kind of RLE as an (R,) int64 array.

    Raises:
        ValueError: if the runs are negative or do not fill `size`.
    """
    counts = rle["counts"]
    runs = _parse_string(counts) if isinstance(counts, str | bytes) else np.asarray(counts, dtype=np.int64).reshape(-1)
    height, width = rle["size"]
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(
            f"counts of an RLE must be runs >= 0 that sum to height * width = {height} * {width} = {height * width}, "
            f"but they sum to {runs.sum()} (least run {runs.min(initial=0)}); is size given as [height, width]?"
        )
    return runs


def decode_rle(rle: RLE) -> BoolArray:
    """The (H, W) bool mask of either kind of RLE.

    Raises:
        ValueError: if the runs do not fill `size`.
    """
    height, width = rle["size"]
    runs = rle_counts(rle)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def rle_to_coco(rle: RLE) -> str:
    """COCO's compact string for either kind of RLE; `{"size": ..., "counts": <this>}` is what pycocotools reads.

    From the fourth run on, the difference to the run two places before is stored; each number is cut into groups of
    five bits, lowest first, and each group becomes one character (48 + group, + 32 if another group follows).
    """
    runs = rle_counts(rle)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    groups: list[IntArray] = []
    used: list[BoolArray] = []
    live = np.ones(len(numbers), dtype=np.bool_)
    while live.any():
        group = numbers & 31
        numbers = numbers >> 5
        # the last group's bit 16 is the sign: stop once what is left is nothing but sign
        more = np.where(group & 16, numbers != -1, numbers != 0)
        groups.append(group + 48 + 32 * more)
        used.append(live)
        live = live & more
    if not groups:
        return ""
    characters = np.stack(groups, axis=1).astype(np.uint8)  # (R, groups)
    return characters[np.stack(used, axis=1)].tobytes().decode("ascii")


def _parse_string(text: str | bytes) -> IntArray:
    """The runs in COCO's compact string (see `rle_to_coco`)."""
    raw = text.encode("ascii") if isinstance(text, str) else text
    groups = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if len(groups) == 0:
        return groups
    last = (groups & 32) == 0
    if groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise ValueError(f"counts must be a whole COCO RLE string, but {raw[:20]!r}... ({len(raw)} bytes) is damaged")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    numbers = np.add.reduceat((groups & 31) << (5 * place), starts)
    numbers -= np.where(groups[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def rle_area(rle: RLE) -> int:
    """Pixels of the mask."""
    return int(rle_counts(rle)[1::2].sum())


def _foreground(rle: RLE) -> tuple[IntArray, IntArray]:
    """First flat position of every foreground run, and the position after its last."""
    edges = np.cumsum(rle_counts(rle))
    stops = edges[1::2]
    return edges[0::2][: len(stops)], stops


def rle_to_box(rle: RLE) -> IntArray:
    """The (4,) box x0, y0, x1, y1 around the mask; x1 and y1 lie one past the last pixel. Zeros for an empty mask."""
    starts, stops = _foreground(rle)
    starts, stops = starts[stops > starts], stops[stops > starts]
    if len(starts) == 0:
        return np.zeros(4, dtype=np.int64)
    height = rle["size"][0]
    left, right = starts // height, (stops - 1) // height
    wraps = bool((left != right).any())  # a run over the foot of a column touches the top and the bottom row
    y0 = 0 if wraps else int((starts % height).min())
    y1 = height if wraps else int(((stops - 1) % height).max()) + 1
    return np.array([left.min(), y0, right.max() + 1, y1], dtype=np.int64)


def rle_intersections(rle: RLE, others: Sequence[RLE]) -> IntArray:
    """Pixels that `rle` shares with each of `others`, without decoding: (M,) int64.

    Raises:
        ValueError: if the sizes differ.
    """
    for other in others:
        if list(other["size"]) != list(rle["size"]):
            raise ValueError(
                f"others must have the size of rle, {list(rle['size'])}, but one has {list(other['size'])}"
            )
    spans = [_foreground(other) for other in others]
    if not spans:
        return np.zeros(0, dtype=np.int64)
    owner = np.repeat(np.arange(len(spans)), [len(starts) for starts, _ in spans])
    covered = _covered_before(rle, np.concatenate([stops for _, stops in spans]))
    covered -= _covered_before(rle, np.concatenate([starts for starts, _ in spans]))
    return np.bincount(owner, weights=covered, minlength=len(spans)).astype(np.int64)


def _covered_before(rle: RLE, positions: IntArray) -> IntArray:
    """Number of the mask's pixels before each flat position."""
    starts, stops = _foreground(rle)
    if len(starts) == 0:
        return np.zeros(len(positions), dtype=np.int64)
    lengths = stops - starts
    run = np.searchsorted(starts, positions, side="right") - 1
    before = (np.cumsum(lengths) - lengths)[run] + np.minimum(positions - starts[run], lengths[run])
    return np.where(run >= 0, before, 0)


def rle_iou(a: Sequence[RLE], b: Sequence[RLE]) -> FloatArray:
    """Intersection over union of every mask in `a` with every mask in `b`: (N, M) float64. Two empty masks score 0."""
    areas_a = np.array([rle_area(rle) for rle in a], dtype=np.int64)
    areas_b = np.array([rle_area(rle) for rle in b], dtype=np.int64)
    shared = np.stack([rle_intersections(rle, b) for rle in a]) if a else np.zeros((0, len(b)), dtype=np.int64)
    union = areas_a[:, None] + areas_b[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1), dtype=np.float64)
