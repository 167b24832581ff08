"""Speed on one CUDA device, and how far reduced precision moves the masks.

    python benchmarks/gpu.py                                # the table of docs/performance.md: ViT-H and ViT-B, bf16
    python benchmarks/gpu.py --models vit_b --rounds 3 --no-original
    python benchmarks/gpu.py --tune                         # compare ways to cut the attention kernel

Weights are made from names and shapes (tests/filled.py), or read with --checkpoint: no file is needed. Thresholds of
automatic masks lie where half of the masks pass the predicted IoU, 35 % of all the stability as well, and at least 100
the suppression, as in benchmarks/compare_original.py. That also installs the original package into build/original; it
runs in a process of its own, in float32 as published. Times are medians of whole calls, from an image in memory to an
answer in memory, with the device idle before and after; the first calls, which compile and record, are left out and
given apart.

Correctness compares every type with float32 on the same device by plain attention: deviation of the embedding, mean IoU
of the masks of a grid of clicks, number of records of automatic masks. Random weights make masks without a meaning, and
less stable than those of a trained model: give --checkpoint for figures to publish.

Writes OUT.md and OUT.json (every sample).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IS_ORIGINAL = "--original-worker" in sys.argv
"""Then PYTHONPATH says which package is meant."""
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks"), *([] if IS_ORIGINAL else [str(ROOT)])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from compare_original import HERE, PASS_BOTH, PASS_IOU, STABILITY_OFFSET, Original, between  # noqa: E402
from filled import filled  # noqa: E402
from PIL import Image  # noqa: E402

MIB = 2**20
SIZE_HW = 1200, 1800
"""Of the image, unless one is given."""
RECORDS = 100
"""Masks at least that automatic masks end with, as for a photograph."""
NMS_THRESHOLDS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""The first that leaves as many is taken: random weights find boxes that are alike."""
BARS = {
    ("vit_h", "encode"): "14 ms",
    ("vit_h", "encode 8"): "80 images/s",
    ("vit_b", "encode"): "3 ms",
    ("vit_b", "encode 8"): "350 images/s",
    ("vit_h", "masks"): "60 ms",
    ("vit_h", "click"): "1.5 ms",
}
"""What is asked for on an H100 or H200."""
LABELS = {
    "encode": "encode one image",
    "encode 8": "encode 8 images",
    "click": "one click, encoded image",
    "masks": "automatic masks 32 x 32, run lengths out",
}


@dataclass
class Found:
    """What was measured of one model in one way."""

    model: str
    package: str
    dtype: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first_seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    records: int = 0
    """Of automatic masks."""

    def measure(self, task: str, call: Callable[[], object], rounds: int, warm_ups: int = 3) -> None:
        """Time a call, after it ran often enough to have been compiled and recorded."""
        for index in range(warm_ups):
            seconds = timed(call)
            if index == 0:
                self.first_seconds[task] = seconds
        torch.cuda.reset_peak_memory_stats()
        self.seconds[task] = [timed(call) for _ in range(rounds)]
        self.peak_bytes[task] = torch.cuda.max_memory_allocated()
        print(f"  {self.package:9}{self.dtype:9}{task:9}{self.median(task) * 1e3:9.2f} ms", file=sys.stderr)

    def median(self, task: str) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds[task])


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, the device's work included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def photograph(path: Path | None) -> np.ndarray:
    """The image given, or smooth noise of 1200 x 1800."""
    if path is not None:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    coarse = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(SIZE_HW[::-1], Image.Resampling.BICUBIC))


def our_model(name: str, dtype: str, checkpoint: str | None) -> Any:
    """This package's model on the device."""
    from segment_anything import load_sam

    sam = load_sam(name, checkpoint=checkpoint or "random", device="cpu")
    if checkpoint is None:
        fill(sam)
    return sam.to("cuda", getattr(torch, dtype))


def fill(sam: torch.nn.Module) -> None:
    """Deterministic weights, the same for both packages."""
    sam.load_state_dict(filled(sam.state_dict()))


def loose(thresholds: dict[str, float] | None = None) -> dict[str, float]:
    """Options of automatic masks: those found, or every filter off."""
    off = {"pred_iou_thresh": -99.0, "stability_score_thresh": -99.0, "box_nms_thresh": 1.0}
    return {"stability_score_offset": STABILITY_OFFSET, **(off if thresholds is None else thresholds)}


def choose_thresholds(sam: Any, image: np.ndarray) -> dict[str, float]:
    """Thresholds that let the wished shares pass."""
    from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(sam, points_per_side=16, output_mode="coco_rle", **loose())
    records = generator.generate(image)
    iou = np.array([record["predicted_iou"] for record in records])
    stability = np.array([record["stability_score"] for record in records])
    least_iou = between(iou, PASS_IOU)
    good = stability[iou > least_iou]
    chosen = {
        "pred_iou_thresh": least_iou,
        "stability_score_thresh": between(good, PASS_BOTH * len(iou) / len(good)),
    }
    for overlap in NMS_THRESHOLDS:
        chosen["box_nms_thresh"] = overlap
        records = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **loose(chosen)).generate(image)
        if len(records) >= RECORDS:
            break
    return chosen


def run_package(
    sam: Any, found: Found, image: np.ndarray, thresholds: dict[str, float], rounds: int, output_mode: str
) -> None:
    """All tasks by the interface that both packages have; batches only where there are any."""
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor

    predictor = SamPredictor(sam)
    found.measure("encode", lambda: predictor.set_image(image), rounds)
    if hasattr(sam, "encode_batch"):
        with torch.no_grad():
            found.measure("encode 8", lambda: sam.encode_batch([image] * 8), max(3, rounds // 4))
    predictor.set_image(image)
    click = np.array([[image.shape[1] / 2, image.shape[0] / 2]]), np.array([1])
    found.measure("click", lambda: predictor.predict(*click), rounds * 4)
    generator = SamAutomaticMaskGenerator(sam, output_mode=output_mode, **loose(thresholds))
    found.measure("masks", lambda: generator.generate(image), max(3, rounds // 4))
    found.records = len(generator.generate(image))


def original_worker(arguments: dict[str, Any]) -> None:
    """In a process whose search path has the original: measure it, and print what was found as JSON."""
    from segment_anything import sam_model_registry

    sam = sam_model_registry[arguments["model"]](checkpoint=arguments["checkpoint"])
    if arguments["checkpoint"] is None:
        fill(sam)
    found = Found(arguments["model"], "original", "float32")
    image = photograph(Path(arguments["image"]) if arguments["image"] else None)
    run_package(sam.eval().cuda(), found, image, arguments["thresholds"], arguments["rounds"], arguments["output_mode"])
    print(json.dumps(asdict(found)))


def measure_original(arguments: dict[str, Any]) -> Found | None:
    """The original package's figures, or None with a line of why."""
    original = Original.of(arguments["model"])
    try:
        original.install()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the original package cannot be installed, so there is no comparison: {error}", file=sys.stderr)
        return None
    path = os.pathsep.join(map(str, [original.folder, HERE / "torchvision_stand_in"]))
    command = [sys.executable, __file__, "--original-worker", json.dumps(arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print("the original package failed, so there is no comparison (its words are above)", file=sys.stderr)
        return None
    return Found(**json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused kernels, the reference that drift is measured from."""
    from segment_anything.modeling.cuda import grid_attention

    fused, grid_attention.kernels_can = grid_attention.kernels_can, lambda qkv, heads: False
    try:
        yield
    finally:
        grid_attention.kernels_can = fused


@torch.no_grad()
def answers(sam: Any, image: np.ndarray, thresholds: dict[str, float]) -> dict[str, Any]:
    """Embedding, masks of a grid of clicks, number of records."""
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.prompts import Prompts

    height, width = image.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(0.5, 8) / 8 * width, np.arange(0.5, 8) / 8 * height), axis=-1).reshape(-1, 2)
    embedding = sam.encode(image)
    masks = sam.decode(embedding, Prompts.from_points(grid), True).low_res_logits > 0
    generator = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **loose(thresholds))
    return {
        "embedding": embedding.features.float().cpu(),
        "masks": masks.flatten(0, 1).flatten(1).cpu(),
        "records": len(generator.generate(image)),
    }


def drift(reference: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How far answers lie from the reference's."""
    a, b = reference["masks"], other["masks"]
    union = (a | b).sum(dim=1).clamp(min=1)
    iou = torch.where((a | b).any(dim=1), (a & b).sum(dim=1) / union, 1.0)
    difference = (reference["embedding"] - other["embedding"]).square().mean().sqrt()
    return {
        "embedding_rms_of_std": float(difference / reference["embedding"].std()),
        "mask_iou_mean": float(iou.mean()),
        "mask_iou_least": float(iou.min()),
        "records": other["records"],
        "records_reference": reference["records"],
    }


def measure_model(name: str, args: argparse.Namespace, image: np.ndarray) -> dict[str, Any]:
    """Everything about one model."""
    print(name, file=sys.stderr)
    exact = our_model(name, "float32", args.checkpoint)
    with plain_attention():
        thresholds = choose_thresholds(exact, image)
        reference = answers(exact, image, thresholds)
    drifts = {"float32, fused": drift(reference, answers(exact, image, thresholds))}
    del exact
    torch.cuda.empty_cache()
    given = {
        "model": name,
        "checkpoint": args.checkpoint,
        "image": str(args.image) if args.image else None,
        "thresholds": thresholds,
        "rounds": max(3, args.rounds // 4),
        "output_mode": args.output_mode,
    }
    original = measure_original(given) if args.original and name != "vit_t" and name != "nano" else None
    results = [original] if original else []
    for dtype in args.dtypes:
        sam = our_model(name, dtype, args.checkpoint)
        found = Found(name, "ours", dtype)
        run_package(sam, found, image, thresholds, args.rounds, args.output_mode)
        if dtype != "float32":
            drifts[dtype] = drift(reference, answers(sam, image, thresholds))
        results.append(found)
        del sam
        torch.cuda.empty_cache()
    return {"thresholds": thresholds, "drift": drifts, "results": [asdict(found) for found in results]}


def tune(rounds: int) -> None:
    """Seconds of the attention kernel by how it is cut, for both kinds of blocks of ViT-B and ViT-H."""
    from segment_anything.modeling.cuda.grid_attention import Launch, launch

    for heads, width in ((12, 64), (16, 80)):
        for window in (0, 14):
            side = window or 64
            qkv = torch.randn(1, 64, 64, 3 * heads * width, device="cuda", dtype=torch.bfloat16)
            padding = torch.randn(3 * heads * width, device="cuda", dtype=torch.bfloat16)
            table = torch.randn(2 * side - 1, width, device="cuda", dtype=torch.bfloat16)
            ways = [
                Launch(queries, keys, warps, stages)
                for queries in (32, 64, 128)
                for keys in ((0, 64, 128) if not window else (0, 16, 32, 64))
                for warps in (4, 8)
                for stages in (1, 2, 3)
            ]
            times = []
            for way in ways:
                given = qkv, padding, table, table, heads, window, way
                try:
                    for _ in range(3):
                        launch(*given)
                    times.append((statistics.median(timed(lambda g=given: launch(*g)) for _ in range(rounds)), way))
                except Exception as error:  # too much shared memory, for instance
                    print(f"  {way}: {str(error).splitlines()[0]}", file=sys.stderr)
            print(f"\n{heads} heads of {width}, {'windows of 14' if window else 'whole grid'}")
            for seconds, way in sorted(times, key=lambda pair: pair[0])[:5]:
                print(f"  {seconds * 1e6:8.1f} us  {way}")


def as_table(found: dict[str, Any]) -> str:
    """Markdown: what it ran on, a row a task, and the drift."""
    machine, height, width = found["machine"], *found["image_hw"]
    lines = [
        f"{machine['device']}, PyTorch {machine['torch']}, CUDA {machine['cuda']}, Triton {machine['triton']}; "
        f"image of {width} x {height} pixels; weights: {found['weights']}. Medians of whole calls.",
        "",
        "| model | task | asked for | package | type | time | images a second, or records | peak MiB | first call |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, model in found["models"].items():
        for task, label in LABELS.items():
            for result in model["results"]:
                if task not in result["seconds"]:
                    continue
                seconds = statistics.median(result["seconds"][task])
                rate = {"encode": f"{1 / seconds:.0f} images", "encode 8": f"{8 / seconds:.0f} images"}.get(task, "")
                rate = f"{result['records']} records" if task == "masks" else rate
                lines.append(
                    f"| {name} | {label} | {BARS.get((name, task), '')} | {result['package']} | {result['dtype']} "
                    f"| {seconds * 1e3:.2f} ms | {rate} | {result['peak_bytes'][task] / MIB:.0f} "
                    f"| {result['first_seconds'][task]:.2f} s |"
                )
    lines += [
        "",
        "Against float32 with plain attention on the same device:",
        "",
        "| model | way | embedding, RMS of its deviation | mask IoU, mean | least | records |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in found["models"].items():
        for way, one in model["drift"].items():
            lines.append(
                f"| {name} | {way} | {one['embedding_rms_of_std']:.1e} | {one['mask_iou_mean']:.4f} "
                f"| {one['mask_iou_least']:.4f} | {one['records']} of {one['records_reference']} |"
            )
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    try:
        import triton

        version = str(triton.__version__)
    except ImportError:
        version = "none: plain attention"
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": version,
    }


def main() -> int:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_h", "vit_b"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--checkpoint", help="a file, for one model")
    parser.add_argument("--image", type=Path, help="instead of smooth noise of 1200 x 1800")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output-mode", default="uncompressed_rle", choices=["uncompressed_rle", "coco_rle"])
    parser.add_argument("--original", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tune", action="store_true", help="only compare launches of the attention kernel")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="without a suffix")
    parser.add_argument("--original-worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device, and PyTorch sees none here.", file=sys.stderr)
        return 2
    if args.original_worker:
        original_worker(json.loads(args.original_worker))
        return 0
    if args.tune:
        tune(args.rounds)
        return 0
    image = photograph(args.image)
    found = {
        "machine": machine(),
        "image_hw": image.shape[:2],
        "weights": args.checkpoint or "made from names and shapes",
        "models": {name: measure_model(name, args, image) for name in args.models},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(as_table(found))
    print(as_table(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
