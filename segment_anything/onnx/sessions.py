"""Opens graphs with ONNX Runtime, and says in one line what is wrong with a file, a provider or an input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segment_anything._onnxruntime import onnxruntime
from segment_anything.onnx.manifest import KEY, Manifest

Array = npt.NDArray[Any]

SHORT = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Short names of ONNX Runtime's execution providers."""


def chosen_providers(providers: Sequence[str] | str | None) -> list[str]:
    """The full names of the providers to try, in order.

    Args:
        providers: names, short ("cpu", "cuda") or full; None for CUDA where it is there, and the CPU.

    Raises:
        ValueError: for one that this ONNX Runtime does not have.
        ImportError: if onnxruntime is not installed.
    """
    available: list[str] = onnxruntime().get_available_providers()
    if providers is None:
        return [name for name in (SHORT["cuda"], SHORT["cpu"]) if name in available]
    wanted = [SHORT.get(name, name) for name in ([providers] if isinstance(providers, str) else providers)]
    for name in wanted:
        if name not in available:
            cure = " CUDA comes with the distribution onnxruntime-gpu." if name == SHORT["cuda"] else ""
            raise ValueError(
                f"providers: this ONNX Runtime has no {name!r}, only {', '.join(available)}.{cure} "
                "Leave providers out to take what is there."
            )
    return wanted


class Graph:
    """One graph of an export, ready to run. Threads may share it."""

    def __init__(
        self, role: str, manifest: Manifest, folder: Path, providers: Sequence[str], threads: int | None
    ) -> None:
        """Open the file.

        Raises:
            ValueError: if it is not there, no such graph, or of another model than the JSON says.
        """
        self.path = folder / manifest.files[role]
        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing, which {manifest.model}.json names: export the model again.")
        self.session = _open(self.path, providers, threads)
        self.inputs = {value.name: tuple(value.shape) for value in self.session.get_inputs()}
        self.outputs = tuple(value.name for value in self.session.get_outputs())
        metadata = self.session.get_modelmeta().custom_metadata_map
        for name in ("role", "weights_fingerprint"):
            found, expected = metadata.get(KEY + name), role if name == "role" else manifest.weights_fingerprint
            if found != expected:
                raise ValueError(
                    f"{self.path} belongs to another model or form than {manifest.model}.json says ({name} "
                    f"{str(found)[:12]}, expected {expected[:12]}): keep the files of one export together."
                )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            ValueError: for an input that is missing, unknown or of another shape.
        """
        if inputs.keys() != self.inputs.keys():
            raise ValueError(f"{self.path.name} takes {', '.join(self.inputs)}; got {', '.join(inputs)}.")
        for name, shape in self.inputs.items():
            given = inputs[name].shape
            fits = len(given) == len(shape) and all(
                isinstance(side, str) or side == size for side, size in zip(shape, given, strict=True)
            )
            if not fits:
                words = ", ".join(str(side) for side in shape)
                raise ValueError(f"{name} of {self.path.name} must have shape ({words}); got {given}.")
        return dict(zip(self.outputs, self.session.run(None, dict(inputs)), strict=True))


def _open(path: Path, providers: Sequence[str], threads: int | None) -> Any:
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), sess_options=options, providers=list(providers))
    except Exception as error:
        # onnxruntime raises classes of its own for a damaged file, an unknown operator, a missing data file.
        raise ValueError(f"{path} cannot be loaded by ONNX Runtime: {' '.join(str(error).split())}") from error
    check_started(providers, session.get_providers())
    return session


def check_started(asked: Sequence[str], running: Sequence[str]) -> None:
    """Refuse a provider that nobody asked for: ONNX Runtime takes the CPU where the libraries of CUDA are not found.

    Raises:
        ValueError: naming both.
    """
    if asked and running[0] not in asked:
        raise ValueError(
            f"providers: ONNX Runtime has {asked[0]!r} but could not start it and took {running[0]!r}: libraries or "
            'the device are missing. Take providers="cpu", or leave providers out to take what starts.'
        )


def to_float32(array: Any) -> npt.NDArray[np.float32]:
    """A contiguous float32 array, which is what graphs take."""
    return np.ascontiguousarray(array, dtype=np.float32)
