"""The mask decoder without gradients: the same function in fewer operations, once an image is known.

Five rewrites, all exact in real arithmetic (tests compare them with `MaskDecoder`, which stays the definition):

- Without a mask prompt all objects of an image start from the same cells. What is theirs alone has a low rank, and on a
  CPU no object's cells are made at all (`low_rank_cells`).
- Elsewhere the image-side weights of an attention are carried over to the few tokens (`whole_cells`).
- In the last attention only those tokens look at the image whose answers are read.
- Objects are decoded a few at a time and one after the other where cells are concerned, so that the cells of one stay
  in the cache and nothing is repeated for a whole batch.
- The predicted IoU needs the tokens alone: masks below a threshold are never upscaled.

Segment Anything, https://arxiv.org/abs/2304.02643, appendix A "Lightweight mask decoder".

Letters: B objects, T tokens, N = g * g image cells, C width, M heads, d head width, K masks of an object.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import nn

from segment_anything.modeling.carried_attention import Heads
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.linear import is_watched
from segment_anything.modeling.low_rank_cells import LowRankImage, LowRankObjects, most_tokens
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from segment_anything.modeling.once import Once
from segment_anything.modeling.prepared_attention import Block
from segment_anything.modeling.prepared_mixer import Drawn, PreparedMixer
from segment_anything.modeling.prepared_upscaler import HALF, FirstLayer, Upscaler, are_alike
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from segment_anything.modeling.whole_cells import WholeImage, WholeObjects

GROUP_BYTES = 2**25
"""About how much memory the cells of the objects decoded together may take, on a CPU."""

_KNOWN = {
    *(MaskDecoder, TwoWayTransformer, TwoWayAttentionBlock, Attention, MLPBlock, MLP, LayerNorm2d),
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.Sequential, nn.ModuleList, nn.ConvTranspose2d),
    *(nn.GELU, nn.ReLU, nn.Hardswish, nn.SiLU),
}
"""Modules whose arithmetic is known here. A decoder of any others (adapted, quantised, subclasses) is called as is."""


def can_prepare(decoder: nn.Module) -> bool:
    """Whether `PreparedDecoder` computes the same as `decoder`: known modules, and no hook on any."""
    return is_known(decoder) and not is_watched(*decoder.modules())


def is_known(decoder: nn.Module) -> bool:
    """Whether the arithmetic of a decoder's modules is known here; hooks may change it."""
    if type(decoder) is not MaskDecoder or type(decoder.transformer) is not TwoWayTransformer:
        return False
    return (
        bool(decoder.transformer.layers)
        and all(type(module) in _KNOWN for module in decoder.modules())
        and all(module.bias is not None for module in decoder.modules() if isinstance(module, nn.Linear))
        and are_alike(decoder.output_hypernetworks_mlps)
    )


def most_prompt_tokens(decoder: MaskDecoder) -> int:
    """Prompts of more tokens (a point or a corner is one, and padding) are decoded faster by the decoder itself."""
    assert isinstance(decoder.transformer, TwoWayTransformer)
    attention = decoder.transformer.final_attn_token_to_image
    return attention.internal_dim // attention.num_heads - decoder.num_mask_tokens - 1


def same_everywhere(dense: torch.Tensor) -> torch.Tensor | None:
    """The one vector (C,) that a dense prompt (B, C, g, g) repeats for all objects and cells, or None.

    Judged by how the memory is laid out (`PromptEncoder` expands one vector), not by the values.
    """
    strides = [stride for stride, size in zip(dense.stride(), dense.shape, strict=True) if size > 1]
    is_expanded = all(stride == 0 for stride in (dense.stride(2), dense.stride(3)))
    return dense[0, :, 0, 0] if is_expanded and sum(stride != 0 for stride in strides) <= 1 else None


class Objects(Protocol):
    """Objects of an image that are decoded together, and what their cells are."""

    def look(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens (B, T, C) look at the image before block `index`, or after all of them -> (B, T, C)."""

    def tell(self, index: int, queries: torch.Tensor, tokens: torch.Tensor) -> None:
        """What the queries (B, T, C) of block `index` tell the cells; tokens: as they came."""

    def first_layer(self, index: int, upscaler: Upscaler) -> FirstLayer:
        """The upscaler's first layer of an object's cells."""


class PreparedDecoder:
    """A mask decoder for the objects of one image. It only adds what it had not needed before: threads may share it.

    Weights are taken as they are now; make a new one after they change.
    """

    def __init__(
        self,
        decoder: MaskDecoder,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        dense_everywhere: torch.Tensor | None = None,
        mixer: PreparedMixer | None = None,
    ) -> None:
        """Prepare an image.

        Args:
            decoder: for which `can_prepare` holds.
            image_embeddings: (1, C, g, g).
            image_pe: (1, C, g, g).
            dense_everywhere: (C,) if all objects to come have this dense prompt in every cell (no mask prompt), so
                that they share the first block's work; None if each has its own.
            mixer: for the same image, if the dense prompts to come are `Drawn`; then `dense_everywhere` is its affair.
        """
        transformer = decoder.transformer
        assert isinstance(transformer, TwoWayTransformer)
        self.decoder = decoder
        self.output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        self.size_hw = image_embeddings.shape[-2], image_embeddings.shape[-1]
        self.blocks = [Block.of(layer) for layer in transformer.layers if isinstance(layer, TwoWayAttentionBlock)]
        final = Heads.of(transformer.final_attn_token_to_image)
        self.final_norm = transformer.norm_final_attn
        self.upscaler = Upscaler(decoder, self.size_hw)
        self.mixer = mixer
        shared = dense_everywhere if mixer is None else None
        self.is_shared = shared is not None
        cells, code = _as_cells(image_embeddings), _as_cells(image_pe)
        cells = cells if shared is None else cells + shared
        self.whole = WholeImage(self.blocks, final, cells, code, self.is_shared)
        # not a method: an image's memory would wait for the collector of cycles
        self.low_rank = Once(partial(LowRankImage, self.blocks, final, cells[0], code[0], self.upscaler.first))

    @torch.no_grad()
    def predict_masks(
        self, sparse: torch.Tensor, dense: torch.Tensor | Drawn, chosen: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `MaskDecoder.predict_masks`, of the K masks those that are chosen.

        Args:
            sparse: (B, T, C) prompt tokens.
            dense: (B, C, g, g), which the image embedding is to be added to; not looked at where `dense_everywhere` was
                given. `Drawn` where a mixer was given.
            chosen: of the mask tokens.

        Returns:
            Masks (B, K', 4g, 4g) and predicted IoU (B, K').
        """
        masks, ious = [], []
        with torch.inference_mode():  # a twentieth of the time; what is given back is made outside of it
            for tokens, objects in self._transformed(sparse, dense, chosen):
                ious.append(self.decoder.predict_iou(tokens[:, 0])[:, chosen])
                kernels = self.upscaler.kernels(tokens[:, 1:], chosen)
                masks.append(self._masks(objects, range(len(kernels)), list(kernels)))
        iou = torch.cat(ious)
        return _joined(masks).unflatten(0, iou.shape), iou

    @torch.no_grad()
    def predict_masks_above(
        self,
        sparse: torch.Tensor,
        dense: torch.Tensor | Drawn,
        chosen: slice,
        iou_threshold: float,
        seen_hw: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Only those masks whose predicted IoU is above a threshold.

        Args:
            sparse, dense, chosen: as `predict_masks`.
            iou_threshold: of the predicted IoU.
            seen_hw: rows and columns of cells whose logits are wanted, from the top left; None for all.

        Returns:
            Masks (P, 4g, 4g), 0 where they are not wanted, their places (P, 2) as object and mask among the chosen, and
            predicted IoU (B, K') of all, passed or not.
        """
        masks: list[torch.Tensor] = []
        places, ious = [], []
        done = 0
        with torch.inference_mode():
            for tokens, objects in self._transformed(sparse, dense, chosen):
                iou = self.decoder.predict_iou(tokens[:, 0])[:, chosen]
                passed = iou.float() > iou_threshold
                rows = passed.any(dim=1).nonzero()[:, 0].tolist()
                if rows:
                    kernels = self.upscaler.kernels(tokens[rows, 1:], chosen)
                    wanted = [kernels[j, passed[i]] for j, i in enumerate(rows)]
                    masks.append(self._masks(objects, rows, wanted, seen_hw))
                places.append(passed.nonzero() + torch.tensor([done, 0], device=passed.device))
                ious.append(iou)
                done += len(iou)
        side_hw = 4 * self.size_hw[0], 4 * self.size_hw[1]
        if not masks:
            masks = [self.whole.cells.new_empty((0, *side_hw))]
        return _joined(masks), torch.cat(places), torch.cat(ious)

    def _masks(
        self,
        objects: Objects,
        indices: Sequence[int],
        kernels: Sequence[torch.Tensor],
        seen_hw: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Masks (P, 4g, 4g) of some of the objects, one after the other, by the kernels (K, C / 8) of each."""
        counts = [len(own) for own in kernels]
        with torch.inference_mode(False):  # theirs to write on, with gradients or without
            masks = self.upscaler.room(sum(counts), kernels[0], seen_hw)
        for index, own, part in zip(indices, kernels, masks.split(counts), strict=True):
            self.upscaler(objects.first_layer(index, self.upscaler), own, part, seen_hw)
        return masks

    def _transformed(
        self, sparse: torch.Tensor, dense: torch.Tensor | Drawn, chosen: slice
    ) -> Iterator[tuple[torch.Tensor, Objects]]:
        """The transformer over a few objects at a time.

        Yields:
            The IoU token and those of the chosen masks (b, 1 + K', C), and the objects with their cells.
        """
        tokens = torch.cat([self.output.expand(len(sparse), -1, -1), sparse], dim=1)
        read = torch.tensor([0, *range(1, self.output.shape[1])[chosen]], device=tokens.device)
        cells = self.whole.cells
        step = max(1, GROUP_BYTES // (cells.numel() * cells.element_size()))
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            objects = self._objects(tokens[part], None if self.is_shared else dense[part])
            yield self._transform(objects, tokens[part], read), objects

    def _transform(self, objects: Objects, tokens: torch.Tensor, read: torch.Tensor | slice) -> torch.Tensor:
        """The tokens that are read, behind the transformer; the objects know their cells then."""
        queries = tokens
        for index, block in enumerate(self.blocks):
            queries = block.tokens_alone(queries, tokens)
            queries = block.tokens_after(queries, objects.look(index, queries + tokens))
            objects.tell(index, queries, tokens)
        queries, tokens = queries[:, read], tokens[:, read]
        normed: torch.Tensor = self.final_norm(queries + objects.look(len(self.blocks), queries + tokens))
        return normed

    def _objects(self, tokens: torch.Tensor, dense: torch.Tensor | Drawn | None) -> Objects:
        """Objects of tokens (b, T, C) as the first block meets them."""
        cells = self.whole.cells
        is_exact = cells.device.type == "cpu" and cells.dtype not in HALF
        if dense is None and is_exact and tokens.shape[1] <= most_tokens(self.blocks):
            return LowRankObjects(self.low_rank(), *tokens.shape[:2])
        return self._whole_objects(tokens, dense)

    def _whole_objects(self, tokens: torch.Tensor, dense: torch.Tensor | Drawn | None) -> WholeObjects:
        parts = _parts(tokens)
        cells = self.whole.cells
        if dense is None:
            return WholeObjects(self.whole, parts, [cells] * len(parts))
        if isinstance(dense, Drawn):
            assert self.mixer is not None
            coarse = self.mixer.coarse(dense)
            return WholeObjects(self.whole, parts, [self.mixer.cells(dense[part], coarse[part]) for part in parts])
        return WholeObjects(self.whole, parts, [cells + _as_cells(dense[part]) for part in parts])


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _as_cells(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, g, g) -> (B, N, C) in memory order."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def _parts(tokens: torch.Tensor) -> list[slice]:
    """Which objects to take together where cells are concerned: one by one in a CPU's cache, all on a GPU."""
    step = 1 if tokens.device.type == "cpu" else len(tokens)
    return [slice(start, start + step) for start in range(0, len(tokens), step)]
