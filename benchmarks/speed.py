"""Where this package's time goes, and what each of its rewrites gains over its plain version, in one run.

    python benchmarks/speed.py                                  # nano: stages and rewrites
    python benchmarks/speed.py --model vit_b --checkpoint random --dtype bf16 --points-per-side 8
    python benchmarks/speed.py --profile                        # also the costliest operations of each stage

The comparison with the original package is benchmarks/compare_original.py. Here the plain versions are this package's
own (the ones that training uses and the tests compare with), so that a ratio shows one rewrite and nothing else. Plain
and fast take turns; the least of the rounds counts, which on a shared machine is the one that was disturbed least.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segment_anything import Prompt, Prompts, SamAutomaticMaskGenerator, load_sam
from segment_anything._amg_fast import measure_tiled
from segment_anything._amg_filters import filter_proposals, measure_plain
from segment_anything.modeling import Sam, fuse, linear
from segment_anything.modeling.prompt_batches import to_tensors

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = (ROOT.parent / "shared" / "images" / "truck.jpg", ROOT / "examples" / "images" / "coffee.jpg")

PROFILED = 12
"""Operations shown of each stage."""

Work = Callable[[], object]


def least(works: dict[str, Work], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of each, taking turns, after one round that does not count."""
    seconds = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if turn:
                seconds[name] = min(seconds[name], clock() - start)
    return seconds


@contextmanager
def plain_layers() -> Iterator[None]:
    """Linear layers through PyTorch's own choice, convolutions and normalisation one after the other."""
    kept = linear._is_fast, fuse._can_fold
    linear._is_fast, fuse._can_fold = (lambda x: False), (lambda conv, norm: False)  # type: ignore[assignment]
    try:
        yield
    finally:
        linear._is_fast, fuse._can_fold = kept


def rewrites(sam: Sam, image: np.ndarray, args: argparse.Namespace, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of the plain and of the fast version of each part, and the ratio."""
    embedding = sam.encode(image)
    height, width = image.shape[:2]
    clicks = Prompts.from_points(np.random.default_rng(0).uniform(0, 1, (8, 2)) * [width, height])
    # thresholds of the model's own answers: half of the masks pass the predicted IoU, as in the published comparison
    half = float(sam.decode(embedding, clicks).iou_predictions.median())
    pixels = torch.zeros(1, 3, sam.image_size, sam.image_size, dtype=sam.dtype)

    def encode_plain() -> object:
        with plain_layers():
            return sam.image_encoder(pixels)

    def decode_plain() -> object:
        tensors = to_tensors(embedding.geometry, [prompt.completed() for prompt in clicks], sam.mask_input_size)
        sparse, dense = sam.prompt_encoder(*tensors)
        dense = sam.prompt_encoder.ground(dense, embedding.features)
        with plain_layers():
            return sam.mask_decoder(embedding.features, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)

    generator = SamAutomaticMaskGenerator(sam, 2, pred_iou_thresh=0.0, stability_score_thresh=0.5)
    proposals = list(generator.propose(image))
    pairs: dict[str, dict[str, Work]] = {
        "encode": {"plain": encode_plain, "fast": lambda: sam.image_encoder(pixels)},
        "decode 8 clicks": {
            "plain": decode_plain,
            "all masks": lambda: sam.decode(embedding, clicks),
            "half of the masks": lambda: sam.decode_above(embedding, clicks, half),
        },
        "filter 12 masks": {
            "plain": lambda: filter_proposals(proposals, generator.options, measure=measure_plain),
            "fast": lambda: filter_proposals(proposals, generator.options, measure=measure_tiled),
        },
    }
    found = {}
    for name, works in pairs.items():
        seconds = least(works, args.rounds, clock)
        found[name] = {
            "seconds": seconds,
            "ratios": {key: seconds["plain"] / value for key, value in seconds.items() if key != "plain"},
        }
    return found


def stage_works(sam: Sam, image: np.ndarray, points_per_side: int) -> dict[str, Work]:
    """Each stage of automatic masks, and a click on an embedding; "all" is proposing and filtering."""
    embedding = sam.encode(image)
    click = Prompt.make([[image.shape[1] / 2, image.shape[0] / 2]], [1])
    generator = SamAutomaticMaskGenerator(sam, points_per_side, output_mode="coco_rle")
    return {
        "encode": lambda: sam.encode(image),
        "click": lambda: sam.decode(embedding, click).masks(),
        "propose": lambda: list(generator._propose(image, embedding, generator.pred_iou_thresh)),
        "all": lambda: generator.generate(image, embedding=embedding),
    }


def stages(works: dict[str, Work], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each stage; filtering is what proposing leaves of all."""
    seconds = least(works, rounds, clock)
    seconds["filter"] = max(0.0, seconds.pop("all") - seconds["propose"])
    return seconds


def profile(works: dict[str, Work]) -> dict[str, list[dict[str, Any]]]:
    """The operations of each stage by their own time in all threads, the costliest first."""
    found = {}
    for name, work in works.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            work()
        operations = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in operations)
        found[name] = [
            {
                "operation": event.key,
                "calls": event.count,
                "ms": event.self_cpu_time_total / 1000,
                "share": event.self_cpu_time_total / total,
            }
            for event in operations[:PROFILED]
        ]
    return found


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    sam = load_sam(args.model, checkpoint=args.checkpoint, device="cpu", dtype=args.dtype)
    photo = Image.open(args.image).convert("RGB")
    if args.megapixels:
        scale = (args.megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
        photo = photo.resize((round(scale * photo.width), round(scale * photo.height)), Image.Resampling.BICUBIC)
    image = np.array(photo)
    works = stage_works(sam, image, args.points_per_side)
    return {
        "model": args.model,
        "dtype": args.dtype,
        "image_wh": [image.shape[1], image.shape[0]],
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if args.cpu_time else "wall",
        "stages": stages(works, args.rounds, clock),
        "rewrites": rewrites(sam, image, args, clock),
        "profile": profile(works) if args.profile else {},
    }


def as_table(found: dict[str, Any]) -> str:
    """Markdown of all tables."""
    size = " x ".join(map(str, found["image_wh"]))
    lines = [f"{found['model']}, {found['dtype']}, {size} pixels, {found['threads']} threads, {found['clock']}", ""]
    lines += ["| stage | ms |", "|---|---|"]
    lines += [f"| {name} | {1000 * seconds:.1f} |" for name, seconds in found["stages"].items()]
    lines += ["", "| part | version | ms | ratio to plain |", "|---|---|---|---|"]
    for part, result in found["rewrites"].items():
        for version, seconds in result["seconds"].items():
            ratio = result["ratios"].get(version)
            lines.append(f"| {part} | {version} | {1000 * seconds:.1f} | {'' if ratio is None else f'{ratio:.2f}'} |")
    for stage, operations in found["profile"].items():
        lines += ["", f"| {stage}: operation | calls | ms | share |", "|---|---|---|---|"]
        lines += [
            f"| {row['operation']} | {row['calls']} | {row['ms']:.1f} | {row['share']:.0%} |" for row in operations
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, and write every number beside them on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--image", type=Path, default=next(photo for photo in PHOTOS if photo.is_file()))
    parser.add_argument("--megapixels", type=float, default=0, help="resize the photograph to so many; 0: as it is")
    parser.add_argument("--points-per-side", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine, with one thread")
    parser.add_argument("--profile", action="store_true", help="also the costliest operations of each stage")
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    found = measure(args)
    print(as_table(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.exit(main())
