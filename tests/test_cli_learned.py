"""`segment-anything predict --classes`: the classes that fine-tuning learned, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from segment_anything.cli import app
from segment_anything.training.classes import ClassHead, ClassPrompts, save_classes

RANDOM = ["--checkpoint", "random", "--device", "cpu", "--image-size", "64"]
CHANNELS = 128  # of nano


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A class head that takes everything for a dog."""
    module = ClassHead(CHANNELS, ("cat", "dog"))
    with torch.no_grad():
        module.layers[-1].weight.zero_()
        module.layers[-1].bias.copy_(torch.tensor([0.0, 2.0]))
    save_classes(module, tmp_path / "head.classes.safetensors")
    return tmp_path / "head.classes.safetensors"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_classes(ClassPrompts(CHANNELS, ("sky", "sea")), tmp_path / "prompts.classes.safetensors")
    return tmp_path / "prompts.classes.safetensors"


def test_what_is_pointed_at_gets_the_name_of_its_class(photo: Path, head: Path, tmp_path: Path) -> None:
    given = ["--classes", head, "--box", "2,2,30,30", "--box", "20,20,60,40", "--out", tmp_path / "out", *RANDOM]
    report = json.loads(run(photo, *given, "--json").stdout)
    assert [one["category"] for one in report["annotations"]] == ["dog", "dog"]
    assert report["annotations"][0]["category_score"] == pytest.approx(0.881, abs=1e-3)  # softmax of 0 and 2
    assert "dog 0.88" in run(photo, *given).stdout
    there = ["--out", tmp_path / "out", *RANDOM]
    three = json.loads(run(photo, "--classes", head, "--point", "9,9", "--all-masks", "--json", *there).stdout)
    assert [one["object"] for one in three["annotations"]] == [0, 0, 0]


def test_classes_of_the_whole_image_are_drawn_without_a_click(photo: Path, prompts: Path, tmp_path: Path) -> None:
    report = json.loads(run(photo, "--classes", prompts, "--out", tmp_path / "out", "--json", *RANDOM).stdout)
    assert {one["category"] for one in report["annotations"]} <= {"sky", "sea"}
    masks = [np.asarray(Image.open(one["file"])) > 0 for one in report["annotations"]]
    assert sum(mask.astype(int) for mask in masks).max() <= 1  # no pixel is in two classes
    assert (tmp_path / "out/photo_overlay.png").is_file()


def test_what_cannot_be_meant_is_said(photo: Path, head: Path, prompts: Path, tmp_path: Path) -> None:
    wrong = {
        "point at objects with --point": ["--classes", head],
        "give no --point, --box or --mask": ["--classes", prompts, "--point", "3,3"],
        "not two of them": ["--classes", head, "--text", "dog"],
    }
    for words, options in wrong.items():
        output = " ".join(run(photo, *options, *RANDOM, status=2).output.replace("\u2502", " ").split())
        assert words in output
    save_classes(ClassHead(256, ("cat",)), tmp_path / "wide.classes.safetensors")
    wide = run(photo, "--classes", tmp_path / "wide.classes.safetensors", "--point", "3,3", *RANDOM, status=1)
    assert "was learned with a model of 256 channels, nano has 128" in wide.stderr
    (tmp_path / "notes.safetensors").write_text("no")
    assert (
        "is no safetensors file"
        in run(photo, "--classes", tmp_path / "notes.safetensors", "--point", "3,3", *RANDOM, status=1).stderr
    )
