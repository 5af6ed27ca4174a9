"""The queue of clips to fetch: one flight per clip, the urgent before the others."""

from __future__ import annotations

import enum
import functools
import heapq
import itertools
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.fetch.settings import FetchSettings
from kinetics_fs.fetch.workers import Worker
from kinetics_fs.sources import NotHere
from kinetics_fs.store import Claim, NotYet, Permit, Store

_log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.1
"""Seconds between two looks at a clip that another process is fetching."""


_LOOK_FOR_BUDGET = {True: 1.0, False: 15.0}
"""The same, where the budget is used up, for who waits in `open` and for who does not."""

_HOPES = (
    *(FailureKind.LOCAL, FailureKind.BLOCKED, FailureKind.TRANSIENT, FailureKind.CONFIG),
    *(FailureKind.CREDENTIALS, FailureKind.CORRUPT, FailureKind.GONE),
)
"""Of the failures of several sources the first of these is told: a clip is gone only if it is gone everywhere."""


class _Later(Exception):
    """To be looked at again after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Priority(enum.IntEnum):
    """Which of the waiting clips is next."""

    FOREGROUND = 0
    """Somebody waits in `open`."""
    BACKGROUND = 1
    """Prefetch."""


@dataclass(slots=True)
class _Flight:
    """A clip on its way, and who waits for it."""

    clip: Clip
    priority: Priority
    waiters: list[Future[None]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    taken: bool = False
    """By a worker; or by nobody, when all who waited have left."""


@dataclass(slots=True)
class Counters:
    """What a fetcher did since it was made."""

    fetched: int = 0
    failed: int = 0


class Fetcher:
    """Fetches clips into a store. Safe for threads.

    Args:
        store: where clips go, and where failures are remembered.
        settings: how many at a time, how long, and what the sources need.
    """

    def __init__(self, store: Store, settings: FetchSettings) -> None:
        self._store = store
        self._settings = settings
        self._changed = threading.Condition()
        self._flights: dict[Clip, _Flight] = {}
        self._ready: list[tuple[Priority, int, _Flight]] = []
        self._deferred: list[tuple[float, int, _Flight]] = []
        self._order = itertools.count()
        self._closing = False
        self.counters = Counters()
        self.rate = settings.rate
        self._workers = [Worker(settings.sources) for _ in range(settings.workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"fetch-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def request(self, clip: Clip, priority: Priority = Priority.FOREGROUND) -> Future[None]:
        """Asks for a clip; never blocks on the network.

        Returns:
            A future that is done when the clip is in the store, or raises the `FetchError` for which it is not.
            A failure that is remembered and not yet due for another try is raised without asking anyone. Who no
            longer wants the clip cancels it: a fetch that nobody waits for is not begun; one that has begun goes on.
        """
        waiter: Future[None] = Future()
        with self._changed:
            flight = self._flights.get(clip)
            if flight is None:
                known = self._known_failure(clip)
                if known is not None or self._closing:
                    waiter.set_exception(known or _shutting_down())
                    return waiter
                flight = self._flights[clip] = _Flight(clip, priority)
                self._enqueue(flight)
            elif priority < flight.priority:
                flight.priority = priority
                if not flight.taken:
                    self._enqueue(flight)
            flight.waiters.append(waiter)
        waiter.add_done_callback(functools.partial(self._leave, flight))
        return waiter

    def is_fetching(self, clip: Clip) -> bool:
        """Whether this fetcher has the clip on its way."""
        return clip in self._flights

    def waiting(self) -> int:
        """How many clips are on their way, queued ones included."""
        return len(self._flights)

    def close(self) -> None:
        """Ends all fetches; who waits for one gets a `FetchError`. Nothing half done stays behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join()
        for flight in list(self._flights.values()):
            self._finish(flight, _shutting_down())

    def _leave(self, flight: _Flight, waiter: Future[None]) -> None:
        if not waiter.cancelled():
            return
        with self._changed:
            flight.waiters.remove(waiter)
            if not flight.waiters and not flight.taken:
                flight.taken = True
                self._flights.pop(flight.clip, None)

    def _enqueue(self, flight: _Flight) -> None:
        heapq.heappush(self._ready, (flight.priority, next(self._order), flight))
        self._changed.notify()

    def _defer(self, flight: _Flight, seconds: float) -> None:
        with self._changed:
            if not flight.waiters:  # they left while it was looked at
                self._flights.pop(flight.clip, None)
                return
            flight.taken = False
            heapq.heappush(self._deferred, (time.monotonic() + seconds, next(self._order), flight))
            self._changed.notify()

    def _next(self) -> _Flight | None:
        """Waits for a flight to take; None when closing."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                while self._deferred and self._deferred[0][0] <= now:
                    self._enqueue(heapq.heappop(self._deferred)[2])
                while self._ready:
                    flight = heapq.heappop(self._ready)[2]
                    if not flight.taken:  # else queued twice: its priority was raised
                        flight.taken = True
                        return flight
                self._changed.wait(self._deferred[0][0] - now if self._deferred else None)
        return None

    def _serve(self, worker: Worker) -> None:
        while (flight := self._next()) is not None:
            try:
                self._fetch(worker, flight)
                self._finish(flight, None)
            except _Later as later:
                self._defer(flight, later.seconds)
            except FetchError as error:
                self._finish(flight, _shutting_down() if self._closing else error)
            except StoreError as error:
                _log.error("%s: %s", flight.clip.key, error)
                self._finish(flight, FetchError(FailureKind.LOCAL, str(error), errno=error.errno))
            except Exception as error:
                _log.exception("%s: unexpected error", flight.clip.key)
                self._finish(flight, FetchError(FailureKind.LOCAL, f"unexpected {type(error).__name__}: {error}"))

    def _fetch(self, worker: Worker, flight: _Flight) -> None:
        """Gets a clip into the store.

        Raises:
            _Later: another process is at it, or there is no budget for it now.
            FetchError: it cannot be had.
        """
        clip = flight.clip
        try:
            claim = self._store.claim(clip)
        except FetchError as error:
            self._remember(clip, error)
            raise
        if claim is None:
            raise _Later(_LOOK_AGAIN)
        with claim:
            # Looked up under the claim, for another process may have just been through with it.
            stored = self._store.open(clip)
            if stored is not None:
                stored.close()
                return
            known = self._known_failure(clip)
            if known is not None:
                raise known
            try:
                self._fetch_claimed(worker, flight, claim)
            except FetchError as error:
                if not self._closing:
                    self._remember(clip, error)
                raise

    def _fetch_claimed(self, worker: Worker, flight: _Flight, claim: Claim) -> None:
        """Asks one source after the other."""
        clip, failures = flight.clip, []
        started = time.monotonic()
        for source in self._settings.sources.order:
            folder = claim.folder / source
            folder.mkdir()
            try:
                path = self._ask(worker, source, flight, folder, started + self._settings.timeout)
                claim.publish(path, source)
            except NotHere:
                continue
            except FetchError as error:
                failures.append(error)
            else:
                self.counters.fetched += 1
                _log.info("%s: fetched from %s in %.1f s", clip.key, source, time.monotonic() - started)
                return
        if not failures:
            # No verdict: it may be in an archive whose index is not here.
            raise FetchError(
                FailureKind.CONFIG,
                "no source has this clip; archives are asked where an index is here, folders where one is given",
            )
        raise min(failures, key=lambda error: _HOPES.index(error.kind))

    def _ask(self, worker: Worker, source: str, flight: _Flight, folder: Path, deadline: float) -> Path:
        """Asks one source, and lets everyone know how it behaves."""
        permit = self._permit(source, flight)
        outcome: FetchError | None = _shutting_down()  # unless something else becomes of it
        try:
            path = worker.fetch(flight.clip, source, folder, timeout=max(0.0, deadline - time.monotonic()))
            outcome = None
        except NotHere:
            outcome = None
            raise
        except FetchError as error:
            outcome = error
            raise
        finally:
            self._store.origins.answered(permit, outcome)
        return path

    def _permit(self, source: str, flight: _Flight) -> Permit:
        """The right to ask a source for a clip.

        Raises:
            FetchError: it is left alone, or the budget is used up for longer than an open waits (BLOCKED).
            _Later: the budget is used up for now.
        """
        urgent = flight.priority is Priority.FOREGROUND
        hourly = self._settings.rate if source == "youtube" else None
        try:
            return self._store.origins.ask(source, hourly=hourly, urgent=urgent)
        except NotYet as budget:
            waited = time.monotonic() - flight.since
            if urgent and waited + budget.seconds > self._settings.timeout:
                raise FetchError(
                    FailureKind.BLOCKED,
                    f"the budget of {self._settings.rate} clips an hour is used up for {budget.seconds:.0f} s",
                    source=source,
                    retry_after=budget.seconds,
                ) from None
            raise _Later(min(budget.seconds, _LOOK_FOR_BUDGET[urgent])) from None

    def _remember(self, clip: Clip, error: FetchError) -> None:
        self.counters.failed += 1
        if error.kind is FailureKind.BLOCKED:
            # It says nothing about the clip; the origin is remembered instead.
            _log.warning("%s: %s: %s: %s", clip.key, error.source or "fetch", error.kind, error.reason)
            return
        try:
            failure = self._store.remember_failure(clip, error)
        except StoreError as trouble:
            _log.error("%s: %s: %s (not remembered: %s)", clip.key, error.kind, error.reason, trouble)
            return
        _log.warning(
            "%s: %s: %s: %s; next try %s",
            clip.key,
            error.source or "fetch",
            error.kind,
            error.reason,
            "at the next open"
            if failure.retry_at <= failure.last_at
            else f"after {datetime.fromtimestamp(failure.retry_at):%Y-%m-%d %H:%M:%S}",
        )

    def _known_failure(self, clip: Clip) -> FetchError | None:
        """Why it need not be tried now."""
        failure = self._store.failure(clip)
        return failure.error() if failure is not None and failure.retry_at > time.time() else None

    def _finish(self, flight: _Flight, error: FetchError | None) -> None:
        with self._changed:
            self._flights.pop(flight.clip, None)
            waiters = list(flight.waiters)
        for waiter in waiters:
            if not waiter.set_running_or_notify_cancel():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


def _shutting_down() -> FetchError:
    return FetchError(FailureKind.TRANSIENT, "shutting down")
