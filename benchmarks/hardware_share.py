"""How near each stage comes to what the processor can do: operations of the definition over the fastest product.

    python benchmarks/hardware_share.py --model nano
    python benchmarks/hardware_share.py --model vit_b --checkpoint random --dtype bf16

The limit is measured here, in the same type and with the same threads: the best of several square products, by MKL and
by oneDNN. Operations are those of the plain networks, as torch counts them (products and convolutions, nothing else);
rewrites that need fewer can therefore show more than the processor really does.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from segment_anything import Prompts, load_sam
from segment_anything.modeling import Sam
from segment_anything.modeling.linear import linear


def least_seconds(work: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    """Least of some rounds, after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def peak_flops(dtype: torch.dtype, rounds: int, clock: Callable[[], float]) -> float:
    """Operations a second of the fastest square product."""
    best = 0.0
    for side in (768, 1536, 2304):
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        for multiply in (torch.nn.functional.linear, lambda a, b: linear(a, b, None)):
            best = max(best, 2 * side**3 / least_seconds(partial(multiply, a, b), rounds, clock))
    return best


def operations(sam: Sam) -> dict[str, int]:
    """Operations of encoding an image and of one click on it, by the plain networks; nothing is computed."""
    sam = copy.deepcopy(sam).to("meta")
    side, grid = sam.image_size, sam.embedding_size
    pixels = torch.empty((1, 3, side, side), dtype=sam.dtype, device="meta")
    features = torch.empty((1, sam.prompt_encoder.embed_dim, grid, grid), dtype=sam.dtype, device="meta")
    point = torch.empty((1, 1, 2), device="meta"), torch.ones((1, 1), dtype=torch.int64, device="meta")

    def click() -> object:
        sparse, dense = sam.prompt_encoder(point, None, None)
        dense = sam.prompt_encoder.ground(dense, features)
        return sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)

    works: dict[str, Callable[[], object]] = {"encode": lambda: sam.image_encoder(pixels), "click": click}
    counts = {}
    for name, work in works.items():
        # with gradients, so that no rewrite takes a network's place
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            work()
        counts[name] = int(counter.get_total_flops())
    return counts


def stages(sam: Sam) -> dict[str, Callable[[], object]]:
    """What is measured."""
    image = np.random.default_rng(0).integers(0, 256, (1200, 1800, 3), dtype=np.uint8)
    with torch.no_grad():
        embedding = sam.encode(image)
    clicks = np.random.default_rng(0).uniform(0, 1200, (8, 2))
    return {
        "encode": lambda: sam.encode(image),
        "one click, encoded image": lambda: sam.decode(embedding, Prompts.from_points(clicks[:1])),
        "eight clicks": lambda: sam.decode(embedding, Prompts.from_points(clicks)),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", default=None, help='a file, or "random"')
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine, with one thread")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    sam = load_sam(args.model, checkpoint=args.checkpoint, device="cpu", dtype=args.dtype)
    with torch.no_grad():
        limit = peak_flops(sam.dtype, args.rounds, clock)
        print(f"{args.model}, {args.dtype}, {torch.get_num_threads()} threads; limit {limit / 1e9:.0f} GFLOP/s\n")
        print("| stage | GFLOP | ms | GFLOP/s | share of the limit |\n|---|---|---|---|---|")
        by_part = operations(sam)
        counts = by_part["encode"], by_part["click"], 8 * by_part["click"]
        for (name, work), count in zip(stages(sam).items(), counts, strict=True):
            seconds = least_seconds(work, args.rounds, clock)
            rate = count / seconds
            print(f"| {name} | {count / 1e9:.2f} | {1e3 * seconds:.1f} | {rate / 1e9:.0f} | {rate / limit:.0%} |")


if __name__ == "__main__":
    main()
