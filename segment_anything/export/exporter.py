"""Writes a model as ONNX files: graphs one after the other, compared with torch, kept only if all are right."""

import copy
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from segment_anything.embedding import fingerprint_weights
from segment_anything.export.convert import OPSET, to_onnx
from segment_anything.export.graphs import Graph, graphs
from segment_anything.export.options import ExportOptions
from segment_anything.export.verify import verify
from segment_anything.export.weights import quantise, store_half, write
from segment_anything.modeling import Sam
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.transformer import TwoWayTransformer
from segment_anything.onnx.manifest import FILE_NAMES, Manifest
from segment_anything.onnx.model import OnnxModel


def export_model(
    sam: Sam,
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    weights_license: str = "unknown",
    tell: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write a model as ONNX files, and a JSON that `segment_anything.onnx` opens.

    Nothing is written to `out` unless all graphs were compared with torch and found right.

    Args:
        sam: the model, on any device and of any type; float32 is what is written.
        out: folder for the files; made if need be. Files of an earlier export of a model of that name are replaced.
        options: what to write.
        weights_license: noted in the files.
        tell: called with a line of progress now and then.

    Returns:
        what was written, with the measured deviations.

    Raises:
        ExportError: if a graph is not what torch computes.
        ValueError: if the model's decoder is of another making.
        ImportError: if onnx, onnxscript or onnxruntime is missing.
    """
    options = options or ExportOptions()
    _check_decoder(sam)
    exact = _on_cpu(sam)
    written = _with_tanh(exact) if options.gelu_approximate else exact
    folder = Path(out)
    part = folder / f".{sam.name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        manifest = _manifest(exact, options, weights_license)
        for graph in graphs(written, options):
            start = time.perf_counter()
            manifest.files[graph.role] = FILE_NAMES[graph.role].format(model=manifest.model)
            size = _write_graph(graph, part, manifest, options)
            tell(f"{manifest.files[graph.role]}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.0f} s")
        manifest.save(part)
        manifest = replace(manifest, checks=verify(exact, OnnxModel(part, providers="cpu"), options))
        manifest.save(part)
        _move_all(part, folder, manifest)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _write_graph(graph: Graph, folder: Path, manifest: Manifest, options: ExportOptions) -> int:
    """Write one graph and return the bytes on disk."""
    model = to_onnx(graph)
    if options.precision == "int8" and graph.role == "encoder":
        model = quantise(model)
    if options.precision != "fp32":
        model = store_half(model)
    path = folder / manifest.files[graph.role]
    files = write(model, path, manifest.metadata(graph.role), options.external_data_mb)
    return sum(file.stat().st_size for file in files)


def _move_all(part: Path, folder: Path, manifest: Manifest) -> None:
    """Replace the files of an earlier export; the JSON comes last, so that it never names what is not there."""
    json_file = part / f"{manifest.model}.json"
    for name in FILE_NAMES.values():
        for old in (folder / name.format(model=manifest.model), folder / f"{name.format(model=manifest.model)}.data"):
            old.unlink(missing_ok=True)
    for file in [*(file for file in part.iterdir() if file != json_file), json_file]:
        file.replace(folder / file.name)


def _manifest(sam: Sam, options: ExportOptions, weights_license: str) -> Manifest:
    from segment_anything import __version__

    return Manifest(
        model=sam.name,
        image_size=sam.image_size,
        embedding_size=sam.embedding_size,
        embedding_channels=sam.prompt_encoder.embed_dim,
        mask_input_size=sam.mask_input_size,
        mask_threshold=sam.mask_threshold,
        pixel_mean=sam.pixel_mean.flatten().tolist(),
        pixel_std=sam.pixel_std.flatten().tolist(),
        normalises=options.normalise,
        precision=options.precision,
        opset=OPSET,
        encoder_fingerprint=sam.fingerprint(),
        weights_fingerprint=fingerprint_weights(sam.state_dict()),
        weights_license=weights_license,
        files={},
        written_by=f"segment-anything-engine {__version__}",
    )


def _check_decoder(sam: Sam) -> None:
    if type(sam.mask_decoder) is not MaskDecoder or type(sam.mask_decoder.transformer) is not TwoWayTransformer:
        raise ValueError(
            f"only MaskDecoder on a TwoWayTransformer is exported; this model has {type(sam.mask_decoder).__name__} on "
            f"{type(sam.mask_decoder.transformer).__name__}."
        )


def _on_cpu(sam: Sam) -> Sam:
    """The model in float32 on the CPU, for inference; itself if it is so already."""
    if sam.device.type == "cpu" and sam.dtype == torch.float32 and not sam.training:
        return sam
    return copy.deepcopy(sam).to(device="cpu", dtype=torch.float32).eval()


def _with_tanh(sam: Sam) -> Sam:
    """A copy whose GELU layers are written with tanh."""
    sam = copy.deepcopy(sam)
    for module in sam.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    return sam
