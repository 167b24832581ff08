"""The mask decoder without gradients: the same function in fewer operations, once an image is known.

Five rewrites, all exact in real arithmetic (tests compare them with `MaskDecoder`, which stays the definition):

- Without a mask prompt all objects of an image start from the same cells, so what the first block projects from them is
  computed once an image.
- The image-side weights of an attention are carried over to the few tokens (`prepared_attention`).
- In the last attention only those tokens look at the image whose answers are read.
- Objects are decoded a few at a time and one after the other where cells are concerned, so that the cells of one stay
  in the cache and nothing is repeated for a whole batch.
- The predicted IoU needs the tokens alone: masks below a threshold are never upscaled.

Segment Anything, https://arxiv.org/abs/2304.02643, appendix A "Lightweight mask decoder".

Letters: B objects, T tokens, N = g * g image cells, C width, M heads, d head width, K masks of an object.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from segment_anything.modeling.carried_attention import Heads
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.linear import is_watched, linear
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from segment_anything.modeling.prepared_attention import Block, Update
from segment_anything.modeling.prepared_mixer import Drawn, PreparedMixer
from segment_anything.modeling.prepared_upscaler import Upscaler
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer

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
    if type(decoder) is not MaskDecoder or type(decoder.transformer) is not TwoWayTransformer:
        return False
    return bool(decoder.transformer.layers) and all(
        type(module) in _KNOWN and not is_watched(module) for module in decoder.modules()
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


class PreparedDecoder:
    """A mask decoder for the objects of one image. It changes nothing after construction: threads may share it.

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
        self.size_hw = image_embeddings.shape[-2], image_embeddings.shape[-1]
        self.code = _as_cells(image_pe)  # 1 N C
        self.cells = _as_cells(image_embeddings)
        self.blocks = [
            Block(layer, Heads.of(layer.cross_attn_token_to_image), Heads.of(layer.cross_attn_image_to_token))
            for layer in transformer.layers
            if isinstance(layer, TwoWayAttentionBlock)
        ]
        self.final = Heads.of(transformer.final_attn_token_to_image)
        self.final_norm = transformer.norm_final_attn
        self.upscaler = Upscaler(decoder, self.size_hw)
        self.mixer = mixer
        self.first: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        if dense_everywhere is not None and mixer is None:
            self.cells = self.cells + dense_everywhere
            coded, to_image, to_tokens = self.cells + self.code, self.blocks[0].to_image, self.blocks[0].to_tokens
            self.first = (
                to_image.split(linear(coded, to_image.module.k_proj.weight, None)).transpose(1, 2),  # M d N
                to_image.split(linear(self.cells, to_image.module.v_proj.weight, None)),  # M N d
                to_tokens.split(to_tokens.module.q_proj(coded)).transpose(1, 2) * to_tokens.scale,  # M d N
            )

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
        masks: list[torch.Tensor] = []
        ious = []
        for tokens, cells in self._transformed(sparse, dense, chosen):
            ious.append(self.decoder.predict_iou(tokens[:, 0])[:, chosen])
            kernels = self.upscaler.kernels(tokens[:, 1:], chosen)
            masks.extend(self.upscaler(cells[i], kernels[i]) for i in range(len(tokens)))
        return torch.stack(masks), torch.cat(ious)

    @torch.no_grad()
    def predict_masks_above(
        self, sparse: torch.Tensor, dense: torch.Tensor | Drawn, chosen: slice, iou_threshold: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Only those masks whose predicted IoU is above a threshold.

        Args: as `predict_masks`.

        Returns:
            Masks (P, 4g, 4g), their places (P, 2) as object and mask among the chosen, and predicted IoU (B, K') of
            all, passed or not.
        """
        masks: list[torch.Tensor] = []
        places, ious = [], []
        done = 0
        for tokens, cells in self._transformed(sparse, dense, chosen):
            iou = self.decoder.predict_iou(tokens[:, 0])[:, chosen]
            passed = iou.float() > iou_threshold
            rows = passed.any(dim=1).nonzero()[:, 0].tolist()
            if rows:
                kernels = self.upscaler.kernels(tokens[rows, 1:], chosen)
                masks.extend(self.upscaler(cells[i], kernels[j, passed[i]]) for j, i in enumerate(rows))
            places.append(passed.nonzero() + torch.tensor([done, 0], device=passed.device))
            ious.append(iou)
            done += len(iou)
        side_hw = 4 * self.size_hw[0], 4 * self.size_hw[1]
        if not masks:
            masks = [torch.empty((0, *side_hw), dtype=self.cells.dtype, device=self.cells.device)]
        return torch.cat(masks), torch.cat(places), torch.cat(ious)

    def _transformed(
        self, sparse: torch.Tensor, dense: torch.Tensor | Drawn, chosen: slice
    ) -> Iterator[tuple[torch.Tensor, Sequence[torch.Tensor]]]:
        """The transformer over a few objects at a time.

        Yields:
            The IoU token and those of the chosen masks (b, 1 + K', C), and the cells (N, C) of each object.
        """
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        tokens = torch.cat([output[None].expand(len(sparse), -1, -1), sparse], dim=1)
        read = [0, *range(1, 1 + self.decoder.num_mask_tokens)[chosen]]
        step = max(1, GROUP_BYTES // (self.cells.numel() * self.cells.element_size()))
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            yield self._transform(tokens[part], None if self.first is not None else dense[part], read)

    def _transform(
        self, tokens: torch.Tensor, dense: torch.Tensor | Drawn | None, read: list[int] | slice
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        # What a block's tokens tell the cells changes no token, so it is put off until the next look at the image:
        # each object's cells are then visited once a block.
        parts = _parts(tokens)
        cells = self._start(dense, parts)
        first = self.blocks[0]
        queries = first.tokens_alone(tokens, tokens)
        attended = self._first_look(queries + tokens, parts, cells)
        queries = first.tokens_after(queries, attended)
        for index, block in enumerate(self.blocks):
            known = None if self.first is None or index else self.first[2]
            update = Update.of(block, queries, tokens, known)
            following = self.blocks[index + 1] if index + 1 < len(self.blocks) else None
            if following is not None:
                queries = following.tokens_alone(queries, tokens)
            else:
                queries, tokens = queries[:, read], tokens[:, read]
            look = self.final if following is None else following.to_image
            carried = look.carried_queries(queries + tokens)
            pooled = []
            for i, part in enumerate(parts):
                cells[i] = update.apply(part, cells[i], self.code, in_place=cells[i] is not self.cells)
                pooled.append(self._pool(carried[part], cells[i]))
            attended = look.pooled(torch.cat(pooled))
            if following is not None:
                queries = following.tokens_after(queries, attended)
        return self.final_norm(queries + attended), [one for part in cells for one in part.unbind(0)]

    def _start(self, dense: torch.Tensor | Drawn | None, parts: Sequence[slice]) -> list[torch.Tensor]:
        """The cells (b or 1, N, C) of each part of the objects, as the first block meets them."""
        if dense is None:
            return [self.cells] * len(parts)
        if isinstance(dense, Drawn):
            assert self.mixer is not None
            coarse = self.mixer.coarse(dense)
            return [self.mixer.cells(dense[part], coarse[part]) for part in parts]
        return [self.cells + _as_cells(dense[part]) for part in parts]

    def _pool(self, carried: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Each token's and head's average of the cells (b, N, C), by carried queries (b, M * T, C)."""
        coded = cells + self.code
        return torch.bmm(torch.bmm(carried, coded.transpose(1, 2)).softmax(dim=-1), cells)

    def _first_look(self, queries: torch.Tensor, parts: Sequence[slice], cells: Sequence[torch.Tensor]) -> torch.Tensor:
        """The first block's tokens (B, T, C) look at the image -> (B, T, C)."""
        heads = self.blocks[0].to_image
        if self.first is None:
            carried = heads.carried_queries(queries)
            return heads.pooled(torch.cat([self._pool(carried[p], c) for p, c in zip(parts, cells, strict=True)]))
        keys, values, _ = self.first
        q = heads.split(heads.module.q_proj(queries)) * heads.scale  # M BT d
        return heads.output(torch.bmm(torch.bmm(q, keys).softmax(dim=-1), values), len(queries))


def _as_cells(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, g, g) -> (B, N, C) in memory order."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def _parts(tokens: torch.Tensor) -> list[slice]:
    """Which objects to take together where cells are concerned: one by one in a CPU's cache, all on a GPU."""
    step = 1 if tokens.device.type == "cpu" else len(tokens)
    return [slice(start, start + step) for start in range(0, len(tokens), step)]
