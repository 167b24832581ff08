"""Models as folders: config.json and model.safetensors, in this package's names or transformers' `SamModel`'s.

Neither needs transformers. `checkpoints` reads and writes single files (.pth, .safetensors), the original's and
MobileSAM's among them.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from segment_anything._transformers_layout import (
    POSITION,
    POSITION_AGAIN,
    build_from_config,
    processor_config,
    transformers_config,
    transformers_names,
)
from segment_anything.architectures import architecture, assemble, without_initialisation
from segment_anything.checkpoints import load_checkpoint, save_checkpoint
from segment_anything.modeling import Sam

__all__ = ["from_pretrained", "save_pretrained", "transformers_names"]

MODEL_TYPE = "segment-anything-engine"
LAYOUTS = ("native", "transformers")

Folder = str | os.PathLike[str]


def save_pretrained(sam: Sam, folder: Folder, layout: str = "native") -> Path:
    """Write a model as a folder of config.json and model.safetensors.

    Args:
        sam: the model.
        folder: where to; made if need be.
        layout: "native" for this package; "transformers" for `transformers.SamModel.from_pretrained` (ViT models),
            with the configuration of its image processor beside it.

    Raises:
        ValueError: for another layout, or a model that the layout has no place for.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}.")
    target = Path(folder)
    if layout == "native":
        architecture(sam.name)  # refuses a model that could not be built again from its name
        config: dict[str, Any] = {"model_type": MODEL_TYPE, "architecture": sam.name, "image_size": sam.image_size}
        save_checkpoint(sam, target / "model.safetensors")
    else:
        config = transformers_config(sam)
        names = transformers_names(sam)
        tensors = {names[name]: tensor.detach().cpu().contiguous() for name, tensor in sam.state_dict().items()}
        tensors[POSITION_AGAIN] = tensors[POSITION].clone()
        target.mkdir(parents=True, exist_ok=True)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        _write_json(target / "preprocessor_config.json", processor_config(sam))
    _write_json(target / "config.json", config)
    return target


def from_pretrained(folder: Folder) -> Sam:
    """Read a folder that `save_pretrained` wrote in either layout, or `transformers.SamModel.save_pretrained` did.

    Returns:
        the model on the CPU, in eval mode.

    Raises:
        ValueError: if it is no such folder; the message says what is missing.
    """
    source = Path(folder)
    config_file, weights = source / "config.json", source / "model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise ValueError(
                f"{source} is not the folder of a model: {file.name} is missing. For a single weight file take "
                "load_sam(name, checkpoint=FILE); a model on a hub has to be downloaded into a folder first."
            )
    config = json.loads(config_file.read_text("utf-8"))
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        with without_initialisation():
            sam = assemble(config["architecture"], config["image_size"])
        load_checkpoint(sam, weights, assign=True)
        return sam.eval()
    if kind == "sam":
        return _load_transformers(build_from_config(config), weights)
    raise ValueError(f'{config_file}: model_type must be "{MODEL_TYPE}" or "sam" (transformers); got {kind!r}.')


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _load_transformers(sam: Sam, file: Path) -> Sam:
    tensors = load_file(file)
    names = transformers_names(sam)
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    allowed = {*names.values(), POSITION_AGAIN}
    unknown = [theirs for theirs in tensors if theirs not in allowed]
    if missing or unknown:
        raise ValueError(
            f"{file} is not of the model that its config.json describes: "
            f"{len(missing)} entries are missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unknown)} are not known ({', '.join(unknown[:3]) or 'none'})."
        )
    own = sam.state_dict()
    for name, theirs in names.items():
        if own[name].shape != tensors[theirs].shape:
            raise ValueError(
                f"{file}: {theirs} has shape {tuple(tensors[theirs].shape)}, and config.json asks for "
                f"{tuple(own[name].shape)}."
            )
    sam.load_state_dict({name: tensors[theirs].float() for name, theirs in names.items()}, assign=True)
    return sam.eval()
