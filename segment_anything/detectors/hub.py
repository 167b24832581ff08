"""Models of the transformers library by local folder or hub name, with one clear error when neither is there."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segment_anything._optional import require

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def transformers() -> Any:
    """The transformers module.

    Raises:
        ImportError: if it is not installed, naming the extra `text`.
    """
    return require("transformers", extra="text")


def load_pretrained(loader: Callable[..., Any], name_or_folder: str | Path, **options: Any) -> Any:
    """`loader(name_or_folder)` for a `from_pretrained`, with errors that say what to do.

    Args:
        loader: a `from_pretrained` of transformers.
        name_or_folder: a folder holding a saved model, or a hub name such as "owner/model".
        options: passed on.

    Raises:
        ValueError: if it is neither a folder with a model nor a hub name that can be reached, or holds another model.
    """
    folder = Path(name_or_folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"The folder {folder} holds no model: it has no config.json. Save one with save_pretrained.")
    if not folder.exists() and not _HUB_NAME.fullmatch(str(name_or_folder)):
        raise ValueError(
            f"No such folder: {name_or_folder}. Give the folder of a saved model, or a hub name such as "
            f'"openai/clip-vit-base-patch32".'
        )
    try:
        with _hub_silent():
            return loader(str(name_or_folder), **options)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"The model in {folder} cannot be loaded: {_first_line(error)}") from error
        raise ValueError(
            f"{str(name_or_folder)!r} is no local folder, and the Hugging Face hub did not give it "
            f"({_first_line(error)}). On a machine with a network run "
            f"`hf download {name_or_folder} --local-dir FOLDER`, copy the folder here, and give its path instead."
        ) from error


@contextmanager
def _hub_silent() -> Iterator[None]:
    """Without the hub library's line for each of its retries: the error says at the end what is wrong."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load_image_processor(name_or_folder: str | Path) -> Any:
    """The model's own image processor, of the kind on Pillow: torchvision is not among our dependencies."""
    return load_pretrained(transformers().AutoImageProcessor.from_pretrained, name_or_folder, backend="pil")


def pick_device(device: str | torch.device) -> torch.device:
    """`device`, with "auto" meaning a GPU where there is one."""
    if str(device) != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
