"""Another field: cell nuclei under microscopes, 50 images to learn from, the test part held out.

    python recipes/finetune_nuclei.py --checkpoint NANO_WITHOUT_NUCLEI --out runs/nuclei

Start from weights that have not seen the nuclei; the bundled ones have. A folder of links to the other training sets
makes some in minutes:

    python recipes/nano.py --data OTHER_SETS --cache runs/other --out runs/start --batch 4 --minutes 15
    python recipes/publish_nano.py runs/start/last.pt runs/start/nano.safetensors

Promise: box mIoU on the held-out images rises by 0.05 or more, or to above 0.85, in under 20 minutes on two cores.
Held out is ../shared/data/eval/dsb2018; where its label maps are missing, every 20th image of the training set, those
that `nano_data.py` never trains on. The 50 are evenly spaced among the others.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finetune_car_parts import table
from nano_data import HELD_OUT_EVERY

from segment_anything.build_sam import load_sam
from segment_anything.training.allocator import keep_freed_memory
from segment_anything.training.finetune import finetune
from segment_anything.training.finetune_options import DataOptions, FinetuneOptions
from segment_anything.training.options import LoopOptions

LEARNED = 50


def divided(folder: Path, target: Path) -> Path:
    """Write a list (`index.jsonl`) of the images to learn from and of those held out; its path."""
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    held_out = lines[::HELD_OUT_EVERY]
    others = [line for number, line in enumerate(lines) if number % HELD_OUT_EVERY]
    learned = [others[int(k)] for k in np.linspace(0, len(others) - 1, LEARNED)]
    entries = [
        {"split": split, **{key: str((folder / line[key]).resolve()) for key in ("image", "mask")}}
        for split, part in (("train", learned), ("valid", held_out))
        for line in part
    ]
    target.mkdir(parents=True, exist_ok=True)
    (target / "index.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return target / "index.jsonl"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("../shared/data/train/dsb2018_nuclei"))
    parser.add_argument("--test", type=Path, default=Path("../shared/data/eval/dsb2018"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", required=True, help="weights that have not seen the nuclei")
    parser.add_argument("--out", type=Path, default=Path("runs/nuclei"))
    parser.add_argument("--train", default="all", help="decoder, lora or all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--image-size", type=int, default=256, help="side of the input; most images have 256 pixels")
    given = parser.parse_args()
    labelled = (given.test / "labels").is_dir()
    if not labelled:
        print(f"{given.test} has no label maps here: held out is every {HELD_OUT_EVERY}th training image")
    started = time.perf_counter()
    keep_freed_memory()
    result = finetune(
        load_sam(given.model, checkpoint=given.checkpoint, device="cpu", image_size=given.image_size),
        DataOptions(data=divided(given.train, given.out), valid_data=given.test if labelled else None),
        given.out,
        FinetuneOptions(
            preset="cpu",
            train=given.train,
            rounds=1,
            objects=8,
            precision="bf16",
            loss="near",
            flip_vertical=0.5,
            views=2,
            valid_objects=4,
        ),
        LoopOptions(epochs=given.epochs, lr=given.lr, average=0.98, progress=False),
    )
    print(table(result, started))


if __name__ == "__main__":
    main()
