"""Notices that a network's weights, or the modules it is made of, are no longer what they were."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn


class WeightsWatch:
    """What some modules were made of at one time.

    Looking again takes a quarter of the time of `state_dict` (0.3 ms for a ViT-H): tables are compared, not walked.
    """

    def __init__(self, *modules: nn.Module) -> None:
        """Args: modules: to watch, with all that is inside them."""
        self.modules = modules
        self._inside = list(chain.from_iterable(module.modules() for module in modules))
        tables = [table for m in self._inside for table in (m._parameters, m._buffers, m._modules)]
        self._tables = [(table, len(table)) for table in tables]
        self._entries = [(table, name, value) for table in tables for name, value in table.items()]
        self.tensors = [
            value
            for m in self._inside
            for value in chain(m._parameters.values(), m._buffers.values())
            if value is not None
        ]
        self._states = tensor_states(self.tensors)

    def __reduce__(self) -> tuple[type["WeightsWatch"], tuple[nn.Module, ...]]:
        return WeightsWatch, self.modules

    def unchanged(self) -> bool:
        """Whether no weight was written to or replaced, and no module put in, taken out or exchanged, since then."""
        return (
            all(len(table) == size for table, size in self._tables)
            and all(name in table and table[name] is value for table, name, value in self._entries)
            and tensor_states(self.tensors) == self._states
        )

    def has_hooks(self) -> bool:
        """Whether somebody watches or changes what goes in or out of a module."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self._inside)


def tensor_states(tensors: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes when a tensor is written to or replaced. (Inference tensors keep no count of writes.)"""
    return tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)
