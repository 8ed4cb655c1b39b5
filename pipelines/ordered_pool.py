"""Work on items side by side, with the results in the order of the items."""

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
    """Yield `function(*item)` for each item, in their order.

    A thread for each core works while the caller uses the results. Items are taken in
    the caller's thread, one more than there are threads at a time, so memory does not
    grow with their number. What is left is cancelled when the caller stops.

    Args:
        function: Several threads may call it.
        items: Tuples of arguments.
        name: Name of the threads.
        max_workers: Most threads; default: one for each core.

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
