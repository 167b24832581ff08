"""Write a model as ONNX files that run without torch, or as a folder for other programs.

Every graph is compared with PyTorch before the command says done; one that deviates too far is refused and nothing is
written.

    segment-anything export nano --out exported
    segment-anything export vit_b --out exported --precision fp16 --normalise
    segment-anything export vit_b --out for_transformers --to transformers
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segment_anything.cli._console import complaints, print_table
from segment_anything.cli._model import ModelOptions
from segment_anything.cli._options import Panel, expand_dataclasses
from segment_anything.export.options import ExportOptions

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from segment_anything.onnx.manifest import Manifest

TARGETS = ("onnx", "native", "transformers")
PUBLISHED_LICENSE = "Apache-2.0"


@expand_dataclasses
def command(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="nano, vit_t, vit_b, vit_l, vit_h, or a folder of a saved model.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    model: Annotated[ModelOptions, Panel("Model", without=("model", "device", "dtype"))],
    graphs: Annotated[ExportOptions, Panel("ONNX")],
    to: Annotated[
        str,
        typer.Option(
            metavar="onnx|native|transformers",
            help="onnx: graphs. native, transformers: config.json and model.safetensors, in the names of this package "
            "or of transformers' SamModel.",
        ),
    ] = "onnx",
    weights_license: Annotated[
        str | None, typer.Option(help="Licence of the weights, noted in the files; known for published ones.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON for machines.")] = False,
) -> None:
    if to not in TARGETS:
        raise typer.BadParameter(f"must be one of {', '.join(TARGETS)}; got {to!r}.", param_hint="--to")
    start = time.perf_counter()
    sam = _load(name, model)
    if to != "onnx":
        from segment_anything.interchange import save_pretrained

        save_pretrained(sam, out, layout=to)
        print(json.dumps({"folder": str(out), "layout": to}) if as_json else f"{sam.name} in {out}, layout {to}")
        return
    from segment_anything.export.exporter import export_model

    is_published = model.checkpoint is None and not Path(name).is_dir()
    licence = weights_license or (PUBLISHED_LICENSE if is_published else "unknown")
    manifest = export_model(sam, out, graphs, weights_license=licence, tell=complaints().print)
    if as_json:
        print(json.dumps({"folder": str(out), **asdict(manifest)}))
        return
    _print_files(manifest, out)
    print(f"{len(manifest.files)} graphs and {sam.name}.json in {out}, {time.perf_counter() - start:.0f} s")


def _load(name: str, model: ModelOptions) -> Sam:
    if not Path(name).is_dir():
        return replace(model, model=name, device="cpu").load()
    from segment_anything.interchange import from_pretrained

    if model.checkpoint is not None or model.image_size is not None:
        raise ValueError(f"{name} is a folder that has its own weights and size: leave --checkpoint, --image-size out.")
    return from_pretrained(name)


def _print_files(manifest: Manifest, out: Path) -> None:
    rows = []
    for role, file in manifest.files.items():
        size = sum(part.stat().st_size for part in (out / file, out / f"{file}.data") if part.is_file())
        check = manifest.checks.get(role)
        far = (f"{check.max_deviation:.1e}", f"{check.mask_agreement:.4%}") if check else ("", "")
        rows.append((file, f"{size / 1e6:.1f} MB", *far))
    print_table(("file", "size", "largest deviation", "mask agreement"), rows)
