"""Work on many items by threads, in their order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUEUED_PER_THREAD = 4


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, *, queued: int | None = None
) -> Iterator[Result]:
    """Yield the result of a function for each item, in the order of the items. Several run at a time.

    The calls in progress are finished if the caller stops early or is interrupted.

    Args:
        function: called by several threads.
        items: consumed a few ahead of the results.
        threads: number of calls at a time.
        queued: number of items that are taken ahead; None for four for each thread.
    """
    queued = queued or threads * _QUEUED_PER_THREAD
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= queued:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
