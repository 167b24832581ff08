"""One training loop for everything. It knows epochs, steps, files and processes, and no model, data set or loss.

What is trained is a `Task`. All randomness of a run is derived from its seed and from positions (epoch, step, sample),
never from a generator that was left in some state: a run that was killed and started again repeats, bit for bit on a
CPU, what the uninterrupted run does.
"""

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from segment_anything._whole_file import remove_parts
from segment_anything.datasets import SampleError, Skipped, SkippedSamples
from segment_anything.training.average import WeightAverage
from segment_anything.training.distributed import Workers
from segment_anything.training.files import save_tensors
from segment_anything.training.options import LoopOptions
from segment_anything.training.parameters import parameter_groups
from segment_anything.training.report import Report
from segment_anything.training.task import Source, Task, TrainingError

RESUME = "resume.pt"
"""File in the folder of a run from which it goes on."""
BAD_BATCH = "bad_batch.pt"
"""File in the folder of a run with the batch whose loss was not a number."""


@dataclass
class Position:
    """Where a run is, and what it has seen."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over the objects of this epoch so far."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row an epoch; the first is the state before training."""
    best_score: float = float("-inf")
    best_epoch: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    finished: bool
    """False: a signal stopped it, and the same command goes on."""
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float
    skipped: tuple[Skipped, ...]


class Loop:
    """One run of a task in a folder."""

    def __init__(self, task: Task, options: LoopOptions, out: Path, workers: Workers | None = None) -> None:
        self.task, self.options, self.out = task, options, out
        self.workers = workers or Workers()
        self.batch_size, self.accumulate = options.batch_size or 4, options.accumulate or 1
        groups = parameter_groups(task.module, options.weight_decay, options.layer_decay)
        if not groups:
            raise ValueError("nothing to train: no parameter of the model requires a gradient.")
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.lr = options.lr or task.default_lr
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.999))
        self.at = Position()
        self._stop = 0
        self._stop_agreed = False

    @property
    def images_a_step(self) -> int:
        """Images whose gradients make one step, over all processes."""
        return self.batch_size * self.accumulate * self.workers.count

    @property
    def steps_an_epoch(self) -> int:
        """Steps that see every training image once; the last may see fewer than the others."""
        return -(-len(self.task.source) // self.images_a_step)

    def run(self) -> Outcome:
        """Train to the last epoch, or until a signal; goes on where the folder's earlier run stopped.

        Raises:
            TrainingError: if the loss is no longer a number, or the folder holds another run.
            ValueError: if more than a tenth of the samples cannot be read.
            SaveError: if a file cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.workers.first:
            remove_parts(self.out)
        self.workers.start_alike(self.task.module)
        self.average = WeightAverage(self.parameters, self.options.average)
        self._resume()
        self.skipped = SkippedSamples(len(self.task.source), map_skipped(self.at.skipped))
        with Report(self.out, self.options.tensorboard and self.workers.first, self.at.step) as report, self._signals():
            if not self.at.history:
                self._end_epoch(report, train={})
            with self._bar() as bar:
                while self.at.epoch < self.options.epochs:
                    if not self._epoch(report, bar):
                        self._save(last=True)
                        break
        self.average.take_over()
        return self._outcome(finished=self.at.epoch >= self.options.epochs)

    def _epoch(self, report: Report, bar: "tqdm[Any]") -> bool:
        """The rest of the current epoch; False if a signal asks to stop."""
        steps = self.options.epochs * self.steps_an_epoch
        batches = self._batches()
        while self.at.step_in_epoch < self.steps_an_epoch:
            started = time.monotonic()
            rate = self.lr * self.options.plan.factor(self.at.step, steps)
            sums = self._step(batches, rate)
            self.at.seconds += time.monotonic() - started
            for key, value in sums.items():
                self.at.sums[key] = self.at.sums.get(key, 0.0) + value
            self.at.step += 1
            self.at.step_in_epoch += 1
            means = self._means(sums)
            report.step(self.at.step, {**means, "lr": rate})
            bar.set_postfix(
                {"epoch": self.at.epoch + 1, **{k: f"{v:.3f}" for k, v in means.items()}, "lr": f"{rate:.1e}"},
                refresh=False,  # `update` shows it
            )
            bar.update(
                min(self.images_a_step, len(self.task.source) - (self.at.step_in_epoch - 1) * self.images_a_step)
            )
            if self._stop_agreed:
                return False
            if self.at.step_in_epoch < self.steps_an_epoch and self.at.step % self.options.save_every == 0:
                self._save()
        self._end_epoch(report, self._means(self.at.sums))
        return True

    def _step(self, batches: Iterator[list[Any]], rate: float) -> dict[str, float]:
        """One update of the weights; the sums over all processes."""
        self.task.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(len(self.task.metrics) + 2, dtype=torch.float64)
        seen: list[Any] = []
        for part in range(self.accumulate):
            batch = self._usable(next(batches))
            torch.manual_seed(self._seed(part))  # drop path draws from torch's own generator
            learned = self.task.learn(batch)
            totals[:-1] += torch.tensor([learned.weight, *(learned.sums[name] for name in self.task.metrics)])
            seen += batch
        totals[-1] = self._stop
        local_loss = float(totals[1])
        self.workers.sum(totals)
        self._stop_agreed = bool(totals[-1] > 0)
        self.workers.sum_gradients(self.parameters)
        weight = float(totals[0])
        if weight > 0:
            self._update(weight, rate, finite=bool(totals.isfinite().all()), seen=seen, local_loss=local_loss)
        self.workers.average_buffers(self.task.module)
        return dict(zip(("weight", *self.task.metrics), totals[:-1].tolist(), strict=True))

    def _update(self, weight: float, rate: float, finite: bool, seen: list[Any], local_loss: float) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= weight
        limit = self.options.clip_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if not finite or not np.isfinite(norm):
            self._stop_on_nan(seen, local_loss, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.step()
        self.average.update()

    def _stop_on_nan(self, seen: list[Any], local_loss: float, norm: float) -> None:
        name = BAD_BATCH if self.workers.count == 1 else f"rank{self.workers.rank}_{BAD_BATCH}"
        samples = [asdict(item) if is_dataclass(item) and not isinstance(item, type) else item for item in seen]
        where = {"epoch": self.at.epoch, "step": self.at.step, "loss": local_loss, "gradient_norm": norm}
        save_tensors(self.out / name, {**where, "samples": samples})
        self._save(last=True)
        raise TrainingError(
            f"the loss or its gradient is not a number at step {self.at.step + 1} (loss {local_loss}, gradient norm "
            f"{norm}). The weights before that step are saved, and the batch in {self.out / name}. Usual causes: a "
            f"learning rate that is too high (now {self.lr:g}; try a tenth with --lr and a new --out), or damaged "
            "weights."
        )

    def _usable(self, batch: list[Any]) -> list[Any]:
        for item in batch:
            if isinstance(item, Skipped):
                self.at.skipped[item.name] = item.reason
                self.skipped.add(item.name, item.reason)
        return [item for item in batch if not isinstance(item, Skipped)]

    def _batches(self) -> Iterator[list[Any]]:
        """Batches of this process from the current position to the end of the epoch."""
        order = np.random.default_rng((self.options.seed, self.at.epoch)).permutation(len(self.task.source))
        keys: list[list[tuple[int, int]]] = []
        for step in range(self.at.step_in_epoch, self.steps_an_epoch):
            for part in range(self.accumulate):
                first = step * self.images_a_step + (part * self.workers.count + self.workers.rank) * self.batch_size
                last = min(first + self.batch_size, (step + 1) * self.images_a_step)
                keys.append([(int(index), self.at.epoch) for index in order[first:last]])
        loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            _Samples(self.task.source),
            batch_sampler=keys,
            num_workers=self.options.num_workers,
            collate_fn=list,
        )
        return iter(loader)

    def _seed(self, part: int) -> int:
        place = (self.options.seed, self.at.step, part * self.workers.count + self.workers.rank)
        return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])

    def _means(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {name: sums[name] / max(sums["weight"], 1e-9) for name in self.task.metrics}

    def _end_epoch(self, report: Report, train: Mapping[str, float]) -> None:
        """Validate, write everything, and move to the next epoch. Without `train` the run has not begun yet."""
        self.task.module.eval()
        started = time.monotonic()
        with torch.no_grad(), self.average.in_place():
            valid = self.task.validate()
        self.at.seconds += time.monotonic() - started
        epoch = self.at.epoch + 1 if train else 0
        rate = self.options.plan.factor(max(0, self.at.step - 1), self.options.epochs * self.steps_an_epoch) * self.lr
        row: dict[str, float] = {"epoch": epoch, "step": self.at.step, "lr": rate if train else 0.0}
        row |= {"seconds": round(self.at.seconds, 1)}
        row |= {f"train_{name}": value for name, value in train.items()}
        row |= {f"valid_{name}": value for name, value in valid.items() if name != "score"}
        self.at.history.append(row)
        better = valid["score"] > self.at.best_score
        if better:
            self.at.best_score, self.at.best_epoch = valid["score"], epoch
        if train:
            self.at.epoch, self.at.step_in_epoch, self.at.sums = epoch, 0, {}
        if self.workers.first:
            if better:
                with self.average.in_place():
                    self.task.save(self.out, "best")
            report.epoch(self.at.history)
        self._save(last=True)

    def _save(self, last: bool = False) -> None:
        """Write the state to go on from; with `last` also the weights that people use."""
        if not self.workers.first:
            return
        if last:
            with self.average.in_place():
                self.task.save(self.out, "last")
        content = {
            "identity": self._identity(),
            "position": asdict(self.at),
            "weights": self._trained(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }
        save_tensors(self.out / RESUME, content)

    def _trained(self) -> dict[str, torch.Tensor]:
        trained = {name: p.detach() for name, p in self.task.module.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.task.module.named_buffers())}

    def _identity(self) -> dict[str, Any]:
        same = ("epochs", "weight_decay", "layer_decay", "warmup_steps", "schedule", "gamma", "clip_norm", "seed")
        mine = {name: getattr(self.options, name) for name in same}
        mine |= {"milestones": list(self.options.milestones), "lr": self.lr, "images a step": self.images_a_step}
        mine |= {"average": self.options.average}
        return {**mine, "training images": len(self.task.source), **self.task.identity()}

    def _resume(self) -> None:
        path = self.out / RESUME
        if not path.is_file():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler meets arbitrary bytes and raises whatever they lead to
            raise TrainingError(f"{path} is damaged ({error}). Delete it to train from the beginning.") from error
        mine = self._identity()
        changed = [key for key in {**mine, **saved["identity"]} if mine.get(key) != saved["identity"].get(key)]
        if changed:
            key = changed[0]
            raise TrainingError(
                f"{self.out} holds a run with {key} = {saved['identity'].get(key)}, this one has {mine.get(key)}. Use "
                "the same options to go on with it, or another --out."
            )
        entries = {**dict(self.task.module.named_parameters()), **dict(self.task.module.named_buffers())}
        with torch.no_grad():
            for name, value in saved["weights"].items():
                entries[name].copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.load_state_dict(saved["average"])
        self.at = Position(**saved["position"])

    def _outcome(self, finished: bool) -> Outcome:
        skipped = {name: reason for part in self.workers.gather(self.at.skipped) for name, reason in part.items()}
        return Outcome(finished, self.at.history, self.at.best_epoch, self.at.seconds, tuple(map_skipped(skipped)))

    def _bar(self) -> "tqdm[Any]":
        count = len(self.task.source)
        done = self.at.epoch * count + min(count, self.at.step_in_epoch * self.images_a_step)
        return tqdm(
            total=self.options.epochs * count,
            initial=done,
            unit="image",
            disable=not (self.options.progress and self.workers.first),
            dynamic_ncols=True,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the run after the current step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = number

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Samples(torch.utils.data.Dataset[Any]):
    """Loads what a source has by (index, epoch); what cannot be used becomes a `Skipped`."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, epoch = key
        try:
            return self.source.load(index, epoch)
        except SampleError as error:
            return Skipped(self.source.name(index), str(error))


def map_skipped(reasons: Mapping[str, str]) -> Iterator[Skipped]:
    """Name and reason as values."""
    return (Skipped(name, reason) for name, reason in reasons.items())
