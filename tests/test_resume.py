"""A run that was interrupted ends as one that was not; a full disk or a NaN costs nothing."""

import csv
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_task import Wave, WaveTask

from segment_anything.training.files import SaveError, save_tensors
from segment_anything.training.loop import Loop
from segment_anything.training.options import LoopOptions
from segment_anything.training.task import TrainingError

PROGRAM = Path(__file__).with_name("toy_task.py")
ROOT = PROGRAM.parent.parent
OPTIONS = LoopOptions(epochs=3, batch_size=4, save_every=4, tensorboard=False, progress=False)


def run(*arguments: object) -> int:
    """The exit status of the toy program."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=120).returncode


def weights(out: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(out / "last.pt", weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("uninterrupted")
    assert Loop(WaveTask(Wave()), OPTIONS, out).run().finished
    return out


def assert_same_end(out: Path, uninterrupted: Path) -> None:
    for name, value in weights(uninterrupted).items():
        assert torch.equal(weights(out)[name], value), name
    rows = [list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())) for folder in (out, uninterrupted)]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]


def test_killed_run_ends_with_the_same_weights_bit_for_bit(uninterrupted: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "--kill-at", 11) == -signal.SIGKILL
    assert Loop(WaveTask(Wave()), OPTIONS, tmp_path).run().finished
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize("step", range(18))
def test_run_that_broke_off_at_any_step_ends_with_the_same_weights(
    step: int, uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        Loop(WaveTask(Wave(), {step: "crash"}), OPTIONS, tmp_path).run()
    Loop(WaveTask(Wave()), OPTIONS, tmp_path).run()
    assert_same_end(tmp_path, uninterrupted)


def test_sigterm_saves_and_the_run_goes_on(uninterrupted: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert not Loop(WaveTask(Wave(), {6: "term"}), OPTIONS, tmp_path).run().finished
    assert signal.getsignal(signal.SIGTERM) is before
    saved = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert saved["position"]["step"] == 7
    assert Loop(WaveTask(Wave()), OPTIONS, tmp_path).run().finished
    assert_same_end(tmp_path, uninterrupted)


def test_finished_run_started_again_changes_nothing(uninterrupted: Path) -> None:
    before = weights(uninterrupted)
    outcome = Loop(WaveTask(Wave()), OPTIONS, uninterrupted).run()
    assert outcome.finished
    assert len(outcome.history) == 4
    assert all(torch.equal(value, weights(uninterrupted)[name]) for name, value in before.items())


def test_run_with_other_options_does_not_go_on(uninterrupted: Path) -> None:
    other = LoopOptions(epochs=3, batch_size=4, lr=0.1, tensorboard=False, progress=False)
    with pytest.raises(TrainingError, match=r"holds a run with lr = 0.05, this one has 0.1. Use the same options"):
        Loop(WaveTask(Wave()), other, uninterrupted).run()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_reading_ahead_in_worker_processes_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    options = LoopOptions(epochs=3, batch_size=4, num_workers=2, tensorboard=False, progress=False)
    Loop(WaveTask(Wave()), options, tmp_path).run()
    assert_same_end(tmp_path, uninterrupted)


def test_nan_stops_with_the_batch_saved_and_the_weights_before_it(tmp_path: Path) -> None:
    task = WaveTask(Wave(), {4: "nan"})
    with pytest.raises(TrainingError, match=r"not a number at step 5 .*bad_batch.pt.*try a tenth with --lr"):
        Loop(task, OPTIONS, tmp_path).run()
    bad = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert bad["step"] == 4
    assert [sorted(sample) for sample in bad["samples"]] == [["index", "x", "y"]] * 4
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_full_disk_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_tensors(path, {"a": torch.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(SaveError, match=r"state.pt could not be written .*What was there before is unharmed"):
            save_tensors(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert [item.name for item in tmp_path.iterdir()] == ["state.pt"]


def test_half_written_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".resume.pt.123.part").write_bytes(b"half")
    Loop(WaveTask(Wave()), OPTIONS, tmp_path).run()
    assert not list(tmp_path.glob(".*"))


def test_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "resume.pt").write_bytes(b"half of a file")
    with pytest.raises(TrainingError, match=r"resume.pt is damaged .*Delete it"):
        Loop(WaveTask(Wave()), OPTIONS, tmp_path).run()
