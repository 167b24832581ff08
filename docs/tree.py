"""Write the tree of the README: every module with the first line of its docstring.

python docs/tree.py            print it
python docs/tree.py --write    put it into README.md
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- tree -->", "<!-- /tree -->"


def summary(path: Path) -> str:
    """First line of a module's docstring, without the full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0].rstrip(".")


def lines(folder: Path, depth: int = 0) -> list[str]:
    """One line a module, folders after files, private modules last."""
    found = []
    files = sorted(folder.glob("*.py"), key=lambda p: (p.stem.startswith("_"), p.stem))
    for path in files:
        if path.stem not in ("__init__", "__main__"):
            found.append(f"{'  ' * (depth + 1)}{path.name:<{30 - 2 * depth}} {summary(path)}")
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and (p / "__init__.py").is_file()):
        found.append(f"{'  ' * (depth + 1)}{child.name + '/':<{30 - 2 * depth}} {summary(child / '__init__.py')}")
        found += lines(child, depth + 1)
    return found


def tree() -> str:
    """The whole block, as it stands in the README."""
    return "\n".join([START, "```", "segment_anything/", *lines(ROOT / "segment_anything"), "```", END])


def main() -> None:
    """Print the block, or put it into README.md."""
    if "--write" not in sys.argv:
        print(tree())
        return
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(START)
    readme.write_text(before + tree() + rest.partition(END)[2])


if __name__ == "__main__":
    main()
