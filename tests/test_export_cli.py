"""`segment-anything export`: what it writes and says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from segment_anything.cli import app
from segment_anything.interchange import from_pretrained
from segment_anything.onnx import Manifest, OnnxModel

pytest.importorskip("onnx")

TINY = ["--checkpoint", "random", "--image-size", "32"]
ENCODER_ONLY = ["--decoders", ""]


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def test_a_model_becomes_files_that_can_be_opened(tmp_path: Path) -> None:
    result = run("nano", "--out", tmp_path, *TINY, *ENCODER_ONLY, "--weights-license", "CC0-1.0")
    manifest, _ = Manifest.load(tmp_path)
    assert (manifest.model, manifest.image_size, manifest.weights_license) == ("nano", 32, "CC0-1.0")
    features = OnnxModel(tmp_path, providers="cpu").encode(np.zeros((20, 32, 3), np.uint8)).features
    assert features.shape == (1, 128, 4, 4)
    for words in ("nano_encoder.onnx", "MB", "largest deviation", "1 graphs and nano.json in"):
        assert words in result.stdout


def test_what_was_written_can_be_printed_for_machines(tmp_path: Path) -> None:
    result = run("nano", "--out", tmp_path, *TINY, *ENCODER_ONLY, "--normalise", "--json")
    printed = json.loads(result.stdout)
    assert (printed["files"], printed["normalises"]) == ({"encoder": "nano_encoder.onnx"}, True)
    assert printed["checks"]["encoder"]["mask_agreement"] > 0.999
    assert printed["weights_license"] == "unknown"


def test_a_refused_export_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    result = run("nano", "--out", tmp_path / "out", *TINY, *ENCODER_ONLY, "--tolerance", "0", status=1)
    assert result.stderr.splitlines()[-1].startswith("Error: nano_encoder.onnx is not what torch computes")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("name", "layout"), [("vit_t", "native"), ("vit_b", "transformers")])
def test_a_model_becomes_a_folder_and_the_folder_a_model(name: str, layout: str, tmp_path: Path) -> None:
    run(name, "--out", tmp_path / "folder", "--checkpoint", "random", "--image-size", "64", "--to", layout)
    assert from_pretrained(tmp_path / "folder").name == name


def test_a_folder_can_be_exported(tmp_path: Path) -> None:
    run("nano", "--out", tmp_path / "folder", *TINY, "--to", "native")
    run(tmp_path / "folder", "--out", tmp_path / "graphs", *ENCODER_ONLY)
    assert Manifest.load(tmp_path / "graphs")[0].image_size == 32
    result = run(tmp_path / "folder", "--out", tmp_path, "--image-size", "64", status=1)
    assert "has its own weights and size: leave --checkpoint, --image-size out" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nano", "--to", "keras"], 2, "must be one of onnx, native, transformers"),
        (["nano", "--precision", "int2"], 2, "precision must be one of fp32, fp16, int8"),
        (["vit_x"], 1, "name must be one of"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], status: int, words: str, tmp_path: Path) -> None:
    result = run(*arguments, "--out", tmp_path, status=status)
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_the_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom segment_anything.cli import app\n"
        "try:\n    app(['export', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules), set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--decoders" in done.stdout
