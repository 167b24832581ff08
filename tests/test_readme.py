"""The README says what is there: its tree is the code's, its ten lines are the example's, its links lead somewhere."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from tree import tree  # noqa: E402

README = (ROOT / "README.md").read_text()


def test_tree_lists_every_module_with_its_first_line() -> None:
    assert tree() in README, "run: python docs/tree.py --write"


def test_every_module_has_a_first_line() -> None:
    bare = [line for line in tree().splitlines()[3:-2] if len(line.split(maxsplit=1)) < 2]
    assert not bare


def test_ten_lines_are_those_of_the_example() -> None:
    example = (ROOT / "examples" / "segment_an_image.py").read_text().split('"""', 2)[2].strip()
    assert example in README


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
