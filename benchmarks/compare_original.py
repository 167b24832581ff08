"""This package against the original `segment-anything` 1.0, in one run on the same image, weights and survivors.

    python benchmarks/compare_original.py                       # ViT-B, 16 x 16 points, three rounds
    python benchmarks/compare_original.py --points-per-side 32 --dtypes bf16 int8
    python benchmarks/compare_original.py --model vit_t --dtypes bf16            # MobileSAM's image encoder alone
    python benchmarks/compare_original.py --model nano                           # trained weights, real masks
    python benchmarks/compare_original.py --rounds 1 --points-per-side 4 --out build/smoke

The original is installed from the package index into build/original, a folder of its own that only its process
searches, with stand-ins for torchvision and timm (benchmarks/original); both packages share the interpreter, torch and
the thread count. MobileSAM is not on the package index: its image encoder is measured as `segment-anything-hq` carries
it, under the same names of weights. Weights are deterministic, made from names and shapes; those of `nano` are trained,
and "the original" then is the original's predictor and automatic masks around the plain networks of `nano`. The
processes take turns: while one works the others wait, and every round begins with the other end. `--dtypes` adds this
package in types that are approximate; `--transformers` adds `SamModel` of transformers, and `--onnx` what this package
exports on ONNX Runtime, under the same weights.

A share of the limit is the operations of the plain networks (every click decoded, nothing for masks at full size) a
second, over those of the fastest product in the same type, measured in every round.

Thresholds of automatic masks lie where half of the masks pass the predicted IoU and 35 % of all pass the stability as
well, each in the middle of a gap between two masks so that rounding cannot move a mask across.

Writes OUT.json (every sample) and OUT.md (the table).
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent / "original"
BUILD = ROOT / "build"
PHOTOS = (ROOT.parent / "shared" / "images" / "truck.jpg", ROOT / "examples" / "images" / "coffee.jpg")
"""The photograph of 1200 x 1800 pixels that the published figures are for; where it is missing, a small one."""
MIB = 2**20

STABILITY_OFFSET = 0.2
"""Logits of random weights are small: the usual offset of 1 would leave no mask stable. Trained ones have it."""
PEERS = ("transformers", "onnxruntime")
"""What else computes the same, by the name of its package."""
PASS_IOU, PASS_BOTH = 0.5, 0.35
"""Shares of all masks that pass the predicted IoU, and that pass the stability as well."""
PREDICTS_A_ROUND, PREDICTS_A_TURN = 10, 3
"""Turns of clicks, and clicks of one turn: the first of them finds the memory given back (worker.py)."""


@dataclass(frozen=True)
class Original:
    """A package to compare with."""

    package: str
    version: str
    model: str
    """The model's name there."""
    folder: Path
    tasks: tuple[str, ...] = ("encode", "predict", "masks")
    alias: str = ""
    """Another name for the package, so that this one can be imported beside it."""

    @staticmethod
    def of(model: str) -> "Original":
        """That which published a model, or carries it."""
        if model == "vit_t":
            return Original("segment-anything-hq", "0.3", "vit_tiny", BUILD / "mobile", ("encode",))
        if model == "nano":
            alias = "original_segment_anything"
            return Original("segment-anything", "1.0", model, BUILD / "renamed", alias=alias)
        return Original("segment-anything", "1.0", model, BUILD / "original")

    @property
    def module(self) -> str:
        return self.alias or self.package.replace("-", "_")

    def install(self) -> None:
        """Put it, and nothing that it depends on, into its folder; once."""
        if not (self.folder / self.module).is_dir():
            command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(self.folder)]
            subprocess.run([*command, f"{self.package}=={self.version}"], check=True)
        if self.alias and not (self.folder / self.alias).is_dir():
            name = self.package.replace("-", "_")
            for file in (self.folder / name).rglob("*.py"):
                file.write_text(re.sub(rf"\b{name}\b", self.alias, file.read_text("utf-8")), "utf-8")
            (self.folder / name).rename(self.folder / self.alias)


class Contestant:
    """A worker process (benchmarks/original/worker.py) with one of the two packages."""

    def __init__(self, name: str, model: str, image: Path, dtype: str = "float32") -> None:
        original, is_original = Original.of(model), name == "original"
        stand_ins = [HERE / "torchvision_stand_in", HERE / "timm_stand_in"]
        path = [original.folder, *stand_ins] if is_original else []
        path += [ROOT] if original.alias or not is_original else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        module = name if name in PEERS else "segment_anything"
        which = (original.model, original.module) if is_original else (model, module)
        self.tasks = [task for task in original.tasks if name != "transformers" or task != "masks"]
        command = [sys.executable, str(HERE / "worker.py"), which[0], str(image), dtype, which[1]]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.name, self.samples, self.peaks = name, dict[str, list[float]](), dict[str, int]()
        self.about = self._answer()
        expected = original.package if is_original else name if name in PEERS else "segment-anything-engine"
        assert self.about["package"] == expected, f"{name} imports {self.about['package']}"

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, task: str, times: int = 1, **arguments: Any) -> dict[str, Any]:
        """Run a task without keeping its time."""
        assert self.process.stdin is not None
        print(json.dumps({"task": task, "times": times, "arguments": arguments}), file=self.process.stdin, flush=True)
        return self._answer()

    def measure(self, task: str, times: int = 1, **arguments: Any) -> dict[str, Any]:
        """Run a task and keep its times and its peak."""
        answer = self.ask(task, times, **arguments)
        self.samples.setdefault(task, []).extend(answer["seconds"])
        self.peaks[task] = max(self.peaks.get(task, 0), answer["peak_bytes"])
        print(f"  {self.name:12}{task:9}{statistics.median(answer['seconds']):9.3f} s", file=sys.stderr)
        return answer


@contextmanager
def contestants(model: str, image: Path, dtypes: Sequence[str], peers: Sequence[str]) -> Iterator[list[Contestant]]:
    """The original, ours, ours in other types, and its peers, started; they end when their input closes."""
    all_of_them = [Contestant("original", model, image), Contestant("ours", model, image)]
    all_of_them += [Contestant(f"ours {dtype}", model, image, dtype) for dtype in dtypes]
    all_of_them += [Contestant(peer, model, image) for peer in peers]
    try:
        yield all_of_them
    finally:
        for one in all_of_them:
            assert one.process.stdin is not None
            one.process.stdin.close()
            one.process.wait()


def between(values: Array, share_above: float) -> float:
    """A number with about this share of `values` above it, in the middle of the widest gap near there."""
    ordered = np.sort(values)[::-1]
    place = round(share_above * len(ordered))
    reach = max(1, len(ordered) // 50)
    places = np.arange(max(1, place - reach), min(len(ordered) - 1, place + reach) + 1)
    widest = places[np.argmax(ordered[places - 1] - ordered[places])]
    return float((ordered[widest - 1] + ordered[widest]) / 2)


def thresholds(ours: Contestant, folder: Path, points_per_side: int, offset: float) -> dict[str, float]:
    """Thresholds that let the wished shares pass, from one run with every filter off."""
    everything = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": -99.0,
        "stability_score_thresh": -99.0,
        "stability_score_offset": offset,
        "box_nms_thresh": 1.0,
    }
    ours.ask("masks", options=everything)
    ours.ask("keep", file=str(folder / "everything.npz"))
    with np.load(folder / "everything.npz") as file:
        iou, stability = file["iou"], file["stability"]
    least_iou = between(iou, PASS_IOU)
    good = stability[iou > least_iou]
    least_stability = between(good, PASS_BOTH * len(iou) / len(good))
    return {
        "pred_iou_thresh": least_iou,
        "stability_score_thresh": least_stability,
        "stability_score_offset": offset,
    }


def pair_up(first: Any, second: Any) -> list[tuple[int, int]]:
    """Records of the same click with the closest predicted IoU, each used once."""
    free = list(range(len(second["iou"])))
    pairs = []
    for i, (point, iou) in enumerate(zip(first["point"], first["iou"], strict=True)):
        same = [j for j in free if np.allclose(second["point"][j], point)]
        if same:
            pairs.append((i, min(same, key=lambda j: abs(second["iou"][j] - iou))))
            free.remove(pairs[-1][1])
    return pairs


def same_masks(original: Path, ours: Path) -> dict[str, Any]:
    """How far two sets of records agree."""
    with np.load(original) as first, np.load(ours) as second:
        pairs = pair_up(first, second)
        overlap = []
        for i, j in pairs:
            a, b = np.unpackbits(first["masks"][i]), np.unpackbits(second["masks"][j])
            overlap.append(float((a & b).sum() / max(1, (a | b).sum())))
        return {
            "records_original": len(first["iou"]),
            "records_ours": len(second["iou"]),
            "records_matched": len(pairs),
            "same_order": [j for _, j in pairs] == list(range(len(second["iou"]))),
            "mean_mask_iou": statistics.fmean(overlap) if overlap else None,
            "least_mask_iou": min(overlap, default=None),
        }


def agreement(pair: Sequence[Contestant], folder: Path, point_xy: list[float], tasks: Sequence[str]) -> dict[str, Any]:
    """How far embedding, masks of a click and automatic masks without suppression agree; also warms both up."""
    loose = {
        "points_per_side": 4,
        "pred_iou_thresh": -99.0,
        "stability_score_thresh": 0.0,
        "stability_score_offset": STABILITY_OFFSET,
        "box_nms_thresh": 1.0,
    }
    for one in pair:
        one.ask("encode")
        if "predict" in tasks:
            one.ask("predict", point_xy=point_xy)
            one.ask("masks", options=loose)
        one.ask("keep", file=str(folder / f"{one.name}-loose.npz"))
    files = [folder / f"{one.name}-loose.npz" for one in pair]
    with np.load(files[0]) as theirs, np.load(files[1]) as ours:
        deviation = np.abs(theirs["embedding"] - ours["embedding"]).max() / theirs["embedding"].std()
        agreed: dict[str, Any] = {"embedding_deviation_of_std": float(deviation)}
        if "predict" in tasks:
            agreed["click_pixels_equal"] = float(1 - np.unpackbits(theirs["clicked"] ^ ours["clicked"]).mean())
            agreed["masks_without_suppression"] = same_masks(*files)
    return agreed


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    folder = args.out.parent / f"{args.out.name}-records"
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(args.image) as file:
        width, height = file.size
    point_xy = [width / 2, height / 2]
    tasks = Original.of(args.model).tasks
    chosen = [peer for peer, is_asked in zip(PEERS, (args.transformers, args.onnx), strict=True) if is_asked]
    offset = 1.0 if args.model == "nano" else STABILITY_OFFSET
    with contestants(args.model, args.image, args.dtypes, chosen) as everybody:
        pair = everybody[:2]
        agreed = agreement(pair, folder, point_xy, tasks)
        for one in everybody[2:]:  # warm, as the two are by now
            one.ask("encode")
            if "predict" in tasks:
                one.ask("predict", point_xy=point_xy)
        options = {"points_per_side": args.points_per_side, "box_nms_thresh": args.box_nms_thresh}
        if "masks" in tasks:
            options |= thresholds(pair[1], folder, args.points_per_side, offset)
        limits: dict[str, float] = {}
        for turn in range(args.rounds):
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
            order = everybody if turn % 2 == 0 else everybody[::-1]
            for one in pair[1:2] + [one for one in everybody[2:] if one.name == "ours bf16"]:
                limits[one.name] = max(limits.get(one.name, 0.0), one.ask("limit")["result"])
            for one in order:
                one.measure("encode")
            for _ in range(PREDICTS_A_ROUND if "predict" in tasks else 0):
                for one in order:
                    one.measure("predict", PREDICTS_A_TURN, point_xy=point_xy)
            for one in [one for one in order if "masks" in one.tasks]:
                one.measure("masks", options=options)
                one.ask("keep", file=str(folder / f"{one.name}.npz"))
        if "masks" in tasks:
            agreed["masks"] = same_masks(*(folder / f"{one.name}.npz" for one in pair))
            for one in [one for one in everybody[2:] if "masks" in one.tasks]:
                agreed[f"masks, {one.name}"] = same_masks(folder / "original.npz", folder / f"{one.name}.npz")
        return {
            "model": args.model,
            "original": f"{pair[0].about['package']} {pair[0].about['version']}",
            "image_wh": [width, height],
            "rounds": args.rounds,
            "options": options,
            "limits": limits,
            "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
            "agreement": agreed,
            "results": {
                one.name: {"about": one.about, "seconds": one.samples, "peak_bytes": one.peaks} for one in everybody
            },
        }


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def as_table(found: dict[str, Any]) -> str:
    """Markdown: a row a task."""
    original, ours = (found["results"][name] for name in ("original", "ours"))
    others = {name: result for name, result in found["results"].items() if name != "original"}
    side = found["options"]["points_per_side"]
    labels = {
        "encode": "encode",
        "predict": "one click, encoded image",
        "masks": f"automatic masks {side} x {side}, with encode",
    }
    machine, agreed, shape, limit = found["machine"], found["agreement"], found["image_wh"], found["limits"]["ours"]
    lines = [
        f"{found['model']}, {shape[0]} x {shape[1]} pixels, float32 where not told, {ours['about']['threads']} threads "
        f"on {machine['processor']} (limit {limit / 1e9:.0f} GFLOP/s); median of {found['rounds']} rounds, "
        f"{found['original']} and this package in turn.",
        "",
        "| | original, s | this, s | ratio | original, of the limit | this, of the limit "
        "| original, peak MiB | this, peak MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_part = ours["about"]["operations"]
    counts = {
        "encode": by_part["encode"],
        "predict": by_part["click"],
        "masks": by_part["encode"] + side**2 * by_part["click"] if side else 0,
    }
    for task, label in labels.items():
        for name, one in others.items():
            if task not in one["seconds"]:
                continue
            seconds = [statistics.median(each["seconds"][task]) for each in (original, one)]
            peaks = [each["peak_bytes"][task] / MIB for each in (original, one)]
            limits = limit, found["limits"].get(name, limit)
            shares = [counts[task] / spent / most for spent, most in zip(seconds, limits, strict=True)]
            lines.append(
                f"| {label}{', '.join(['', *name.removeprefix('ours').split()])} "
                f"| {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1]:.1f} x "
                f"| {shares[0]:.0%} | {shares[1]:.0%} "
                f"| {peaks[0]:.0f} | {peaks[1]:.0f} | {f'{peaks[0] / peaks[1]:.1f} x' if peaks[1] >= 1 else ''} |"
            )
    said = [
        "Peaks are above the memory held before the task. "
        f"Embeddings differ by at most {agreed['embedding_deviation_of_std']:.1e} of their standard deviation"
    ]
    if "click_pixels_equal" in agreed:
        said.append(f"{agreed['click_pixels_equal']:.5%} of the pixels of the click's masks are equal")
    groups = {
        "the measured automatic masks": agreed.get("masks"),
        "4 x 4 points without suppression": agreed.get("masks_without_suppression"),
        **{key: group for key, group in agreed.items() if key.startswith("masks, ")},
    }
    said += [agreed_masks(what, group) for what, group in groups.items() if group]
    lines += ["", "; ".join(said) + "."]
    return "\n".join(lines) + "\n"


def agreed_masks(what: str, group: dict[str, Any]) -> str:
    """How far one set of records agrees, in words."""
    counts = f"{what}: {group['records_original']} records of the original, {group['records_ours']} of ours"
    if not group["records_matched"]:
        return counts
    return f"{counts}, {group['records_matched']} matched, least mask IoU {group['least_mask_iou']:.4f}"


def main() -> None:
    """Compare, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h", "vit_t", "nano"])
    parser.add_argument("--image", type=Path, default=next(photo for photo in PHOTOS if photo.is_file()))
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument(
        "--box-nms-thresh", type=float, default=0.7, help="1 keeps every survivor: then their masks are compared too"
    )
    parser.add_argument("--dtypes", nargs="*", default=[], help="this package in other types as well: bf16, int8")
    parser.add_argument("--transformers", action="store_true", help="transformers' SamModel as well, if installed")
    parser.add_argument("--onnx", action="store_true", help="what this package exports on ONNX Runtime as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "compare_original", help="without a suffix")
    args = parser.parse_args()
    Original.of(args.model).install()
    found = compare(args)
    args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(as_table(found))
    print(as_table(found), end="")


if __name__ == "__main__":
    main()
