"""Process items in parallel, with the results in the order of the items."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def map_in_order(
    function: Callable[..., _Result],
    items: Iterable[tuple[Any, ...]],
    name: str,
    max_workers: int | None = None,
) -> Iterator[_Result]:
    """Yield `function(*item)` for each item, in order.

    Threads work while the caller uses the results. Items are taken in the caller's
    thread, at most one more than there are threads at a time, so memory does not grow
    with their number. Remaining work is cancelled when the caller stops.

    Args:
        function: Function that several threads may call.
        items: Tuples of arguments.
        name: Name of the threads.
        max_workers: Maximum number of threads; default: one for each core.

    Example:

    >>> from pipelines.ordered_pool import map_in_order
    >>> list(map_in_order(pow, [(2, 3), (3, 2)], "powers"))
    [8, 9]
    """
    num_workers = min(os.cpu_count() or 1, max_workers or os.cpu_count() or 1)
    waiting: collections.deque[Future[_Result]] = collections.deque()
    with ThreadPoolExecutor(num_workers, name) as executor:
        try:
            for item in items:
                waiting.append(executor.submit(function, *item))
                if len(waiting) > num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()
