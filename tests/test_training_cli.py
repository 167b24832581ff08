"""The commands that train, from the command line: results, exit status, and one line for what went wrong."""

import json
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_shapes import toy_nano, write_shapes
from typer.testing import CliRunner, Result

from segment_anything.checkpoints import inspect_checkpoint
from segment_anything.cli import app
from segment_anything.training.files import SaveError, write_checkpoint


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_shapes(tmp_path_factory.mktemp("shapes"), count=5)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def small(*more: object) -> tuple[object, ...]:
    """The bundled network without weights, tiny and quiet."""
    size = ("--image-size", 64, "--epochs", 1, "--batch-size", 2)
    return (*size, "--no-progress", "--no-tensorboard", *more)


def test_finetune_prints_before_and_after(shapes: Path, tmp_path: Path) -> None:
    start = ("--model", "nano", "--checkpoint", "random", "--rounds", 1, "--views", 1)
    result = run("finetune", "--data", shapes, "--out", tmp_path, *start, *small("--json"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["finished"] is True
    assert set(report["before"]) == set(report["after"]) >= {"miou_box", "miou_1_click", "miou_3_clicks", "loss"}
    assert "Peak memory: about" in result.stderr
    assert inspect_checkpoint(tmp_path / "best.safetensors").model == "nano"


def test_run_killed_while_it_trains_ends_like_one_that_was_not(shapes: Path, tmp_path: Path) -> None:
    common = ["finetune", "--data", shapes, "--checkpoint", "random", "--rounds", 2, "--train", "lora", "--seed", 5]
    common += [*small("--save-every", 1), "--epochs", 3]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "segment_anything", *map(str, common), "--out", str(out)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def step(out: Path) -> int:
        path = out / "resume.pt"
        return int(torch.load(path, weights_only=True)["position"]["step"]) if path.is_file() else 0

    assert start(tmp_path / "whole").wait(timeout=180) == 0
    killed = start(tmp_path / "killed")
    while step(tmp_path / "killed") < 3:
        assert killed.poll() is None
    killed.kill()
    assert killed.wait(timeout=60) == -signal.SIGKILL
    assert 3 <= step(tmp_path / "killed") < 6
    assert start(tmp_path / "killed").wait(timeout=180) == 0
    whole, again = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_full_disk_is_one_line_and_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    sam = toy_nano()
    path = tmp_path / "last.safetensors"
    write_checkpoint(sam, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(
            SaveError, match=r"last.safetensors could not be written .*What was there before is unharmed"
        ):
            write_checkpoint(toy_nano(seed=1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["last.safetensors"]


def test_distill_leaves_a_checkpoint_of_the_students_kind(shapes: Path, tmp_path: Path) -> None:
    models = ("--teacher", "nano", "--teacher-checkpoint", "random", "--student", "nano", "--views", 1)
    result = run("distill", "--data", shapes, "--out", tmp_path, *models, *small())
    assert result.exit_code == 0, result.output
    assert "cosine" in result.stdout
    assert inspect_checkpoint(tmp_path / "best.safetensors").model == "nano"


def test_pretrain_refuses_an_encoder_that_is_no_vit(shapes: Path, tmp_path: Path) -> None:
    result = run("pretrain", "--data", shapes, "--out", tmp_path, "--model", "nano", "--size", 64, "--no-progress")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: masked autoencoding needs a ViT encoder")


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    result = run("finetune", "--data", tmp_path / "nowhere", "--out", tmp_path, "--checkpoint", "random", *small())
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {tmp_path / 'nowhere'}: no such file or folder."


def test_wrong_option_is_a_usage_error(shapes: Path, tmp_path: Path) -> None:
    result = run("finetune", "--data", shapes, "--out", tmp_path, "--preset", "12gb")
    assert result.exit_code == 2
    assert "preset must be one of" in " ".join(result.stderr.split())


def test_learning_rate_that_breaks_training_is_said_with_the_cure(shapes: Path, tmp_path: Path) -> None:
    wild = ("--lr", 1e30, "--warmup-steps", 0, "--rounds", 1, "--views", 1)
    result = run("finetune", "--data", shapes, "--out", tmp_path, "--checkpoint", "random", *small(*wild))
    assert result.exit_code == 1
    assert "is not a number at step" in result.stderr
    assert "try a tenth with --lr" in result.stderr
    assert (tmp_path / "bad_batch.pt").is_file()


def test_checkpoint_of_another_model_is_named(shapes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "other.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, weights)
    result = run("finetune", "--data", shapes, "--out", tmp_path / "out", "--checkpoint", weights, *small())
    assert result.exit_code == 1
    assert str(weights) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("is_saving", [False, True], ids=["fast", "checkpointing"])
def test_freed_memory_is_kept_for_the_next_step_but_not_where_memory_is_saved(
    shapes: Path, tmp_path: Path, is_saving: bool
) -> None:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("for glibc")
    words = ["finetune", "--data", shapes, "--out", tmp_path, "--checkpoint", "random", "--rounds", 1, "--train", "all"]
    words += small("--checkpointing" if is_saving else "--no-checkpointing")
    code = (
        "from segment_anything.cli import app; import sys, torch, pathlib\n"
        "resident = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "app(sys.argv[1:], standalone_mode=False); before = resident()\n"
        "torch.ones(250_000_000)\n"
        "print('kept', resident() - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True)
    kept = int(ended.stdout.split("kept")[-1])
    assert kept > 500_000_000 if not is_saving else kept < 100_000_000
