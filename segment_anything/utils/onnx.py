"""The original's wrapper for export: prompts of one object to full-size masks, in one graph.

`segment_anything.export` writes it, and better-suited forms, to files; a program that calls `torch.onnx.export` itself,
with either exporter, may do so on this class as on the original's. It knows nothing of ONNX.

Letters: P points, K = 4 masks, S side of the model's input, g embedding cells a side, H x W original pixels.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from segment_anything.modeling import Sam
from segment_anything.modeling.labelled_prompts import LabelledPrompts

Outputs = tuple[torch.Tensor, ...]


class SamOnnxModel(nn.Module):
    """Prompt encoder, mask decoder and the way back to original pixels."""

    def __init__(
        self,
        model: Sam,
        return_single_mask: bool,
        use_stability_score: bool = False,
        return_extra_metrics: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: whose prompt encoder and decoder are used; its image encoder is not.
            return_single_mask: only the best mask, by the paper's rule, instead of all four.
            use_stability_score: rank masks by how little they change when their cut-off moves, not by predicted IoU.
            return_extra_metrics: also return stability and area of each mask at full size.
        """
        super().__init__()
        self.mask_decoder = model.mask_decoder
        self.model = model
        self.img_size = model.image_size
        self.return_single_mask = return_single_mask
        self.use_stability_score = use_stability_score
        self.stability_score_offset = 1.0
        self.return_extra_metrics = return_extra_metrics
        self.prompts = LabelledPrompts(model.prompt_encoder)

    @staticmethod
    def resize_longest_image_size(input_image_size: torch.Tensor, longest_side: int) -> torch.Tensor:
        """Height and width (2,) after the longest side became `longest_side`, int64."""
        size = input_image_size.to(torch.float32)
        return (longest_side / size.max() * size + 0.5).floor().to(torch.int64)

    def mask_postprocessing(self, masks: torch.Tensor, orig_im_size: torch.Tensor) -> torch.Tensor:
        """Low-resolution logits (1, K, 4g, 4g) -> (1, K, H, W), where `orig_im_size` is (H, W)."""
        masks = interpolate(masks, (self.img_size, self.img_size), mode="bilinear", align_corners=False)
        height, width = _sides(self.resize_longest_image_size(orig_im_size, self.img_size), self.img_size)
        masks = masks[..., :height, :width]
        return interpolate(masks, _sides(orig_im_size.to(torch.int64)), mode="bilinear", align_corners=False)

    def select_masks(
        self, masks: torch.Tensor, iou_preds: torch.Tensor, num_points: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The single mask for three points or more (padding counts), else the best of the other three.

        Args:
            masks: (N, K, h, w).
            iou_preds: (N, K), the score of each.
            num_points: P.

        Returns:
            (N, 1, h, w) and (N, 1).
        """
        first = torch.zeros_like(iou_preds[0])
        first[0] = 1000.0  # outweighs any score
        best = (iou_preds + (num_points - 2.5) * first).argmax(dim=1)[:, None]
        masks = masks.gather(1, best[..., None, None].expand(-1, 1, *masks.shape[-2:]))
        return masks, iou_preds.gather(1, best)

    def _stability(self, masks: torch.Tensor) -> torch.Tensor:
        """(..., H, W) logits -> (...): pixels above a higher cut-off as a share of those above a lower one."""
        threshold, offset = self.model.mask_threshold, self.stability_score_offset
        strict, loose = (_area(masks > threshold + sign * offset).to(torch.float32) for sign in (1, -1))
        return strict / loose

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> Outputs:
        """Masks of one object.

        Args:
            image_embeddings: (1, C, g, g).
            point_coords: (1, P, 2) in input pixels; corners of a box are points too.
            point_labels: (1, P): 1 foreground, 0 background, 2 and 3 first and second corner, -1 padding, of which
                there must be one where there is no box.
            mask_input: (1, 1, 4g, 4g) logits; anything where there are none.
            has_mask_input: (1,): 1.0 if there are, else 0.0.
            orig_im_size: (2,): H, W.

        Returns:
            Logits (1, K or 1, H, W), their scores (1, K or 1) and logits (1, K or 1, 4g, 4g); with
            `return_extra_metrics` stability and area (1, K or 1) come before the last.
        """
        sparse = self.prompts.tokens(point_coords, point_labels)
        dense = self.prompts.dense(mask_input, has_mask_input) + self.prompts.drawn(point_coords, point_labels)
        dense = self.model.prompt_encoder.ground(dense.expand(-1, -1, *image_embeddings.shape[-2:]), image_embeddings)
        masks, scores = self.mask_decoder.predict_masks(
            image_embeddings=image_embeddings,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        if self.use_stability_score:
            scores = self._stability(masks)
        if self.return_single_mask:
            masks, scores = self.select_masks(masks, scores, point_coords.shape[1])
        upscaled = self.mask_postprocessing(masks, orig_im_size)
        if self.return_extra_metrics:
            areas = _area(upscaled > self.model.mask_threshold)
            return upscaled, scores, self._stability(upscaled), areas, masks
        return upscaled, scores, masks


def _area(flags: torch.Tensor) -> torch.Tensor:
    """(..., H, W) bool -> (...) int64."""
    return flags.to(torch.int32).sum(dim=(-1, -2), dtype=torch.int64)


def _sides(size_hw: torch.Tensor, most: int = 2**16) -> Any:
    """(2,) int64 -> height and width as numbers; as tensors for the older exporter, which would freeze numbers."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return size_hw[0], size_hw[1]
    sides = [side.item() for side in size_hw.unbind()]
    for side in sides:
        torch._check(side >= 1)
        torch._check(side <= most)
    return sides
