"""Waiting for a shared store that does not answer, during a fill."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError
from kinetics_fs.shared import StoreUnreachable

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_PATIENCE = 180.0
"""Seconds for which a store may be unreachable before a fill ends."""
_FIRST_PAUSE, _MAX_PAUSE = 0.5, 10.0


def until_reachable(request: Callable[[], _Result], *, otherwise: type[SharedStoreError] | tuple[()] = ()) -> _Result:
    """Do a request, and repeat it while the store is unreachable.

    Args:
        request: the request.
        otherwise: an error of the request that the caller handles.

    Raises:
        FetchError: the store is unreachable for too long, or refuses the request (LOCAL).
    """
    pause = _FIRST_PAUSE
    with ExitStack() as waiting:
        give_up_at: float | None = None
        while True:
            try:
                return request()
            except otherwise:
                raise
            except StoreUnreachable as error:
                now = time.monotonic()
                if give_up_at is None:
                    give_up_at = now + _PATIENCE
                    waiting.enter_context(_outage.noted(error))
                if now + pause > give_up_at:
                    raise _lost(error) from error
            except SharedStoreError as error:
                raise _lost(error) from error
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)


class _Outage:
    """The requests of this process that wait, of which one warns. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0

    @contextmanager
    def noted(self, error: StoreUnreachable) -> Iterator[None]:
        """Count a request that waits because of an error."""
        with self._lock:
            self._requests += 1
            is_first = self._requests == 1
        if is_first:
            _log.warning("the fill waits for the shared store: %s", error)
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1


_outage = _Outage()


def _lost(error: SharedStoreError) -> FetchError:
    return FetchError(
        FailureKind.LOCAL, f"{error}; run the same command again to complete the fill", source="shared store"
    )
