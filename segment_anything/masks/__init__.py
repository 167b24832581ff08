"""Geometry of masks: run lengths, overlaps, regions, polygons, borders. Knows nothing of images or networks."""

from segment_anything.masks.boundary import boundary
from segment_anything.masks.components import (
    connected_components,
    drop_small_islands,
    fill_small_holes,
    largest_component,
)
from segment_anything.masks.outlines import mask_to_polygons, mask_to_ring, simplify
from segment_anything.masks.overlap import Overlap, box_iou, mask_areas, mask_iou, mask_nms, mask_to_box, nms
from segment_anything.masks.polygons import as_ring, polygons_to_mask
from segment_anything.masks.rle import (
    RLE,
    decode_rle,
    encode_rle,
    encode_rles,
    rle_area,
    rle_counts,
    rle_intersections,
    rle_iou,
    rle_to_box,
    rle_to_coco,
    run_lengths,
)

__all__ = [
    "RLE",
    "Overlap",
    "as_ring",
    "boundary",
    "box_iou",
    "connected_components",
    "decode_rle",
    "drop_small_islands",
    "encode_rle",
    "encode_rles",
    "fill_small_holes",
    "largest_component",
    "mask_areas",
    "mask_iou",
    "mask_nms",
    "mask_to_box",
    "mask_to_polygons",
    "mask_to_ring",
    "nms",
    "polygons_to_mask",
    "rle_area",
    "rle_counts",
    "rle_intersections",
    "rle_iou",
    "rle_to_box",
    "rle_to_coco",
    "run_lengths",
    "simplify",
]
