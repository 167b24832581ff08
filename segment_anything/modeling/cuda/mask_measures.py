"""Size, stability and box of masks on a GPU, and their run lengths, without all of them at full size at once.

Letters: N masks, H x W original pixels, g embedding cells a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from segment_anything.geometry import ImageGeometry
from segment_anything.modeling.cuda.grid_attention import has_triton
from segment_anything.modeling.decoded import upscale_masks

CHUNK_BYTES = 2**30
"""About how much memory masks at full size may take at once."""


@dataclass(frozen=True, eq=False)
class MaskMeasures:
    """What there is to know of masks (N,), counted in original pixels."""

    strict: npt.NDArray[np.int64]
    """Pixels above threshold + offset."""
    areas: npt.NDArray[np.int64]
    """Pixels above the threshold."""
    loose: npt.NDArray[np.int64]
    """Pixels above threshold - offset."""
    boxes_xyxy: npt.NDArray[np.int64]
    """(N, 4), first and last column and row; zeros for an empty mask."""


def measure_masks(logits: torch.Tensor, geometry: ImageGeometry, threshold: float, offset: float) -> MaskMeasures:
    """Measure masks.

    Args:
        logits: (N, 4g, 4g), at low resolution.
        geometry: of the image.
        threshold: above it a pixel belongs to the mask.
        offset: of stability, at least 0.
    """
    logits = logits.float().contiguous()
    if logits.is_cuda and has_triton() and len(logits):
        areas, boxes = measure_by_kernel(logits, geometry, threshold, offset)
    else:
        areas, boxes = measure_plainly(logits, geometry, threshold, offset)
    return as_measures(areas, boxes)


def as_measures(areas: torch.Tensor, boxes: torch.Tensor) -> MaskMeasures:
    """What `measure_by_kernel` or `measure_plainly` found, on the host."""
    numbers = torch.cat([areas, boxes], dim=1).cpu().numpy().astype(np.int64)
    found = np.where(numbers[:, 1:2] > 0, numbers[:, 3:], 0)
    return MaskMeasures(numbers[:, 0], numbers[:, 1], numbers[:, 2], found)


def measure_by_kernel(
    logits: torch.Tensor, geometry: ImageGeometry, threshold: float, offset: float, tile_hw: tuple[int, int] = (32, 64)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Areas (N, 3) at the three levels, strict first, and boxes (N, 4), of no meaning for empty masks; int32."""
    from segment_anything.modeling.cuda.mask_kernels import measure_kernel

    (height, width), (input_h, input_w) = geometry.original_size_hw, geometry.input_size_hw
    count, side = logits.shape[:2]
    tiles_y, tiles_x = -(-height // tile_hw[0]), -(-width // tile_hw[1])
    areas = torch.zeros((count, 3), dtype=torch.int32, device=logits.device)
    boxes = torch.full((count, 4), -1, dtype=torch.int32, device=logits.device)
    boxes[:, 0].fill_(width)
    boxes[:, 1].fill_(height)
    with torch.cuda.device_of(logits):
        measure_kernel[(count * tiles_y * tiles_x,)](
            *(logits, areas, boxes, side, input_h, input_w, height, width),
            *(side / geometry.image_size, input_h / height, input_w / width),
            *(float(threshold), float(offset), count, tiles_x),
            TILE_H=tile_hw[0],
            TILE_W=tile_hw[1],
            ROWS=4,
            PATCH=16,
            num_warps=4,
        )
    return areas, boxes


def measure_plainly(
    logits: torch.Tensor, geometry: ImageGeometry, threshold: float, offset: float, chunk_bytes: int = CHUNK_BYTES
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `measure_by_kernel`, by making the masks, as many at a time as `chunk_bytes` hold."""
    height, width = geometry.original_size_hw
    areas = [torch.zeros((0, 3), dtype=torch.int32, device=logits.device)]
    boxes = [torch.zeros((0, 4), dtype=torch.int32, device=logits.device)]
    for part in _chunks(len(logits), geometry, chunk_bytes=chunk_bytes):
        values = upscale_masks(logits[part, None], geometry)[:, 0]
        levels = [(values > threshold + shift).sum(dim=(1, 2)) for shift in (offset, 0.0, -offset)]
        areas.append(torch.stack(levels, dim=1).int())
        inside = values > threshold
        ends = []
        for axis, size in ((1, width), (2, height)):
            line = inside.any(dim=axis).int()  # (n, W) and then (n, H)
            ends.append((line.argmax(dim=1), size - 1 - line.flip(1).argmax(dim=1)))
        boxes.append(torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], dim=1).int())
    return torch.cat(areas), torch.cat(boxes)


def run_lengths_of(
    logits: torch.Tensor,
    geometry: ImageGeometry,
    threshold: float,
    corner_xy: tuple[int, int] = (0, 0),
    image_size_hw: tuple[int, int] | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Run lengths of masks down the columns, background first, found where the masks are.

    Args:
        logits: (N, 4g, 4g), at low resolution.
        geometry: of the image, or of a crop of it.
        threshold: above it a pixel belongs to the mask.
        corner_xy: of the crop in the image.
        image_size_hw: None for that of `geometry`.
    """
    height, width = geometry.original_size_hw
    image_h, image_w = geometry.original_size_hw if image_size_hw is None else image_size_hw
    x0, y0 = corner_xy
    runs: list[npt.NDArray[np.int64]] = []
    for part in _chunks(len(logits), geometry, image_h * image_w):
        inside = upscale_masks(logits[part, None], geometry)[:, 0] > threshold
        columns = torch.zeros((len(inside), image_w, image_h), dtype=torch.bool, device=logits.device)
        columns[:, x0 : x0 + width, y0 : y0 + height] = inside.transpose(1, 2)
        runs += _runs(columns.flatten(1))
    return runs


def _runs(pixels: torch.Tensor) -> list[npt.NDArray[np.int64]]:
    """Run lengths of rows (N, P) of bools, a run of false ones first."""
    mask, place = (pixels[:, 1:] ^ pixels[:, :-1]).nonzero(as_tuple=True)
    counts = torch.bincount(mask, minlength=len(pixels))
    answer = torch.cat([counts, pixels[:, 0].long(), place + 1]).cpu().numpy()  # one wait for the device
    count = len(pixels)
    begins_inside = answer[count : 2 * count].astype(bool)
    found = []
    for changes, inside in zip(
        np.split(answer[2 * count :], np.cumsum(answer[:count])[:-1]), begins_inside, strict=True
    ):
        lengths = np.diff(changes, prepend=0, append=pixels.shape[1])
        found.append(np.concatenate([[0], lengths]) if inside else lengths)
    return found


def _chunks(count: int, geometry: ImageGeometry, image_px: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[slice]:
    """Slices of masks that fit into `chunk_bytes` at full size, and whose pixels an index of 32 bits counts."""
    height, width = geometry.original_size_hw
    bytes_each = 4 * geometry.image_size**2 + 7 * height * width + 10 * image_px
    step = max(1, min(chunk_bytes // bytes_each, (2**31 - 1) // max(image_px, height * width)))
    for start in range(0, count, step):
        yield slice(start, start + step)
