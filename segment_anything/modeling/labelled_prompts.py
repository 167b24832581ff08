"""Prompts as one list of labelled points, which is how an exported graph takes them.

A graph cannot have arguments that may be missing: corners of a box are points with labels of their own, and whether
there is a mask is a number. The arithmetic is `PromptEncoder`'s and uses its weights.

Letters: N objects, P points of each, C width, g embedding cells a side.
"""

import torch
from torch import nn

from segment_anything.modeling.nano import DrawnPromptEncoder
from segment_anything.modeling.prompt_encoder import PromptEncoder

ABSENT, PADDING, BACKGROUND, FOREGROUND, FIRST_CORNER, SECOND_CORNER = range(-2, 4)
"""Labels of points. PADDING takes part as SAM's "not a point" token, one of which follows points without a box; ABSENT
fills up the list of an object with fewer points than others and takes no part (`BatchedDecoder`)."""


class LabelledPrompts(nn.Module):
    """Encodes labelled points and masks with the weights of a prompt encoder."""

    def __init__(self, prompt_encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = prompt_encoder

    def tokens(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One token for each point.

        Args:
            coords: (N, P, 2) in input pixels.
            labels: (N, P) float or int, see `ABSENT` and its neighbours.

        Returns:
            (N, P, C); zeros for an absent point.
        """
        encoder = self.encoder
        roles = [encoder.not_a_point_embed, *encoder.point_embeddings]
        weights = [role.weight for role in roles if isinstance(role, nn.Embedding)]
        table = torch.cat([torch.zeros_like(weights[0]), *weights])  # row 0 is ABSENT
        code = encoder.pe_layer.forward_with_coords(coords + 0.5, encoder.input_image_size)
        is_somewhere = (labels >= BACKGROUND)[..., None]
        role = nn.functional.embedding((labels - ABSENT).clamp(min=0).to(torch.int64), table)
        return torch.where(is_somewhere, code, 0.0) + role

    def dense(self, mask_input: torch.Tensor, has_mask_input: torch.Tensor) -> torch.Tensor:
        """The dense map (N, C, g, g) of masks (N, 1, 4g, 4g), or of none where `has_mask_input` (N,) is 0."""
        flag = has_mask_input.reshape(-1, 1, 1, 1)
        embedded: torch.Tensor = self.encoder.mask_downscaling(mask_input)
        return flag * embedded + (1 - flag) * self.no_mask()

    def no_mask(self) -> torch.Tensor:
        """(1, C, 1, 1): what the dense map is everywhere without a mask."""
        return self.encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)

    def drawn(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What points and boxes add to the dense map: (N, C, g, g), or a zero if the prompt encoder draws nothing."""
        if not isinstance(self.encoder, DrawnPromptEncoder):
            return coords.new_zeros(())
        drawn: torch.Tensor = self.encoder.drawing(self.maps(coords, labels))
        return drawn

    def maps(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Points and boxes as a `DrawnPromptEncoder` draws them: (N, 8, g, g)."""
        assert isinstance(self.encoder, DrawnPromptEncoder)
        corners = [(labels == label).to(coords.dtype)[..., None] for label in (FIRST_CORNER, SECOND_CORNER)]
        boxes = torch.cat([(coords * corner).sum(dim=1) for corner in corners], dim=1)  # N 4
        has_box = corners[0].amax(dim=1)[..., None, None]  # N 1 1 1
        maps = [self.encoder._draw_boxes(boxes, coords) * has_box, self.encoder._draw_points((coords, labels), coords)]
        return torch.cat(maps, dim=1)
