"""The learning rate at every step.

Segment Anything (https://arxiv.org/abs/2304.02643), appendix A "Training algorithm": linear warm-up over 250
steps, divided by 10 at two milestones. Runs too short for a milestone take a cosine instead.
"""

import math
from dataclasses import dataclass

WARMUP_SHARE = 0.1
"""Warm-up never takes more than this share of a run: 250 steps may be more than a small data set has."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Factor of the learning rate by step."""

    kind: str = "auto"
    """"step": the paper's milestones; "cosine": to zero over the run; "auto": step if the run reaches a milestone."""
    warmup_steps: int = 250
    milestones: tuple[int, ...] = (60000, 86666)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "step", "cosine"):
            raise ValueError(f"schedule must be auto, step or cosine, got {self.kind!r}.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}.")

    def factor(self, step: int, steps: int) -> float:
        """What to multiply the learning rate with at `step` (from 0) of a run of `steps`."""
        warmup = min(self.warmup_steps, round(steps * WARMUP_SHARE))
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "step" or (self.kind == "auto" and self.milestones and steps > min(self.milestones)):
            return self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
