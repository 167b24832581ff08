"""The demo and the README's ten lines run as written, here with a random network."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_the_demo_draws_every_question_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("COLUMNS", "120")
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    demo["main"](["--checkpoint", "random", "--photos", "1", "--points-per-side", "2", "--out", str(out)])

    pictures = ["coffee_box.png", "coffee_click.png", "coffee_everything.png", "demo.png"]
    assert sorted(path.name for path in out.glob("*.png")) == pictures
    for name in pictures[:3]:
        with Image.open(out / name) as picture:
            assert picture.size == (1000, 667)
    table = capsys.readouterr().out
    for word in ("image", "asked", "masks", "predicted IoU", "ms", "peak MiB", "click: the coffee", "everything"):
        assert word in table
    answers = json.loads((out / "records.json").read_text())
    assert [answer["asked"] for answer in answers] == ["click: the coffee", "box: cup and saucer", "everything"]
    for answer in answers[:2]:
        [record] = answer["annotations"]
        assert record["segmentation"]["size"] == [400, 600]
        assert answer["milliseconds"] > 0
        assert answer["peak_memory_mib"] > 50


def test_every_click_and_box_of_the_demo_lies_in_its_photograph() -> None:
    for photo in runpy.run_path(str(EXAMPLES / "demo.py"))["PHOTOS"]:
        with Image.open(EXAMPLES / "images" / f"{photo.name}.jpg") as image:
            width, height = image.size
        assert 0 <= photo.click_xy[0] < width
        assert 0 <= photo.click_xy[1] < height
        x0, y0, x1, y1 = photo.box_xyxy
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height


def test_every_sample_photograph_is_credited_and_small() -> None:
    credits = (EXAMPLES / "CREDITS.md").read_text()
    photos = list((EXAMPLES / "images").iterdir())
    for photo in photos:
        assert f"`images/{photo.name}`" in credits
    assert sum(photo.stat().st_size for photo in photos) < 600_000


def test_the_ten_lines_segment_an_image(tmp_path: Path) -> None:
    from segment_anything.checkpoints import BUNDLED

    if not BUNDLED["nano"].is_file():
        pytest.skip("the bundled weights are not in this tree")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    script = EXAMPLES / "segment_an_image.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "coffee_segmented.png") as picture:
        assert picture.size == (1200, 800)


def test_the_ten_lines_are_ten_lines_of_python() -> None:
    lines = (EXAMPLES / "segment_an_image.py").read_text().split('"""', 2)[2].splitlines()
    statements = [line for line in lines if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 10


@pytest.mark.parametrize("target", ["demo", "test", "bench", "clean", "help"])
def test_make_knows_the_usual_targets(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
