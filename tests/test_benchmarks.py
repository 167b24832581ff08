"""The measurements of docs/performance.md can be listed and run; their numbers are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_every_script_is_listed_with_what_it_measures() -> None:
    done = run("-m", "benchmarks", "--list")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line and line[0] not in " R"}
    for file in (ROOT / "benchmarks").glob("*.py"):
        assert file.stem == "__main__" or len(rows[file.stem].split()) > 4


def test_what_runs_by_default_exists() -> None:
    scope: dict[str, object] = {"__name__": "listed", "__file__": str(ROOT / "benchmarks" / "__main__.py")}
    exec((ROOT / "benchmarks" / "__main__.py").read_text("utf-8"), scope)
    assert set(scope["BY_DEFAULT"]) <= set(scope["measurements"]())  # type: ignore[call-overload, operator]


def test_an_unknown_measurement_is_refused_by_name() -> None:
    done = run("-m", "benchmarks", "sped")
    assert done.returncode == 2
    assert "no measurement 'sped': take one of amg_memory, cold_start" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_scaling_writes_numbers_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sizes = ["--megapixels", "0.02", "0.05", "--points-per-side", "1", "--at-points", "1", "--at-megapixels", "0.02"]
    done = run("-m", "benchmarks", "scaling", "--checkpoint", "random", *sizes, "--out", str(tmp_path / "scaling"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["size_wh"] for row in found["size"]] == [[172, 115], [274, 183]]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_shows_the_costliest_operations_of_each_stage(tmp_path: Path) -> None:
    small = ["--megapixels", "0.02", "--points-per-side", "1", "--rounds", "1", "--checkpoint", "random"]
    done = run("-m", "benchmarks", "speed", *small, "--profile", "--out", str(tmp_path / "speed.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found["profile"]) == ["encode", "click", "propose", "all"]
    times = [row["ms"] for row in found["profile"]["encode"]]
    assert times == sorted(times, reverse=True)
    assert "| encode: operation | calls | ms | share |" in done.stdout


def test_operations_of_mobile_sam_are_the_published_ones() -> None:
    """EdgeSAM (https://arxiv.org/abs/2312.06660) counts 38.2 thousand million multiply-adds in the encoder."""
    count = (
        "import sys; sys.path.insert(0, 'benchmarks')\n"
        "from hardware_share import operations\n"
        "from segment_anything import load_sam\n"
        "print(*operations(load_sam('vit_t', 'random', device='cpu')).values())"
    )
    done = run("-c", count)
    assert done.returncode == 0, done.stderr
    encode, click = map(int, done.stdout.split())
    assert encode / 2 == pytest.approx(38.2e9, rel=0.02)
    assert click == pytest.approx(3.62e9, rel=0.002)
