"""The options of automatic mask generation, apart from the generator so that the command line reads them without torch.

The names and defaults up to `output_mode` are those of the published package
(Segment Anything, https://arxiv.org/abs/2304.02643, section B "Automatic Mask Generation Details").
Its thirteenth option, `point_grids`, holds arrays and stays with the generator.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
OVERLAPS = ("iou", "iomin")


@dataclass(frozen=True, kw_only=True)
class AutomaticMaskOptions:
    """What automatic mask generation tries, keeps and returns. Areas are in original pixels.

    Raises:
        ValueError: for a value outside its range; the message begins with the option's name.
    """

    points_per_side: int | None = 32
    """Points along one side of the grid of clicks; the grid has its square. None only with `point_grids`."""
    points_per_batch: int = 64
    """Clicks decoded at once: more is faster on a GPU and takes more memory. It never changes the masks."""
    pred_iou_thresh: float = 0.88
    """Keep masks whose quality, predicted by the model, is above this; 0 keeps all."""
    stability_score_thresh: float = 0.95
    """Keep masks that barely change when the cut-off moves, with a stability score at or above this; 0 keeps all."""
    stability_score_offset: float = 1.0
    """How far the cut-off moves, in logits, for the stability score."""
    box_nms_thresh: float = 0.7
    """Of two masks whose boxes overlap more than this, keep the better."""
    crop_n_layers: int = 0
    """Run again on zoomed-in crops for small objects: layer i has 4**i crops."""
    crop_nms_thresh: float = 0.7
    """Of two masks from different crops whose boxes overlap more than this, keep the one from the smaller crop."""
    crop_overlap_ratio: float = 512 / 1500
    """How far crops overlap, as a part of the image's shorter side (first layer; half of it in the next, and so on)."""
    crop_n_points_downscale_factor: int = 1
    """Divide points_per_side by this to the power of the layer in crops."""
    min_mask_region_area: float = 0
    """Fill holes and remove islands smaller than this inside each mask. It cleans masks, it drops none."""
    output_mode: str = "binary_mask"
    """How masks are returned: binary_mask, uncompressed_rle or coco_rle (least memory)."""
    min_mask_area: float = 0
    """Drop masks smaller than this."""
    max_mask_area: float | None = None
    """Drop masks larger than this, if given."""
    overlap: str = "iou"
    """iou: the box thresholds alone. iomin: also drop masks that lie inside a better one (by box_nms_thresh)."""

    def __post_init__(self) -> None:
        if self.points_per_side is not None:
            _whole("points_per_side", self.points_per_side, at_least=1)
        _whole("points_per_batch", self.points_per_batch, at_least=1)
        _number("pred_iou_thresh", self.pred_iou_thresh, at_least=-math.inf, at_most=1)
        _number("stability_score_thresh", self.stability_score_thresh, at_least=-math.inf, at_most=1)
        _number("stability_score_offset", self.stability_score_offset, at_least=0)
        _number("box_nms_thresh", self.box_nms_thresh, at_least=0, at_most=1)
        _whole("crop_n_layers", self.crop_n_layers, at_least=0)
        _number("crop_nms_thresh", self.crop_nms_thresh, at_least=0, at_most=1)
        _number("crop_overlap_ratio", self.crop_overlap_ratio, at_least=0, at_most=1)
        _whole("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor, at_least=1)
        _number("min_mask_region_area", self.min_mask_region_area, at_least=0)
        _one_of("output_mode", self.output_mode, OUTPUT_MODES)
        _number("min_mask_area", self.min_mask_area, at_least=0)
        if self.max_mask_area is not None:
            _number("max_mask_area", self.max_mask_area, at_least=self.min_mask_area)
        _one_of("overlap", self.overlap, OVERLAPS)


def _whole(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")


def _number(name: str, value: object, at_least: float, at_most: float = math.inf) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not at_least <= float(value) <= at_most:  # type: ignore[arg-type]
        limits = [f"at least {at_least:g}"] * (at_least > -math.inf) + [f"at most {at_most:g}"] * (at_most < math.inf)
        raise ValueError(f"{name} must be a number of {' and '.join(limits)}, got {value!r}.")


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
