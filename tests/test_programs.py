"""Programs written for the original package run unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

ROOT = Path(__file__).resolve().parent.parent

FASTER = {
    "everything": ["--model-type", "nano", "--points", "4"],
    "point_prompt": ["--model-type", "vit_t"],
}
"""Where a program lets its user choose the model, a small one; the others take ViT-B."""

EXPECTED = {"point_prompt": "after reset: An image must be set with .set_image(...) before mask prediction.\n"}
"""What they print before the closing line."""


def programs() -> list[object]:
    names = sorted(path.stem for path in (SHARED / "programs").glob("*.py"))
    return [pytest.param(name, marks=[] if name in FASTER else [pytest.mark.slow]) for name in names]


@pytest.mark.shared
@pytest.mark.parametrize("name", programs())
def test_a_program_for_the_original_package_runs_unchanged(shared: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="one of the programs draws with it")
    file = Path("..") / "shared" / "programs" / f"{name}.py"  # they find their pictures from the repository's root
    done = subprocess.run(
        [sys.executable, str(file), *FASTER.get(name, [])], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(EXPECTED.get(name, "ok"))
    assert done.stdout.splitlines()[-1].startswith("ok")
