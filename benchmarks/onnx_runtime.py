"""Exported models on ONNX Runtime against torch: time of encoder and decoders, size of the files, drift of the masks.

    python benchmarks/onnx_runtime.py nano vit_t --threads 2 --out results/onnx_runtime.md

Torch and ONNX Runtime take turns on the same photograph, so that what else the machine does meets both alike; the least
time of all rounds counts, and the median is given beside it. With --random nothing is downloaded: times are the same,
and the drift says little. (The file is not called onnx.py: Python would find it in place of the library.)
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "examples" / "images"
CLICKS = (1, 32)
FORMS = {"fp32": "original,batched,prepared", "fp16": "original,batched,prepared", "int8": ""}
"""What is exported at each precision; the encoder always is."""

Runs = dict[str, Callable[[], object]]


def take_turns(runs: Runs, rounds: int) -> Iterator[str]:
    """Table rows: call each in turn, `rounds` times over, after one call that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    for name, spent in times.items():
        yield f"| {name} | {min(spent):.1f} | {statistics.median(spent):.1f} |"


def export(sam: Any, folder: Path, threads: int) -> tuple[dict[str, Any], list[str]]:
    """The exports by precision, and a table row for each file."""
    from segment_anything.export import ExportOptions, export_model
    from segment_anything.onnx import OnnxModel

    exports, rows = {}, []
    for precision, forms in FORMS.items():
        start = time.perf_counter()
        manifest = export_model(sam, folder / precision, ExportOptions(decoders=forms, precision=precision))
        seconds = time.perf_counter() - start
        exports[precision] = OnnxModel(folder / precision, providers="cpu", threads=threads)
        for role, file in manifest.files.items():
            check = manifest.checks.get(role)
            drift = f"{check.max_deviation:.1e} | {check.mask_agreement:.3%}" if check else "|"
            rows.append(
                f"| {file} | {precision} | {(folder / precision / file).stat().st_size / 1e6:.1f} MB | {drift} |"
            )
        rows.append(f"| export and comparison of all | {precision} | {seconds:.0f} s | | |")
    return exports, rows


def encoder_runs(sam: Any, exports: dict[str, Any], image: np.ndarray) -> Runs:
    """The same photograph through every encoder."""
    runs: Runs = {"encode, torch": lambda: sam.encode(image)}
    for precision in ("fp32", "int8"):
        runs[f"encode, ONNX Runtime {precision}"] = lambda model=exports[precision]: model.encode(image)  # type: ignore[misc]
    return runs


def decoder_runs(sam: Any, exports: dict[str, Any], image: np.ndarray, count: int) -> Runs:
    """The same clicks through every decoder, up to masks at low resolution."""
    from segment_anything import Prompts
    from segment_anything.export.verify import as_onnx_embedding
    from segment_anything.onnx import OnnxModel

    embedding = sam.encode(image)
    mine, model = as_onnx_embedding(embedding), exports["fp32"]
    points = np.random.default_rng(0).random((count, 2)) * [image.shape[1] - 1, image.shape[0] - 1]
    prompts, words = Prompts.from_points(points), f"{count} click{'s' if count > 1 else ''}"
    batched = OnnxModel(model.folder, providers="cpu", threads=model.threads)
    batched.prepared_decoder = None  # so that it takes the batched form
    runs: Runs = {
        f"{words}, torch": lambda: sam.decode(embedding, prompts),
        f"{words}, ONNX Runtime batched": lambda: batched.decode(mine, prompts),
    }
    runs[f"{words}, ONNX Runtime prepared"] = lambda: model.decode(mine, prompts)
    if count == 1:  # the original's interface takes one object
        original, inputs = original_run(model, mine, prompts)
        runs[f"{words}, ONNX Runtime original, low_res_masks"] = lambda: original.session.run(["low_res_masks"], inputs)
    return runs


def original_run(model: Any, embedding: Any, prompts: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph with the original's interface, and its inputs."""
    from segment_anything.onnx.prompts import labelled_points, mask_prompts
    from segment_anything.onnx.sessions import Graph

    coords, labels = labelled_points(prompts, embedding.geometry)
    mask, has_mask = mask_prompts(prompts, embedding.geometry, model.mask_input_size)
    size = np.array(embedding.geometry.original_size_hw, np.float32)
    graph = Graph("decoder", model.manifest, model.folder, model.providers, model.threads)
    values = (embedding.features, coords, labels, mask, has_mask, size)
    return graph, dict(zip(graph.inputs, values, strict=True))


def multiplications(sam: Any) -> Iterator[str]:
    """Table rows: multiply-adds of one click through each form of the decoder, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    from segment_anything.export.graphs import graphs
    from segment_anything.export.options import ExportOptions

    for graph in graphs(sam, ExportOptions()):
        if graph.role == "encoder":
            continue
        per_object = ("point_coords", "point_labels", "mask_input", "has_mask_input")
        inputs = {name: value[:1] if name in per_object else value for name, value in graph.inputs.items()}
        inputs |= {name: inputs[name][:, :2] for name in per_object[:2] if name in inputs}  # the click and padding
        with FlopCounterMode(display=False) as counter:
            graph.module(**inputs)
        yield f"| {graph.role} | {counter.get_total_flops() / 2e6:.0f} |"


def measure(name: str, threads: int, rounds: int, random: bool) -> Iterator[str]:
    """Markdown lines for one model."""
    import torch

    from segment_anything import load_sam, read_image

    sam = load_sam(name, checkpoint="random" if random else None, device="cpu")
    image = read_image(min(path for path in PHOTOS.iterdir() if path.suffix == ".jpg"))
    yield from (f"## {name}{' (random weights)' if random else ''}", "")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        exports, files = export(sam, Path(folder), threads)
        yield from ("| | least ms | median ms |", "|---|---|---|")
        yield from take_turns(encoder_runs(sam, exports, image), max(2, rounds // 2))
        for count in CLICKS:
            yield from take_turns(decoder_runs(sam, exports, image, count), rounds)
        yield from ("", "| decoder, one click | million multiply-adds |", "|---|---|", *multiplications(sam))
    yield from ("", "| file | precision | size | largest deviation | mask agreement |", "|---|---|---|---|---|")
    yield from (*files, "")


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="nano, vit_t, vit_b, ...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--random", action="store_true", help="take random weights, download nothing")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    lines = [f"torch {torch.__version__}, {options.threads} threads on {os.cpu_count()} cores", ""]
    for name in options.models:
        for line in measure(name, options.threads, options.rounds, options.random):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
