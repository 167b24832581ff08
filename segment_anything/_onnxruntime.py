"""The only door to onnxruntime: it switches the library's telemetry off before the first import.

onnxruntime >= 1.29 writes a device id and sends usage data by default; the variable is read at import time only
(https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md).
"""

import os
from types import ModuleType

from segment_anything._optional import require


def onnxruntime() -> ModuleType:
    """The onnxruntime module.

    Raises:
        ImportError: if it is not installed, naming the extra `onnx`.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra="onnx")


def quantization() -> ModuleType:
    """The module onnxruntime.quantization.

    Raises:
        ImportError: if onnxruntime or onnx is not installed, naming the extra `onnx`.
    """
    onnxruntime()
    return require("onnxruntime.quantization", extra="onnx")
