"""The graphs that an export writes, as torch modules, with examples of their inputs.

Every graph speaks the original's names (`image_embeddings`, `point_coords`, ...), input pixels and labelled points
(`modeling.labelled_prompts`). A side that may vary has a name; its example is at least 2 and unlike every other,
because `torch.export` takes a side of 1 for fixed and equal sides for bound together.

Letters: N objects, P points of each, K = 4 masks, C width, g embedding cells a side, G = g * g, S side of the input.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import pad

from segment_anything.export.carried import CarriedTransformer, FirstLook, first_look
from segment_anything.export.options import ExportOptions
from segment_anything.modeling import Sam
from segment_anything.modeling.labelled_prompts import PADDING, LabelledPrompts
from segment_anything.modeling.transformer import TwoWayTransformer
from segment_anything.utils.onnx import SamOnnxModel

MOST_OBJECTS, MOST_POINTS = 4096, 1024
OUT = -1e9
"""Added to the scores of absent tokens: their weight in a softmax becomes 0."""


@dataclass(frozen=True)
class Graph:
    """A module with what its export needs to know."""

    role: str
    """What the file is, see `onnx.manifest`."""
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    """An example of each input."""
    outputs: tuple[str, ...]
    sides: dict[str, dict[int, str]] = field(default_factory=dict)
    """Names of the sides that vary, by input or output and axis."""
    most: dict[str, int] = field(default_factory=dict)
    """Largest value of such a side."""


class Encoder(nn.Module):
    """The image encoder as it is."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(1, 3, S, S) normalised and padded -> (1, C, g, g)."""
        features: torch.Tensor = self.sam.image_encoder(input)
        return features


class NormalisingEncoder(Encoder):
    """The image encoder behind normalisation and padding."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(h, w, 3) uint8 RGB with the longest side S -> (1, C, g, g)."""
        side = self.sam.image_size
        pixels = (image.permute(2, 0, 1).to(torch.float32) - self.sam.pixel_mean) / self.sam.pixel_std
        return super().forward(pad(pixels, (0, side - image.shape[1], 0, side - image.shape[0]))[None])


class _Decoder(nn.Module):
    """Tokens and cells -> masks and predicted IoU."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        assert isinstance(sam.mask_decoder.transformer, TwoWayTransformer)
        self.sam = sam
        self.prompts = LabelledPrompts(sam.prompt_encoder)
        self.decoder = sam.mask_decoder
        self.transformer = CarriedTransformer(sam.mask_decoder.transformer)

    def decode(
        self, coords: torch.Tensor, labels: torch.Tensor, cells: torch.Tensor, known: FirstLook | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (N, P, 2) and (N, P), cells (N or 1, G, C) -> predicted IoU (N, K) and logits (N, K, 4g, 4g)."""
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])[None]
        tokens = torch.cat([output.expand(coords.shape[0], -1, -1), self.prompts.tokens(coords, labels)], dim=1)
        out = pad(torch.where(labels < PADDING, OUT, 0.0), (output.shape[1], 0))[:, None, None]
        code = as_cells(self.sam.prompt_encoder.get_dense_pe())
        tokens, cells = self.transformer(tokens, cells, code, out, known)
        size_hw = self.sam.prompt_encoder.image_embedding_size
        masks = self.decoder.upscale(cells, size_hw, tokens[:, 1 : 1 + self.decoder.num_mask_tokens])
        return self.decoder.predict_iou(tokens[:, 0]), masks


class BatchedDecoder(_Decoder):
    """Many objects in one run, each with its own points, box and mask."""

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of N objects.

        Args:
            image_embeddings: (1, C, g, g).
            point_coords: (N, P, 2) in input pixels.
            point_labels: (N, P) float, labels of `modeling.labelled_prompts`: an object with fewer than P points is
                filled up with ABSENT.
            mask_input: (N, 1, 4g, 4g) logits.
            has_mask_input: (N,): 1 if the object has a mask, else 0.

        Returns:
            Predicted IoU (N, K) and logits (N, K, 4g, 4g).
        """
        dense = self.prompts.dense(mask_input, has_mask_input) + self.prompts.drawn(point_coords, point_labels)
        size_hw = self.sam.prompt_encoder.image_embedding_size
        dense = self.sam.prompt_encoder.ground(dense.expand(-1, -1, *size_hw), image_embeddings)
        return self.decode(point_coords, point_labels, as_cells(image_embeddings + dense))


class ImagePreparer(nn.Module):
    """What the prepared decoder needs of an image, once."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.prompts = LabelledPrompts(sam.prompt_encoder)

    def forward(self, image_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, C, g, g) -> cells (1, G, C), keys (1, M, d, G), values (1, M, G, d) and queries (1, M, G, d)."""
        transformer = self.sam.mask_decoder.transformer
        assert isinstance(transformer, TwoWayTransformer)
        cells = as_cells(image_embeddings + self.prompts.no_mask())
        return cells, *first_look(transformer, cells, as_cells(self.sam.prompt_encoder.get_dense_pe()))


class PreparedDecoder(_Decoder):
    """Many objects without mask prompts: about half the work of a click where the image is prepared."""

    def forward(
        self,
        image_cells: torch.Tensor,
        image_keys: torch.Tensor,
        image_values: torch.Tensor,
        image_queries: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of `ImagePreparer`, and points as for `BatchedDecoder` -> predicted IoU and logits as there."""
        return self.decode(point_coords, point_labels, image_cells, (image_keys, image_values, image_queries))


def as_cells(maps: torch.Tensor) -> torch.Tensor:
    """(N, C, g, g) -> (N, G, C)."""
    return maps.flatten(2).transpose(1, 2)


def graphs(sam: Sam, options: ExportOptions) -> Iterator[Graph]:
    """The graphs that `options` asks for, in the order in which they run."""
    yield encoder_graph(sam, options.normalise)
    if "original" in options.forms:
        yield original_graph(sam, options)
    if "batched" in options.forms:
        yield batched_graph(sam)
    if "prepared" in options.forms and can_prepare(sam):
        yield from prepared_graphs(sam)


def can_prepare(sam: Sam) -> bool:
    """Whether the first block's work is the same for all objects: not if prompts are drawn on the dense map."""
    return not LabelledPrompts(sam.prompt_encoder).draws


def encoder_graph(sam: Sam, normalise: bool) -> Graph:
    """The image encoder; `normalise` takes an image as it is instead of a normalised and padded one."""
    side, outputs = sam.image_size, ("image_embeddings",)
    if not normalise:
        return Graph("encoder", Encoder(sam), {"input": torch.zeros(1, 3, side, side)}, outputs)
    inputs = {"image": torch.zeros(side // 2, side - 3, 3, dtype=torch.uint8)}
    sides, most = {"image": {0: "height", 1: "width"}}, {"height": side, "width": side}
    return Graph("encoder", NormalisingEncoder(sam), inputs, outputs, sides, most)


def original_graph(sam: Sam, options: ExportOptions) -> Graph:
    """The original's interface, to the letter."""
    module = SamOnnxModel(sam, options.return_single_mask, options.use_stability_score, options.return_extra_metrics)
    inputs = {**_embedding(sam), **_points(1), **_mask(sam, 1)}
    inputs["orig_im_size"] = torch.tensor([sam.image_size // 2, sam.image_size - 3], dtype=torch.float32)
    extra = ("stability_scores", "areas") if options.return_extra_metrics else ()
    sides = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}, "masks": {2: "height", 3: "width"}}
    outputs = ("masks", "iou_predictions", *extra, "low_res_masks")
    return Graph("decoder", module, inputs, outputs, sides, {"num_points": MOST_POINTS})


_MANY = {"point_coords": {0: "objects", 1: "num_points"}, "point_labels": {0: "objects", 1: "num_points"}}
_MOST = {"objects": MOST_OBJECTS, "num_points": MOST_POINTS}
_ANSWERS = ("iou_predictions", "low_res_masks")


def batched_graph(sam: Sam) -> Graph:
    """Many objects in one run."""
    sides = {**_MANY, "mask_input": {0: "objects"}, "has_mask_input": {0: "objects"}}
    inputs = {**_embedding(sam), **_points(2), **_mask(sam, 2)}
    return Graph("batched", BatchedDecoder(sam), inputs, _ANSWERS, sides, _MOST)


def prepared_graphs(sam: Sam) -> Iterator[Graph]:
    """What is done once an image, and what is done for each prompt."""
    preparer = ImagePreparer(sam)
    names = ("image_cells", "image_keys", "image_values", "image_queries")
    yield Graph("prepare", preparer, _embedding(sam), names)
    with torch.no_grad():
        tensors = dict(zip(names, preparer(**_embedding(sam)), strict=True))
    yield Graph("prepared", PreparedDecoder(sam), {**tensors, **_points(2)}, _ANSWERS, _MANY, _MOST)


def _embedding(sam: Sam) -> dict[str, torch.Tensor]:
    cells = sam.prompt_encoder.image_embedding_size
    return {"image_embeddings": torch.zeros(1, sam.prompt_encoder.embed_dim, *cells)}


def _points(objects: int) -> dict[str, torch.Tensor]:
    return {"point_coords": torch.ones(objects, 3, 2), "point_labels": torch.ones(objects, 3)}


def _mask(sam: Sam, objects: int) -> dict[str, torch.Tensor]:
    side_hw = sam.prompt_encoder.mask_input_size
    return {"mask_input": torch.zeros(objects, 1, *side_hw), "has_mask_input": torch.ones(objects)}
