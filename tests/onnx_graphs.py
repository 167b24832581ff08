"""Tiny ONNX files with known answers: graphs whose outputs are constants, or plain functions of their input."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def constant_graph(
    path: Path,
    outputs: Mapping[str, np.ndarray],
    *,
    size_hw: tuple[int | str, int | str] = (64, 64),
    metadata: Mapping[str, str] | None = None,
    extra_input: bool = False,
) -> Path:
    """A file that answers every image with `outputs`."""
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in outputs.items()
    ]
    return _save(path, nodes, values, size_hw, metadata, extra_input)


def mean_red_graph(path: Path) -> Path:
    """A file with NMS inside: one box (8, 8, 24, 40) of class 0, whose score is the mean of the first input channel."""
    box = np.array([8, 8, 24, 40], np.float32)
    nodes = [
        helper.make_node("Constant", [], ["box"], value=numpy_helper.from_array(box)),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.zeros(1, np.float32))),
        helper.make_node("Constant", [], ["first"], value=numpy_helper.from_array(np.array([0], np.int64))),
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, 1, 6], np.int64))),
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[0, 2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "first"], ["red"], axis=0),
        helper.make_node("Concat", ["box", "red", "zero"], ["row"], axis=0),
        helper.make_node("Reshape", ["row", "shape"], ["output0"]),
    ]
    return _save(path, nodes, [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 1, 6])], (64, 64), None)


def _save(path, nodes, outputs, size_hw, metadata, extra_input=False) -> Path:
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *size_hw])]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    if metadata:
        helper.set_model_props(model, dict(metadata))
    onnx.save(model, str(path))
    return path


def grid_rows(size: int, strides: tuple[int, ...] = (8, 16, 32)) -> np.ndarray:
    """(A, 3): cell x, cell y and stride of every grid cell of a square input, in the order YOLO models use."""
    return np.array([(x, y, s) for s in strides for y in range(size // s) for x in range(size // s)], np.float32)
