"""Exported models without torch: numpy, Pillow and onnxruntime are all that is needed.

`OnnxModel` encodes and decodes as `Sam` does, `OnnxPredictor` and `OnnxMaskGenerator` are asked as `SamPredictor` and
`SamAutomaticMaskGenerator` are and give the same records. `segment_anything.export` writes the files.
"""

from segment_anything.onnx.decoded import OnnxDecoded
from segment_anything.onnx.manifest import Check, Manifest
from segment_anything.onnx.mask_generator import OnnxMaskGenerator
from segment_anything.onnx.model import OnnxEmbedding, OnnxModel
from segment_anything.onnx.predictor import OnnxPredictor

__all__ = [
    "Check",
    "Manifest",
    "OnnxDecoded",
    "OnnxEmbedding",
    "OnnxMaskGenerator",
    "OnnxModel",
    "OnnxPredictor",
]
