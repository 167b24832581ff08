"""Named boxes from pictures: ONNX files, transformers models, and boxes drawn before, behind one `detect(image)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from segment_anything._onnxruntime import onnxruntime
from segment_anything.detectors.base import Detection, Detector, check_classes, class_names_of, select_detections
from segment_anything.detectors.box_files import BoxFile, ImageBoxes
from segment_anything.detectors.hugging_face import HuggingFaceDetector, OpenVocabularyDetector
from segment_anything.detectors.onnx_file import OnnxDetector, OnnxDetectorOptions

__all__ = [
    "BoxFile",
    "Detection",
    "Detector",
    "HuggingFaceDetector",
    "ImageBoxes",
    "OnnxDetector",
    "OnnxDetectorOptions",
    "OpenVocabularyDetector",
    "check_classes",
    "class_names_of",
    "load_detector",
    "select_detections",
]

_BOX_FILES = (".json", ".csv", ".txt")


def load_detector(
    source: str | Path,
    *,
    class_names: str | Path | Sequence[str] | Mapping[int, str] | None = None,
    min_score: float | None = None,
    device: str = "cpu",
) -> OnnxDetector | BoxFile | HuggingFaceDetector:
    """The detector that a path or a name means.

    Args:
        source: an `.onnx` file; a box file (`.json`, `.csv`, `.txt`, or a folder of `.txt`); a folder with a saved
            transformers model; or a hub name "owner/model".
        class_names: names by class id, or a file of them (ONNX and box files).
        min_score: lowest score; None takes the detector's own default.
        device: where it runs; ONNX files take CUDA if it is asked for, or "auto", and this ONNX Runtime has it.

    Raises:
        ValueError: if nothing is there, or what is there is not understood.
    """
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        options = None if min_score is None else OnnxDetectorOptions(min_score=min_score)
        return OnnxDetector(path, class_names=class_names, options=options, providers=_providers(device))
    if path.suffix.lower() in _BOX_FILES or (path.is_dir() and not (path / "config.json").is_file()):
        return BoxFile(path, class_names)
    if not path.exists() and path.suffix.lower() in (".pt", ".pth", ".engine", ".tflite"):
        raise ValueError(f"No such file: {path}.")
    if path.is_file():
        raise ValueError(
            f"{path} is no detector this reads. Export the model to ONNX (.onnx), or give a box file "
            f"({', '.join(_BOX_FILES)}) or the folder of a transformers model."
        )
    return HuggingFaceDetector(source, device=device, **({} if min_score is None else {"min_score": min_score}))


def _providers(device: str) -> list[str]:
    """ONNX Runtime's execution providers for a device: those that are there, the CPU last."""
    cuda = ["CUDAExecutionProvider"] if device.startswith(("cuda", "auto")) else []
    available = onnxruntime().get_available_providers()
    return [*(name for name in cuda if name in available), "CPUExecutionProvider"]
