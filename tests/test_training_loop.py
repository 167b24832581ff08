"""The loop: order, schedule, groups, what it writes, and what it does with samples that cannot be read."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from toy_task import Wave, WaveTask

from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.parameters import encoder_depth, layer_of, parameter_groups
from segment_anything.training.report import plot_history, write_summary
from segment_anything.training.schedule import Schedule


def options(**changes: object) -> LoopOptions:
    settings = {"epochs": 3, "batch_size": 4, "tensorboard": False, "progress": False}
    return LoopOptions(**{**settings, **changes})


def test_learning_lowers_the_loss_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    outcome = Loop(WaveTask(Wave()), options(epochs=30), tmp_path).run()
    losses = [row["valid_loss"] for row in outcome.history]
    assert losses[-1] < losses[0] / 4
    assert outcome.best_epoch == losses.index(min(losses))
    best = WaveTask(Wave())
    best.module.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True))
    best.module.eval()
    with torch.no_grad():
        assert best.validate()["loss"] == pytest.approx(min(losses))


def test_average_of_the_weights_is_validated_saved_and_left_in_the_model(tmp_path: Path) -> None:
    steps: list[dict[str, torch.Tensor]] = []

    class Recording(WaveTask):
        def learn(self, batch):  # type: ignore[no-untyped-def]
            steps.append({name: p.detach().clone() for name, p in self.module.named_parameters()})
            return super().learn(batch)

    task = Recording(Wave(), dropout=0.0)
    start = {name: p.detach().clone() for name, p in task.module.named_parameters()}
    outcome = Loop(task, options(average=0.6), tmp_path / "average").run()
    plain = WaveTask(Wave(), dropout=0.0)
    Loop(plain, options(), tmp_path / "plain").run()

    weights = [*steps[1:], dict(plain.module.named_parameters())]  # after every step: the path is that of the plain run
    for name, average in start.items():
        for step, values in enumerate(weights, start=1):
            decay = min(0.6, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * values[name].detach()
        torch.testing.assert_close(dict(task.module.named_parameters())[name].detach(), average)
    saved = torch.load(tmp_path / "average" / "last.pt", weights_only=True)
    for name, value in task.module.state_dict().items():
        assert torch.equal(saved[name], value)
    task.module.eval()
    with torch.no_grad():
        assert task.validate()["loss"] == pytest.approx(outcome.history[-1]["valid_loss"])


def test_run_with_an_average_that_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Dying(WaveTask):
        calls = 0

        def learn(self, batch):  # type: ignore[no-untyped-def]
            self.calls += 1
            if self.calls == 9:
                raise KeyboardInterrupt
            return super().learn(batch)

    whole = WaveTask(Wave())
    Loop(whole, options(average=0.9, save_every=2), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        Loop(Dying(Wave()), options(average=0.9, save_every=2), tmp_path / "killed").run()
    again = WaveTask(Wave())
    Loop(again, options(average=0.9, save_every=2), tmp_path / "killed").run()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value)


def test_bigger_batches_equal_accumulated_ones(tmp_path: Path) -> None:
    ends = []
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        task = WaveTask(Wave(), dropout=0.0)
        Loop(task, options(batch_size=batch_size, accumulate=accumulate), tmp_path / str(batch_size)).run()
        ends.append(task.module.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ends[2][name], value, rtol=1e-5, atol=1e-6)


def test_gradient_longer_than_the_limit_is_shortened_to_it(tmp_path: Path) -> None:
    norms: dict[float, list[float]] = {}
    for limit in (0.0, 0.01):
        loop = Loop(WaveTask(Wave(), dropout=0.0), options(clip_norm=limit), tmp_path / str(limit))
        seen = norms.setdefault(limit, [])
        loop.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                float(torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm())
            )
        )
        loop.run()
    assert max(norms[0.0]) > 0.02
    assert max(norms[0.01]) == pytest.approx(0.01, rel=1e-3)


def test_every_image_is_seen_once_an_epoch_in_a_new_order(tmp_path: Path) -> None:
    seen: list[int] = []

    class Recording(WaveTask):
        def learn(self, batch):  # type: ignore[no-untyped-def]
            seen.extend(point.index for point in batch)
            return super().learn(batch)

    Loop(Recording(Wave(10)), options(epochs=2), tmp_path).run()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_files_of_a_run(tmp_path: Path) -> None:
    Loop(WaveTask(Wave()), options(tensorboard=True), tmp_path).run()
    assert {"best.pt", "last.pt", "resume.pt", "metrics.csv", "tensorboard"} == {p.name for p in tmp_path.iterdir()}
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["train_loss"] == ""
    assert float(rows[3]["train_loss"]) < float(rows[1]["train_loss"])
    assert list((tmp_path / "tensorboard").iterdir())


def test_progress_bar_shows_loss_rate_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Loop(WaveTask(Wave()), options(progress=True), tmp_path).run()
    shown = capsys.readouterr().err
    for words in ("66/66", "image/s", "loss=", "lr=", "epoch=3", "<00:00"):
        assert words in shown


def test_unreadable_sample_is_skipped_counted_and_named(tmp_path: Path) -> None:
    outcome = Loop(WaveTask(Wave(22, unreadable=(7,))), options(), tmp_path).run()
    assert [(item.name, item.reason) for item in outcome.skipped] == [("point 7", "point 7: unreadable")]


def test_more_than_a_tenth_unreadable_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of 22 samples cannot be used, more than 10%"):
        Loop(WaveTask(Wave(22, unreadable=(3, 7, 9, 12))), options(), tmp_path).run()


def test_frozen_model_is_refused(tmp_path: Path) -> None:
    task = WaveTask(Wave())
    task.module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        Loop(task, options(), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be above 0, got 0"),
        ({"clip_norm": -1.0}, "clip_norm must not be negative"),
        ({"schedule": "linear"}, "schedule must be auto, step or cosine, got 'linear'"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(**change)


def test_warm_up_is_linear_over_250_steps() -> None:
    plan = Schedule()
    assert plan.factor(0, 90000) == 1 / 250
    assert plan.factor(124, 90000) == 0.5
    assert plan.factor(250, 90000) == 1.0


def test_step_decay_divides_by_ten_at_both_milestones() -> None:
    plan = Schedule()
    factors = [plan.factor(step, 90000) for step in (59999, 60000, 86665, 86666)]
    assert factors == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_short_runs_take_a_short_warm_up_and_a_cosine() -> None:
    plan = Schedule()
    assert plan.factor(9, 100) == 1.0
    assert plan.factor(55, 100) == pytest.approx(0.5)
    assert plan.factor(99, 100) < 0.01


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 2, 2, 4))
        self.patch_embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.neck = nn.Linear(4, 4)


def test_layers_near_the_pixels_learn_slower() -> None:
    model = nn.Module()
    model.image_encoder = Encoder()
    model.mask_decoder = nn.Linear(4, 4)
    names = [name for name, _ in model.named_parameters()]
    depth = encoder_depth(names)
    assert depth == 4
    layers = {name: layer_of(name, depth) for name in names if name.endswith("weight") or "pos" in name}
    assert layers == {
        "image_encoder.pos_embed": 0,
        "image_encoder.patch_embed.weight": 0,
        "image_encoder.blocks.0.weight": 1,
        "image_encoder.blocks.1.weight": 2,
        "image_encoder.blocks.2.weight": 3,
        "image_encoder.neck.weight": 4,
        "mask_decoder.weight": 4,
    }
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.8)
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert scale_of[id(model.image_encoder.blocks[0].weight)] == pytest.approx(0.8**3)
    assert scale_of[id(model.mask_decoder.weight)] == 1
    assert decay_of[id(model.mask_decoder.weight)] == 0.1
    assert decay_of[id(model.mask_decoder.bias)] == 0
    assert decay_of[id(model.image_encoder.pos_embed)] == 0


def test_plot_has_four_panels(tmp_path: Path) -> None:
    history = [{"epoch": e, "train_loss": 2.0 - e, "valid_loss": 2.0, "valid_miou": 0.5} for e in range(3)]
    plot_history(
        tmp_path / "two.png", [{k: v for k, v in row.items() if "loss" in k or k == "epoch"} for row in history]
    )
    plot_history(tmp_path / "four.png", [{**row, "train_miou": 0.4} for row in history])
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "four.png") as four:
        assert four.height > 1.5 * two.height


def test_summary_is_written_and_returned(tmp_path: Path) -> None:
    text = write_summary(
        tmp_path / "summary.txt", {"model": "nano", "box mIoU after": 0.912345678}, "1 of 9 was skipped"
    )
    assert text == (tmp_path / "summary.txt").read_text()
    assert text.splitlines() == ["model:          nano", "box mIoU after: 0.912346", "1 of 9 was skipped"]
