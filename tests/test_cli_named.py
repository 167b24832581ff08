"""`segment-anything predict` with a detector or a phrase."""

import json

import numpy as np
import pytest
import tiny_transformers
from PIL import Image
from typer.testing import CliRunner

from segment_anything.architectures import assemble
from segment_anything.checkpoints import save_checkpoint
from segment_anything.cli import app
from segment_anything.cli._named import NamingOptions
from segment_anything.grounding import DEFAULT_PHRASE_MODEL
from segment_anything.modeling.text_prompt import attach_text

RANDOM = ["--checkpoint", "random", "--device", "cpu", "--image-size", "64"]


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def words(text):
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def boxes(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("image,label,score,x0,y0,x1,y1\nphoto.png,dog,0.9,2,2,60,44\nphoto.png,cat,0.4,10,10,50,40\n")
    return path


def test_a_detector_gives_masks_with_names_and_scores(photo, boxes, tmp_path):
    result = run(photo, "--detector", boxes, "--out", tmp_path / "out", *RANDOM)
    report = json.loads((tmp_path / "out" / "photo.json").read_text())
    found = {(a["category"], a["category_score"], tuple(a["detection_box"])) for a in report["annotations"]}
    assert found == {("dog", 0.9, (2, 2, 58, 42)), ("cat", 0.4, (10, 10, 40, 30))}
    assert all((tmp_path / "out" / f"photo_mask_{a['id']}.png").is_file() for a in report["annotations"])
    assert (tmp_path / "out" / "photo_overlay.png").is_file()
    assert "dog" in result.stdout
    assert "find 0." in result.stdout


def test_classes_scores_and_counts_choose(photo, boxes, tmp_path):
    def names(*options):
        result = run(photo, "--detector", boxes, "--out", tmp_path / "out", "--json", *options, *RANDOM)
        return [a["category"] for a in json.loads(result.stdout)["annotations"]]

    assert names("--class", "cat") == ["cat"]
    assert names("--min-score", "0.5") == ["dog"]
    assert names("--max-count", "1") == ["dog"]


def test_nothing_found_is_no_error(photo, tmp_path):
    (tmp_path / "none.csv").write_text("image,label,x0,y0,x1,y1\n")
    result = run(photo, "--detector", tmp_path / "none.csv", "--out", tmp_path / "out", *RANDOM)
    assert "Nothing was found." in result.stdout
    assert json.loads((tmp_path / "out" / "photo.json").read_text())["annotations"] == []


def test_a_phrase_is_found_by_a_model_from_a_folder(photo, tmp_path):
    folder = tiny_transformers.save_owlv2(tmp_path / "owl")
    given = ["--text", "a red dog", "--text", "cat", "--text-model", folder, "--min-score", "0.01"]
    result = run(photo, *given, "--out", tmp_path / "out", "--json", *RANDOM)
    assert json.loads(result.stdout)["annotations"]  # scores of random weights lie far below the usual threshold
    assert {a["category"] for a in json.loads(result.stdout)["annotations"]} <= {"a red dog", "cat"}


def test_both_ways_to_give_a_phrase_take_the_same_model():
    assert NamingOptions().text_model == DEFAULT_PHRASE_MODEL


def test_a_relation_is_warned_about_in_one_line(photo, tmp_path):
    folder = tiny_transformers.save_owlv2(tmp_path / "owl")
    result = run(photo, "--text", "second dog", "--text-model", folder, "--out", tmp_path / "out", *RANDOM)
    told = [line for line in result.stderr.splitlines() if "relation" in line]
    assert len(told) == 1
    assert told[0].startswith("Warning: the phrase 'second dog' speaks of a relation (second)")


def test_nothing_found_by_ranking_says_among_how_many_masks(photo, tmp_path):
    folder = tiny_transformers.save_clip(tmp_path / "clip")
    given = ["--text", "dog", "--text-model", folder, "--min-score", "1.0", "--out", tmp_path / "out", *RANDOM]
    assert "Nothing was found among 0 automatic masks." in run(photo, *given).stdout


def test_a_checkpoint_trained_with_text_takes_the_phrase_itself(photo, tmp_path):
    sam = assemble("nano", 64)
    attach_text(sam.prompt_encoder, 12)
    weights = save_checkpoint(sam, tmp_path / "text.safetensors")
    clip = tiny_transformers.save_clip(tmp_path / "clip")
    given = ["--text", "dog", "--text", "cat", "--checkpoint", weights, "--device", "cpu", "--image-size", "64"]
    result = run(photo, *given, "--text-model", clip, "--out", tmp_path / "out", "--json")
    assert {a["category"] for a in json.loads(result.stdout)["annotations"]} <= {"dog", "cat"}
    assert "seconds_find" in json.loads(result.stdout)
    owl = tiny_transformers.save_owlv2(tmp_path / "owl")
    refused = run(photo, *given, "--text-model", owl, "--out", tmp_path / "out", status=1)
    assert "was trained with text: give the encoder it was trained with" in refused.stderr


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--detector", "x.onnx", "--point", "3,3"], "--detector and --text find objects themselves: give no --point"),
        (["--detector", "x.onnx", "--text", "dog"], "give --detector or --text, not both"),
        (["--detector", "x.onnx", "--classes", "truck"], "(--class NAME chooses among a detector's classes)"),
        (["--text", "dog", "--class", "dog"], "--class chooses among the classes of a --detector"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(photo, wrong, text):
    assert text in words(run(photo, *wrong, *RANDOM, status=2).output)


def test_what_is_not_there_is_one_line_and_status_1(photo, boxes, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for wrong, text in (
        (["--detector", "gone.onnx"], "No such ONNX file: gone.onnx"),
        (["--detector", boxes, "--class", "dgo"], "Near names: 'dog'"),
        (["--text", " "], "phrase must be a word or a few"),
        (["--text", "dog", "--text-model", "nobody/nothing"], "hf download nobody/nothing"),
    ):
        result = run(photo, *wrong, "--out", tmp_path / "out", *RANDOM, status=1)
        assert text in result.stderr
        assert "Traceback" not in result.stderr


def test_yolox_finds_the_truck(shared, tmp_path):
    detector = shared / "models" / "yolox_nano_coco.onnx"
    result = run(shared / "images" / "truck.jpg", "--detector", detector, "--out", tmp_path, "--json", *RANDOM)
    (truck,) = json.loads(result.stdout)["annotations"]
    assert truck["category"] == "truck"
    assert truck["category_score"] > 0.85
    assert truck["area"] > 0
