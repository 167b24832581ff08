"""Decoders as graphs compute them: the batched form, and the prepared one with what it needs of an image once.

Letters: N objects, P points of each, K = 4 masks, C width, M heads, d head width, g embedding cells a side, G = g * g,
H hidden channels of a drawing, B channels of the mixer at half the grid.
"""

import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, pad

from segment_anything.export.carried import CarriedTransformer, FirstLook, first_look
from segment_anything.modeling import DrawnPromptEncoder, Sam
from segment_anything.modeling.labelled_prompts import PADDING, LabelledPrompts
from segment_anything.modeling.transformer import TwoWayTransformer

OUT = -1e9
"""Added to the scores of absent tokens: their weight in a softmax becomes 0."""


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

    outputs: tuple[str, ...] = ("image_cells", "image_keys", "image_values", "image_queries")
    """Their names."""

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
    """Many objects without mask prompts, where the image is prepared: its share of the first block is known."""

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


class DrawnImagePreparer(ImagePreparer):
    """The same for a model that draws its prompts on the image: what is linear in the sum of the two, of the image."""

    outputs = ("image_map", "image_coarse")

    def forward(self, image_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, C, g, g) -> the map without a mask, alike, and the mixer's first step of it (1, B, g / 2, g / 2)."""
        assert isinstance(self.sam.prompt_encoder, DrawnPromptEncoder)
        image = image_embeddings + self.prompts.no_mask()
        return image, self.sam.prompt_encoder.mixer.down(image)


class DrawnPreparedDecoder(_Decoder):
    """The same for such a model: the drawing goes from its H hidden channels into the mixer without being made.

    The last layer of the drawing and the mixer's first are linear, so their product is one layer, as in
    `modeling.prepared_mixer`. The cells differ from object to object from then on: nothing else can be shared.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        assert isinstance(sam.prompt_encoder, DrawnPromptEncoder)
        self.mixer = sam.prompt_encoder.mixer
        convolution, activation, last = sam.prompt_encoder.drawing
        assert isinstance(last, nn.Conv2d)
        self.hidden, self.last = nn.Sequential(convolution, activation), last
        joint = torch.einsum("bcyx,ch->bhyx", self.mixer.down.weight, last.weight.flatten(1))
        self.last_down = nn.Parameter(joint.detach(), requires_grad=False)

    def forward(
        self,
        image_map: torch.Tensor,
        image_coarse: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of `DrawnImagePreparer`, and points as for `BatchedDecoder` -> predicted IoU and logits as there."""
        hidden = self.hidden(self.prompts.maps(point_coords, point_labels))  # N H g g
        coarse = self.mixer.coarse(image_coarse + conv2d(hidden, self.last_down, stride=2))
        raised = interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        cells = as_cells(self.mixer.local(image_map + self.last(hidden) + raised))
        return self.decode(point_coords, point_labels, cells)


def as_cells(maps: torch.Tensor) -> torch.Tensor:
    """(N, C, g, g) -> (N, G, C)."""
    return maps.flatten(2).transpose(1, 2)
