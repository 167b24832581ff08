"""Checks what a caller passes as a mask: a numpy array or a torch tensor, of bools or whole numbers.

Torch is never imported here: a program that passes a tensor has done so (`segment_anything.onnx` lives without it).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
ArrayLike: TypeAlias = "npt.NDArray[Any] | torch.Tensor"


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """`array` (sequence, numpy array or tensor on any device) as a numpy array; bfloat16 becomes float32."""
    if is_tensor(array):
        array = array.detach().cpu()
        return np.asarray((array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy())
    return np.asarray(array)


def as_bool(mask: ArrayLike, ndim: int, name: str = "mask") -> BoolArray:
    """`mask` as a bool numpy array of `ndim` dimensions; whole numbers are true where they are not 0.

    Raises:
        ValueError: if the number of dimensions differs, or the values are floats (which level is an object's is the
            caller's decision).
    """
    array = to_numpy(mask)
    if array.ndim != ndim:
        wanted = {2: "(H, W)", 3: "(N, H, W)"}[ndim]
        cure = "; add an axis with mask[None]" if array.ndim == ndim - 1 else ""
        raise ValueError(f"{name} must have shape {wanted}, but has shape {array.shape}{cure}")
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold bools, but holds {array.dtype}; threshold it first, for example mask > 0")
    return np.asarray(array != 0)
