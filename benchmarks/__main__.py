"""Runs the measurements of docs/performance.md one after the other, or one of them by its name.

python -m benchmarks                        # all that need no GPU, no second package and no network; some minutes
python -m benchmarks --list
python -m benchmarks scaling --megapixels 1 12 --model nano
"""

import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BY_DEFAULT = ("cold_start", "speed", "hardware_share", "drift", "steady_memory", "scaling")
"""The others fetch packages or want a GPU: ask for them by name."""


def measurements() -> dict[str, str]:
    """Names of the scripts, each with the first line of its docstring."""
    files = [file for file in sorted(HERE.glob("*.py")) if file.stem != "__main__"]
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[0] for file in files}


def run(name: str, *arguments: str) -> int:
    """The exit status of one measurement, which prints a table."""
    print(f"\n## {name}\n", flush=True)
    return subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments]).returncode


def main(arguments: list[str]) -> int:
    """0 if all went well."""
    known = measurements()
    if not arguments:
        return max([run(name) for name in BY_DEFAULT])
    if arguments[0] in ("--list", "-h", "--help"):
        print(__doc__)
        for name, what in known.items():
            print(f"{name:18} {what}")
        return 0
    if arguments[0] not in known:
        print(f"no measurement {arguments[0]!r}: take one of {', '.join(known)}", file=sys.stderr)
        return 2
    return run(*arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
