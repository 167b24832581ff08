"""Calls of a function on tensors of known shapes, recorded once and replayed: what CUDA graphs are for.

A network at batch 1 is hundreds of small kernels, and starting each from Python takes longer than some of them run. A
graph starts them all at once, on the same memory each time: inputs are copied in, results are copied out.

Knows neither networks nor CUDA: a `Recorder` is given, which on CUDA is `CudaGraphs`.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Tensors = tuple[torch.Tensor, ...]


class Recorder(Protocol):
    """What records and replays on a kind of device."""

    def takes(self, device: torch.device) -> bool:
        """Whether it can record there."""
        ...

    def in_turn(self, device: torch.device) -> AbstractContextManager[Callable[[torch.Tensor], None]]:
        """Work started within comes after what the caller started before, and one turn after the other.

        Gives a function that is called with each tensor that leaves the turn.
        """
        ...

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Record a function within a turn: what repeats it, and the tensors that then hold its results."""
        ...


class CudaGraphs:
    """`Recorder` for CUDA: one stream and one pool of memory a device, which all graphs there share in turn."""

    WARM_UPS = 2
    """Runs before recording, in which libraries and compilers set themselves up."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pools: dict[torch.device, Any] = {}

    def takes(self, device: torch.device) -> bool:
        """Whether it is a CUDA device, and nobody else is recording on it."""
        return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    @contextmanager
    def in_turn(self, device: torch.device) -> Iterator[Callable[[torch.Tensor], None]]:
        """See `Recorder`."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
            self._pools[device] = torch.cuda.graph_pool_handle()
        stream, callers = self._streams[device], torch.cuda.current_stream(device)
        stream.wait_stream(callers)
        with torch.cuda.stream(stream):
            yield lambda tensor: tensor.record_stream(callers)  # its memory is not given away before the caller is done
        callers.wait_stream(stream)

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """See `Recorder`."""
        stream = torch.cuda.current_stream()
        for _ in range(self.WARM_UPS):
            function()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may allocate memory meanwhile
        with torch.cuda.graph(graph, self._pools[stream.device], stream, capture_error_mode="thread_local"):
            results = function()
        return graph.replay, results


@dataclass(frozen=True, eq=False)
class _Recorded:
    inputs: Tensors
    replay: Callable[[], None]
    results: Tensors


class RecordedCalls:
    """Functions called again and again with tensors of the same shapes. Threads may share it: calls take turns."""

    def __init__(self, recorder: Recorder, turns: "threading.RLock | None" = None, capacity: int = 24) -> None:
        """
        Args:
            turns: shared by all that share the recorder, whose memory serves one call at a time; None if nobody does.
            capacity: recordings kept; the one used longest ago goes first.
        """
        self._recorder = recorder
        self._capacity = capacity
        self._lock = threading.RLock() if turns is None else turns
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._met: set[Hashable] = set()
        self._refused: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._recorded)

    def clear(self) -> None:
        """Forget all recordings, for instance because weights changed."""
        with self._lock:
            self._recorded.clear()
            self._met.clear()

    def __call__(
        self, name: Hashable, function: Callable[..., Tensors], inputs: Sequence[torch.Tensor], device: torch.device
    ) -> Tensors:
        """`function(*inputs)`.

        The first call with its name and shapes runs as it is, the second is recorded: a program that asks once pays
        nothing for it.

        Args:
            name: of the function and of everything it depends on but the inputs.
            function: computes tensors from tensors of `device`, without gradients and without looking at values.
            inputs: on any device.
            device: where it runs.

        Returns:
            its results; they belong to the caller.
        """
        key = name, device, *((tensor.shape, tensor.dtype) for tensor in inputs)
        with self._lock:
            if key in self._refused or key not in self._met:
                self._met.add(key)
            else:
                found = self._replayed(key, function, inputs, device)
                if found is not None:
                    return found
        return function(*(tensor.to(device) for tensor in inputs))

    def _replayed(
        self, key: Hashable, function: Callable[..., Tensors], inputs: Sequence[torch.Tensor], device: torch.device
    ) -> Tensors | None:
        # Memory made in inference mode could never be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), self._recorder.in_turn(device) as leaves:
            call = self._recorded.get(key) or self._record(key, function, inputs, device)
            if call is None:
                return None
            self._recorded.move_to_end(key)
            for kept, given in zip(call.inputs, inputs, strict=True):
                kept.copy_(given, non_blocking=True)
            call.replay()
            found = tuple(result.clone() for result in call.results)
            for tensor in found:
                leaves(tensor)
        return found

    def _record(
        self, key: Hashable, function: Callable[..., Tensors], inputs: Sequence[torch.Tensor], device: torch.device
    ) -> _Recorded | None:
        kept = tuple(torch.empty_like(tensor, device=device).copy_(tensor) for tensor in inputs)
        try:
            replay, results = self._recorder.record(lambda: function(*kept))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._refused.add(key)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"this call cannot be recorded on {device} and runs step by step: {reason}", stacklevel=5)
            return None
        self._recorded[key] = call = _Recorded(kept, replay, results)
        while len(self._recorded) > self._capacity:
            self._recorded.popitem(last=False)
        return call
