"""Keeps the decoders that were prepared for the images asked about last."""

import threading
import weakref
from collections.abc import Callable

import torch
from torch import nn

from segment_anything.modeling.prepared_decoder import PreparedDecoder
from segment_anything.modeling.weights_watch import WeightsWatch, tensor_states


class PreparedImages:
    """The prepared decoders of the few images asked about last. Threads may share it; copies of it start empty."""

    def __init__(self, capacity: int = 4) -> None:
        """Args: capacity: images kept; each takes about ten times the memory of its embedding, at most."""
        self._capacity = capacity
        self._kept: list[tuple[weakref.ref[torch.Tensor], object, PreparedDecoder]] = []
        self._watch: WeightsWatch | None = None
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def __reduce__(self) -> tuple[type["PreparedImages"], tuple[int]]:
        return PreparedImages, (self._capacity,)

    def weights(self, *modules: nn.Module) -> WeightsWatch:
        """The same object for as long as the modules and their weights stay what they are; a state for `get`."""
        with self._lock:
            if self._watch is None or self._watch.modules != modules or not self._watch.unchanged():
                self._watch = WeightsWatch(*modules)
            return self._watch

    def get(self, features: torch.Tensor, state: object, prepare: Callable[[], PreparedDecoder]) -> PreparedDecoder:
        """The decoder prepared for an embedding before, or a new one.

        Args:
            features: the embedding; the entry goes when it does.
            state: compared by value: whatever else the prepared decoder was made from (`weights`).
            prepare: makes a new one.
        """
        key = (tensor_states([features]), state)
        with self._preparing:  # those who ask for the same image at the same time wait for one of them
            found = self._find(features, key)
            if found is None:
                found = prepare()
                with self._lock:
                    others = [entry for entry in self._kept if entry[0]() is not None and entry[0]() is not features]
                    self._kept = [(weakref.ref(features), key, found), *others][: self._capacity]
        return found

    def _find(self, features: torch.Tensor, key: object) -> PreparedDecoder | None:
        with self._lock:
            for known, known_key, prepared in self._kept:
                if known() is features and known_key == key:
                    return prepared
        return None
