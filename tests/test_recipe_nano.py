"""The recipe of the bundled model, on two small pictures: it learns, goes on where it stopped, and its file loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything import load_sam

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as the recipe reads it: 25 pictures of a bright square on a dark ground."""
    root = tmp_path_factory.mktemp("train")
    folder = root / "coco_cc"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for k in range(25):
        x, y = rng.integers(5, 40, size=2)
        image = rng.integers(0, 60, size=(96, 96, 3)).astype(np.uint8)
        image[y : y + 40, x : x + 45] += 150
        labels = np.zeros((96, 96), np.uint8)
        labels[y : y + 40, x : x + 45] = 1
        Image.fromarray(image).save(folder / "images" / f"{k}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{k}.png")
        lines.append(json.dumps({"image": f"images/{k}.png", "mask": f"masks/{k}.png", "type": "instance"}))
    (folder / "index.jsonl").write_text("\n".join(lines))
    return root


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(RECIPES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_learns_resumes_and_publishes_a_file_that_load_sam_takes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--data", data, "--cache", tmp_path / "cache", "--out", out, "--batch", 2, "--sizes", "64:1",
               "--workers", 0, "--threads", 1, "--warmup", 5, "--save-every", 20, "--check-every", 1000)  # fmt: skip
    run("nano.py", *options, "--steps", 20)
    first = torch.load(out / "last.pt", weights_only=True)
    assert first["step"] == 20
    earlier = tmp_path / "earlier.safetensors"
    run("publish_nano.py", out / "last.pt", earlier)
    run("nano.py", *options, "--steps", 40)
    kept = torch.load(out / "last.pt", weights_only=True)
    assert kept["step"] == 40
    assert kept["muon"]["state"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    shown = [line for line in lines if "loss" in line]
    assert shown[1]["loss"] < shown[0]["loss"]

    target = tmp_path / "nano.safetensors"
    assert "step 40" in run("publish_nano.py", out / "last.pt", target)
    sam = load_sam("nano", checkpoint=target)
    weight = sam.image_encoder.laterals[0].weight
    late = kept["average"]["image_encoder.laterals.0.weight"]
    torch.testing.assert_close(weight, late.half().float())

    again = (*options, "--out", tmp_path / "measured", "--init", target, "--steps", 0)
    measured = json.loads(run("nano.py", *again).splitlines()[-1])
    assert measured["check"] == 0
    assert measured["coco_cc_box"] == pytest.approx(lines[-1]["coco_cc_box"], abs=0.02)  # but for 16-bit rounding
    assert not (tmp_path / "measured" / "last.pt").exists()

    run("publish_nano.py", out / "last.pt", target, "--mean", earlier, "--share", 0.25)
    weight = load_sam("nano", checkpoint=target).image_encoder.laterals[0].weight
    early = first["average"]["image_encoder.laterals.0.weight"]
    assert not torch.equal(early, late)
    torch.testing.assert_close(weight, 0.25 * late + 0.75 * early, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("boxes", [0, 4])
def test_a_share_of_boxes_that_leaves_nothing_for_boxes_or_clicks_is_refused(
    data: Path, tmp_path: Path, boxes: int
) -> None:
    options = ("--data", data, "--cache", tmp_path / "cache", "--out", tmp_path / "run", "--boxes", str(boxes))
    command = [sys.executable, str(RECIPES / "nano.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"--boxes must be at least 1 and less than --objects (4), got {boxes}"


def test_muon_moves_channels_last_kernels_in_place_and_leaves_depthwise_ones_to_adamw() -> None:
    sys.path.insert(0, str(RECIPES))
    try:
        from nano_optimizer import Master
    finally:
        sys.path.remove(str(RECIPES))
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8, 3, bias=False), torch.nn.Conv2d(8, 8, 3, groups=8, bias=False)
    ).to(memory_format=torch.channels_last)
    master = Master(model, lr=0.1, weight_decay=0.0, muon=1.0, half=False)
    assert len(master.rows) == 1
    before = master.master[0].clone()
    gradient = torch.randn(8, 8, 3, 3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].weight.grad = gradient.clone()  # contiguous, unlike the weight
    master.step(0.1, 0.5)
    moved = (before - master.master[0]).flatten(1)
    # an orthogonal step is near to U V^T of the gradient's singular value decomposition, up to scale
    u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.9
    assert torch.equal(model[0].weight, master.master[0])


def test_half_of_the_clicks_lie_in_the_middle_of_the_largest_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    from nano_step import central_points, click

    region = torch.zeros(2, 64, 64, dtype=torch.bool)
    region[0, 16:48, 8:40] = True  # its middle is (24, 32)
    region[0, 56:60, 56:60] = True  # a small part elsewhere
    region[1, 5, 7] = True  # one cell
    generator = torch.Generator().manual_seed(0)
    middle = central_points(region, generator)
    assert (middle[0] - torch.tensor([23.5, 31.5])).abs().max() < 7
    assert middle[1].tolist() == [7, 5]
    drawn = torch.full((2, 2), -1.0)
    taken = torch.cat([click(region, drawn, generator)[:, 0] >= 0 for _ in range(200)])
    assert 0.4 < taken.float().mean() < 0.6
