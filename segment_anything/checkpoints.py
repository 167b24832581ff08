"""Weights on disk: find, fetch, recognise, check, load and save them.

Which tensors a file holds is `_weight_file`'s business, which network they are for `_recognise`'s, and how bytes come
over a network `_download`'s.
"""

import os
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from segment_anything._download import DownloadError, RemoteFile, download, sha256_of
from segment_anything._recognise import (
    CheckpointInfo,
    compare,
    differences,
    inspect,
    recognise,
    relative_of,
    resample_table,
    shapes_of,
)
from segment_anything._weight_file import CheckpointError, WeightFile, read_weight_file
from segment_anything.architectures import ARCHITECTURES, architecture
from segment_anything.modeling import Sam

__all__ = [
    "BUNDLED",
    "PUBLISHED",
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointNotFoundError",
    "cache_folder",
    "fetch_checkpoint",
    "find_checkpoint",
    "find_published",
    "inspect_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]

PUBLISHED = {
    "vit_h": RemoteFile(
        file="sam_vit_h_4b8939.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        size_bytes=2564550879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    "vit_l": RemoteFile(
        file="sam_vit_l_0b3195.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        size_bytes=1249524607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_b": RemoteFile(
        file="sam_vit_b_01ec64.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        size_bytes=375042383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_t": RemoteFile(
        file="mobile_sam.pt",
        url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        size_bytes=40728226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
}
"""The published weights by model name, at their official addresses; all Apache-2.0."""

BUNDLED = {"nano": Path(__file__).parent / "weights" / "nano.safetensors"}
"""The weights inside the package, by model name."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No such weights on this machine, and none could be fetched."""

    __str__ = ValueError.__str__  # not the "[Errno ...]" form of OSError


def cache_folder() -> Path:
    """Where fetched weights are kept: `$SEGMENT_ANYTHING_HOME`, else `segment_anything` in the platform's cache."""
    if chosen := os.environ.get("SEGMENT_ANYTHING_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "segment_anything"


def find_published(name: str) -> Path | None:
    """The published (or bundled) weights of the model called `name` on this machine, or None.

    Raises:
        ValueError: if there is no such model.
        CheckpointError: if the file in the cache folder has not the published size.
    """
    architecture(name)
    if name in BUNDLED:
        return BUNDLED[name] if BUNDLED[name].is_file() else None
    remote = PUBLISHED[name]
    path = cache_folder() / remote.file
    if not path.is_file():
        return None
    if path.stat().st_size != remote.size_bytes:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, but the published {remote.file} has {remote.size_bytes}: the "
            "copy is incomplete, or it is another file. Delete it, or pass it as checkpoint= to use it nevertheless."
        )
    return path


def fetch_checkpoint(name: str, *, progress: bool = True) -> Path:
    """The published (or bundled) weights of the model called `name`, downloaded into the cache folder if need be.

    Raises:
        CheckpointNotFoundError: if they are not here and cannot be fetched; the message says which file to put where.
    """
    if found := find_published(name):
        return found
    if name in BUNDLED:
        raise CheckpointNotFoundError(
            f"The bundled weights {BUNDLED[name]} are missing from this installation. Reinstall "
            f'segment-anything-engine, or take load_sam("{name}", checkpoint="random") for random weights.'
        )
    remote, folder = PUBLISHED[name], cache_folder()
    try:
        return download(remote, folder, progress=progress)
    except DownloadError as error:
        raise CheckpointNotFoundError(_which_file_where(name, remote, folder, str(error))) from error


def _which_file_where(name: str, remote: RemoteFile, folder: Path, reason: str) -> str:
    return (
        f"The weights of {name} are not on this machine and could not be downloaded: {reason}. "
        f"Put the file {remote.file} ({remote.size_bytes} bytes, from {remote.url}) into the folder {folder}, "
        f"or pass its path as checkpoint=."
    )


def find_checkpoint(checkpoint: str | os.PathLike[str]) -> Path:
    """The file meant by a path, or by the name of a file in the cache folder.

    Raises:
        CheckpointNotFoundError: if there is none; the message says where it was looked for.
        CheckpointError: if it is a folder.
    """
    path = Path(checkpoint).expanduser()
    in_cache = cache_folder() / path.name
    if path.is_dir():
        weights = sorted(p.name for p in path.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
        raise CheckpointError(
            f"{path} is a folder, expected a file; weight files in it: {', '.join(weights) or 'none'}."
        )
    if path.is_file():
        return path
    if path.parent == Path() and in_cache.is_file():
        return in_cache
    owner = next((name for name, remote in PUBLISHED.items() if remote.file == path.name), None)
    cure = (
        f'load_sam("{owner}") downloads it, or fetch {PUBLISHED[owner].url} yourself.'
        if owner
        else "Check the path, or put the file there."
    )
    looked = f"{path} and {in_cache}" if path.parent == Path() else str(path)
    raise CheckpointNotFoundError(f"There is no checkpoint {path.name}; looked for {looked}. {cure}")


def read_checkpoint(checkpoint: str | os.PathLike[str]) -> WeightFile:
    """Find and read a weight file; its tensors stay memory-mapped.

    Raises:
        CheckpointNotFoundError: if there is no such file.
        CheckpointError: if it holds no state dict; the message says what it is instead.
    """
    path = find_checkpoint(checkpoint)
    published = {remote.file: remote.size_bytes for remote in PUBLISHED.values()}
    return read_weight_file(path, published.get(path.name))


def inspect_checkpoint(checkpoint: str | os.PathLike[str], *, verify: bool = False) -> CheckpointInfo:
    """Say what a weight file is: which network, which input size, what is missing or too much.

    Args:
        checkpoint: a path, or the name of a file in the cache folder.
        verify: hash a file that has the size of a published one, and say whether it is that one (seconds for vit_h).

    Raises:
        CheckpointNotFoundError: if there is no such file.
        CheckpointError: if it holds no state dict; the message says what it is instead.
    """
    file = read_checkpoint(checkpoint)
    return inspect(file, _published_as(file.path) if verify else "")


def _published_as(path: Path) -> str:
    for name, remote in PUBLISHED.items():
        if path.stat().st_size == remote.size_bytes:
            same = sha256_of(path) == remote.sha256
            return f"{name}, SHA-256 verified" if same else f"no: as large as {name}'s, but its SHA-256 differs"
    return ""


def load_checkpoint(sam: Sam, file: WeightFile | str | os.PathLike[str], *, assign: bool = False) -> None:
    """Put the weights of a file into `sam`; position tables made for another input size are resampled.

    Args:
        sam: a model with its name (as builders make it).
        file: a path, the name of a file in the cache folder, or what `read_checkpoint` returned.
        assign: replace the parameters by float32 copies instead of writing into them: for a model built just now.

    Raises:
        CheckpointError: if the file is for another model, or entries are missing, unexpected or of another shape.
    """
    if not isinstance(file, WeightFile):
        file = read_checkpoint(file)
    expected = shapes_of(sam.state_dict())
    problem = differences(*compare(shapes_of(file.tensors), expected))
    if problem:
        raise CheckpointError(_diagnosis(file, sam.name, problem))
    tensors = {name: resample_table(tensor, expected[name]) for name, tensor in file.tensors.items()}
    if assign:  # parameters must not live in a memory map: they would change or crash with the file
        tensors = {name: _own_copy(tensor) for name, tensor in tensors.items()}
    sam.load_state_dict(tensors, assign=assign)


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _diagnosis(file: WeightFile, asked: str, problem: str) -> str:
    shapes = shapes_of(file.tensors)
    model = recognise(shapes)
    if model and model != asked:
        return (
            f'{file.path} is {model}; you asked for {asked}. Use sam_model_registry["{model}"](checkpoint=...) or '
            f'load_sam("{model}", checkpoint=...).'
        )
    if relative := relative_of(shapes):
        return f"{file.path} is {relative}; this package loads {', '.join(ARCHITECTURES)}."
    return f"{file.path} does not fit {asked}: {problem}."


def save_checkpoint(sam: Sam, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
    """Write the weights of `sam` to a `.safetensors`, `.pth` or `.pt` file, which appears only when it is whole.

    Args:
        sam: the model.
        path: where to; folders are made. The suffix chooses the format; `.safetensors` also notes model and size.
        dtype: store floating-point weights as this (float16 halves the file); None keeps theirs.

    Raises:
        ValueError: for another suffix, or a dtype that is not floating-point.
    """
    target = Path(path).expanduser()
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"path must end in .safetensors, .pth or .pt; got {target.name!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as torch.float16; got {dtype}.")
    tensors = {
        name: tensor.detach().to("cpu", (dtype if tensor.is_floating_point() else None) or tensor.dtype).contiguous()
        for name, tensor in sam.state_dict().items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            if target.suffix == ".safetensors":
                file.write(save(tensors, {"format": "pt", "model": sam.name, "image_size": str(sam.image_size)}))
            else:
                torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
