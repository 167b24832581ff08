"""Tutorial: fine-tune the bundled model on parts of cars, three fifths of the photos to learn from, the rest held out.

    python recipes/finetune_car_parts.py --data ../shared/data/eval/car_parts --out runs/car_parts

Divided by file name: with 50 photos 30 and 20. Aim: box mIoU on the held-out photos rises by 0.05 or more in under 20
minutes on two cores. What was measured stands in docs/training.md. Prints tables with what the model scored before
and after, for one click, three clicks and a box: at the size it learned at, and at nano's own; and the minutes. The
photos have no stated licence: this is a measurement, its weights are not published.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finetune_nuclei import TITLES, scores, small_data_options

from segment_anything.build_sam import load_sam
from segment_anything.datasets import open_dataset
from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.finetune import FinetuneResult, finetune
from segment_anything.training.finetune_options import DataOptions
from segment_anything.training.options import LoopOptions


def table(result: FinetuneResult, started: float) -> str:
    """Markdown rows of before and after, and the minutes since `started` (of `time.perf_counter`)."""
    minutes, computed = (time.perf_counter() - started) / 60, time.process_time() / 60
    names = {"miou_1_click": "1 click", "miou_3_clicks": "3 clicks", "miou_box": "box"}
    pairs = [(title, result.before[name], result.after[name]) for name, title in names.items()]
    rows = [f"| {title} | {before:.3f} | {after:.3f} | {after - before:+.3f} |" for title, before, after in pairs]
    return "\n".join(
        [
            "| held-out mIoU | before | after | |",
            "|---|---|---|---|",
            *rows,
            f"\n{minutes:.1f} minutes, {computed:.1f} of computing time",
        ]
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval/car_parts"))
    parser.add_argument("--checkpoint", help="weights of nano to start from; by default the bundled ones")
    parser.add_argument("--out", type=Path, default=Path("runs/car_parts"))
    parser.add_argument("--train", default="all", help="decoder, lora or all")
    parser.add_argument("--prompts", default="both", help="first prompts while learning: points, boxes or both")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--image-size", type=int, default=384, help="side of the input while learning")
    parser.add_argument("--test-size", type=int, default=512, help="side of the input while testing; 512 is nano's own")
    given = parser.parse_args()
    started = time.perf_counter()
    keep_freed_memory()
    result = finetune(
        load_sam("nano", checkpoint=given.checkpoint, device="cpu", image_size=given.image_size),
        DataOptions(data=given.data, valid_fraction=0.4),
        given.out,
        small_data_options(train=given.train, prompts=given.prompts),
        # nano is shallow: its first layers learn as fast as its last
        LoopOptions(epochs=given.epochs, lr=given.lr, layer_decay=1.0, average=0.98, progress=False),
    )
    print(table(result, started))
    _, tested = open_dataset(given.data).divide(valid_fraction=0.4)
    pair = (given.checkpoint, str(given.out / "best.safetensors"))
    before, after = (
        scores(load_sam("nano", checkpoint=weights, device="cpu", image_size=given.test_size), tested)
        for weights in pair
    )
    print(f"\nTested at {given.test_size} pixels:\n\n| held-out mIoU | before | after | |\n|---|---|---|---|")
    for title, first, last in zip(TITLES, before, after, strict=True):
        print(f"| {title} | {first:.3f} | {last:.3f} | {last - first:+.3f} |")


if __name__ == "__main__":
    main()
