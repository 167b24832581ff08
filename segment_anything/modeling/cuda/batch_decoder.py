"""The prepared mask decoder for a GPU: all objects at once, and nothing that waits for a value.

The same rewrites as on a CPU (`prepared_decoder`), but for the order of work: there one object after the other stays in
the cache, here each product is as large as it can be. Nothing is kept from call to call, so that a recorded call serves
any image.

Letters: B objects, K masks of an object, N = g * g image cells, C width.
"""

import torch
from torch.nn.functional import layer_norm

from segment_anything.modeling.cells import products
from segment_anything.modeling.linear import linear
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prepared_decoder import (
    PreparedDecoder,
    can_prepare,
    most_prompt_tokens,
    same_everywhere,
)
from segment_anything.modeling.prepared_upscaler import Upscaler
from segment_anything.modeling.prompt_encoder import Points, PromptEncoder


class BatchDecoder(PreparedDecoder):
    """A mask decoder for the objects of one image, which takes them all at once."""

    @torch.no_grad()
    def predict_batch(
        self, sparse: torch.Tensor, dense: torch.Tensor, chosen: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `predict_masks`."""
        tokens = torch.cat([self.output.expand(len(sparse), -1, -1), sparse], dim=1)
        # a slice, where a list of places would have to be sent to the device
        read = slice(0, self.output.shape[1])
        objects = self._whole_objects(tokens, None if self.is_shared else dense)
        tokens = self._transform(objects, tokens, read)
        iou = self.decoder.predict_iou(tokens[:, 0])[:, chosen]
        kernels = self.upscaler.kernels(tokens[:, 1:][:, chosen], chosen)
        return upscale(self.upscaler, torch.stack(objects.each()), kernels), iou


def upscale(upscaler: Upscaler, cells: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """As `Upscaler`, for all objects: cells (B, N, C) and kernels (B, K, C / 8) -> masks (B, K, 4g, 4g)."""
    (height, width), (count, masks) = upscaler.size_hw, kernels.shape[:2]
    norm = upscaler.norm
    x = linear(cells.flatten(0, 1), *upscaler.first).view(count * height * width * 4, -1)
    x = upscaler.act1(layer_norm(x, x.shape[1:], norm.weight, norm.bias, norm.eps))
    x = linear(x, *upscaler.second, upscaler.act2).view(count, height * width * 16, -1)
    out = products(kernels, x.transpose(1, 2)).view(
        count, masks, height, width, 2, 2, 2, 2
    )  # y, x, child y x, grandchild y x
    return out.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(count, masks, 4 * height, 4 * width)


@torch.no_grad()
def decode_batch(
    encoder: PromptEncoder,
    decoder: MaskDecoder,
    features: torch.Tensor,
    points: Points | None,
    boxes: torch.Tensor | None,
    masks: torch.Tensor | None,
    multimask_output: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode the prompts of N objects on one image.

    Args:
        encoder, decoder: of the model.
        features: (1, C, g, g).
        points, boxes, masks: as `PromptEncoder.forward`.
        multimask_output: three masks of each prompt, or one.

    Returns:
        Logits (N, 3 or 1, 4g, 4g) and predicted IoU (N, 3 or 1).
    """
    sparse, dense = encoder(points, boxes, masks)
    dense = encoder.ground(dense, features)
    if can_prepare(decoder) and len(sparse) > 0 and sparse.shape[1] <= most_prompt_tokens(decoder):
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        prepared = BatchDecoder(decoder, features, encoder.get_dense_pe(), same_everywhere(dense))
        return prepared.predict_batch(sparse, dense, chosen)
    found: tuple[torch.Tensor, torch.Tensor] = decoder(
        image_embeddings=features,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
    )
    return found
