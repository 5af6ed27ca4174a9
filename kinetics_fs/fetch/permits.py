"""Permits for requests to sources, from the throttle of the cache and from the budget that machines share.

With a shared store, the machines of a rate group have one budget and one circuit breaker for each source. The throttle
of the cache still suspects sources, tests them, and blocks them for this machine. If the store cannot be reached, the
throttle alone limits this machine, to its part of the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kinetics_fs.errors import FetchError, SharedStoreError
from kinetics_fs.store import ControlPermit, Permit, Throttle

if TYPE_CHECKING:
    from kinetics_fs.shared import Connection, SharedBudget


class RequestPermit(NamedTuple):
    """The right to request one clip: the permit of the throttle, and that of the shared budget, if there is one."""

    local: Permit
    shared: Permit | None


class RequestControl(NamedTuple):
    """The right to request one control; see `RequestPermit`."""

    local: ControlPermit
    shared: Permit | None


class Permits:
    """Gives permits for requests to sources. Safe for threads.

    Args:
        throttle: the throttle of the cache.
        limit: returns the limit per hour of a source; None for no limit.
        connection: the shared store; None for none.
    """

    def __init__(
        self, throttle: Throttle, limit: Callable[[str], int | None], connection: Connection | None = None
    ) -> None:
        self._throttle = throttle
        self._limit = limit
        self._connection = connection

    def acquire(self, source: str, *, urgent: bool) -> RequestPermit:
        """Return a permit for one request. Pass it to `record` or to `cancel` afterwards.

        Args:
            source: name of the source.
            urgent: True if a process waits in `open`: the request may use the reserve.

        Raises:
            FetchError, ControlNeeded, RateLimited: see `Throttle.acquire`; also of the shared budget.
        """
        local = self._throttle.acquire(source, max_per_hour=self._limit_alone(source), urgent=urgent)
        try:
            return RequestPermit(local, self._acquire_shared(source, urgent=urgent))
        except SharedStoreError:
            self._throttle.cancel(local)
            alone = self._throttle.acquire(source, max_per_hour=self._share(source), urgent=urgent)
            return RequestPermit(alone, None)
        except BaseException:
            self._throttle.cancel(local)
            raise

    def record(self, permit: RequestPermit, error: FetchError | None) -> None:
        """Record the outcome of a request: the error, or None if the source delivered the clip."""
        self._throttle.record(permit.local, error)
        if permit.shared is not None:
            self._change(lambda budget, shared: budget.record(shared, error), permit.shared)

    def cancel(self, permit: RequestPermit) -> None:
        """Return a permit that was not used."""
        self._throttle.cancel(permit.local)
        if permit.shared is not None:
            self._change(lambda budget, shared: budget.cancel(shared), permit.shared)

    def acquire_control(self, source: str) -> RequestControl | None:
        """Return a permit for one control, or None; see `Throttle.acquire_control`.

        Raises:
            FetchError, RateLimited: see `Throttle.acquire_control`; also of the shared budget.
        """
        local = self._throttle.acquire_control(source, max_per_hour=self._limit_alone(source))
        if local is None:
            return None
        try:
            return RequestControl(local, self._acquire_shared(source, urgent=True))
        except SharedStoreError:
            return RequestControl(local, None)
        except BaseException:
            self._throttle.cancel_control(local)
            raise

    def record_control(self, control: RequestControl, error: FetchError | None) -> None:
        """Record the outcome of a control; see `Throttle.record_control`."""
        self._throttle.record_control(control.local, error)
        if control.shared is not None:
            self._change(lambda budget, shared: budget.record(shared, error), control.shared)

    def cancel_control(self, control: RequestControl) -> None:
        """Return a permit that was not used."""
        self._throttle.cancel_control(control.local)
        if control.shared is not None:
            self._change(lambda budget, shared: budget.cancel(shared), control.shared)

    def is_suspected(self, source: str) -> bool:
        """Return whether the verdicts of a source do not count at the moment."""
        return self._throttle.is_suspected(source)

    def limit(self, source: str) -> int | None:
        """Return the limit per hour that holds for this machine at the moment; None for no limit."""
        return self._limit(source) if self._budget(source) is not None else self._share(source)

    def _budget(self, source: str) -> SharedBudget | None:
        connection = self._connection
        if connection is None or connection.outage.is_on:
            return None
        return connection.budget(source)

    def _limit_alone(self, source: str) -> int | None:
        """Return the limit that the throttle applies: none while the shared budget does."""
        if self._budget(source) is not None:
            return None
        return self._share(source)

    def _share(self, source: str) -> int | None:
        """Return the limit for this machine without the others."""
        if self._connection is not None and self._connection.shares_budget(source):
            return self._connection.share(source)
        return self._limit(source)

    def _acquire_shared(self, source: str, *, urgent: bool) -> Permit | None:
        """Return the permit of the shared budget; None if there is none.

        Raises:
            SharedStoreError: the store could not be used.
        """
        budget, connection = self._budget(source), self._connection
        if budget is None or connection is None:
            return None
        try:
            return budget.acquire(limit=self._limit(source), urgent=urgent)
        except SharedStoreError as error:
            connection.outage.begin(error)
            raise

    def _change(self, change: Callable[[SharedBudget, Permit], None], permit: Permit) -> None:
        budget, connection = self._budget(permit.source), self._connection
        if budget is not None and connection is not None:
            try:
                change(budget, permit)
            except SharedStoreError as error:
                connection.outage.begin(error)
