"""Where prompts meet an image: encoded, and the decoder prepared for the image where that is faster.

Letters: N objects, T prompt tokens, C channels, g embedding cells a side.
"""

from dataclasses import dataclass

import torch

from segment_anything.modeling.linear import plain_wanted
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prepared_decoder import PreparedDecoder, most_prompt_tokens, same_everywhere
from segment_anything.modeling.prepared_images import DecoderWatch, PreparedImages
from segment_anything.modeling.prepared_mixer import Drawn, PreparedMixer, can_mix, draw
from segment_anything.modeling.prompt_encoder import Points, PromptEncoder


@dataclass(frozen=True, eq=False)
class Prompted:
    """The prompts of N objects on one image, ready for the decoder."""

    encoder: PromptEncoder
    decoder: MaskDecoder
    features: torch.Tensor
    """(1, C, g, g), or (N, C, g, g)."""
    sparse: torch.Tensor
    """(N, T, C)."""
    dense: torch.Tensor | Drawn
    """(N, C, g, g), grounded; or drawn, for a decoder that was prepared for that."""
    prepared: PreparedDecoder | None
    """None where the decoder itself is wanted: for gradients and exports, or because it is faster."""

    def masks(self, multimask_output: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, 3 or 1, 4g, 4g) and predicted IoU (N, 3 or 1)."""
        if self.prepared is not None:
            chosen = slice(1, None) if multimask_output else slice(0, 1)
            return self.prepared.predict_masks(self.sparse, self.dense, chosen)
        assert isinstance(self.dense, torch.Tensor)
        masks: tuple[torch.Tensor, torch.Tensor] = self.decoder(
            image_embeddings=self.features,
            image_pe=self.encoder.get_dense_pe(),
            sparse_prompt_embeddings=self.sparse,
            dense_prompt_embeddings=self.dense,
            multimask_output=multimask_output,
        )
        return masks

    def masks_above(
        self, iou_threshold: float, seen_hw: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of three masks of each object those above a predicted IoU: logits (P, 4g, 4g), IoU (P,) and places (P, 2).

        Logits outside of the rows and columns of cells in `seen_hw` may be 0.
        """
        if self.prepared is None:
            masks, iou = self.masks(True)
            passed = iou.float() > iou_threshold
            return masks[passed], iou[passed], passed.nonzero()
        found, places, iou = self.prepared.predict_masks_above(
            self.sparse, self.dense, slice(1, None), iou_threshold, seen_hw
        )
        return found, iou[places[:, 0], places[:, 1]], places


def meet(
    kept: PreparedImages,
    encoder: PromptEncoder,
    decoder: MaskDecoder,
    features: torch.Tensor,
    points: Points | None,
    boxes: torch.Tensor | None,
    masks: torch.Tensor | None,
) -> Prompted:
    """Encode prompts and ground them on an image.

    Args:
        kept: prepared images, which one may be added to.
        encoder, decoder: of the model.
        features: (1, C, g, g), as they came: their identity tells prepared images apart.
        points, boxes, masks: as `PromptEncoder.forward`, on the model's device.
    """
    weight = encoder.no_mask_embed.weight
    image = features.to(weight.device, weight.dtype)
    watch = kept.watch(encoder, decoder) if len(features) == 1 and not plain_wanted() else None
    if watch is not None and not watch.can_prepare():
        watch = None
    if watch is not None and can_mix(encoder):
        sparse, drawn = draw(encoder, points, boxes, masks)  # type: ignore[arg-type]
        if _pays(sparse, decoder):
            prepared = _prepared(kept, watch, encoder, decoder, features, image, same_everywhere(drawn.dense), True)
            return Prompted(encoder, decoder, image, sparse, drawn, prepared)
    sparse, dense = encoder(points, boxes, masks)
    dense = encoder.ground(dense, image)
    if watch is None or not _pays(sparse, decoder):
        return Prompted(encoder, decoder, image, sparse, dense, None)
    prepared = _prepared(kept, watch, encoder, decoder, features, image, same_everywhere(dense), False)
    return Prompted(encoder, decoder, image, sparse, dense, prepared)


def _pays(sparse: torch.Tensor, decoder: MaskDecoder) -> bool:
    return len(sparse) > 0 and sparse.shape[1] <= most_prompt_tokens(decoder)


def _prepared(
    kept: PreparedImages,
    watch: DecoderWatch,
    encoder: PromptEncoder,
    decoder: MaskDecoder,
    features: torch.Tensor,
    image: torch.Tensor,
    everywhere: torch.Tensor | None,
    draws: bool,
) -> PreparedDecoder:
    def prepare() -> PreparedDecoder:
        mixer = PreparedMixer(encoder, image, everywhere) if draws else None  # type: ignore[arg-type]
        return PreparedDecoder(decoder, image, encoder.get_dense_pe(), everywhere, mixer)

    state = watch, None if everywhere is None else tuple(everywhere.tolist())
    return kept.get(features, state, prepare)
