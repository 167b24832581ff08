"""The paper's interactive training, step by step.

Source of every step: Segment Anything (https://arxiv.org/abs/2304.02643), appendix A "Training algorithm", "Losses",
and "Making the model ambiguity-aware". In order:

1.  The first prompt is a foreground point or a box, with equal chance.                               (`draw_kinds`)
2.  The point is drawn uniformly from the true mask.                                                  (`simulate`)
3.  Box corners get noise of deviation 10 % of the side, at most 20 px of a 1024-pixel input.        (`simulate`)
4.  Eight rounds follow, each with a new point drawn uniformly from the error region: foreground where the object was
    missed, background where something else was taken.                                               (`simulate`)
5.  Each round also gets the mask of the round before as a prompt, as logits, not thresholded.
6.  Two more rounds get no new point, so that the model learns to refine its own mask: one at a random place among the
    eight, one at the end. In all 1 + 8 + 2 = 11.                                                     (`plan_rounds`)
7.  A single prompt is ambiguous and gets three masks; the loss is that of the best of them, the next round starts from
    the one with the highest predicted IoU. Several prompts get one mask.                              (`round_loss`)
8.  Loss: focal to dice 20 : 1, and the squared error of the predicted IoU with weight 1.              (`losses`)

Two deviations, which `paper_only` turns off. After the first prompt the single mask is trained as well as the three:
the published rule never trains it on a box alone, as people (and this package's `multimask_output=None`) use it. And
the noise of step 3 is drawn for each box, mostly small (10 % times the square of a uniform number): a model that never
sees a tight box does not trust those that people draw tightly (docs/log.md).

Every round is differentiated by itself (step 5 passes a mask without its gradient): memory does not grow with rounds.

Letters: N objects of one image, P points, s side of the decoder's masks, g side and C channels of the embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from segment_anything.simulate import noisy_boxes, random_error_points, random_points
from segment_anything.training.losses import interactive_loss, true_iou
from segment_anything.training.targets import Targets

ROUNDS = 11
PROMPTS = ("points", "boxes", "both")
BOX_NOISE = 0.1
BOX_NOISE_PX_AT_1024 = 20.0
AT_ONCE = {"cpu": 8, "cuda": 64}
"""Objects decoded together. On a CPU 16 take a fifth longer for each than 8, which leave the caches less often."""
SINGLE_WEIGHT = {"point": (1.0, 0.3), "box": (0.5, 1.0)}
"""Weights of the best of three masks and of the single mask after the first prompt, unless `paper_only`."""


@dataclass(frozen=True)
class Round:
    """What one round gave."""

    loss: torch.Tensor
    """Scalar to differentiate: the sum over the objects, divided by the number of rounds."""
    iou: torch.Tensor
    """(N,) true IoU of the mask that goes on to the next round."""
    logits: torch.Tensor
    """(N, 1, s, s) that mask, without gradient."""
    last: bool
    """Whether these objects have no more rounds."""


def plan_rounds(rounds: int, generator: torch.Generator) -> list[bool]:
    """For each round after the first whether it gets a new point (step 6).

    With fewer than four rounds in all, every one gets a point.
    """
    if rounds < 4:
        return [True] * (rounds - 1)
    points = rounds - 3
    place = int(torch.randint(points, (1,), generator=generator, device=generator.device))
    return [True] * place + [False] + [True] * (points - place) + [False]


def draw_kinds(count: int, prompts: str, generator: torch.Generator) -> torch.Tensor:
    """(N,) bool: objects whose first prompt is a box; the others get a point (step 1)."""
    if prompts == "both":
        return torch.rand(count, generator=generator, device=generator.device) < 0.5
    return torch.full((count,), prompts == "boxes", device=generator.device)


def train_on_image(
    prompt_encoder: nn.Module,
    mask_decoder: nn.Module,
    features: torch.Tensor,
    targets: Targets,
    generator: torch.Generator,
    *,
    rounds: int = ROUNDS,
    prompts: str = "both",
    paper_only: bool = False,
    near: bool = False,
) -> Iterator[tuple[torch.Tensor, Round]]:
    """All rounds for all objects of one image; differentiate each before asking for the next.

    Args:
        prompt_encoder, mask_decoder: of a `Sam`.
        features: (1, C, g, g), with or without gradient.
        targets: on the device of `features`.
        generator: on the same device; all that is drawn comes from it.
        rounds: in all, the first included.
        prompts: "points", "boxes" or "both": what the first prompt may be.
        paper_only: the published rule to the letter, see above.
        near: cross-entropy near the object instead of focal loss, see `losses.near_cross_entropy`.

    Yields:
        Indices of the objects (those with a point and those with a box take turns), and their round.
    """
    boxed = draw_kinds(len(targets), prompts, generator)
    features = features.contiguous(memory_format=torch.channels_last)  # as the decoder reads it: cells, not channels
    for kind, chosen in (("point", ~boxed), ("box", boxed)):
        for index in chosen.nonzero()[:, 0].split(AT_ONCE.get(features.device.type, AT_ONCE["cuda"])):
            if not len(index):
                continue
            game = _Game(prompt_encoder, mask_decoder, features, targets.take(index), generator, paper_only, near)
            for result in game.play(kind, plan_rounds(rounds, generator)):
                yield index, result


class _Game:
    """The rounds of objects that began with the same kind of prompt."""

    def __init__(
        self,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        features: torch.Tensor,
        targets: Targets,
        generator: torch.Generator,
        paper_only: bool,
        near: bool,
    ) -> None:
        self.prompt_encoder, self.mask_decoder, self.features = prompt_encoder, mask_decoder, features
        self.targets, self.generator, self.paper_only, self.near = targets, generator, paper_only, near
        self.solid = targets.solid
        self.image_size = int(prompt_encoder.input_image_size[0])  # type: ignore[index]
        self.cell = self.image_size // targets.truth.shape[-1]  # input pixels per cell of the decoder's masks
        self.points: tuple[torch.Tensor, torch.Tensor] | None = None
        self.boxes: torch.Tensor | None = None

    def play(self, kind: str, plan: list[bool]) -> Iterator[Round]:
        if kind == "box":
            self.boxes = self._noisy_boxes()
        else:
            self._click(random_points(self.solid, self.generator), torch.ones_like(self.targets.labels))
        previous: torch.Tensor | None = None
        for number, new_point in enumerate([False, *plan]):
            if new_point:
                assert previous is not None
                self._click(*random_error_points(previous[:, 0] > 0, self.solid, self.generator))
            logits, iou = self._decode(previous)
            first = kind if number == 0 else None
            loss, chosen = round_loss(logits, iou, self.targets.truth, first, self.paper_only, self.near)
            previous = logits.detach().float()[torch.arange(len(logits)), chosen][:, None]
            quality = true_iou(previous, self.targets.truth)[:, 0]
            yield Round(loss * len(logits) / (1 + len(plan)), quality, previous, number == len(plan))

    def _noisy_boxes(self) -> torch.Tensor:
        most = BOX_NOISE_PX_AT_1024 * self.image_size / 1024
        boxes = self.targets.boxes_input
        relative = torch.full((len(boxes), 1), BOX_NOISE, device=boxes.device)
        if not self.paper_only:
            relative *= torch.rand(relative.shape, generator=self.generator, device=boxes.device) ** 2
        return noisy_boxes(boxes, self.targets.input_size_hw, self.generator, relative=relative, at_most=most)

    def _click(self, cells_xy: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a point at the centre of a cell of the decoder's masks (N, 2) to every object."""
        points = ((cells_xy + 0.5) * self.cell - 0.5)[:, None]
        labels = labels[:, None]
        if self.points is not None:
            points, labels = torch.cat([self.points[0], points], dim=1), torch.cat([self.points[1], labels], dim=1)
        self.points = points, labels

    def _decode(self, previous: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """All four masks (N, 4, s, s) and their predicted IoU (N, 4)."""
        sparse, dense = self.prompt_encoder(self.points, self.boxes, previous)
        dense = self.prompt_encoder.ground(dense, self.features)  # type: ignore[operator]
        position = self.prompt_encoder.get_dense_pe()  # type: ignore[operator]
        predicted: tuple[torch.Tensor, torch.Tensor] = self.mask_decoder.predict_masks(  # type: ignore[operator]
            self.features, position, sparse, dense
        )
        return predicted


def round_loss(
    logits: torch.Tensor,
    iou: torch.Tensor,
    truth: torch.Tensor,
    first: str | None,
    paper_only: bool,
    near: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of a round and the mask of each object that goes on (step 7).

    Args:
        logits: (N, 4, s, s), the single mask and the three of an ambiguous prompt.
        iou: (N, 4) predicted.
        truth: (N, 1, s, s) in 0..1.
        first: "point" or "box" in the first round, None later.
        paper_only: without the loss of the single mask in the first round.
        near: see `losses.interactive_loss`.

    Returns:
        Scalar loss, and (N,) indices into the four masks.
    """
    single = interactive_loss(logits[:, :1], iou[:, :1], truth, near).total
    alone = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    if first is None:
        return single, alone
    best = interactive_loss(logits[:, 1:], iou[:, 1:], truth, near).total
    most_trusted = 1 + iou[:, 1:].detach().argmax(dim=1)
    if paper_only:
        return best, most_trusted
    weight_best, weight_single = SINGLE_WEIGHT[first]
    return weight_best * best + weight_single * single, most_trusted if first == "point" else alone
