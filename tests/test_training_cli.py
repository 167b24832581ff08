"""The commands that train, from the command line: results, exit status, and one line for what went wrong."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_shapes import write_shapes
from typer.testing import CliRunner, Result

from segment_anything.checkpoints import inspect_checkpoint
from segment_anything.cli import app


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


def test_freed_memory_is_kept_for_the_next_step_where_the_c_library_can() -> None:
    code = (
        "from segment_anything.training.allocator import keep_freed_memory; import torch, pathlib\n"
        "resident = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "assert keep_freed_memory(); before = resident()\n"
        "torch.ones(50_000_000)\n"
        "assert resident() - before > 150_000_000, resident() - before"
    )
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("for glibc")
    subprocess.run([sys.executable, "-c", code], check=True)
