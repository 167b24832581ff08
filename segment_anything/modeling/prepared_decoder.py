"""The mask decoder without gradients: the same function in fewer operations, once an image is known.

Four rewrites, all exact in real arithmetic (tests compare them with `MaskDecoder`, which stays the definition):

- Without a mask prompt all objects of an image start from the same cells, so what the first block projects from them is
  computed once an image.
- Few tokens look at many cells. Projecting the cells (C x I weights, all N of them) costs more than carrying the same
  weights over to the tokens: (x W_q)(y W_k)' = (x W_q W_k') y'. This pays while heads * tokens <= I.
- Objects are decoded a few at a time and one after the other where cells are concerned, so that the cells of one stay
  in the cache and nothing is repeated for a whole batch.
- The predicted IoU needs the tokens alone: masks below a threshold are never upscaled.

Segment Anything, https://arxiv.org/abs/2304.02643, appendix A "Lightweight mask decoder".

Letters: B objects, T tokens, N = g * g image cells, C width, M heads, d head width, I = M * d, K masks of an object.
"""

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import layer_norm

from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.linear import linear
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
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
        type(module) in _KNOWN and not module._forward_hooks and not module._forward_pre_hooks
        for module in decoder.modules()
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


@dataclass(frozen=True, eq=False)
class _Heads:
    """The weights of an `Attention`, head by head."""

    module: Attention
    q: torch.Tensor
    """(M, d, C) and so are k, v and o, the output's weights transposed."""
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor

    @staticmethod
    def of(module: Attention) -> "_Heads":
        q, k, v = (
            layer.weight.view(module.num_heads, -1, layer.in_features)
            for layer in (module.q_proj, module.k_proj, module.v_proj)
        )
        o = module.out_proj.weight.T.reshape(q.shape)
        return _Heads(module, q, k, v, o)

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.q.shape[1])

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, I) -> (M, B * T, d)."""
        return x.view(-1, len(self.q), self.q.shape[1]).transpose(0, 1)

    def join(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """(M, B * T, c) -> (B, M * T, c), B = `count`."""
        heads, _, width = x.shape
        return x.view(heads, count, -1, width).transpose(0, 1).reshape(count, -1, width)

    def carried_queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """Queries of tokens (B, T, C), carried over to the cells: (B, M * T, C). The keys' bias cancels in softmax."""
        q = self.split(self.module.q_proj(tokens)) * self.scale
        return self.join(q @ self.k, len(tokens))

    def carried_keys(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of tokens (B, T, C), carried over to the cells: (B, M * T, C), and the queries' bias (B, M * T, 1)."""
        k = self.split(self.module.k_proj(tokens)) * self.scale
        offset = k @ self.module.q_proj.bias.view(len(self.q), -1, 1)
        return self.join(k @ self.q, len(tokens)), self.join(offset, len(tokens))

    def carried_values(self, tokens: torch.Tensor) -> torch.Tensor:
        """Values of tokens (B, T, C) behind the output layer: (B, M * T, C).

        The weights of each of M heads sum to 1, so an M-th of the output's bias in every row makes up the whole.
        """
        v = self.split(self.module.v_proj(tokens))
        return self.join(v @ self.o, len(tokens)) + self.module.out_proj.bias / len(self.q)

    def pooled(self, cells: torch.Tensor) -> torch.Tensor:
        """Cells pooled by each head and token (B, M * T, C) -> the attention's output (B, T, C)."""
        count = len(cells)
        x = cells.view(count, len(self.q), -1, cells.shape[2]).transpose(0, 1).flatten(1, 2)  # M BT C
        return self.output(x @ self.v.transpose(1, 2), count)

    def output(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Values of each head without their bias (M, B * T, d) -> (B, T, C)."""
        joined = values.permute(1, 0, 2).flatten(1) + self.module.v_proj.bias  # BT I
        projected: torch.Tensor = self.module.out_proj(joined)
        return projected.view(count, -1, projected.shape[1])


@dataclass(frozen=True, eq=False)
class _Block:
    """A `TwoWayAttentionBlock` with its two cross attentions head by head."""

    module: TwoWayAttentionBlock
    to_image: _Heads
    to_tokens: _Heads

    def tokens_alone(self, queries: torch.Tensor, query_pe: torch.Tensor) -> torch.Tensor:
        """What the tokens do before they look at the image."""
        module = self.module
        if module.skip_first_layer_pe:
            attended: torch.Tensor = module.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            attended = queries + module.self_attn(q=q, k=q, v=queries)
        normed: torch.Tensor = module.norm1(attended)
        return normed

    def tokens_after(self, queries: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What the tokens do once they have looked at the image."""
        queries = self.module.norm2(queries + attended)
        normed: torch.Tensor = self.module.norm3(queries + self.module.mlp(queries))
        return normed


@dataclass(frozen=True, eq=False)
class _Update:
    """What the tokens of some objects tell the cells (`_Heads.carried_keys`, `carried_values`), ready to be added."""

    keys: torch.Tensor
    offset: torch.Tensor
    values: torch.Tensor
    heads: int
    norm: nn.LayerNorm

    @staticmethod
    def of(block: _Block, queries: torch.Tensor, query_pe: torch.Tensor) -> "_Update":
        heads = block.to_tokens
        keys, offset = heads.carried_keys(queries + query_pe)
        return _Update(keys, offset, heads.carried_values(queries), len(heads.q), block.module.norm4)

    def weights(self, part: slice, coded: torch.Tensor) -> torch.Tensor:
        """(b, N, C) cells with their position code -> (b, M * T, N), for each cell and head a share of each token."""
        scores = torch.bmm(self.keys[part], coded.transpose(1, 2)).add_(self.offset[part])
        return scores.view(len(scores), self.heads, -1, scores.shape[2]).softmax(dim=2).view(scores.shape)

    def apply(self, part: slice, cells: torch.Tensor, weights: torch.Tensor, in_place: bool) -> torch.Tensor:
        """The cells (b or 1, N, C) after the update."""
        if in_place:
            moved = cells.baddbmm_(weights.transpose(1, 2), self.values[part])
        else:
            moved = torch.baddbmm(cells, weights.transpose(1, 2), self.values[part])
        normed: torch.Tensor = self.norm(moved)
        return normed


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
    ) -> None:
        """Prepare an image.

        Args:
            decoder: for which `can_prepare` holds.
            image_embeddings: (1, C, g, g).
            image_pe: (1, C, g, g).
            dense_everywhere: (C,) if all objects to come have this dense prompt in every cell (no mask prompt), so
                that they share the first block's work; None if each has its own.
        """
        transformer = decoder.transformer
        assert isinstance(transformer, TwoWayTransformer)
        self.decoder = decoder
        self.size_hw = image_embeddings.shape[-2], image_embeddings.shape[-1]
        self.code = _as_cells(image_pe)  # 1 N C
        self.cells = _as_cells(image_embeddings)
        self.blocks = [
            _Block(layer, _Heads.of(layer.cross_attn_token_to_image), _Heads.of(layer.cross_attn_image_to_token))
            for layer in transformer.layers
            if isinstance(layer, TwoWayAttentionBlock)
        ]
        self.final = _Heads.of(transformer.final_attn_token_to_image)
        self.final_norm = transformer.norm_final_attn
        self.upscaler = _Upscaler(decoder, self.size_hw)
        self.first: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        if dense_everywhere is not None:
            self.cells = self.cells + dense_everywhere
            coded, to_image, to_tokens = self.cells + self.code, self.blocks[0].to_image, self.blocks[0].to_tokens
            self.first = (
                to_image.split(linear(coded, to_image.module.k_proj.weight, None)).transpose(1, 2),  # M d N
                to_image.split(linear(self.cells, to_image.module.v_proj.weight, None)),  # M N d
                to_tokens.split(to_tokens.module.q_proj(coded)).transpose(1, 2) * to_tokens.scale,  # M d N
            )

    @torch.no_grad()
    def predict_masks(
        self, sparse: torch.Tensor, dense: torch.Tensor, chosen: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `MaskDecoder.predict_masks`, of the K masks those that are chosen.

        Args:
            sparse: (B, T, C) prompt tokens.
            dense: (B, C, g, g); not looked at where `dense_everywhere` was given.
            chosen: of the mask tokens.

        Returns:
            Masks (B, K', 4g, 4g) and predicted IoU (B, K').
        """
        masks: list[torch.Tensor] = []
        ious = []
        for tokens, cells in self._transformed(sparse, dense):
            ious.append(self.decoder.iou_prediction_head(tokens[:, 0])[:, chosen])
            kernels = self.upscaler.kernels(tokens[:, 1 : 1 + self.decoder.num_mask_tokens])[:, chosen]
            masks.extend(self.upscaler(cells[i], kernels[i]) for i in range(len(tokens)))
        return torch.stack(masks), torch.cat(ious)

    @torch.no_grad()
    def predict_masks_above(
        self, sparse: torch.Tensor, dense: torch.Tensor, chosen: slice, iou_threshold: float
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
        for tokens, cells in self._transformed(sparse, dense):
            iou = self.decoder.iou_prediction_head(tokens[:, 0])[:, chosen]
            passed = iou.float() > iou_threshold
            rows = passed.any(dim=1).nonzero()[:, 0].tolist()
            if rows:
                kernels = self.upscaler.kernels(tokens[rows, 1 : 1 + self.decoder.num_mask_tokens])[:, chosen]
                masks.extend(self.upscaler(cells[i], kernels[j, passed[i]]) for j, i in enumerate(rows))
            places.append(passed.nonzero() + torch.tensor([done, 0], device=passed.device))
            ious.append(iou)
            done += len(iou)
        side_hw = 4 * self.size_hw[0], 4 * self.size_hw[1]
        empty = torch.empty((0, *side_hw), dtype=self.cells.dtype, device=self.cells.device)
        return torch.cat([empty, *masks]), torch.cat(places), torch.cat(ious)

    def _transformed(
        self, sparse: torch.Tensor, dense: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, Sequence[torch.Tensor]]]:
        """The transformer over a few objects at a time: tokens (b, T, C) and the cells (N, C) of each."""
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        tokens = torch.cat([output[None].expand(len(sparse), -1, -1), sparse], dim=1)
        step = max(1, GROUP_BYTES // (self.cells.numel() * self.cells.element_size()))
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            yield self._transform(tokens[part], None if self.first is not None else dense[part])

    def _transform(
        self, tokens: torch.Tensor, dense: torch.Tensor | None
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        # What a block's tokens tell the cells changes no token, so it is put off until the next look at the image:
        # each object's cells are then visited once a block.
        parts = _parts(tokens)
        cells = [self.cells if dense is None else self.cells + _as_cells(dense[part]) for part in parts]
        first, heads = self.blocks[0], [*(block.to_image for block in self.blocks[1:]), self.final]
        queries = first.tokens_alone(tokens, tokens)
        attended = self._first_look(queries + tokens, parts, cells)
        queries = first.tokens_after(queries, attended)
        for index, (block, look) in enumerate(zip(self.blocks, heads, strict=True)):
            update = _Update.of(block, queries, tokens)
            if index + 1 < len(self.blocks):
                queries = self.blocks[index + 1].tokens_alone(queries, tokens)
            carried = look.carried_queries(queries + tokens)
            pooled = []
            for i, part in enumerate(parts):
                cells[i] = self._updated(update, part, cells[i], is_first=index == 0)
                pooled.append(self._pool(carried[part], cells[i]))
            attended = look.pooled(torch.cat(pooled))
            if index + 1 < len(self.blocks):
                queries = self.blocks[index + 1].tokens_after(queries, attended)
        return self.final_norm(queries + attended), [one for part in cells for one in part.unbind(0)]

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

    def _updated(self, update: _Update, part: slice, cells: torch.Tensor, is_first: bool) -> torch.Tensor:
        """Cells (b or 1, N, C) after the update by the tokens of a part of the objects."""
        return update.apply(
            part, cells, update.weights(part, cells + self.code), in_place=self.first is None or not is_first
        )


class PreparedImages:
    """The prepared decoders of the few images asked about last. Threads may share it; copies of it start empty."""

    def __init__(self, capacity: int = 4) -> None:
        """Args: capacity: images kept; each takes about four times the memory of its embedding."""
        self._capacity = capacity
        self._kept: list[tuple[weakref.ref[torch.Tensor], object, PreparedDecoder]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["PreparedImages"], tuple[int]]:
        return PreparedImages, (self._capacity,)

    def get(self, features: torch.Tensor, state: object, prepare: Callable[[], PreparedDecoder]) -> PreparedDecoder:
        """The decoder prepared for an embedding before, or a new one.

        Args:
            features: the embedding; the entry goes when it does.
            state: compared by value: whatever else the prepared decoder was made from (`tensor_states`).
            prepare: makes a new one.
        """
        key = (tensor_states([features]), state)
        with self._lock:
            for known, known_key, prepared in self._kept:
                if known() is features and known_key == key:
                    return prepared
        prepared = prepare()
        with self._lock:
            others = [entry for entry in self._kept if entry[0]() is not None and entry[0]() is not features]
            self._kept = [(weakref.ref(features), key, prepared), *others][: self._capacity]
        return prepared


def tensor_states(tensors: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes when a tensor is written to or replaced. (Inference tensors keep no count of writes.)"""
    return tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)


class _Upscaler:
    """The decoder's upscaling and the products with each mask's kernel.

    A transposed convolution whose kernel is its stride is a linear layer of every cell to its four children; computed
    so, nothing is laid out anew until the masks.
    """

    def __init__(self, decoder: MaskDecoder, size_hw: tuple[int, int]) -> None:
        first, norm, self.act1, second, self.act2 = decoder.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        self.hypernetworks = decoder.output_hypernetworks_mlps
        self.size_hw = size_hw
        self.norm = norm
        self.first, self.second = _per_cell(first), _per_cell(second)
        self.rows = max(1, 2**17 // (size_hw[1] * self.first[0].shape[0]))  # 2**17 values fit a core's cache

    def kernels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mask tokens (B, K, C) -> kernels (B, K, C / 8)."""
        return torch.stack([mlp(tokens[:, index]) for index, mlp in enumerate(self.hypernetworks)], dim=1)

    def __call__(self, cells: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        """Cells (N, C) and kernels (K, C / 8) of one object -> masks (K, 4g, 4g)."""
        (height, width), count = self.size_hw, len(kernels)
        out = cells.new_empty((count, height, 2, 2, width, 2, 2))  # y, its child, its grandchild, x, ...
        for row in range(0, height, self.rows):
            part = cells[row * width : (row + self.rows) * width]
            x = linear(part, *self.first).view(len(part) * 4, -1)
            x = self.act1(layer_norm(x, x.shape[1:], self.norm.weight, self.norm.bias, self.norm.eps))
            x = linear(x, *self.second, self.act2).view(len(part) * 16, -1)
            masks = (kernels @ x.T).view(count, -1, width, 2, 2, 2, 2)  # K y x, child y x, grandchild y x
            out[:, row : row + self.rows] = masks.permute(0, 1, 3, 5, 2, 4, 6)
        return out.view(count, 4 * height, 4 * width)


def _per_cell(layer: nn.ConvTranspose2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (4 * out, in) and bias (4 * out,) of the linear layer from a cell to its children, row by row."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # in out y x -> y x out, in
    assert layer.bias is not None
    return weight, layer.bias.repeat(4)


def _as_cells(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, g, g) -> (B, N, C) in memory order."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def _parts(tokens: torch.Tensor) -> list[slice]:
    """Which objects to take together where cells are concerned: one by one in a CPU's cache, all on a GPU."""
    step = 1 if tokens.device.type == "cpu" else len(tokens)
    return [slice(start, start + step) for start in range(0, len(tokens), step)]
