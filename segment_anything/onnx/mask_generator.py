"""All masks of an image on ONNX Runtime: the clicks, filters, records and order of `SamAutomaticMaskGenerator`."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segment_anything._amg_attributes import OptionAttributes
from segment_anything._amg_clicks import batch_iterator, generate_crop_boxes
from segment_anything._amg_fast import measure_tiled
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_selection import as_records, select
from segment_anything._amg_values import Candidates, Explanation, Proposals
from segment_anything.images import check_image_array
from segment_anything.onnx.decoded import OnnxDecoded
from segment_anything.onnx.model import OnnxEmbedding, OnnxModel
from segment_anything.onnx.predictor import OnnxPredictor
from segment_anything.prompts import Prompts
from segment_anything.records import MaskRecord

if TYPE_CHECKING:
    from segment_anything.text import TextScorer


_Default = AutomaticMaskOptions


class OnnxMaskGenerator(OptionAttributes):
    """Finds all masks of an image. One generator may serve many threads, `last_explanation` excepted."""

    def __init__(
        self,
        model: OnnxModel | str | os.PathLike[str],
        points_per_side: int | None = _Default.points_per_side,
        points_per_batch: int = _Default.points_per_batch,
        pred_iou_thresh: float = _Default.pred_iou_thresh,
        stability_score_thresh: float = _Default.stability_score_thresh,
        stability_score_offset: float = _Default.stability_score_offset,
        box_nms_thresh: float = _Default.box_nms_thresh,
        crop_n_layers: int = _Default.crop_n_layers,
        crop_nms_thresh: float = _Default.crop_nms_thresh,
        crop_overlap_ratio: float = _Default.crop_overlap_ratio,
        crop_n_points_downscale_factor: int = _Default.crop_n_points_downscale_factor,
        point_grids: Sequence[npt.NDArray[Any]] | None = None,
        min_mask_region_area: float = _Default.min_mask_region_area,
        output_mode: str = _Default.output_mode,
        *,
        min_mask_area: float = _Default.min_mask_area,
        max_mask_area: float | None = _Default.max_mask_area,
        overlap: str = _Default.overlap,
        explain: bool = False,
        labels: Sequence[str] | None = None,
        scorer: "TextScorer | None" = None,
    ) -> None:
        """See `AutomaticMaskOptions` for the options not named here.

        Args:
            model: an `OnnxModel`, or the folder of an export.
            point_grids: instead of `points_per_side` (which must then be None), the clicks themselves: for the image
                and for each layer of crops an (N, 2) array of x, y as shares of width and height.
            explain: after each `generate`, leave in `last_explanation` how many masks each filter took away.
            labels: names to choose from for each mask, added as "category" and "category_score".
            scorer: compares masks with labels; those of `segment_anything.text` run on torch.

        Raises:
            ValueError: for an option outside its range, if not exactly one of points_per_side and point_grids is
                given, labels come without a scorer, or one of them is empty or there twice.
        """
        self.model = model if isinstance(model, OnnxModel) else OnnxModel(model)
        options = AutomaticMaskOptions(
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            min_mask_region_area=min_mask_region_area,
            output_mode=output_mode,
            min_mask_area=min_mask_area,
            max_mask_area=max_mask_area,
            overlap=overlap,
        )
        self._take(options, point_grids=point_grids, explain=explain, labels=labels, scorer=scorer)

    @cached_property
    def predictor(self) -> OnnxPredictor:
        """A predictor on the same model, for programs that reach for it; the generator itself does not use it."""
        return OnnxPredictor(self.model)

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
        if self.labels is None or self.scorer is None:
            return records
        from segment_anything.text import label_records

        return label_records(records, image, self.labels, self.scorer)

    def propose(self, image: npt.NDArray[np.uint8], *, embedding: OnnxEmbedding | None = None) -> Iterator[Proposals]:
        """The slow half: run the network on every click of every crop, a batch at a time."""
        image = check_image_array(image)
        if embedding is not None:
            embedding.check_image(image)
        size_hw = image.shape[0], image.shape[1]
        options, grids = self.options, self.point_grids
        crops = generate_crop_boxes(size_hw, options.crop_n_layers, options.crop_overlap_ratio)
        for (x0, y0, x1, y1), layer in zip(*crops, strict=True):
            if embedding is None or layer > 0:
                embedding = self.model.encode(image[y0:y1, x0:x1])
            clicks_xy = grids[layer] * np.array([x1 - x0, y1 - y0])
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
