"""Independent pieces of a network's work, each on few threads, side by side.

The decoder's operations are small: two threads in each of them gain a third, two batches of objects side by side nearly
double (docs/log.md).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, by as many workers as PyTorch has threads, which they share among themselves.

    One after the other where gradients or autocasting are wanted: both belong to the thread that asks. The number of
    threads of any other thread stays what it was.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return [work(item) for item in items]
    started = threading.Barrier(workers + 1)
    is_inference = torch.is_inference_mode_enabled()

    def start() -> None:
        torch.set_num_threads(threads // workers)  # of this thread, and the default of threads to come
        torch.get_num_threads()  # takes the default now: later would be another's
        started.wait()

    def run(item: Item) -> Result:
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(item)

    with ThreadPoolExecutor(workers, initializer=start) as pool:
        try:
            results = [pool.submit(run, item) for item in items]
            started.wait()
        except BaseException:
            started.abort()
            raise
        finally:
            torch.set_num_threads(threads)  # as it was, for threads to come
        return [result.result() for result in results]
