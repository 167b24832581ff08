"""Imports optional libraries at the point of use, and says which extra brings them."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the optional dependency group `extra` installs.

    Raises:
        ImportError: if it is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.partition('.')[0]} is needed here and is not installed ({error}). "
            f'Install it with: pip install "segment-anything-engine[{extra}]"'
        ) from error
