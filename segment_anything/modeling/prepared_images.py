"""Keeps the decoders that were prepared for the images asked about last."""

import threading
import weakref
from collections.abc import Callable

import torch

from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prepared_decoder import PreparedDecoder, is_known
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.weights_watch import WeightsWatch, tensor_states


class DecoderWatch(WeightsWatch):
    """The weights of what meets an image, and whether the decoder can be prepared for one."""

    def __init__(self, encoder: PromptEncoder, decoder: MaskDecoder) -> None:
        """Args: as in a model."""
        super().__init__(encoder, decoder)
        self._is_known = is_known(decoder)
        self._hooks = [hooks for m in decoder.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]

    def can_prepare(self) -> bool:
        """As `prepared_decoder.can_prepare`, a tenth of the time: hooks come and go, modules are watched."""
        return self._is_known and not any(self._hooks)


class PreparedImages:
    """The prepared decoders of the few images asked about last. Threads may share it; copies of it start empty."""

    def __init__(self, capacity: int = 4) -> None:
        """Args: capacity: images kept; each takes about ten times the memory of its embedding, at most."""
        self._capacity = capacity
        self._kept: list[tuple[weakref.ref[torch.Tensor], object, PreparedDecoder]] = []
        self._watch: DecoderWatch | None = None
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def __reduce__(self) -> tuple[type["PreparedImages"], tuple[int]]:
        return PreparedImages, (self._capacity,)

    def watch(self, encoder: PromptEncoder, decoder: MaskDecoder) -> DecoderWatch:
        """The same object for as long as the modules and their weights stay what they are; a state for `get`."""
        with self._lock:
            if self._watch is None or self._watch.modules != (encoder, decoder) or not self._watch.unchanged():
                self._watch = DecoderWatch(encoder, decoder)
            return self._watch

    def get(self, features: torch.Tensor, state: object, prepare: Callable[[], PreparedDecoder]) -> PreparedDecoder:
        """The decoder prepared for an embedding before, or a new one.

        Args:
            features: the embedding; the entry goes when it does.
            state: compared by value: whatever else the prepared decoder was made from (`watch`).
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
