"""How long a fresh process waits: `import segment_anything`, the command's help, and `load_sam` with a first mask.

    python benchmarks/cold_start.py --rounds 5

Each time is that of a process of its own, Python's own start left out, files in the system's cache; the least counts.
"""

import argparse
import subprocess
import sys

IMPORT = "import time; s = time.perf_counter(); import segment_anything; print(time.perf_counter() - s)"
HELP = """
import time; s = time.perf_counter()
from contextlib import redirect_stdout; from io import StringIO; import sys; sys.argv = ["segment-anything", "--help"]
from segment_anything.cli import main
try:
    with redirect_stdout(StringIO()): main()
except SystemExit: pass
print(time.perf_counter() - s)
"""
FIRST_MASK = """
import time; s = time.perf_counter()
from segment_anything import SamPredictor, load_sam
import numpy as np
predictor = SamPredictor(load_sam({model!r}, checkpoint={checkpoint!r}, device="cpu"))
predictor.set_image(np.zeros((1200, 1800, 3), dtype=np.uint8))
predictor.predict(np.array([[900, 600]]), np.array([1]))
print(time.perf_counter() - s)
"""


def seconds(program: str, rounds: int) -> float:
    """Least of the times that the program prints, after one run that does not count."""
    times = []
    for _ in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
        times.append(float(done.stdout.split()[-1]))
    return min(times[1:])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    first_mask = FIRST_MASK.format(model=args.model, checkpoint=args.checkpoint)
    rows = [
        ("`import segment_anything`", IMPORT, 1.5),
        ("`segment-anything --help`", HELP, 0.5),
        (f'import, `load_sam("{args.model}")` and the first mask', first_mask, 3.0),
    ]
    print("| fresh process | seconds | at most |\n|---|---|---|")
    for name, program, most in rows:
        print(f"| {name} | {seconds(program, args.rounds):.2f} | {most} |", flush=True)


if __name__ == "__main__":
    main()
