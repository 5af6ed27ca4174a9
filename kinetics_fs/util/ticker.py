"""Work that a process repeats by the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call a function again and again, in a thread, until the block ends. The first call is after `seconds`.

    Args:
        seconds: time from the end of a call to the next one.
        call: must not raise.
    """
    end = threading.Event()

    def run() -> None:
        while not end.wait(seconds):
            call()

    thread = threading.Thread(target=run, name="ticker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
