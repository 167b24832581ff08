"""Segment anything: model, predictor, automatic masks, training, evaluation and export.

Names are imported at their first use, so that `import segment_anything` and the command line's help start at once;
torch comes with the first name that needs it.
"""

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segment_anything._weight_file import CheckpointError
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
    from segment_anything.build_sam import (
        build_sam,
        build_sam_nano,
        build_sam_vit_b,
        build_sam_vit_h,
        build_sam_vit_l,
        build_sam_vit_t,
        load_sam,
        sam_model_registry,
    )
    from segment_anything.checkpoints import inspect_checkpoint, load_checkpoint, save_checkpoint
    from segment_anything.embedding import ImageEmbedding
    from segment_anything.geometry import ImageGeometry
    from segment_anything.images import ImageReadError, read_image
    from segment_anything.modeling import Decoded, Sam
    from segment_anything.predictor import SamPredictor
    from segment_anything.prompts import Prompt, Prompts
    from segment_anything.records import MaskRecord

    __version__: str

__all__ = [
    "CheckpointError",
    "Decoded",
    "ImageEmbedding",
    "ImageGeometry",
    "ImageReadError",
    "MaskRecord",
    "Prompt",
    "Prompts",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "__version__",
    "build_sam",
    "build_sam_nano",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_t",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_sam",
    "read_image",
    "sam_model_registry",
    "save_checkpoint",
]

_HOMES = {
    "automatic_mask_generator": ("SamAutomaticMaskGenerator",),
    "build_sam": (
        "build_sam",
        "build_sam_nano",
        "build_sam_vit_b",
        "build_sam_vit_h",
        "build_sam_vit_l",
        "build_sam_vit_t",
        "load_sam",
        "sam_model_registry",
    ),
    "checkpoints": ("CheckpointError", "inspect_checkpoint", "load_checkpoint", "save_checkpoint"),
    "embedding": ("ImageEmbedding",),
    "geometry": ("ImageGeometry",),
    "images": ("ImageReadError", "read_image"),
    "modeling": ("Decoded", "Sam"),
    "predictor": ("SamPredictor",),
    "prompts": ("Prompt", "Prompts"),
    "records": ("MaskRecord",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Find a public name, or a submodule, at its first use."""
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("segment-anything-engine")
        except metadata.PackageNotFoundError:  # used from its source folder
            return "0+unknown"
    if name in _HOME_OF:
        _warn_once_of_namesakes()
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    # The original's submodules could be reached as attributes without an import of their own.
    if name == "utils":
        importlib.import_module(f"{__name__}.utils.amg")
        importlib.import_module(f"{__name__}.utils.transforms")
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`segment_anything.build_sam` is a function, as ever, although a submodule of that name exists.

    The import system sets a submodule as an attribute of its package whenever it is loaded, which would replace it.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "build_sam" and isinstance(value, ModuleType):
            value = value.build_sam
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


@functools.cache
def _warn_once_of_namesakes() -> None:
    from segment_anything._namesakes import warn_of_namesakes

    warn_of_namesakes()
