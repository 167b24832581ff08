"""The options of an automatic mask generator as its attributes, which programs for the original package read and set.

Knows no network: torch's generator and ONNX Runtime's are both children.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segment_anything._amg_clicks import build_all_layer_point_grids, checked_grids
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_values import Explanation

if TYPE_CHECKING:
    from segment_anything.text import TextScorer


class _Option:
    """An option as an attribute of the generator."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, generator: "OptionAttributes", owner: type) -> Any:
        return getattr(generator.options, self._name)

    def __set__(self, generator: "OptionAttributes", value: Any) -> None:
        generator.options = replace(generator.options, **{self._name: value})


class OptionAttributes:
    """Something with options and clicks."""

    options: AutomaticMaskOptions
    """All options."""
    _given_grids: list[npt.NDArray[np.float64]] | None
    """Clicks that were given in place of a grid."""

    points_per_batch = _Option()
    pred_iou_thresh = _Option()
    stability_score_thresh = _Option()
    stability_score_offset = _Option()
    box_nms_thresh = _Option()
    crop_n_layers = _Option()
    crop_nms_thresh = _Option()
    crop_overlap_ratio = _Option()
    crop_n_points_downscale_factor = _Option()
    min_mask_region_area = _Option()
    output_mode = _Option()

    def _take(
        self,
        options: AutomaticMaskOptions,
        *,
        point_grids: Sequence[npt.NDArray[Any]] | None,
        explain: bool,
        labels: Sequence[str] | None,
        scorer: "TextScorer | None",
    ) -> None:
        """Check and keep what a generator is made with; wrong labels are refused now, not after minutes of masks."""
        self.options = options
        self._given_grids = (
            None if point_grids is None else checked_grids(point_grids, options.points_per_side, options.crop_n_layers)
        )
        if options.points_per_side is None and point_grids is None:
            raise ValueError("points_per_side must be a whole number unless point_grids is given, but both are None")
        if labels is not None and scorer is None:
            raise ValueError(
                "scorer is needed to name masks by labels: pass scorer=TextScorer(TransformersEncoder(FOLDER)), "
                "both of segment_anything.text."
            )
        self.labels: list[str] | None = None
        if labels is not None:
            from segment_anything.text.phrases import check_labels

            self.labels = check_labels(labels)
        self.scorer = scorer
        self.explain = explain
        self.last_explanation: Explanation | None = None

    @property
    def point_grids(self) -> list[npt.NDArray[np.float64]]:
        """Clicks for the image and for each layer of crops: (N, 2) x, y as shares of width and height."""
        if self._given_grids is not None or self.options.points_per_side is None:
            return self._given_grids or []
        return build_all_layer_point_grids(
            self.options.points_per_side, self.options.crop_n_layers, self.options.crop_n_points_downscale_factor
        )
