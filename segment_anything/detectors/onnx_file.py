"""Detectors exported to ONNX, run on ONNX Runtime: YOLOX, YOLOv5 to v11, RT-DETR and D-FINE.

The graph says what it is: `layouts` reads its shapes, `decode` its numbers. Nothing here depends on the libraries the
detectors were trained with; exported weights carry the licence of their makers.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything._onnxruntime import onnxruntime
from segment_anything.detectors.base import Detection
from segment_anything.detectors.decode import Candidates, decode, suppress
from segment_anything.detectors.layouts import FAMILIES, Layout, recognise
from segment_anything.detectors.letterbox import Placement, fit_image
from segment_anything.detectors.names import names_for, read_names
from segment_anything.images import check_image_array


@dataclass(frozen=True, kw_only=True)
class OnnxDetectorOptions:
    """How the boxes of an ONNX detector are filtered."""

    min_score: float = 0.25
    """Lowest score of a detection."""
    nms_iou: float = 0.45
    """Overlap above which the lower-scored of two boxes of one class goes (families without NMS inside)."""
    same_object_iou: float | None = 0.85
    """Overlap above which boxes of two classes are one object, which keeps its better name; None keeps both."""
    max_count: int = 300
    """Most detections an image."""
    input_size_hw: tuple[int, int] = (640, 640)
    """Input size of a graph that leaves it open; a graph with a fixed size keeps its own."""
    family: str | None = None
    """Read the outputs as this family (see `layouts.FAMILIES`) instead of recognising it."""

    def __post_init__(self) -> None:
        for name in ("min_score", "nms_iou", "same_object_iou"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1]; got {value}.")
        if self.max_count < 1:
            raise ValueError(f"max_count must be at least 1; got {self.max_count}.")
        if self.family is not None and self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, or None; got {self.family!r}.")


class OnnxGraph:
    """One ONNX file with its layout: an image in, candidates in network pixels and all outputs out."""

    def __init__(
        self,
        path: str | Path,
        options: OnnxDetectorOptions | None = None,
        class_count: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load the file and recognise it.

        Raises:
            ValueError: if there is no such file, it cannot be read, or its inputs or outputs are not understood.
            ImportError: if onnxruntime is not installed.
        """
        self.options = options or OnnxDetectorOptions()
        self.session = _open_session(Path(path), providers)
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self.image_input = _image_input(self.session)
        self.size_hw = _input_size(self.image_input.shape, self.options.input_size_hw, self.metadata)
        self.class_names = _names_in_metadata(self.metadata)
        count = class_count if self.class_names is None else len(self.class_names)
        self.layout: Layout = recognise(self._output_shapes(), self.size_hw, count, self.options.family)

    def run(self, image: np.ndarray) -> tuple[Candidates, Placement, list[np.ndarray]]:
        """Candidates after filter and suppression in network pixels, the image's placement, and the raw outputs.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        fitted, placement = fit_image(image, self.size_hw, self.layout.fit)
        outputs = self._run_network(fitted)
        candidates = decode(self.layout, outputs, self.size_hw)
        options = self.options
        kept = suppress(
            candidates,
            self.layout,
            min_score=options.min_score,
            nms_iou=options.nms_iou,
            same_object_iou=options.same_object_iou,
            max_count=options.max_count,
        )
        return kept, placement, outputs

    def _run_network(self, fitted: np.ndarray, pixels: str | None = None) -> list[np.ndarray]:
        pixels = pixels or self.layout.pixels
        values = fitted[..., ::-1].astype(np.float32) if pixels == "bgr255" else fitted.astype(np.float32) / 255
        dtype = np.float16 if self.image_input.type == "tensor(float16)" else np.float32
        feeds: dict[str, np.ndarray] = {
            self.image_input.name: np.ascontiguousarray(values.transpose(2, 0, 1)[None], dtype=dtype)
        }
        for extra in self.session.get_inputs():
            if extra.name != self.image_input.name:
                # RT-DETR's second input: (width, height) that its boxes are scaled to.
                feeds[extra.name] = np.array([[self.size_hw[1], self.size_hw[0]]], dtype=np.int64)
        return [np.asarray(output) for output in self.session.run(None, feeds)]

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs; where the graph leaves some open, those for a grey image."""
        outputs = self.session.get_outputs()
        if all(isinstance(side, int) for output in outputs for side in output.shape):
            return {output.name: tuple(output.shape) for output in outputs}
        grey = np.full((*self.size_hw, 3), 114, dtype=np.uint8)
        return {o.name: a.shape for o, a in zip(outputs, self._run_network(grey, "rgb01"), strict=True)}


class OnnxDetector:
    """A detector in an ONNX file. Its `class_names` come from the caller, the file's metadata, or the class count."""

    def __init__(
        self,
        path: str | Path,
        *,
        class_names: str | Path | Sequence[str] | Mapping[int, str] | None = None,
        options: OnnxDetectorOptions | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load the file.

        Args:
            path: the ONNX file.
            class_names: names in the order of the class ids, or a file of them; None takes those in the file's
                metadata, else those of COCO (80 classes) or Open Images (601).
            options: thresholds.
            providers: ONNX Runtime's execution providers.

        Raises:
            ValueError: if the file is missing or not understood, or the names do not fit its number of classes.
        """
        given = None if class_names is None else read_names(class_names)
        self.graph = OnnxGraph(path, options, None if given is None else len(given), providers)
        self.class_names = _fitting_names(given, self.graph)

    @property
    def family(self) -> str:
        """The recognised family."""
        return self.graph.layout.family

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detections in `image`, (H, W, 3) uint8 RGB, best first."""
        candidates, placement, _ = self.graph.run(check_image_array(image))
        boxes = placement.boxes_to_original(candidates.boxes_xyxy)
        return [
            Detection((x0, y0, x1, y1), self._name(int(class_id)), float(score))
            for (x0, y0, x1, y1), class_id, score in zip(
                boxes.tolist(), candidates.class_ids, candidates.scores, strict=True
            )
            if x1 > x0 and y1 > y0
        ]

    def _name(self, class_id: int) -> str:
        return self.class_names[class_id] if 0 <= class_id < len(self.class_names) else f"class {class_id}"


def _open_session(path: Path, providers: Sequence[str]) -> Any:
    if not path.is_file():
        raise ValueError(f"No such ONNX file: {path}.")
    runtime = onnxruntime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3  # what is wrong is said in the error
    try:
        return runtime.InferenceSession(str(path), sess_options=settings, providers=list(providers))
    except Exception as error:
        # onnxruntime raises classes of its own for a damaged file, an unknown operator, a missing side file.
        raise ValueError(f"{path} cannot be loaded by ONNX Runtime: {' '.join(str(error).split())}") from error


def _image_input(session: Any) -> Any:
    """The input that takes the image: rank 4, three channels first, float."""
    inputs = session.get_inputs()
    for candidate in inputs:
        shape = candidate.shape
        channels_first = len(shape) == 4 and (shape[1] == 3 or isinstance(shape[1], str | None))
        batch_one = len(shape) == 4 and (shape[0] == 1 or isinstance(shape[0], str | None))
        if channels_first and batch_one and candidate.type in ("tensor(float)", "tensor(float16)"):
            return candidate
    found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
    raise ValueError(
        f"This ONNX file has no image input of the form (1, 3, height, width) in float32 or float16. Found: {found}. "
        f"Export the detector with batch 1 and channels first."
    )


def _input_size(shape: Sequence[Any], fallback: tuple[int, int], metadata: dict[str, str]) -> tuple[int, int]:
    """The graph's own size, else the one its metadata names (`imgsz`), else the fallback."""
    height, width = shape[2], shape[3]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    named = _literal(metadata.get("imgsz", ""))
    if isinstance(named, list | tuple) and len(named) == 2:
        return int(named[0]), int(named[1])
    return fallback


def _names_in_metadata(metadata: dict[str, str]) -> tuple[str, ...] | None:
    names = _literal(metadata.get("names", ""))
    return read_names(names) if isinstance(names, dict | list) and names else None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _fitting_names(given: tuple[str, ...] | None, graph: OnnxGraph) -> tuple[str, ...]:
    count = graph.layout.class_count
    if given is not None and count is not None and len(given) != count:
        raise ValueError(
            f"class_names holds {len(given)} names, and this {graph.layout.family} file has {count} classes. "
            f"Give the names in the order the detector was trained with."
        )
    names = given or graph.class_names
    if names is not None:
        return names
    # Without a count (NMS inside) the 80 COCO names are the likeliest; ids beyond them become "class N".
    return names_for(80 if count is None else count)
