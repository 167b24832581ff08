"""A torch module -> an ONNX model, by torch's dynamo exporter."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from segment_anything._optional import require
from segment_anything.export.graphs import Graph

OPSET = 18
"""Of the operators: what the exporter emits without conversion, and every runtime of these years reads."""


def to_program(graph: Graph) -> ExportedProgram:
    """The graph as torch sees it: `torch.export`, with the sides that vary left open."""
    open_sides = {
        name: {axis: Dim(side, min=1, max=graph.most[side]) for axis, side in graph.sides.get(name, {}).items()}
        for name in graph.inputs
    }
    with torch.no_grad(), _quiet():
        return torch.export.export(
            graph.module.eval(), (), kwargs=dict(graph.inputs), dynamic_shapes=open_sides, strict=False
        )


def to_onnx(graph: Graph) -> Any:
    """The graph as an `onnx.ModelProto` with all weights inside.

    Raises:
        ImportError: if onnx or onnxscript is missing.
    """
    require("onnx", extra="onnx")
    require("onnxscript", extra="onnx")
    program = to_program(graph)
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program,
            (),
            kwargs=dict(graph.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _strip(model)
    _name_sides(model, graph)
    return model


def _strip(model: Any) -> None:
    """Remove what the exporter notes for developers: stack traces, with the paths of this machine, at every node."""
    graph = model.graph
    for item in [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output]:
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.value_info[:]  # shapes inside: nobody needs them, and the quantiser trips over them


def _name_sides(model: Any, graph: Graph) -> None:
    """Give the sides that vary their names, in place of the exporter's s17 and u3."""
    names: dict[str, str] = {}
    values = [*model.graph.input, *model.graph.output]
    for value in values:
        for axis, side in graph.sides.get(value.name, {}).items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = side
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of torchvision missing, and of its own deprecations, which are no user's business."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
