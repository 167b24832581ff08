"""Peak memory of automatic masks on a large photograph, above the loaded model, measured in a process of its own.

    python benchmarks/amg_memory.py --model nano
    python benchmarks/amg_memory.py --model vit_b --points-per-side 8 --keep-all

By default the options are those of the original package with `output_mode="coco_rle"`. `--keep-all` switches every
filter off, so all proposals are made at full size and encoded: the worst case, and the only telling one with random
weights (`--checkpoint random`). The original package makes 64 x 3 float32 masks at once: 21.5 GiB at 6720 x 4480.

Linux only: the peak is the kernel's high-water mark of resident memory (VmHWM), reset after the model has loaded.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

PHOTO = Path(__file__).resolve().parent.parent / "examples" / "images" / "coffee.jpg"
GIB = 2**30


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since the start or the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Load, generate once, and report: runs in the child process."""
    import numpy as np
    from PIL import Image

    from segment_anything import SamAutomaticMaskGenerator, load_sam

    model = load_sam(args.model, checkpoint=args.checkpoint, device="cpu")
    given = {"pred_iou_thresh": args.pred_iou_thresh, "stability_score_thresh": args.stability_score_thresh}
    options = {name: value for name, value in given.items() if value is not None}
    if args.keep_all:
        options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_side=args.points_per_side,
        points_per_batch=args.points_per_batch,
        crop_n_layers=args.crop_n_layers,
        output_mode=args.output_mode,
        explain=True,
        **options,
    )
    image = np.array(Image.open(args.image).convert("RGB").resize(args.size_wh, Image.Resampling.BICUBIC))
    generator.generate(np.zeros((64, 64, 3), dtype=np.uint8))  # libraries load on first use: part of the loaded model
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    records = generator.generate(image)
    return {
        "model": args.model,
        "size_wh": args.size_wh,
        "points_per_side": args.points_per_side,
        "points_per_batch": args.points_per_batch,
        "masks": len(records),
        "seconds": round(time.perf_counter() - start, 1),
        "loaded_gib": round(before / GIB, 3),
        "peak_above_loaded_gib": round((resident_bytes("VmHWM") - before) / GIB, 3),
        "lost": {name: count for name, count in vars(generator.last_explanation).items() if count},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--image", type=Path, default=PHOTO)
    parser.add_argument("--size-wh", type=int, nargs=2, default=[6720, 4480], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--crop-n-layers", type=int, default=0)
    parser.add_argument("--output-mode", default="coco_rle")
    parser.add_argument("--pred-iou-thresh", type=float)
    parser.add_argument("--stability-score-thresh", type=float)
    parser.add_argument("--keep-all", action="store_true", help="no filter: every proposal at full size")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    print(done.stdout.strip())


if __name__ == "__main__":
    main()
