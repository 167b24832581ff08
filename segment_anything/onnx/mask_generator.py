"""All masks of an image on ONNX Runtime: the clicks, filters, records and order of `SamAutomaticMaskGenerator`."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segment_anything._amg_clicks import (
    batch_iterator,
    build_all_layer_point_grids,
    checked_grids,
    generate_crop_boxes,
)
from segment_anything._amg_fast import measure_tiled
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_selection import as_records, select
from segment_anything._amg_values import Candidates, Explanation, Proposals
from segment_anything.images import check_image_array
from segment_anything.onnx.decoded import OnnxDecoded
from segment_anything.onnx.model import OnnxEmbedding, OnnxModel
from segment_anything.prompts import Prompts
from segment_anything.records import MaskRecord


class OnnxMaskGenerator:
    """Finds all masks of an image. One generator may serve many threads, `last_explanation` excepted."""

    def __init__(
        self,
        model: OnnxModel | str | os.PathLike[str],
        points_per_side: int | None = AutomaticMaskOptions.points_per_side,
        *,
        point_grids: Sequence[npt.NDArray[Any]] | None = None,
        explain: bool = False,
        **options: Any,
    ) -> None:
        """Choose what to try and what to keep.

        Args:
            model: an `OnnxModel`, or the folder of an export.
            points_per_side: points along one side of the grid of clicks.
            point_grids: instead of `points_per_side` (which must then be None), the clicks themselves: for the image
                and for each layer of crops an (N, 2) array of x, y as shares of width and height.
            explain: after each `generate`, leave in `last_explanation` how many masks each filter took away.
            options: fields of `AutomaticMaskOptions`: those of `SamAutomaticMaskGenerator`, by the same names.

        Raises:
            ValueError: for an option outside its range, or if not exactly one of points_per_side and point_grids is
                given.
        """
        self.model = model if isinstance(model, OnnxModel) else OnnxModel(model)
        self.options = AutomaticMaskOptions(points_per_side=points_per_side, **options)
        layers = self.options.crop_n_layers
        if point_grids is not None:
            self.point_grids = checked_grids(point_grids, points_per_side, layers)
        elif points_per_side is not None:
            self.point_grids = build_all_layer_point_grids(
                points_per_side, layers, self.options.crop_n_points_downscale_factor
            )
        else:
            raise ValueError("points_per_side must be a whole number unless point_grids is given, but both are None")
        self.explain = explain
        self.last_explanation: Explanation | None = None

    def generate(self, image: npt.NDArray[np.uint8], *, embedding: OnnxEmbedding | None = None) -> list[MaskRecord]:
        """All masks of an image; see `SamAutomaticMaskGenerator.generate`.

        Args:
            image: (H, W, 3) uint8 RGB.
            embedding: of this image, if there is one already.

        Raises:
            ValueError: if `image` is no such array, or `embedding` is another image's or another model's.
        """
        records, explanation = self.filter(self.propose(image, embedding=embedding))
        self.last_explanation = explanation if self.explain else None
        return records

    def propose(self, image: npt.NDArray[np.uint8], *, embedding: OnnxEmbedding | None = None) -> Iterator[Proposals]:
        """The slow half: run the network on every click of every crop, a batch at a time."""
        image = check_image_array(image)
        if embedding is not None:
            embedding.check_image(image)
        size_hw = image.shape[0], image.shape[1]
        options = self.options
        crops = generate_crop_boxes(size_hw, options.crop_n_layers, options.crop_overlap_ratio)
        for (x0, y0, x1, y1), layer in zip(*crops, strict=True):
            if embedding is None or layer > 0:
                embedding = self.model.encode(image[y0:y1, x0:x1])
            clicks_xy = self.point_grids[layer] * np.array([x1 - x0, y1 - y0])
            for (points_xy,) in batch_iterator(options.points_per_batch, clicks_xy):
                prompts = Prompts.from_points(points_xy)
                decoded = self.model.decode(embedding, prompts, True, batch_size=options.points_per_batch)
                yield Proposals(decoded, points_xy + np.array([x0, y0]), (x0, y0, x1, y1), size_hw)

    def filter(self, proposals: Iterable[Proposals]) -> tuple[list[MaskRecord], Explanation]:
        """The fast half: judge the proposals of one image by the options.

        Returns:
            the records, and how many masks each filter took away.
        """
        found, explanation = select(proposals, self.options, self._judge)
        return as_records(found, self.options.output_mode), explanation

    def _judge(self, batch: Proposals, counts: Counter[str]) -> Candidates:
        """The masks of one batch that pass every test that looks at one mask alone."""
        decoded = batch.decoded
        assert isinstance(decoded, OnnxDecoded)
        count, masks = decoded.iou_predictions.shape
        logits = decoded.low_res_logits.reshape(count * masks, 1, *decoded.low_res_logits.shape[2:])
        iou = decoded.iou_predictions.reshape(count * masks, 1)
        good = np.arange(len(iou))
        if self.options.pred_iou_thresh > 0:
            good = np.flatnonzero(iou[:, 0] > self.options.pred_iou_thresh)
        counts["clicks"] += count
        counts["proposed"] += len(iou)
        counts["low_predicted_iou"] += len(iou) - len(good)
        chosen = OnnxDecoded(logits[good], iou[good], decoded.geometry)
        points_xy = batch.points_xy[good // masks]
        return measure_tiled(chosen, points_xy, batch, self.options, self.model.mask_threshold, counts)
