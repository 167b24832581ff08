"""Reads named tensors out of a weight file, or says in one line what the file is instead.

No code in a file is ever run: PyTorch files are read with `weights_only`. The tensors lie in a memory map of the file,
so that looking at a checkpoint of several GB takes no memory; copy those that are to stay.
"""

import json
import pickle
import re
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
"""What the names of every SAM's entries begin with, once prefixes are gone."""

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "network", "net", "module", "weights")
"""Keys under which trainers keep the weights, beside the optimizer's state and counters."""

SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
HARMLESS: list[Any] = [
    Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")),
    # numpy 1 and 2 name the same two functions differently
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""Plain values that trainers store beside the weights (options, a best loss); building them runs no code."""


class CheckpointError(ValueError, RuntimeError):
    """The file is not the weights it should be. (The original raised RuntimeError from `load_state_dict`.)"""


@dataclass(frozen=True)
class WeightFile:
    """The weights in a file, under the names of the published checkpoints."""

    path: Path
    format: str
    """`PyTorch` or `safetensors`."""
    tensors: dict[str, Tensor]
    """Memory-mapped, on the CPU, as stored."""
    wrapper: str
    """Key of the trainer's dictionary that held them, or ''."""
    prefix: str
    """What all names began with, now removed: `module.`, `model.sam.`, or ''."""
    metadata: dict[str, str]
    """Text stored beside the tensors (safetensors only)."""
    training: str = ""
    """Where the training run stood whose state this is (`resume.pt` of this package's loop), or ''."""


def read_weight_file(path: Path, expected_bytes: int | None = None) -> WeightFile:
    """Read the tensors of a `.pth`, `.pt` or `.safetensors` file; the content decides, not the suffix.

    Args:
        path: an existing file.
        expected_bytes: its size, where it is known; named when the file is cut short.

    Raises:
        CheckpointError: if the file is empty, cut short, a web page, a Git LFS pointer, a pickled program, or otherwise
            no state dict.
    """
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    of_expected = f"{size} of {expected_bytes} bytes" if expected_bytes and size < expected_bytes else f"{size} bytes"
    _refuse_what_is_no_weights(path, head)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        tensors, metadata = _read_safetensors(path, size, of_expected)
        return _cleaned(path, "safetensors", tensors, "", metadata)
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path, of_expected)
    elif not head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path} is not a weight file: it starts with {head[:12]!r}. Expected .pth, .pt or .safetensors."
        )
    loaded = _unpickle(path, mmap=head.startswith(b"PK"))
    state_dict, wrapper = _unwrap(path, loaded)
    return replace(_cleaned(path, "PyTorch", state_dict, wrapper, {}), training=_training_state(loaded))


def _refuse_what_is_no_weights(path: Path, head: bytes) -> None:
    text = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes). Download it again.")
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        size = re.search(rb"size (\d+)", head)
        raise CheckpointError(
            f"{path} is a Git LFS pointer to {size[1].decode() if size else '?'} bytes, not the weights themselves. "
            "Run `git lfs pull` in its repository, or download the file."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not weights: the download brought an error or a login page. Download it again."
        )


def _read_safetensors(path: Path, size: int, of_expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = file.read(header_bytes)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        short = len(header) < header_bytes
        raise CheckpointError(
            f"{path} is cut short: its header ends early ({of_expected}). Download it again."
            if short
            else f"{path} is damaged: its safetensors header cannot be read ({error})."
        ) from error
    needed = 8 + header_bytes + max(ends, default=0)
    if size < needed:
        raise CheckpointError(f"{path} is cut short: {size} of {needed} bytes. Download it again.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Download it again.") from error


def _check_archive(path: Path, of_expected: str) -> None:
    """A ZIP archive keeps its table of contents at the end, which a broken download loses."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is cut short or damaged: {of_expected}, and its table of contents at the end is missing. "
            "Download it again."
        ) from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is a ZIP archive without PyTorch weights; it holds {', '.join(names[:3])}.")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program, not a state dict. Save model.state_dict() instead.")


def _unpickle(path: Path, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a pickled {found[1]}" if found else "more than tensors"
        raise CheckpointError(
            f"{path} holds {what}, and loading that may run code, so it is refused. Where you trust the file, save "
            "model.state_dict() alone from the program that made it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}. Download it again.") from error


def _unwrap(path: Path, loaded: Any) -> tuple[dict[str, Tensor], str]:
    """The state dict inside what a trainer saved, and the key it was under."""
    wrapper: list[str] = []
    while isinstance(loaded, Mapping):
        tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
        inner = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if tensors or inner is None:
            break
        wrapper.append(inner)
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a state dict (names to tensors).")
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name; its keys are {', '.join(map(str, list(loaded)[:5])) or 'none'}."
        )
    return tensors, ".".join(wrapper)


def _training_state(loaded: Any) -> str:
    """What `training/loop.py` notes beside the weights that it goes on from, in words; '' for any other file."""
    position, identity = (loaded.get(key) if isinstance(loaded, Mapping) else None for key in ("position", "identity"))
    if not isinstance(position, Mapping) or not isinstance(identity, Mapping):
        return ""
    trained = f" ({identity['train']})" if "train" in identity else ""
    return f"of {identity.get('model', '?')}{trained}, epoch {position.get('epoch')}, step {position.get('step')}"


def _cleaned(
    path: Path, file_format: str, tensors: dict[str, Tensor], wrapper: str, metadata: dict[str, str]
) -> WeightFile:
    """Take off what trainers put before the names: `module.` (data parallel), `model.`, `_orig_mod.` (compiled)."""
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    before = Counter(found[1] for name in tensors if (found := re.match(rf"((?:.*?\.)??)(?:{_any_part()})", name)))
    prefix = before.most_common(1)[0][0] if before else ""
    return WeightFile(
        path=path,
        format=file_format,
        tensors={
            re.sub(rf"^({_any_part()})module\.", r"\1", name.removeprefix(prefix)): tensor
            for name, tensor in tensors.items()
            # outside the prefix lie the trainer's own things; pixel statistics are constants here
            if name.startswith(prefix) and name.removeprefix(prefix) not in ("pixel_mean", "pixel_std")
        },
        wrapper=wrapper,
        prefix=prefix,
        metadata=metadata,
    )


def _any_part() -> str:
    return "|".join(map(re.escape, PARTS))
