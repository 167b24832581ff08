"""The recipes that prove learning, on small pictures: what is held out, and what they print."""

import json
from pathlib import Path

import pytest
import torch
import toy_data
from test_recipe_nano import run
from toy_shapes import write_shapes

from segment_anything import load_sam
from segment_anything.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than those that `random` stands for, which the student begins with."""
    sam = load_sam("nano", checkpoint="random", image_size=64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in sam.image_encoder.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter[torch.randperm(len(parameter))])
    return save_checkpoint(sam, tmp_path_factory.mktemp("weights") / "nano.safetensors")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures with an index, as the training sets have one."""
    root = write_shapes(tmp_path_factory.mktemp("shapes"), count=40)
    (root / "classes.txt").unlink()
    names = [f"{number:03}.png" for number in range(40)]
    lines = [json.dumps({"image": f"images/{name}", "mask": f"labels/{name}"}) for name in names]
    (root / "index.jsonl").write_text("\n".join(lines))
    return root


def test_nuclei_are_tested_on_images_that_neither_teach_nor_choose(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    options = ("--data", pictures, "--test", tmp_path / "unlabelled", "--checkpoint", weights, "--out", tmp_path)
    shown = run("finetune_nuclei.py", *options, "--epochs", 1, "--image-size", 64, "--test-size", 64)
    assert "Tested on 2 images: every 20th image" in shown
    assert [line.split("|")[1].strip() for line in shown.splitlines() if line.count("|") == 5][2:] == [
        "1 click",
        "3 clicks",
        "box",
    ]
    images: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
    for part in ("learned", "tested"):
        for line in (tmp_path / part / "index.jsonl").read_text().splitlines():
            entry = json.loads(line)
            images[entry["split"]].add(entry["image"])
    assert {Path(name).name for name in images["test"]} == {"000.png", "020.png"}
    assert images["train"]
    assert images["valid"]
    assert not images["train"] & images["valid"]
    assert not (images["train"] | images["valid"]) & images["test"]


def test_a_labelled_test_set_is_preferred(pictures: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    toy_data.write_index(other)
    (other / "labels").mkdir(exist_ok=True)
    options = ("--data", pictures, "--test", other, "--checkpoint", weights, "--out", tmp_path / "out")
    shown = run(
        "finetune_nuclei.py", *options, "--epochs", 1, "--image-size", 64, "--test-size", 64, "--train", "decoder"
    )
    assert f"Tested on 2 images: {other}" in shown


def test_distilling_prints_what_the_student_had_has_and_could_have(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    options = ("--data", pictures, "--checkpoint", weights, "--out", tmp_path, "--epochs", 1, "--image-size", 64)
    rows = {
        cells[1].strip(): [float(cell) for cell in cells[2:5]]
        for line in run("distill_nano.py", *options).splitlines()
        if (cells := line.split("|"))[1:] and ("cosine" in line or "error" in line or "mIoU" in line)
    }
    assert list(rows) == [
        "cosine of embeddings",
        "square error of embeddings",
        "box mIoU with the truth",
        "box mIoU with the teacher's masks",
    ]
    assert rows["cosine of embeddings"][1] > rows["cosine of embeddings"][0]
    assert rows["square error of embeddings"][1] < rows["square error of embeddings"][0]
    assert rows["box mIoU with the teacher's masks"][2] == 1.0


def test_car_parts_are_tested_at_both_sizes(pictures: Path, weights: Path, tmp_path: Path) -> None:
    options = ("--data", pictures, "--checkpoint", weights, "--out", tmp_path, "--epochs", 1)
    shown = run("finetune_car_parts.py", *options, "--image-size", 64, "--test-size", 128)
    learned, tested = shown.split("Tested at 128 pixels:")
    for part in (learned, tested):
        rows = [line.split("|") for line in part.splitlines() if line.count("|") == 5]
        titles = [cells[1].strip() for cells in rows[2:]]
        assert titles == ["1 click", "3 clicks", "box"]
        for _, _, before, after, gain, _ in rows[2:]:
            assert float(gain) == pytest.approx(float(after) - float(before), abs=0.0011)


def test_masked_autoencoding_prints_what_blind_guesses_lose(pictures: Path, tmp_path: Path) -> None:
    shown = run("pretrain_small.py", "--data", pictures / "images", "--out", tmp_path, "--epochs", 1)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in shown.splitlines() if line.count("|") == 3
    }
    losses = {name: float(value) for name, value in rows.items() if value[:1].isdigit()}
    assert list(losses) == ["grey", "colour of what is seen", "network", "network before training"]
    assert losses["grey"] == pytest.approx(1.0, abs=0.05)
    assert losses["network"] < losses["network before training"]
    assert (tmp_path / "look.png").is_file()
