"""A moving average of the weights while they are trained: validated and saved, smoother than any single step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of parameters.

    Young averages forget faster, so that the starting weights do not linger: the decay after t steps is at most
    (1 + t) / (10 + t).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Follow `parameters`, which must not change their type or device; with decay 0 nothing is kept."""
        self.decay = decay
        self.parameters = list(parameters) if decay else []
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the parameters hold their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def take_over(self) -> None:
        """Give the parameters their averages for good."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, object]:
        """Averages and their age."""
        return {"steps": self.steps, "values": self.values}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict`."""
        values, steps = state["values"], state["steps"]
        assert isinstance(values, list)
        assert isinstance(steps, int)
        self.steps = steps
        for value, saved in zip(self.values, values, strict=True):
            value.copy_(saved)

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)
