"""A soft edge map from the masks of a grid of points (Segment Anything, appendix D.2 "Zero-Shot Edge Detection").

Three masks for each point of a 16 x 16 grid, box NMS by predicted IoU, no filter by quality and no crops (the authors'
settings: https://github.com/facebookresearch/segment-anything/issues/226); of each mask the Sobel magnitude of its
probabilities, kept only on the outer boundary of the thresholded mask; the maximum over all masks, scaled to 0..1,
thinned by edge NMS.

Letters: N masks, H and W original pixels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from segment_anything._optional import require
from segment_anything.evaluation.options import EdgeMapOptions
from segment_anything.masks import nms
from segment_anything.modeling import Sam
from segment_anything.prompts import Prompts
from segment_anything.simulate import mask_boxes

Floats = NDArray[np.float64]

_SLOPE_PX, _SMOOTH_PX = 1.0, 2.0
"""Scale at which slopes are taken, and over which the direction of an edge is read from them."""


def edge_map(sam: Sam, image: NDArray[np.uint8], options: EdgeMapOptions | None = None) -> Floats:
    """Edges of an image, thin and soft.

    Args:
        sam: the model.
        image: (H, W, 3) uint8 RGB.
        options: how.

    Returns:
        (H, W) float64 in [0, 1].
    """
    chosen = options or EdgeMapOptions()
    with torch.inference_mode():
        embedding = sam.encode(image)
        batches = []
        for points in _grid(image.shape[:2], chosen.points_per_side).split(chosen.points_per_batch):
            decoded = sam.decode(embedding, Prompts.from_points(points), multimask_output=True)
            masks = decoded.masks(sam.mask_threshold).flatten(0, 1)
            batches.append((decoded.low_res_logits.flatten(0, 1), decoded.iou_predictions.flatten(), mask_boxes(masks)))
        low_res, quality, boxes = (torch.cat(parts) for parts in zip(*batches, strict=True))
        kept = torch.from_numpy(nms(boxes, quality, chosen.nms_threshold)).to(low_res.device)
        edges = torch.zeros(image.shape[:2], device=low_res.device)
        for part in low_res[kept].split(chosen.points_per_batch):
            logits = sam.postprocess_masks(part[:, None], embedding.geometry.input_size_hw, image.shape[:2])[:, 0]
            edges = torch.maximum(edges, mask_edges(logits.float(), sam.mask_threshold))
    return edge_nms(normalise(edges.cpu().double().numpy()))


def _grid(size_hw: tuple[int, ...], per_side: int) -> torch.Tensor:
    """(per_side ** 2, 2) x, y of the centres of equal tiles."""
    centres = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(centres * size_hw[0], centres * size_hw[1], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def mask_edges(logits: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The strongest edge that any of N masks has at each pixel.

    The edge of a mask is the Sobel magnitude of its probabilities on its outer boundary, the background within one
    pixel of it, and 0 elsewhere; the image's edge is no boundary.

    Args:
        logits: (N, H, W).
        threshold: logits above it are the mask.

    Returns:
        (H, W), 0 to 4 times the square root of 2.
    """
    height, width = logits.shape[1:]
    # Boundaries are few: slopes are taken there only, which is six times as fast as a convolution of all pixels.
    mask, y, x = _outside(logits > threshold).nonzero().unbind(1)
    rows = [(mask * height + (y + step).clamp(0, height - 1)) * width for step in (-1, 0, 1)]
    columns = [(x + step).clamp(0, width - 1) for step in (-1, 0, 1)]
    flat = logits.reshape(-1)
    (a, b, c), (d, _, e), (f, g, h) = ([flat[row + column].sigmoid() for column in columns] for row in rows)
    magnitude = torch.hypot(c - a + 2 * (e - d) + h - f, f - a + 2 * (g - b) + h - c)
    edges = logits.new_zeros(height * width)
    return edges.scatter_reduce_(0, y * width + x, magnitude, "amax").view(height, width)


def _outside(masks: torch.Tensor) -> torch.Tensor:
    """The eight neighbours of each pixel of (N, H, W) bool masks that are not in the mask themselves."""
    padded = functional.pad(masks, (1, 1, 1, 1))
    tall = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return (tall[:, :, :-2] | tall[:, :, 1:-1] | tall[:, :, 2:]) & ~masks


def normalise(edges: Floats) -> Floats:
    """Scale linearly so that the lowest value is 0 and the highest 1; a constant map becomes 0."""
    low, high = float(edges.min()), float(edges.max())
    return (edges - low) / (high - low) if high > low else np.zeros_like(edges)


def edge_nms(edges: Floats) -> Floats:
    """Keep the crest of every ridge of an edge map (H, W), as Canny does for the gradient of an image.

    A pixel stays if it is not exceeded by its two neighbours across the edge, read in between pixels.
    """
    ndimage = require("scipy.ndimage", extra="eval")
    across_y, across_x = _across(edges)
    rows, columns = np.indices(edges.shape)
    ahead, behind = (
        ndimage.map_coordinates(edges, [rows + s * across_y, columns + s * across_x], order=1, mode="nearest")
        for s in (1.0, -1.0)
    )
    return np.where(edges >= np.maximum(ahead, behind), edges, 0.0)


def _across(edges: Floats) -> tuple[Floats, Floats]:
    """Unit vector across the edge at each pixel: the direction in which the map changes most, around the pixel.

    The slopes of both flanks count alike (a structure tensor), so the direction is sure on the crest, where the slope
    itself is 0.
    """
    ndimage = require("scipy.ndimage", extra="eval")
    down, right = (ndimage.gaussian_filter(edges, _SLOPE_PX, order=order) for order in ((1, 0), (0, 1)))
    yy, xx, xy = (ndimage.gaussian_filter(part, _SMOOTH_PX) for part in (down * down, right * right, down * right))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    return np.sin(angle), np.cos(angle)
