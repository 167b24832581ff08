"""Keeps the decoders that were prepared for the images asked about last."""

import threading
import weakref
from collections.abc import Callable, Iterable

import torch

from segment_anything.modeling.prepared_decoder import PreparedDecoder


class PreparedImages:
    """The prepared decoders of the few images asked about last. Threads may share it; copies of it start empty."""

    def __init__(self, capacity: int = 4) -> None:
        """Args: capacity: images kept; each takes about four times the memory of its embedding."""
        self._capacity = capacity
        self._kept: list[tuple[weakref.ref[torch.Tensor], object, PreparedDecoder]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["PreparedImages"], tuple[int]]:
        return PreparedImages, (self._capacity,)

    def get(self, features: torch.Tensor, state: object, prepare: Callable[[], PreparedDecoder]) -> PreparedDecoder:
        """The decoder prepared for an embedding before, or a new one.

        Args:
            features: the embedding; the entry goes when it does.
            state: compared by value: whatever else the prepared decoder was made from (`tensor_states`).
            prepare: makes a new one.
        """
        key = (tensor_states([features]), state)
        with self._lock:
            for known, known_key, prepared in self._kept:
                if known() is features and known_key == key:
                    return prepared
        prepared = prepare()
        with self._lock:
            others = [entry for entry in self._kept if entry[0]() is not None and entry[0]() is not features]
            self._kept = [(weakref.ref(features), key, prepared), *others][: self._capacity]
        return prepared


def tensor_states(tensors: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes when a tensor is written to or replaced. (Inference tensors keep no count of writes.)"""
    return tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)
