"""How long and how fast to train: the options that every kind of training shares."""

from dataclasses import dataclass

from segment_anything.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long and how fast to train."""

    epochs: int = 10
    """Times that every training image is seen."""
    batch_size: int | None = None
    """Images at once in each process. By default as the preset."""
    accumulate: int | None = None
    """Batches whose gradients are summed before each step. By default as the preset."""
    lr: float | None = None
    """Largest learning rate. By default what suits the parts that are trained."""
    weight_decay: float = 0.1
    """Of matrices and kernels."""
    layer_decay: float = 0.8
    """Factor of the learning rate from each encoder block to the one below."""
    warmup_steps: int = 250
    """Steps in which the learning rate rises, at most a tenth of the run."""
    schedule: str = "auto"
    """step (milestones), cosine, or auto: step if the run is long enough to reach a milestone."""
    milestones: tuple[int, int] = (60000, 86666)
    """Steps after which the learning rate is multiplied by gamma."""
    gamma: float = 0.1
    """Factor of the learning rate at each milestone."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    average: float = 0.0
    """Decay a step of a moving average of the weights, which is what gets validated and saved; 0 keeps none. Try 0.98
    where a step sees few images."""
    num_workers: int = 0
    """Processes that read images ahead."""
    save_every: int = 200
    """Steps between the states from which an interrupted run goes on; the end of an epoch is always one."""
    seed: int = 0
    """Of all that is drawn at random."""
    tensorboard: bool = True
    """Write a TensorBoard log."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("epochs", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        for name in ("batch_size", "accumulate", "lr"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in ("weight_decay", "clip_norm", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be in [0, 1), got {self.average}.")
        _ = self.plan

    @property
    def plan(self) -> Schedule:
        """The learning rate over the run."""
        return Schedule(
            kind=self.schedule, warmup_steps=self.warmup_steps, milestones=self.milestones, gamma=self.gamma
        )
