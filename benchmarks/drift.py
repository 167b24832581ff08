"""What less precise types change: embedding, masks of clicks and automatic masks, against float32, and the time.

python benchmarks/drift.py --model nano                                 # bf16 and int8
python benchmarks/drift.py --model vit_b --checkpoint sam_vit_b_01ec64.pth --points-per-side 16
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segment_anything import Prompts, SamAutomaticMaskGenerator, load_sam, read_image
from segment_anything.masks import mask_iou

ROOT = Path(__file__).resolve().parent.parent


@torch.no_grad()
def answers(args: argparse.Namespace, dtype: str, image: np.ndarray, threshold: float | None = None) -> dict[str, Any]:
    """What one model says of the image, and how long it encodes.

    Automatic masks are those with a predicted IoU above `threshold`; by default half of the clicks' masks are.
    """
    clock = time.process_time if args.cpu_time else time.perf_counter
    sam = load_sam(args.model, checkpoint=args.checkpoint, device="cpu", dtype=dtype)
    seconds = []
    for _ in range(args.rounds + 1):
        start = clock()
        embedding = sam.encode(image)
        seconds.append(clock() - start)
    height, width = image.shape[:2]
    clicks = Prompts.from_points(np.random.default_rng(0).uniform(0.05, 0.95, (args.clicks, 2)) * [width, height])
    best = sam.decode(embedding, clicks).best()
    threshold = float(best.iou_predictions.median()) if threshold is None else threshold
    generator = SamAutomaticMaskGenerator(sam, args.points_per_side, pred_iou_thresh=threshold)
    generator.stability_score_thresh = args.stability_thresh
    records = generator.generate(image, embedding=embedding)
    return {
        "seconds": min(seconds[1:]),
        "threshold": threshold,
        "embedding": embedding.features.float(),
        "masks": best.masks()[:, 0].numpy(),
        "iou": best.iou_predictions[:, 0],
        "records": np.array([r["segmentation"] for r in records], dtype=bool).reshape(-1, height, width),
    }


def row(dtype: str, exact: dict[str, Any], other: dict[str, Any]) -> str:
    """A line of the table."""
    deviation = float((other["embedding"] - exact["embedding"]).std() / exact["embedding"].std())
    overlap = np.array([mask_iou(a[None], b[None])[0, 0] for a, b in zip(exact["masks"], other["masks"], strict=True)])
    iou = float((other["iou"] - exact["iou"]).abs().max())
    if len(exact["records"]) and len(other["records"]):
        matched = int((mask_iou(exact["records"], other["records"]).max(axis=1) >= 0.9).sum())
    else:
        matched = 0
    return (
        f"| {dtype} | {1e3 * other['seconds']:.0f} | {exact['seconds'] / other['seconds']:.2f} | {deviation:.1e} "
        f"| {overlap.mean():.4f} | {np.median(overlap):.4f} | {iou:.3f} "
        f"| {len(exact['records'])} / {len(other['records'])} / {matched} |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "images" / "coffee.jpg")
    parser.add_argument("--clicks", type=int, default=32)
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--stability-thresh", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine, with one thread")
    args = parser.parse_args()
    image = read_image(args.image)
    exact = answers(args, "float32", image)
    size = f"{image.shape[1]} x {image.shape[0]}"
    print(f"{args.model}, {size} pixels, float32 encodes in {1e3 * exact['seconds']:.0f} ms\n")
    print(
        "| dtype | encode, ms | ratio | embedding, deviation of std | mean mask IoU of clicks | median "
        "| largest change of predicted IoU | records float32 / dtype / matched at 0.9 |"
    )
    print("|---" * 8 + "|")
    for dtype in args.dtypes:
        print(row(dtype, exact, answers(args, dtype, image, exact["threshold"])), flush=True)


if __name__ == "__main__":
    main()
