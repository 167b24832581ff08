"""Cost of automatic masks over the size of the image and over the number of clicks: seconds, memory, and a picture.

    python benchmarks/scaling.py                                            # 1 to 48 megapixels, 4 to 64 points a side
    python benchmarks/scaling.py --megapixels 1 12 --points-per-side 8 --out build/scaling

Every point is a process of its own (`benchmarks/amg_memory.py`): its seconds, and the peak of resident memory above the
loaded model. Thresholds are those that `examples/demo.py` has for `nano`, which is never as sure of a mask as the
defaults ask for. Writes OUT.json and OUT.png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
THRESHOLDS = ("--pred-iou-thresh", "0.38", "--stability-score-thresh", "0.65")
"""Those of `examples/demo.py`."""


def size_wh(megapixels: float) -> tuple[int, int]:
    """Width and height of an image of the shape 3 : 2."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    return round(1.5 * height), height


def measure(megapixels: float, points_per_side: int, model: str, checkpoint: str | None) -> dict[str, Any]:
    """Seconds, peak and number of masks of one run."""
    size = [str(side) for side in size_wh(megapixels)]
    command = [sys.executable, str(ROOT / "benchmarks" / "amg_memory.py"), "--model", model, "--size-wh", *size]
    command += ["--points-per-side", str(points_per_side), *THRESHOLDS]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row = {"megapixels": megapixels, "points_per_side": points_per_side, **found}
    print(
        f"| {megapixels:g} | {points_per_side} x {points_per_side} | {row['masks']} | {row['seconds']:.1f} | "
        f"{1024 * row['peak_above_loaded_gib']:.0f} |",
        flush=True,
    )
    return row


def draw(by_size: list[dict[str, Any]], by_points: list[dict[str, Any]], file: Path) -> None:
    """Two panels: over megapixels, and over clicks; seconds on the left axis, memory on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for panel, rows, key, label in (
        (panels[0], by_size, "megapixels", "megapixels"),
        (panels[1], by_points, "points_per_side", "clicks"),
    ):
        x = [row[key] if key == "megapixels" else row[key] ** 2 for row in rows]
        panel.plot(x, [row["seconds"] for row in rows], "o-", color="tab:blue")
        panel.set(xlabel=label, ylim=(0, None), xlim=(0, None))
        panel.set_ylabel("seconds", color="tab:blue")
        memory = panel.twinx()
        memory.plot(x, [1024 * row["peak_above_loaded_gib"] for row in rows], "s--", color="tab:orange")
        memory.set_ylim(0, None)
        memory.set_ylabel("peak MiB above the model", color="tab:orange")
    first = by_points[0]
    panels[0].set_title(f"{by_size[0]['points_per_side']}² clicks", fontsize=10)
    panels[1].set_title(f"{first['megapixels']:g} megapixels", fontsize=10)
    figure.suptitle(f"automatic masks, {first['model']}")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 3, 6, 12, 24, 48])
    parser.add_argument("--points-per-side", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--at-points", type=int, default=16, help="points a side where the size changes")
    parser.add_argument("--at-megapixels", type=float, default=12, help="size where the points change")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "scaling", help="without a suffix")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print("| megapixels | clicks | masks | seconds | peak above the model, MiB |\n|---|---|---|---|---|")
    by_size = [measure(size, args.at_points, args.model, args.checkpoint) for size in args.megapixels]
    by_points = [measure(args.at_megapixels, count, args.model, args.checkpoint) for count in args.points_per_side]
    args.out.with_suffix(".json").write_text(json.dumps({"size": by_size, "points": by_points}, indent=1) + "\n")
    draw(by_size, by_points, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
