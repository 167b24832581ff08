"""Items loaded one ahead: while one is worked on, a thread beside it loads the next."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def one_ahead(
    items: Iterable[Item], load: Callable[[Item], Loaded]
) -> Generator[tuple[Item, Future[Loaded]], None, None]:
    """Each item, in order, with the future of what `load` makes of it: `result()` waits for it, or raises its error.

    While the caller works on an item, one thread loads the next; it begins with an item only when the caller is done
    with the last but one. So two results are the most that exist at a time.

    The thread ends with the iteration, however that ends, after at most the item it is busy with. A caller that may
    break off closes it at once by `contextlib.closing`.

    Args:
        items: asked for in the caller's thread.
        load: called in the other.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="one-ahead")
    try:
        ahead: tuple[Item, Future[Loaded]] | None = None
        for item in items:
            following = item, pool.submit(load, item)
            if ahead is not None:
                yield ahead
            ahead = following
        if ahead is not None:
            yield ahead
    finally:
        pool.shutdown(cancel_futures=True)
