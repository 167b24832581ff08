"""Image embedding + prompt tokens -> masks and their predicted IoU.

Segment Anything (https://arxiv.org/abs/2304.02643), appendix A "Lightweight mask decoder" and "Making the model
ambiguity-aware". Parameter names are those of the published checkpoints.

Letters: N objects, T prompt tokens, K mask tokens, C width, g embedding cells a side.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Self

import torch
from torch import nn

from segment_anything.modeling.cells import can_upscale, products, upscale
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.linear import is_learning


class MaskDecoder(nn.Module):
    """Predicts one mask for a clear prompt and `num_multimask_outputs` (whole, part, sub-part) for an ambiguous one."""

    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: nn.Module,
        num_multimask_outputs: int = 3,
        activation: type[nn.Module] = nn.GELU,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        self.transformer_dim = transformer_dim
        self.transformer = transformer
        self.num_multimask_outputs = num_multimask_outputs
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.num_mask_tokens = num_multimask_outputs + 1
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(transformer_dim // 4),
            activation(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, kernel_size=2, stride=2),
            activation(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(transformer_dim, iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth)

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the masks of N objects.

        Args:
            image_embeddings: (1, C, g, g), one image for all objects, or (N, C, g, g).
            image_pe: (1, C, g, g).
            sparse_prompt_embeddings: (N, T, C).
            dense_prompt_embeddings: (N, C, g, g).
            multimask_output: three masks of an ambiguous prompt, or the single one.

        Returns:
            Mask logits (N, 3 or 1, 4g, 4g) and predicted IoU (N, 3 or 1).
        """
        masks, iou = self.predict_masks(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def predict_masks(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All K = 4 masks (N, K, 4g, 4g) and their predicted IoU (N, K); arguments as in `forward`."""
        count = sparse_prompt_embeddings.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens[None].expand(count, -1, -1), sparse_prompt_embeddings], dim=1)
        source = image_embeddings + dense_prompt_embeddings  # one image is broadcast, never copied
        tokens, image = self.transformer(source, image_pe, tokens)
        masks = self.upscale(image, source.shape[-2:], tokens[:, 1 : 1 + self.num_mask_tokens])
        return masks, self.predict_iou(tokens[:, 0])

    def predict_iou(self, iou_token: torch.Tensor) -> torch.Tensor:
        """IoU token (N, C) -> predicted IoU (N, K), float32 in a model of half precision: thresholds look at it."""
        iou: torch.Tensor = self.iou_prediction_head(iou_token.to(next(self.iou_prediction_head.parameters()).dtype))
        return iou

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        exact = {name: tensor.detach().clone() for name, tensor in self.iou_prediction_head.named_parameters()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, parameter in self.iou_prediction_head.named_parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = exact[name].to(parameter.device)
        return self

    def upscale(
        self, image: torch.Tensor, size_hw: tuple[int, int] | torch.Size, mask_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Image (N, g * g, C) and mask tokens (N, K, C) -> logits (N, K, 4g, 4g), see `cells.products`."""
        kernels = torch.stack(
            [mlp(mask_tokens[:, index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # N K C/8
        if is_learning(image) and can_upscale(self.output_upscaling):
            return upscale(self.output_upscaling, image, size_hw, kernels)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, tuple(size_hw)))  # N C/8 4g 4g
        masks: torch.Tensor = products(kernels, upscaled.flatten(2)).unflatten(2, tuple(upscaled.shape[-2:]))
        return masks


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int, sigmoid_output: bool = False
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))
        self.sigmoid_output = sigmoid_output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for index, layer in enumerate(self.layers):
            x = layer(x.relu() if index else x)
        return x.sigmoid() if self.sigmoid_output else x
