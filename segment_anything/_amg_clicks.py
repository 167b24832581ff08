"""Where automatic mask generation clicks: grids of points, for the image and for its crops.

Plain numpy, shared by torch and ONNX Runtime (Segment Anything, https://arxiv.org/abs/2304.02643, section B).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt


def build_point_grid(n_per_side: int) -> npt.NDArray[np.float64]:
    """The centres of n x n equal cells of the unit square: (n * n, 2) x, y, row by row."""
    centres = np.linspace(0.5 / n_per_side, 1 - 0.5 / n_per_side, n_per_side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[npt.NDArray[np.float64]]:
    """A grid for the image and for each layer of crops, with `scale_per_layer` times fewer points a side each."""
    return [build_point_grid(int(n_per_side / scale_per_layer**layer)) for layer in range(n_layers + 1)]


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The whole image, then layers of overlapping crops, 2**layer along each side.

    Args:
        im_size: (height, width).
        n_layers: layers below the image itself.
        overlap_ratio: overlap of neighbours in the first layer, as a part of the shorter side; halved in each next one.

    Returns:
        boxes x0, y0, x1, y1 (x1, y1 outside), and the layer of each (0: the image). Crops run down the columns.
    """
    height, width = im_size
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        lefts, tops = ([(side - overlap) * i for i in range(count)] for side in (crop_width, crop_height))
        for x, y in product(lefts, tops):
            boxes.append([x, y, min(x + crop_width, width), min(y + crop_height, height)])
            layers.append(layer)
    return boxes, layers


def checked_grids(
    grids: Sequence[npt.NDArray[Any]], points_per_side: int | None, crop_n_layers: int
) -> list[npt.NDArray[np.float64]]:
    """Clicks that a caller gives instead of `points_per_side`, as float64 arrays.

    Raises:
        ValueError: if `points_per_side` is given too, a layer of crops has none, or one is no share of the image.
    """
    if points_per_side is not None:
        raise ValueError(
            f"points_per_side must be None where point_grids is given, but is {points_per_side}: "
            "pass points_per_side=None, point_grids=..."
        )
    arrays = [np.asarray(grid, dtype=np.float64) for grid in grids]
    if len(arrays) <= crop_n_layers:
        raise ValueError(
            f"point_grids must hold a grid for the image and one for each of the {crop_n_layers} layers of crops "
            f"(crop_n_layers), but holds {len(arrays)}"
        )
    for i, grid in enumerate(arrays):
        if grid.ndim != 2 or grid.shape[1] != 2 or not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError(
                f"point_grids[{i}] must be (N, 2) shares of width and height in 0..1, but has shape {grid.shape} and "
                f"values from {grid.min(initial=np.inf):g} to {grid.max(initial=-np.inf):g}"
            )
    return arrays


def near_crop_edge(
    boxes: npt.NDArray[Any],
    crop_xyxy: tuple[int, int, int, int],
    image_size_hw: tuple[int, int],
    reach_px: float = 20.0,
) -> npt.NDArray[np.bool_]:
    """Which boxes come within `reach_px` of an edge of the crop that is not the image's edge too.

    An object cut off there is whole in a neighbouring crop.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in the crop's pixels.
        crop_xyxy: the crop in the image.
        image_size_hw: of the image.

    Returns:
        (N,) bool.
    """
    placed = boxes + np.array([*crop_xyxy[:2], *crop_xyxy[:2]])
    image = np.array([0, 0, image_size_hw[1], image_size_hw[0]])
    near_crop, near_image = (np.abs(placed - box) <= reach_px for box in (np.array(crop_xyxy), image))
    return np.asarray((near_crop & ~near_image).any(axis=1))


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Walk through sequences of equal length together, `batch_size` elements at a time.

    Raises:
        ValueError: if there are none, or their lengths differ.
    """
    lengths = {len(sequence) for sequence in args}
    if len(lengths) != 1:
        raise ValueError(
            f"batch_iterator needs one or more sequences of equal length, but got lengths {sorted(lengths)}"
        )
    for start in range(0, lengths.pop(), batch_size):
        yield [sequence[start : start + batch_size] for sequence in args]
