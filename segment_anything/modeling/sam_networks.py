"""The networks of `Sam` in one module: where their weights are, what they are called, and how pixels go in and out.

Letters: N objects, C masks of each, H x W original pixels, S side of the square input, g embedding cells a side.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import nn
from torch.nn.functional import interpolate, pad

from segment_anything.embedding import fingerprint_weights
from segment_anything.modeling.cuda.recorded_sam import RecordedSam
from segment_anything.modeling.cuda.resize import Uploads
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prepared_images import PreparedImages
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.weights_watch import WeightsWatch


class SamNetworks(nn.Module):
    """The three networks, and what is known of their weights and of the input's frame."""

    mask_threshold: float = 0.0
    """Logits above this are object."""
    image_format: str = "RGB"
    """Order of channels that the image encoder wants."""

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        """Join the three networks.

        Args:
            image_encoder: (B, 3, S, S) -> (B, C, g, g), with an attribute `img_size` = S.
            prompt_encoder: prompts -> tokens and dense map.
            mask_decoder: embedding, tokens, dense map -> masks.
            pixel_mean: of RGB values 0..255, subtracted from the input.
            pixel_std: of RGB values 0..255, which the input is divided by.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.name = "sam"
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self._fingerprint: tuple[WeightsWatch, str] | None = None
        self._prepared = PreparedImages()
        self._recorded = RecordedSam()
        self._uploads = Uploads()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        exact = self.pixel_mean, self.pixel_std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.pixel_mean.dtype in (torch.bfloat16, torch.float16):  # rounded, 123.675 would be 123.5
            self.pixel_mean, self.pixel_std = (values.to(self.pixel_mean.device) for values in exact)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.prompt_encoder.no_mask_embed.weight.dtype

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return int(self.image_encoder.img_size)  # type: ignore[arg-type]

    @property
    def embedding_size(self) -> int:
        """Embedding cells a side, g."""
        return self.prompt_encoder.image_embedding_size[0]

    @property
    def mask_input_size(self) -> int:
        """Side of low-resolution masks, 4g."""
        return self.prompt_encoder.mask_input_size[0]

    def fingerprint(self) -> str:
        """A short name of the image encoder's weights, which an embedding carries; kept until a weight changes."""
        known = self._fingerprint
        if known is None or known[0].modules != (self.image_encoder,) or not known[0].unchanged():
            watch = WeightsWatch(self.image_encoder)
            self._fingerprint = known = watch, fingerprint_weights(dict(self.image_encoder.state_dict(keep_vars=True)))
        return known[1]

    def preprocess(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise pixels and pad to the square input.

        Args:
            x: (..., 3, h, w) RGB 0..255, longest side at most S.

        Returns:
            (..., 3, S, S) in the model's type.

        Raises:
            ValueError: if it is no such tensor, or larger than the input.
        """
        if x.ndim < 3 or x.shape[-3] != 3 or max(x.shape[-2:]) > self.image_size:
            raise ValueError(
                f"image must be RGB of shape (3, h, w), its longest side resized to {self.image_size} "
                f"(ResizeLongestSide({self.image_size}) does it), got {tuple(x.shape)}."
            )
        if x.dtype == torch.float64:  # some devices have none
            x = x.float()
        x = ((x.to(self.device).float() - self.pixel_mean) / self.pixel_std).to(self.dtype)
        height, width = x.shape[-2:]
        return pad(x, (0, self.image_size - width, 0, self.image_size - height))

    def postprocess_masks(
        self, masks: torch.Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> torch.Tensor:
        """Low-resolution logits to original pixels.

        Args:
            masks: (N, C, h, w).
            input_size: height and width in input pixels, without padding.
            original_size: (H, W).

        Returns:
            (N, C, H, W) float32 logits.
        """
        side = (self.image_size, self.image_size)
        masks = interpolate(masks.float(), side, mode="bilinear", align_corners=False)
        masks = masks[..., : input_size[0], : input_size[1]]
        return interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)
