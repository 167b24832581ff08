"""The graphs that an export writes, as torch modules, with examples of their inputs.

Every graph speaks the original's names (`image_embeddings`, `point_coords`, ...), input pixels and labelled points
(`modeling.labelled_prompts`). A side that may vary has a name; its example is at least 2 and unlike every other,
because `torch.export` takes a side of 1 for fixed and equal sides for bound together.

Letters: C width, g embedding cells a side, S side of the input.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import pad

from segment_anything.export.decoders import (
    BatchedDecoder,
    DrawnImagePreparer,
    DrawnPreparedDecoder,
    ImagePreparer,
    PreparedDecoder,
)
from segment_anything.export.options import ExportOptions
from segment_anything.modeling import DrawnPromptEncoder, Sam
from segment_anything.utils.onnx import SamOnnxModel

MOST_OBJECTS, MOST_POINTS = 4096, 1024


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


def graphs(sam: Sam, options: ExportOptions) -> Iterator[Graph]:
    """The graphs that `options` asks for, in the order in which they run."""
    yield encoder_graph(sam, options.normalise)
    if "original" in options.forms:
        yield original_graph(sam, options)
    if "batched" in options.forms:
        yield batched_graph(sam)
    if "prepared" in options.forms:
        yield from prepared_graphs(sam)


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
    preparer, decoder = (
        (DrawnImagePreparer(sam), DrawnPreparedDecoder(sam))
        if isinstance(sam.prompt_encoder, DrawnPromptEncoder)
        else (ImagePreparer(sam), PreparedDecoder(sam))
    )
    yield Graph("prepare", preparer, _embedding(sam), preparer.outputs)
    with torch.no_grad():
        tensors = dict(zip(preparer.outputs, preparer(**_embedding(sam)), strict=True))
    yield Graph("prepared", decoder, {**tensors, **_points(2)}, _ANSWERS, _MANY, _MOST)


def _embedding(sam: Sam) -> dict[str, torch.Tensor]:
    cells = sam.prompt_encoder.image_embedding_size
    return {"image_embeddings": torch.zeros(1, sam.prompt_encoder.embed_dim, *cells)}


def _points(objects: int) -> dict[str, torch.Tensor]:
    return {"point_coords": torch.ones(objects, 3, 2), "point_labels": torch.ones(objects, 3)}


def _mask(sam: Sam, objects: int) -> dict[str, torch.Tensor]:
    side_hw = sam.prompt_encoder.mask_input_size
    return {"mask_input": torch.zeros(objects, 1, *side_hw), "has_mask_input": torch.ones(objects)}
