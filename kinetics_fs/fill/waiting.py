"""Waiting for a shared store that does not answer, during a fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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
                _log.warning("the fill waits for the shared store: %s", error)
            if now + pause > give_up_at:
                raise _lost(error) from error
        except SharedStoreError as error:
            raise _lost(error) from error
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE)


def _lost(error: SharedStoreError) -> FetchError:
    return FetchError(
        FailureKind.LOCAL, f"{error}; run the same command again to complete the fill", source="shared store"
    )
