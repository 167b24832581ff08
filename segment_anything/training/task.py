"""What the loop asks of the things it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class Source(Protocol):
    """Where training samples come from; small and picklable, because worker processes get a copy."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        ...

    def load(self, index: int, epoch: int) -> Any:
        """One sample, a dataclass of tensors and plain values; raises SampleError if it cannot be used."""
        ...


@dataclass(frozen=True)
class Learned:
    """What a batch taught: gradients were added to the parameters, of sums (not means) over its objects."""

    weight: float
    """Objects in the batch; the step's gradient is divided by the sum of the weights of all batches and processes."""
    sums: Mapping[str, float]
    """Sums over the batch's objects, by the names in `Task.metrics`."""


class Task(Protocol):
    """What is trained."""

    module: nn.Module
    """Holds all parameters; those that require a gradient are trained, and saved with the buffers."""
    metrics: tuple[str, ...]
    """Names of what `learn` sums up, the loss first."""
    default_lr: float

    @property
    def source(self) -> Source:
        """Where its training samples come from."""
        ...

    def learn(self, batch: Sequence[Any]) -> Learned:
        """Run forward and backward on loaded samples (there may be none)."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on the held-out samples, with `loss`, and `score` to choose the best epoch (higher is better)."""
        ...

    def save(self, folder: Path, stem: str) -> None:
        """Write what people use, `folder/stem.*`."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it goes on with."""
        ...
