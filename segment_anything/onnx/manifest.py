"""The JSON beside exported graphs: which model they are, and what a program must know to use them."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

FORMAT = "segment-anything onnx 1"

FILE_NAMES = {
    "encoder": "{model}_encoder.onnx",
    "decoder": "{model}_decoder.onnx",
    "batched": "{model}_decoder_batched.onnx",
    "prepare": "{model}_prepare.onnx",
    "prepared": "{model}_decoder_prepared.onnx",
}
"""Graphs by their role: image encoder; decoder with the original's interface; decoder of many objects; what the last
decoder needs once an image; decoder of many objects without masks, in less work."""

KEY = "segment_anything."
"""Begins the names of metadata inside the graphs: `segment_anything.weights_fingerprint`, ..."""


@dataclass(frozen=True)
class Check:
    """How far a graph is from torch, measured when it was exported."""

    max_deviation: float
    """Largest difference of any output, as a share of the standard deviation of torch's."""
    mask_agreement: float
    """Share of pixels on the same side of the threshold."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the JSON holds. Sizes are in pixels or cells a side."""

    model: str
    image_size: int
    embedding_size: int
    embedding_channels: int
    mask_input_size: int
    mask_threshold: float
    pixel_mean: list[float]
    """Of RGB values 0..255, subtracted from the input."""
    pixel_std: list[float]
    """Of RGB values 0..255, which the input is divided by."""
    normalises: bool
    """Whether the encoder takes `image` (h, w, 3) uint8, or `input` (1, 3, S, S) float32 normalised and padded."""
    precision: str
    opset: int
    encoder_fingerprint: str
    """Of the image encoder's weights: what embeddings are known by."""
    weights_fingerprint: str
    """Of all weights: what graphs are known by."""
    weights_license: str
    files: dict[str, str]
    """File names by role (`FILE_NAMES`)."""
    checks: dict[str, Check] = field(default_factory=dict)
    """By role."""
    written_by: str = ""

    def save(self, folder: Path) -> Path:
        """Write `MODEL.json` into a folder."""
        path = folder / f"{self.model}.json"
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", "utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[Self, Path]:
        """Read an export.

        Args:
            path: the JSON, or a folder with one such.

        Returns:
            what it says, and the folder it lies in.

        Raises:
            ValueError: if there is none, several, or it is something else.
        """
        file = _find(Path(path))
        content = _read(file)
        if content is None:
            raise ValueError(f"{file} is not the JSON of an export (format {FORMAT!r}); {_CURE}")
        known = {item.name for item in fields(cls)}
        missing = sorted(known - {"checks", "written_by"} - content.keys())
        if missing:
            raise ValueError(f"{file} lacks {', '.join(missing)}: export the model again.")
        try:
            checks = {role: Check(**check) for role, check in content.pop("checks", {}).items()}
        except (AttributeError, TypeError):
            raise ValueError(
                f"{file}: checks must hold {', '.join(_CHECKED)} by role: export the model again."
            ) from None
        return cls(checks=checks, **{name: value for name, value in content.items() if name in known}), file.parent

    def metadata(self, role: str) -> dict[str, str]:
        """What is written into the graph of that role itself."""
        names = ("model", "image_size", "precision", "weights_fingerprint", "weights_license")
        return {KEY + "role": role, **{KEY + name: str(getattr(self, name)) for name in names}}


_CHECKED = [item.name for item in fields(Check)]
_CURE = "`segment-anything export MODEL --out FOLDER` writes one."


def _find(path: Path) -> Path:
    if path.is_file() and path.suffix == ".json":
        return path
    if path.is_file():
        raise ValueError(f"{path}: give the JSON beside the graph, or their folder, not a single file.")
    if not path.is_dir():
        raise ValueError(f"There is no export at {path}: {_CURE}")
    files = sorted(path.glob("*.json"))
    found = [file for file in files if _read(file) is not None]
    if len(found) != 1:
        others = f" (not one, or damaged: {', '.join(file.name for file in files)})" if files else ""
        several = f"{len(found)} exports ({', '.join(file.name for file in found)}); give one of them"
        held = several if found else f"none{others}"
        raise ValueError(f"{path} should hold the JSON of one export, but holds {held}. {_CURE if not found else ''}")
    return found[0]


def _read(file: Path) -> dict[str, Any] | None:
    """The content of the JSON of an export, or None of any other file."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) and content.pop("format", None) == FORMAT else None
