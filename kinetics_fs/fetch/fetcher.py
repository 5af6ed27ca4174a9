"""The queue of clips to fetch: one flight per clip, the urgent before the others."""

from __future__ import annotations

import contextlib
import enum
import functools
import heapq
import itertools
import logging
import math
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.fetch.pool import Worker
from kinetics_fs.fetch.settings import FetchSettings
from kinetics_fs.fetch.stats import Counters
from kinetics_fs.sources import HandOver, NotHere, UnderWay
from kinetics_fs.sources.settings import ARCHIVES
from kinetics_fs.store import Claim, NotYet, Permit, Store, one_line

_log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.1
"""Seconds between two looks at a clip that another process is fetching."""


_LOOK_FOR_OTHERS = 1.0
"""The same, where an archive is being read that has the clip in it: who reads it here brings the clip at once."""

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
    SOON = 1
    """Somebody is about to open it."""
    BACKGROUND = 2
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
    spare_since: float = math.inf
    """What was used since then must not make room for it."""
    source: str | None = None
    """That which is being asked."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    claim: Claim | None = None
    """Of who is looking for it, as long as that lasts. Changed under the lock."""
    ended: bool = False
    """Who waited was told; another flight for the same clip may have begun."""


class _Arrival:
    """Takes what a source hands over for a flight: the clip itself, and others that come with it."""

    def __init__(self, fetcher: Fetcher, flight: _Flight, claim: Claim, source: str) -> None:
        self._fetcher = fetcher
        self._flight = flight
        self._claim = claim
        self._source = source
        self._asked = time.monotonic()
        self.landed = False

    def take(self, clip: Clip, path: Path) -> None:
        if clip != self._flight.clip:
            self._fetcher._take_along(clip, path, self._source)
        elif not self.landed:
            self.publish(path, last=False)
            self._fetcher._finish(self._flight, None)  # others may come for long after it

    def publish(self, path: Path, *, last: bool = True) -> None:
        """The clip itself."""
        if self._flight.ended:  # it came with another meanwhile
            self.landed = True
            return
        size = self._claim.publish(path, self._source, last=last)
        self.landed = True
        now = time.monotonic()
        self._fetcher.counters.came(self._source, size, now - self._asked)
        took = now - self._flight.since
        _log.info("%s: fetched from %s in %.1f s", self._flight.clip.key, self._source, took)


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
        self._asks_beyond_archives = not ARCHIVES.issuperset(settings.sources.order)
        self._workers = [Worker(settings.sources) for _ in range(settings.workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"fetch-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def request(
        self, clip: Clip, priority: Priority = Priority.FOREGROUND, *, spare_since: float = math.inf
    ) -> Future[None]:
        """Asks for a clip; never blocks on the network.

        Args:
            clip: which.
            priority: before or after which others.
            spare_since: see `Store.claim`. If there is no room without that, the failure is not remembered.

        Returns:
            A future that is done when the clip is in the store, or raises the `FetchError` for which it is not.
            A failure that is remembered and not yet due for another try is raised without asking anyone. Who no
            longer wants the clip cancels it: a fetch that nobody waits for is not begun; one that has begun goes on.
        """
        waiter: Future[None] = Future()
        with self._changed:
            flight = self._flights.get(clip)
            if flight is None:
                known = self.known_failure(clip)
                if known is not None or self._closing:
                    waiter.set_exception(known or _shutting_down())
                    return waiter
                flight = self._flights[clip] = _Flight(clip, priority, spare_since=spare_since)
                self._enqueue(flight)
            elif priority < flight.priority:
                flight.priority = priority
                if not flight.taken:
                    self._enqueue(flight)
            flight.spare_since = max(flight.spare_since, spare_since)
            flight.waiters.append(waiter)
        waiter.add_done_callback(functools.partial(self._leave, flight))
        return waiter

    def known_failure(self, clip: Clip) -> FetchError | None:
        """Why a clip need not be tried now: what is remembered of it, and not yet due for another try."""
        failure = self._store.failure(clip)
        if failure is None or failure.retry_at <= time.time():
            return None
        by = failure.source.rpartition(" ")[2]  # "imported archive", too
        if failure.kind is FailureKind.GONE and by in ARCHIVES and self._asks_beyond_archives:
            return None  # found out by `fill`, or where nobody else is asked
        return failure.error()

    def is_fetching(self, clip: Clip) -> bool:
        """Whether this fetcher has the clip on its way."""
        return clip in self._flights

    def waiting(self) -> int:
        """How many clips are on their way, queued ones included."""
        return len(self._flights)

    def report(self) -> dict[str, object]:
        """How fetching is going, for people and for scripts."""
        now = time.monotonic()
        with self._changed:
            flights = list(self._flights.values())
        queue = Counter(flight.priority for flight in flights if not flight.taken)
        return {
            "under_way": len(flights),
            "queue": {priority.name.lower(): queue[priority] for priority in Priority},
            "flights": [
                {
                    "clip": flight.clip.key,
                    "priority": flight.priority.name.lower(),
                    "seconds": round(now - flight.since, 1),
                    "source": flight.source,
                }
                for flight in flights
                if flight.taken
            ],
            "fetched": self.counters.fetched,
            "failed": self.counters.failed,
            "rates": self.counters.rates(),
            "last_failures": [failure._asdict() for failure in self.counters.last_failures()],
        }

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
            if flight.ended:  # it came with another while it was looked for
                return
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
            claim = self._store.claim(clip, spare_since=flight.spare_since)
        except FetchError as error:
            if flight.spare_since == math.inf:
                self._remember(clip, error)
            raise
        if claim is None:
            if self._store.holds(clip):  # had by somebody who is still getting others with it
                return
            raise _Later(_LOOK_AGAIN)
        with claim:
            # Looked up under the claim, for another process may have just been through with it.
            stored = self._store.open(clip)
            if stored is not None:
                stored.close()
                return
            known = self.known_failure(clip)
            if known is not None:
                raise known
            with flight.lock:
                flight.claim = claim
            try:
                self._fetch_claimed(worker, flight, claim)
            except FetchError as error:
                if not self._closing and not flight.ended:
                    self._remember(clip, error)
                raise
            finally:
                with flight.lock:
                    flight.claim = None

    def _fetch_claimed(self, worker: Worker, flight: _Flight, claim: Claim) -> None:
        """Asks one source after the other."""
        clip, failures = flight.clip, []
        started = time.monotonic()
        for source in self._settings.sources.order:
            folder = claim.folder / source
            folder.mkdir()
            arrival = _Arrival(self, flight, claim, source)
            try:
                path = self._ask(worker, source, flight, folder, started + self._settings.timeout, arrival.take)
                if path is not None:
                    arrival.publish(path)
            except NotHere:
                continue
            except UnderWay:
                raise _Later(_LOOK_FOR_OTHERS) from None
            except FetchError as error:
                if arrival.landed:
                    _log.warning("%s: what came with it is not complete: %s: %s", clip.key, source, error.reason)
                    return
                if flight.source and not self._closing:  # else it was not even asked
                    self.counters.refused(source, error.kind)
                failures.append(error)
            finally:
                flight.source = None
            if arrival.landed:
                return
        if not failures:
            # No verdict: it may be in an archive whose index is not here.
            raise FetchError(
                FailureKind.CONFIG,
                "no source has this clip; archives are asked where an index is here, folders where one is given",
            )
        # Of two that say the same, the later one: the archives' "gone" does not know why.
        raise min(reversed(failures), key=lambda error: _HOPES.index(error.kind))

    def _ask(
        self, worker: Worker, source: str, flight: _Flight, folder: Path, deadline: float, take: HandOver
    ) -> Path | None:
        """Asks one source, and lets everyone know how it behaves."""
        permit = self._permit(source, flight)
        flight.source = source
        outcome: FetchError | None = _shutting_down()  # unless something else becomes of it
        try:
            left = max(0.0, deadline - time.monotonic())
            path = worker.fetch(flight.clip, source, folder, timeout=left, take=take)
            outcome = None
        except (NotHere, UnderWay):
            outcome = None
            self._store.origins.withdraw(permit)
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
        source, reason = error.source or "fetch", one_line(error.reason)
        if error.kind is FailureKind.BLOCKED:
            self.counters.could_not_be_had(clip, source, error.kind, reason, None)
            # It says nothing about the clip; the origin is remembered instead.
            facts = _facts(clip, error, self._asked_again(error))
            _log.warning("%s: %s: %s: %s", clip.key, error.source or "fetch", error.kind, error.reason, extra=facts)
            return
        try:
            failure = self._store.remember_failure(clip, error)
        except StoreError as trouble:
            self.counters.could_not_be_had(clip, source, error.kind, reason, None)
            facts = _facts(clip, error, None)
            _log.error("%s: %s: %s (not remembered: %s)", clip.key, error.kind, error.reason, trouble, extra=facts)
            return
        self.counters.could_not_be_had(clip, source, error.kind, reason, failure.retry_at)
        at_once = failure.retry_at <= failure.last_at
        _log.warning(
            "%s: %s: %s: %s; next try %s",
            clip.key,
            error.source or "fetch",
            error.kind,
            error.reason,
            "at the next open" if at_once else f"after {datetime.fromtimestamp(failure.retry_at):%Y-%m-%d %H:%M:%S}",
            extra=_facts(clip, error, None if at_once else failure.retry_at),
        )

    def _asked_again(self, error: FetchError) -> float | None:
        """When the source that blocked us is asked again, in seconds since the epoch."""
        until = {origin.name: origin.blocked_until for origin in self._store.origins.states()}.get(error.source)
        return until or (None if error.retry_after is None else time.time() + error.retry_after)

    def _take_along(self, clip: Clip, path: Path, source: str) -> None:
        """Stores a clip that came with another, if there is room, and tells who waits for it."""
        flight = self._flights.get(clip)
        if flight is not None and self._hand_to(flight, path, source):
            return
        claim = None
        with contextlib.suppress(FetchError):  # no room: nobody asked for it
            claim = self._store.claim(clip, size=path.stat().st_size, spare_since=0)
        if claim is None:
            path.unlink()
            return
        with claim:
            if self._store.holds(clip):
                path.unlink()
            else:
                self.counters.came(source, claim.publish(path, source))
        with self._changed:
            flight = self._flights.get(clip)
            if flight is None or flight.taken:
                return
            flight.taken = True
        self._finish(flight, None)

    def _hand_to(self, flight: _Flight, path: Path, source: str) -> bool:
        """Gives a clip to a worker of ours that is looking for it just now, if there is one; whether there was."""
        with flight.lock:
            if flight.claim is None:
                return False
            self.counters.came(source, flight.claim.publish(path, source, last=False))
            self._finish(flight, None)
        return True

    def _finish(self, flight: _Flight, error: FetchError | None) -> None:
        with self._changed:
            if flight.ended:
                return
            flight.ended = True
            self._flights.pop(flight.clip, None)
            waiters = list(flight.waiters)
        for waiter in waiters:
            if not waiter.set_running_or_notify_cancel():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


def _facts(clip: Clip, error: FetchError, next_try: float | None) -> dict[str, str]:
    """What a line about a failure carries besides its text: see `kinetics_fs.util.logs`."""
    return {
        "clip": clip.key,
        "source": error.source,
        "kind": error.kind,
        "reason": error.reason,
        "next_try": "at the next open"
        if next_try is None
        else datetime.fromtimestamp(next_try).astimezone().isoformat(timespec="seconds"),
    }


def _shutting_down() -> FetchError:
    return FetchError(FailureKind.TRANSIENT, "shutting down")
