"""Another field: cell nuclei under microscopes, 50 images to learn from, others to test on.

    python recipes/finetune_nuclei.py --checkpoint NANO_WITHOUT_NUCLEI --out runs/nuclei

Start from weights that have not seen the nuclei; the bundled ones have. A folder of links to the other training sets
makes some in minutes:

    python recipes/nano.py --data OTHER_SETS --cache runs/other --out runs/start --batch 4 --minutes 15
    python recipes/publish_nano.py runs/start/last.pt runs/start/nano.safetensors

Promise: box mIoU on the tested images rises by 0.05 or more, or to above 0.85, in under 20 minutes on two cores.
Tested on ../shared/data/eval/dsb2018; where its label maps are missing, on every 20th image of the training set (those
that `nano_data.py` never trains on). The 50 are evenly spaced among the others, and so are eleven more, which choose
the epoch: the tested images choose nothing.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nano_data import HELD_OUT_EVERY

from segment_anything.build_sam import load_sam
from segment_anything.datasets import Dataset, open_dataset
from segment_anything.modeling import Sam
from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.finetune import finetune
from segment_anything.training.finetune_options import DataOptions, FinetuneOptions
from segment_anything.training.measure import iou_of_boxes, iou_of_clicks
from segment_anything.training.options import LoopOptions
from segment_anything.training.precision import fastest_precision
from segment_anything.training.targets import limit_objects

LEARNED, USED, CHOOSING_EVERY = 50, 62, 6
TITLES = ("1 click", "3 clicks", "box")


def divided(folder: Path, target: Path) -> tuple[Path, Path]:
    """Write two lists (`index.jsonl`): of images to learn from and to choose the epoch by, and of images to test on."""
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    others = [line for number, line in enumerate(lines) if number % HELD_OUT_EVERY]
    used = [others[k] for k in np.linspace(0, len(others) - 1, USED).round().astype(int)]
    choosing = used[::CHOOSING_EVERY]
    learned = [line for line in used if line not in choosing][:LEARNED]
    parts = {"train": learned, "valid": choosing}, {"test": lines[::HELD_OUT_EVERY]}
    paths = target / "learned", target / "tested"
    for path, part in zip(paths, parts, strict=True):
        entries = [
            {"split": split, **{key: str((folder / line[key]).resolve()) for key in ("image", "mask")}}
            for split, chosen in part.items()
            for line in chosen
        ]
        path.mkdir(parents=True, exist_ok=True)
        (path / "index.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return paths


def scores(sam: Sam, tested: Dataset, objects: int = 16) -> list[float]:
    """Mean IoU over all objects (at most `objects` of each image) for what `TITLES` names."""
    found: list[np.ndarray] = []
    for index in range(len(tested)):
        sample = tested[index]
        masks = sample.masks[limit_objects(len(sample.masks), objects, np.random.default_rng(index))]
        with torch.inference_mode():
            embedding = sam.encode(sample.image)
        clicked = iou_of_clicks(sam, embedding, masks, 3)
        found.append(np.stack([clicked[0], clicked[-1], iou_of_boxes(sam, embedding, masks)]))
    return [float(value) for value in np.concatenate(found, axis=1).mean(axis=1)]


def small_data_options(**others: Any) -> FinetuneOptions:
    """What suits a few dozen pictures and a small model on a processor, and the options that differ."""
    precision = fastest_precision()
    return FinetuneOptions(
        preset="cpu", rounds=1, objects=16, precision=precision, loss="near", valid_objects=5, **others
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train/dsb2018_nuclei"))
    parser.add_argument("--test", type=Path, default=Path("../shared/data/eval/dsb2018"))
    parser.add_argument("--checkpoint", required=True, help="weights of nano that have not seen the nuclei")
    parser.add_argument("--out", type=Path, default=Path("runs/nuclei"))
    parser.add_argument("--train", default="all", help="decoder, lora or all")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument(
        "--image-size", type=int, default=256, help="side of the input while learning; 512 is 4 x the work"
    )
    parser.add_argument("--test-size", type=int, default=512, help="side of the input while testing; 512 is nano's own")
    given = parser.parse_args()
    keep_freed_memory()
    learned, every_20th = divided(given.data, given.out)
    labelled = (given.test / "labels").is_dir()
    tested = open_dataset(given.test if labelled else every_20th)
    where = str(given.test) if labelled else f"every {HELD_OUT_EVERY}th image of {given.data}"
    print(f"Tested on {len(tested)} images: {where}")
    before = scores(load_sam("nano", checkpoint=given.checkpoint, device="cpu", image_size=given.test_size), tested)
    started, computed = time.perf_counter(), time.process_time()
    finetune(
        load_sam("nano", checkpoint=given.checkpoint, device="cpu", image_size=given.image_size),
        DataOptions(data=learned),
        given.out,
        small_data_options(train=given.train, flip_vertical=0.5),
        LoopOptions(epochs=given.epochs, lr=given.lr, average=0.98, progress=False),
    )
    minutes, computing = (time.perf_counter() - started) / 60, (time.process_time() - computed) / 60
    best = str(given.out / "best.safetensors")
    after = scores(load_sam("nano", checkpoint=best, device="cpu", image_size=given.test_size), tested)
    print("| mIoU of tested images | before | after | |\n|---|---|---|---|")
    for title, first, last in zip(TITLES, before, after, strict=True):
        print(f"| {title} | {first:.3f} | {last:.3f} | {last - first:+.3f} |")
    print(f"\n{minutes:.1f} minutes of fine-tuning, {computing:.1f} of computing time")


if __name__ == "__main__":
    main()
