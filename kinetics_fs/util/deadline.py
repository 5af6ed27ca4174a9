"""Ends of steps that depend on others: servers, proxies, DNS, programs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """The time at which a step ends, on the monotonic clock.

    A step that transfers data can have a minimum rate instead of a fixed time: the deadline then moves with the data,
    and is never more than `seconds` ahead.

    Args:
        seconds: time that the step has.
        rate: bytes that must arrive in a second, on average; None for a step that ends after `seconds`.
    """

    def __init__(self, seconds: float, *, rate: float | None = None) -> None:
        self.seconds = seconds
        self._rate = rate
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 if it is over."""
        return max(0.0, self._at - time.monotonic())

    def check(self) -> None:
        """Raise TimeoutError if the deadline is over."""
        if not self.left:
            raise TimeoutError(self.reason)

    @property
    def reason(self) -> str:
        """Why a step failed that did not end before the deadline."""
        if self._rate is None:
            return f"it takes longer than {self.seconds:.0f} s"
        return f"less than {self._rate:,.0f} bytes/s arrive for {self.seconds:.0f} s"

    def received(self, size: int) -> None:
        """Count data that have arrived."""
        if self._rate is not None:
            self._at = min(time.monotonic() + self.seconds, self._at + size / self._rate)


def within(seconds: float, function: Callable[[], T]) -> T:
    """Call a function that may block for any time, such as a look-up in DNS.

    Args:
        seconds: time that it has. After that, its thread is left to itself, and its result is lost.
        function: the function.

    Raises:
        TimeoutError: the function takes longer.
        Exception: any that the function raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not future.done():
        raise TimeoutError(f"it takes longer than {seconds:.0f} s")
    return future.result()
