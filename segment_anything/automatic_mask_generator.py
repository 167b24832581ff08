"""All masks of an image: a grid of clicks, three masks a click, the good ones kept once.

Knows which clicks to try in which crops. The network is `Sam`'s business; what is kept is `_amg_filters`'
(Segment Anything, https://arxiv.org/abs/2304.02643, section B "Automatic Mask Generation Details").
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from segment_anything._amg_attributes import OptionAttributes
from segment_anything._amg_clicks import batch_iterator, generate_crop_boxes
from segment_anything._amg_filters import filter_proposals
from segment_anything._amg_options import AutomaticMaskOptions
from segment_anything._amg_selection import as_records, clean_small_regions
from segment_anything._amg_values import Explanation, Proposals
from segment_anything.embedding import ImageEmbedding
from segment_anything.images import check_image_array
from segment_anything.masks import RLE
from segment_anything.modeling import Sam
from segment_anything.predictor import SamPredictor
from segment_anything.prompts import Prompts
from segment_anything.records import MaskRecord
from segment_anything.utils.amg import MaskData

if TYPE_CHECKING:
    from segment_anything.text import TextScorer

__all__ = ["AutomaticMaskOptions", "Explanation", "Proposals", "SamAutomaticMaskGenerator"]

_Default = AutomaticMaskOptions


class SamAutomaticMaskGenerator(OptionAttributes):
    """Finds all masks of an image.

    The options are explained in `AutomaticMaskOptions`, which checks them; `options` holds them all. Two of them are
    easily confused: `min_mask_region_area` cleans small holes and islands inside masks and drops no mask;
    `min_mask_area` and `max_mask_area` drop masks.

    One generator may serve many threads, `last_explanation` excepted.
    """

    def __init__(
        self,
        model: Sam,
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
            model: the network.
            point_grids: instead of `points_per_side` (which must then be None), the clicks themselves: for the image
                and for each layer of crops an (N, 2) array of x, y as shares of width and height.
            explain: after each `generate`, leave in `last_explanation` how many masks each filter took away.
            labels: names to choose from for each mask, added as "category" and "category_score".
            scorer: compares masks with labels, for instance `TextScorer(TransformersEncoder(folder))` of `text`.

        Raises:
            ValueError: for an option outside its range, if not exactly one of points_per_side and point_grids is
                given, labels come without a scorer, or one of them is empty or there twice.
        """
        self.model = model
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
    def predictor(self) -> SamPredictor:
        """A predictor on the same model, for programs that reach for it; the generator itself does not use it."""
        return SamPredictor(self.model)

    def generate(self, image: npt.NDArray[np.uint8], *, embedding: ImageEmbedding | None = None) -> list[MaskRecord]:
        """All masks of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            embedding: of this image, if there is one already: saves encoding it again (crops are encoded anyway).

        Returns:
            a record a mask (keys: see `MaskRecord`), best predicted IoU first within each crop; an empty list if no
            mask passes. "coco_rle" takes least memory; in "binary_mask" mode every record holds H * W bytes.

        Raises:
            ValueError: if `image` is no (H, W, 3) uint8 array, or `embedding` is another image's or another model's.
        """
        records, explanation = self.filter(self._propose(image, embedding, self.options.pred_iou_thresh))
        self.last_explanation = explanation if self.explain else None
        return records if self.labels is None else self._labelled(records, image, self.labels)

    def _labelled(
        self, records: list[MaskRecord], image: npt.NDArray[np.uint8], labels: Sequence[str]
    ) -> list[MaskRecord]:
        from segment_anything.text import label_records

        assert self.scorer is not None
        return label_records(records, image, labels, self.scorer)

    def propose(self, image: npt.NDArray[np.uint8], *, embedding: ImageEmbedding | None = None) -> Iterator[Proposals]:
        """The slow half: run the network on every click of every crop, a batch at a time.

        Keep `list(generator.propose(image))` to judge the same answers again and again with `filter`; that takes
        768 KiB a click at the published sizes.
        """
        return self._propose(image, embedding, 0.0)

    @torch.no_grad()
    def _propose(
        self, image: npt.NDArray[np.uint8], embedding: ImageEmbedding | None, iou_threshold: float
    ) -> Iterator[Proposals]:
        """As `propose`; with a threshold above 0, masks whose predicted IoU is not above it are never made."""
        image = check_image_array(image)
        if embedding is not None:
            embedding.check_image(image)
        size_hw = image.shape[0], image.shape[1]
        options = self.options
        crops = generate_crop_boxes(size_hw, options.crop_n_layers, options.crop_overlap_ratio)
        grids = self.point_grids
        for (x0, y0, x1, y1), layer in zip(*crops, strict=True):
            if embedding is None or layer > 0:
                embedding = self.model.encode(image[y0:y1, x0:x1])
            clicks_xy = grids[layer] * np.array([x1 - x0, y1 - y0])
            for (points_xy,) in batch_iterator(options.points_per_batch, clicks_xy):
                place = points_xy + np.array([x0, y0]), (x0, y0, x1, y1), size_hw
                prompts = Prompts.from_points(points_xy)
                if iou_threshold > 0:
                    yield self._proposals_above(embedding, prompts, iou_threshold, *place)
                else:
                    decoded = self.model.decode(embedding, prompts, True, batch_size=len(prompts))
                    yield Proposals(decoded, *place)

    def _proposals_above(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts,
        iou_threshold: float,
        points_xy: npt.NDArray[np.float64],
        crop_box_xyxy: tuple[int, int, int, int],
        size_hw: tuple[int, int],
    ) -> Proposals:
        decoded, places = self.model.decode_above(embedding, prompts, iou_threshold, batch_size=len(prompts))
        clicks_xy = points_xy[places[:, 0].cpu().numpy()]
        return Proposals(decoded, clicks_xy, crop_box_xyxy, size_hw, 3 * len(prompts) - len(decoded), len(prompts))

    @torch.no_grad()
    def filter(self, proposals: Iterable[Proposals]) -> tuple[list[MaskRecord], Explanation]:
        """The fast half: judge the proposals of one image by the options.

        Returns:
            the records, and how many masks each filter took away.
        """
        found, explanation = filter_proposals(proposals, self.options, mask_threshold=self.model.mask_threshold)
        return as_records(found, self.options.output_mode), explanation

    @staticmethod
    def postprocess_small_regions(mask_data: MaskData, min_area: float, nms_thresh: float) -> MaskData:
        """Clean small holes and islands of masks, and drop those that became alike.

        Changes the columns "rles" and "boxes" of `mask_data` and returns it; masks that needed no cleaning come first.
        """
        if len(mask_data["rles"]) == 0:
            return mask_data
        boxes = torch.as_tensor(mask_data["boxes"])
        rles, cleaned, kept = clean_small_regions(mask_data["rles"], boxes.cpu().numpy(), min_area, nms_thresh)
        mask_data["rles"] = [RLE(size=rle["size"], counts=np.asarray(rle["counts"]).tolist()) for rle in rles]
        is_tensor = isinstance(mask_data["boxes"], torch.Tensor)
        mask_data["boxes"] = torch.as_tensor(cleaned, device=boxes.device) if is_tensor else cleaned
        mask_data.filter(torch.from_numpy(kept))
        return mask_data
