"""Recorded calls: what CUDA graphs need, tried with a recorder that repeats calls on the same memory anywhere."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from toy import toy_sam
from triton_kernels import DEVICE

from segment_anything.modeling import Sam
from segment_anything.modeling.cuda.recorded_calls import CudaGraphs, RecordedCalls, Tensors
from segment_anything.modeling.cuda.recorded_sam import RecordedSam, bucket, filled_up
from segment_anything.modeling.weights_watch import WeightsWatch

CPU = torch.device("cpu")


class Repeats:
    """A recorder that replays by calling again, and writes the results where the first ones are, as a graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = self.turns = 0
        self.inside = threading.Lock()

    def takes(self, device: torch.device) -> bool:
        return True

    @contextmanager
    def in_turn(self, device: torch.device) -> Iterator[Callable[[torch.Tensor], None]]:
        assert self.inside.acquire(blocking=False), "two calls at once use the same memory"
        self.turns += 1
        try:
            yield lambda tensor: None
        finally:
            self.inside.release()

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        self.recorded += 1
        results = function()

        def replay() -> None:
            self.replayed += 1
            for kept, new in zip(results, function(), strict=True):
                kept.copy_(new)

        return replay, results


def test_the_first_call_runs_the_second_is_recorded_the_others_are_replayed() -> None:
    recorder = Repeats()
    calls = RecordedCalls(recorder)
    for count, value in enumerate((1.0, 2.0, 3.0), start=1):
        (found,) = calls("double", lambda x: (2 * x,), [torch.full((2,), value)], CPU)
        assert found.tolist() == [2 * value] * 2
        assert (recorder.recorded, recorder.replayed) == (min(count - 1, 1), count - 1)


def test_inputs_are_copied_into_the_same_memory_and_results_out_of_it() -> None:
    seen: list[int] = []

    def add(x: torch.Tensor, y: torch.Tensor) -> Tensors:
        seen.append(x.data_ptr())
        return (x + y,)

    calls = RecordedCalls(Repeats())
    given = [torch.ones(3), torch.ones(3)]
    results = [calls("add", add, [x * (i + 1) for x in given], CPU)[0] for i in range(4)]
    assert len(set(seen[1:])) == 1
    assert len({result.data_ptr() for result in results}) == 4
    assert [result.tolist() for result in results] == [[2.0 * (i + 1)] * 3 for i in range(4)]
    results[-1].zero_()
    assert calls("add", add, given, CPU)[0].tolist() == [2.0] * 3


def test_each_name_shape_and_type_has_its_own_recording() -> None:
    recorder = Repeats()
    calls = RecordedCalls(recorder)
    for _ in range(2):
        for name in ("a", "b"):
            for tensor in (torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.float64)):
                (found,) = calls(name, lambda x: (x + 1,), [tensor], CPU)
                assert torch.equal(found, tensor + 1)
    assert recorder.recorded == len(calls) == 6


def test_the_recording_used_longest_ago_goes_first() -> None:
    recorder = Repeats()
    calls = RecordedCalls(recorder, capacity=2)

    def ask(size: int) -> None:
        calls("n", lambda x: (x,), [torch.ones(size)], CPU)

    for size in (1, 1, 2, 2, 1, 3, 3):
        ask(size)
    assert (len(calls), recorder.recorded) == (2, 3)
    ask(1)
    assert recorder.recorded == 3
    ask(2)
    assert recorder.recorded == 4


def test_what_cannot_be_recorded_runs_and_says_so_once() -> None:
    class Refuses(Repeats):
        def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    calls = RecordedCalls(Refuses())
    calls("x", lambda x: (x + 1,), [torch.ones(1)], CPU)
    with pytest.warns(UserWarning, match="cannot be recorded on cpu and runs step by step: operation not permitted"):
        assert calls("x", lambda x: (x + 1,), [torch.ones(1)], CPU)[0].item() == 2
    assert calls("x", lambda x: (x + 1,), [torch.ones(1) * 4], CPU)[0].item() == 5


def test_a_recording_made_in_inference_mode_serves_outside_of_it() -> None:
    calls = RecordedCalls(Repeats())
    with torch.inference_mode():
        for _ in range(3):
            calls("x", lambda x: (x + 1,), [torch.ones(2)], CPU)
    assert calls("x", lambda x: (x + 1,), [torch.ones(2) * 2], CPU)[0].tolist() == [3, 3]


def test_threads_take_turns() -> None:
    calls = RecordedCalls(Repeats())
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(20):
            (found,) = calls("square", lambda x: (x * x,), [torch.full((50,), value)], CPU)
            if found.unique().tolist() != [value * value]:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_one_image_may_be_encoded_while_another_is_decoded() -> None:
    model, recorded, wrong = toy_sam(), RecordedSam(Repeats()), []
    given = prompts(3, "points", model.mask_input_size)

    @torch.no_grad()
    def encode() -> None:
        try:
            for _ in range(100):
                recorded.encode(model.image_encoder, torch.zeros(1, 3, 64, 64))
        except AssertionError as error:
            wrong.append(error)

    thread = threading.Thread(target=encode)
    thread.start()
    for _ in range(100):
        recorded.decode(model.prompt_encoder, model.mask_decoder, torch.zeros(1, 32, 4, 4), *given.values(), True)  # type: ignore[arg-type]
    thread.join()
    assert wrong == []


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert not CudaGraphs().takes(CPU)
    with torch.no_grad():
        assert RecordedSam().encode(toy_sam().image_encoder, torch.zeros(1, 3, 64, 64)) is None


def test_prompts_are_filled_up_to_a_power_of_two() -> None:
    assert [bucket(count) for count in (1, 2, 3, 4, 5, 33, 64)] == [1, 2, 4, 4, 8, 64, 64]
    assert filled_up(torch.arange(3)[:, None], 4)[:, 0].tolist() == [0, 1, 2, 2]
    assert filled_up(torch.arange(4), 4).tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def sam() -> Sam:
    return toy_sam().to(DEVICE)


def prompts(count: int, kind: str, side: int) -> dict[str, object]:
    """Points, boxes and masks of some objects in an input of 64 pixels."""
    generator = torch.Generator().manual_seed(count)
    coords = torch.rand(count, 2, 2, generator=generator) * 64
    labels = torch.randint(0, 2, (count, 2), generator=generator)
    boxes = torch.cat([coords[:, 0] * 0.5, coords[:, 1] * 0.5 + 32], dim=1)
    return {
        "points": (coords, labels) if kind in ("points", "all") else None,
        "boxes": boxes if kind in ("boxes", "all") else None,
        "masks": torch.randn(count, 1, side, side, generator=generator) if kind in ("masks", "all") else None,
    }


@pytest.mark.parametrize("kind", ["points", "boxes", "masks", "all"])
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_recorded_decoding_is_decoding(sam: Sam, kind: str, multimask: bool) -> None:
    features = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    recorded = RecordedSam(Repeats() if DEVICE == "cpu" else None)
    for count in (3, 4, 3, 1):
        given = prompts(count, kind, sam.mask_input_size)
        with torch.enable_grad():
            expected = sam.predict_low_res(features, *given.values(), multimask)  # type: ignore[arg-type]
        found = recorded.decode(
            sam.prompt_encoder,
            sam.mask_decoder,
            features,
            *given.values(),  # type: ignore[arg-type]
            multimask,
        )
        assert found is not None
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted.detach(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_recording_serves_every_image_and_more_objects_than_it_holds(sam: Sam) -> None:
    recorder = Repeats()
    recorded = RecordedSam(recorder if DEVICE == "cpu" else None)
    given = prompts(150, "points", 16)
    for seed in range(3):
        features = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        found = recorded.decode(sam.prompt_encoder, sam.mask_decoder, features, *given.values(), True)  # type: ignore[arg-type]
        expected = sam.prompted(features, *given.values()).masks(True)  # type: ignore[arg-type]
        assert found is not None
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    if DEVICE == "cpu":
        assert recorder.recorded == 2  # 64 and 32 objects


@torch.no_grad()
def test_no_prompt_at_all_is_recorded_and_no_object_is_left_to_others(sam: Sam) -> None:
    recorded = RecordedSam(Repeats() if DEVICE == "cpu" else None)
    features = torch.zeros(1, 32, 4, 4, device=DEVICE)
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    found = recorded.decode(encoder, decoder, features, None, None, None, True)
    assert found is not None
    assert found[0].shape == (1, 3, 16, 16)
    empty = torch.empty(0, 1, 2), torch.empty(0, 1)
    assert recorded.decode(encoder, decoder, features, empty, None, None, True) is None


@torch.no_grad()
def test_recorded_encoding_is_encoding(sam: Sam) -> None:
    recorder = Repeats()
    recorded = RecordedSam(recorder if DEVICE == "cpu" else None)
    for seed in range(3):
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        found = recorded.encode(sam.image_encoder, images)
        torch.testing.assert_close(found, sam.image_encoder(images), rtol=1e-4, atol=1e-5)
    assert recorded.encode(sam.image_encoder, torch.zeros(9, 3, 64, 64, device=DEVICE)) is None  # too many
    assert recorder.recorded == (1 if DEVICE == "cpu" else 0)


@torch.no_grad()
def test_changed_weights_are_recorded_anew() -> None:
    sam = toy_sam().to(DEVICE)
    recorder = Repeats()
    recorded = RecordedSam(recorder)
    images = torch.randn(1, 3, 64, 64).to(DEVICE)

    def encode() -> torch.Tensor:
        return recorded.encode(sam.image_encoder, images)

    for _ in range(3):
        before = encode()
    assert recorder.recorded == 1
    sam.image_encoder.neck[0].weight.data = sam.image_encoder.neck[0].weight * 2
    for _ in range(3):
        after = encode()
    assert recorder.recorded == 2
    torch.testing.assert_close(after, sam.image_encoder(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)


def test_gradients_training_hooks_and_autocast_are_not_recorded() -> None:
    encoder, images = toy_sam().image_encoder, torch.zeros(1, 3, 64, 64)
    recorded = RecordedSam(Repeats())

    def is_recorded() -> bool:
        return recorded.encode(encoder, images) is not None

    assert not is_recorded()  # gradients
    with torch.no_grad():
        assert is_recorded()
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_recorded()
        encoder.train()
        assert not is_recorded()
        encoder.eval()
        assert is_recorded()
        handle = encoder.neck[0].register_forward_hook(lambda module, args, out: out)
        assert not is_recorded()
        handle.remove()
        assert is_recorded()


def test_copies_start_empty() -> None:
    recorder = Repeats()
    recorded = RecordedSam(recorder)
    with torch.no_grad():
        for _ in range(2):
            recorded.encode(toy_sam().image_encoder, torch.zeros(1, 3, 64, 64))
    for other in (copy.deepcopy(recorded), pickle.loads(pickle.dumps(recorded))):
        assert isinstance(other, RecordedSam)
        assert other._encoder._watch is None


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.add_(1),
        lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones(2, 2))),
        lambda model: setattr(model[0].weight, "data", torch.ones(2, 2)),
        lambda model: model[1].running_mean.add_(1),
        lambda model: model.double(),
        lambda model: model.append(nn.ReLU()),
        lambda model: model.__setitem__(1, nn.BatchNorm1d(2)),
        lambda model: model.load_state_dict(two_layers().state_dict()),
        lambda model: model.load_state_dict(two_layers().state_dict(), assign=True),
        lambda model: nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity()),
        lambda model: model[0].register_parameter("bias", None),
        lambda model: model[0].add_module("first", nn.ReLU()),  # where no module was
    ],
    ids=[
        "write",
        "parameter",
        "data",
        "buffer",
        "type",
        "append",
        "exchange",
        "load",
        "assign",
        "adapt",
        "drop",
        "add",
    ],
)
@torch.no_grad()
def test_a_change_of_weights_or_modules_is_noticed(change: Callable[[nn.Module], object]) -> None:
    model = two_layers().eval()
    watch = WeightsWatch(model)
    model(torch.ones(1, 2))
    assert watch.unchanged()
    change(model)
    assert not watch.unchanged()
    assert WeightsWatch(model).unchanged()


def test_use_without_change_leaves_no_trace() -> None:
    model = two_layers().eval()
    watch = WeightsWatch(model)
    model.to(torch.float32).requires_grad_(False)
    model(torch.ones(3, 2))
    pickle.dumps(model.state_dict())
    assert watch.unchanged()


def test_a_copied_watch_looks_at_the_copies() -> None:
    model = two_layers()
    watch = WeightsWatch(model)
    for others, other in (copy.deepcopy((model, watch)), pickle.loads(pickle.dumps((model, watch)))):
        assert other.unchanged()
        with torch.no_grad():
            others[0].weight.add_(1)
        assert not other.unchanged()
    assert watch.unchanged()
