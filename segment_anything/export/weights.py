"""How the weights of a graph are stored: in half the size, in 8 bits, or in a file beside it."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything._onnxruntime import quantization
from segment_anything._optional import require

LEAST_VALUES = 1024
"""Smaller tensors (biases, norms, the frequencies of the position code) stay float32: they weigh nothing."""


def store_half(model: Any) -> Any:
    """Store large float32 weights as float16, each behind a Cast, and return the model. Runtimes compute in float32.

    A tensor with values beyond the range of float16 stays as it is.
    """
    onnx = require("onnx", extra="onnx")
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < LEAST_VALUES:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def quantise(model: Any) -> Any:
    """Matrix products with constant weights in 8 bits; the inputs' range is found at run time.

    Returns a new model; the one given is used up.
    Convolutions stay: in 8 bits ONNX Runtime computes them more slowly on a CPU.
    """
    tools = quantization()
    onnx = require("onnx", extra="onnx")
    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory() as folder:
        exact, quantised = Path(folder) / "exact.onnx", Path(folder) / "quantised.onnx"
        onnx.save_model(model, exact, save_as_external_data=True, location="exact.data")  # any size
        logger.setLevel(logging.ERROR)  # it recommends a pre-processing that the exporter has done already
        try:
            tools.quantize_dynamic(
                exact,
                quantised,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                # Not signed: a processor with AVX2 but without VNNI adds two products of unsigned inputs and signed
                # weights in 16 bits, and saturates (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
                weight_type=tools.QuantType.QUInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logger.setLevel(level)
        return onnx.load(quantised)


def write(model: Any, path: Path, metadata: dict[str, str], external_data_mb: float) -> list[Path]:
    """Write a graph; its weights go to a file beside it if all is larger than `external_data_mb`.

    Returns:
        the files written.
    """
    onnx = require("onnx", extra="onnx")
    onnx.helper.set_model_props(model, metadata)
    model.producer_name = "segment-anything-engine"
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if stored <= external_data_mb * 1e6:
        onnx.save_model(model, path)
        return [path]
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # the library would append
    onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=LEAST_VALUES)
    data.chmod(path.stat().st_mode)  # the library lets nobody else read it
    return [path, data]
