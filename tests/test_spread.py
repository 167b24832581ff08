"""Batches of objects decoded side by side: the same answers, errors where they belong, no setting left changed."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from toy import toy_sam

from segment_anything.modeling.spread import spread
from segment_anything.prompts import Prompts


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


@torch.no_grad()
def test_workers_share_the_threads_and_every_other_thread_keeps_its_own() -> None:
    names = []

    def work(item: int) -> tuple[int, int, bool]:
        names.append(threading.current_thread().name)
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    assert spread(work, range(6)) == [(item, 1, False) for item in range(6)]
    assert threading.current_thread().name not in names
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3
    assert spread(work, [7]) == [(7, 3, False)]  # alone it has all of them


def test_with_gradients_and_autocasting_one_comes_after_the_other() -> None:
    def thread(item: int) -> str:
        return threading.current_thread().name

    here = threading.current_thread().name
    assert spread(thread, range(3)) == [here] * 3
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert spread(thread, range(3)) == [here] * 3
    with torch.inference_mode():
        assert spread(lambda item: torch.zeros(1).is_inference(), range(3)) == [True] * 3


@torch.no_grad()
def test_an_error_in_a_worker_is_raised_and_leaves_the_threads_as_they_were() -> None:
    with pytest.raises(ZeroDivisionError, match="division"):
        spread(lambda item: 1 // item, [1, 0, 1])
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3


@torch.no_grad()
def test_many_objects_are_decoded_side_by_side_as_one_after_the_other() -> None:
    sam = toy_sam()
    embedding = sam.encode(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    height, width = embedding.geometry.original_size_hw
    corner = torch.tensor([width - 1.0, height - 1.0])
    clicks = Prompts.from_points(torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * corner)
    decoded = sam.decode(embedding, clicks)
    above, places = sam.decode_above(embedding, clicks, float(decoded.iou_predictions.median()))
    torch.set_num_threads(1)
    torch.testing.assert_close(sam.decode(embedding, clicks).low_res_logits, decoded.low_res_logits)
    again, same_places = sam.decode_above(embedding, clicks, float(decoded.iou_predictions.median()))
    assert places.tolist() == same_places.tolist()
    torch.testing.assert_close(again.low_res_logits, above.low_res_logits)
