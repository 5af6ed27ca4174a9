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
from kinetics_fs.control.status import FetchStatus, InFlightFetch
from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.fetch.pool import Worker
from kinetics_fs.fetch.settings import FetchSettings
from kinetics_fs.fetch.stats import FetchStats
from kinetics_fs.sources import InProgressElsewhere, NotInSource, OnClip
from kinetics_fs.sources.archive.limit import NOTE, failed_below
from kinetics_fs.store import Claim, Permit, RateLimited, Store, one_line
from kinetics_fs.util.logs import log_step

_log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.1
"""Seconds between two looks at a clip that another process is fetching."""


_LOOK_FOR_OTHERS = 1.0
"""The same, where an archive is being read that has the clip in it: who reads it here brings the clip at once."""

_LOOK_FOR_BUDGET = {True: 1.0, False: 15.0}
"""The same, where the budget is used up, for who waits in `open` and for who does not."""

_MAX_REASON = 350
"""Characters of a reason before a note, so that the store, which cuts at 500, keeps the note."""

KIND_PRECEDENCE = (
    *(FailureKind.LOCAL, FailureKind.BLOCKED, FailureKind.TRANSIENT, FailureKind.CONFIG),
    *(FailureKind.CREDENTIALS, FailureKind.CORRUPT, FailureKind.GONE),
)
"""Of the failures of several sources the first of these is told: a clip is gone only if it is gone everywhere."""


class RetryLater(Exception):
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
class Fetch:
    """A clip on its way, and who waits for it."""

    clip: Clip
    priority: Priority
    waiters: list[Future[None]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    taken: bool = False
    """By a worker; or by nobody, when all who waited have left."""
    protect_used_since: float = math.inf
    """What was used since then must not make room for it."""
    source: str | None = None
    """That which is being asked."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    claim: Claim | None = None
    """Of who is looking for it, as long as that lasts. Changed under the lock."""
    ended: bool = False
    """Who waited was told; another flight for the same clip may have begun."""


class Delivery:
    """Takes what a source hands over for a flight: the clip itself, and others that come with it."""

    def __init__(self, fetcher: Fetcher, fetch: Fetch, claim: Claim, source: str) -> None:
        self._fetcher = fetcher
        self._flight = fetch
        self._claim = claim
        self._source = source
        self._asked = time.monotonic()
        self.delivered = False

    def on_clip(self, clip: Clip, path: Path) -> None:
        if clip != self._flight.clip:
            self._fetcher._store_sibling(clip, path, self._source)
        elif not self.delivered:
            self.publish(path, last=False)
            self._fetcher._finish(self._flight, None)  # others may come for long after it

    def publish(self, path: Path, *, last: bool = True) -> None:
        """The clip itself."""
        if self._flight.ended:  # it came with another meanwhile
            self.delivered = True
            return
        size = self._claim.publish(path, self._source, last=last)
        self.delivered = True
        now = time.monotonic()
        self._fetcher.stats.record_fetched(self._source, size, now - self._asked)
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
        self._fetches: dict[Clip, Fetch] = {}
        self._ready: list[tuple[Priority, int, Fetch]] = []
        self._deferred: list[tuple[float, int, Fetch]] = []
        self._order = itertools.count()
        self._closing = False
        self.stats = FetchStats()
        self.max_fetches_per_hour = settings.max_fetches_per_hour
        # `known_failure` would try these clips again, but a mount that hides gone clips does not even show them.
        store.failures.make_due_if(NOTE, self._limit_was_raised)
        self._workers = [Worker(settings.sources) for _ in range(settings.workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"fetch-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def request(
        self, clip: Clip, priority: Priority = Priority.FOREGROUND, *, protect_used_since: float = math.inf
    ) -> Future[None]:
        """Asks for a clip; never blocks on the network.

        Args:
            clip: which.
            priority: before or after which others.
            protect_used_since: see `Store.claim`. If there is no room without that, the failure is not remembered.

        Returns:
            A future that is done when the clip is in the store, or raises the `FetchError` for which it is not.
            A failure that is remembered and not yet due for another try is raised without asking anyone. Who no
            longer wants the clip cancels it: a fetch that nobody waits for is not begun; one that has begun goes on.
        """
        waiter: Future[None] = Future()
        with self._changed:
            fetch = self._fetches.get(clip)
            if fetch is None:
                known = self.known_failure(clip)
                if known is not None or self._closing:
                    waiter.set_exception(known or _shutting_down())
                    return waiter
                fetch = self._fetches[clip] = Fetch(clip, priority, protect_used_since=protect_used_since)
                self._enqueue(fetch)
            elif priority < fetch.priority:
                fetch.priority = priority
                if not fetch.taken:
                    self._enqueue(fetch)
            fetch.protect_used_since = max(fetch.protect_used_since, protect_used_since)
            fetch.waiters.append(waiter)
        waiter.add_done_callback(functools.partial(self._leave, fetch))
        return waiter

    def fetch_ahead(self, clip: Clip) -> None:
        """Request a clip that a process will probably open soon, unless it is already being fetched."""
        if not self.is_fetching(clip):
            self.request(clip, Priority.SOON)

    def known_failure(self, clip: Clip) -> FetchError | None:
        """Why a clip need not be tried now: what is remembered of it, and not yet due for another try."""
        failure = self._store.failures.get(clip)
        if failure is None or failure.retry_at <= time.time():
            return None
        if self._limit_was_raised(failure.reason):
            return None
        sources = self._settings.sources
        found_by = failure.source.removeprefix("imported ")
        if failure.kind is FailureKind.GONE and found_by == "archive" and sources.order != ("archive",):
            return None  # the archives lack the clip, which says nothing about the other sources
        return failure.error()

    def _limit_was_raised(self, reason: str) -> bool:
        """Return whether a failure had a lower --max-archive-download as a cause than this fetcher has."""
        sources = self._settings.sources
        return "archive" in sources.order and failed_below(reason, sources.max_archive_download)

    def is_fetching(self, clip: Clip) -> bool:
        """Whether this fetcher has the clip on its way."""
        return clip in self._fetches

    def waiting(self) -> int:
        """How many clips are on their way, queued ones included."""
        return len(self._fetches)

    def status(self) -> FetchStatus:
        """Return the progress of the fetches."""
        now = time.monotonic()
        with self._changed:
            fetches = list(self._fetches.values())
        queue = Counter(fetch.priority for fetch in fetches if not fetch.taken)
        return FetchStatus(
            pending=len(fetches),
            queue={priority.name.lower(): queue[priority] for priority in Priority},
            in_flight=tuple(
                InFlightFetch(
                    clip=fetch.clip.key,
                    priority=fetch.priority.name.lower(),
                    seconds=round(now - fetch.since, 1),
                    source=fetch.source,
                )
                for fetch in fetches
                if fetch.taken
            ),
            fetched=self.stats.fetched,
            failed=self.stats.failed,
            rates=self.stats.rates(),
            last_failures=tuple(self.stats.last_failures()),
        )

    def close(self) -> None:
        """Ends all fetches; who waits for one gets a `FetchError`. Nothing half done stays behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join()
        for fetch in list(self._fetches.values()):
            self._finish(fetch, _shutting_down())

    def _leave(self, fetch: Fetch, waiter: Future[None]) -> None:
        if not waiter.cancelled():
            return
        with self._changed:
            fetch.waiters.remove(waiter)
            if not fetch.waiters and not fetch.taken:
                fetch.taken = True
                self._fetches.pop(fetch.clip, None)

    def _enqueue(self, fetch: Fetch) -> None:
        heapq.heappush(self._ready, (fetch.priority, next(self._order), fetch))
        self._changed.notify()

    def _defer(self, fetch: Fetch, seconds: float) -> None:
        with self._changed:
            if fetch.ended:  # it came with another while it was looked for
                return
            if not fetch.waiters:  # they left while it was looked at
                self._fetches.pop(fetch.clip, None)
                return
            fetch.taken = False
            heapq.heappush(self._deferred, (time.monotonic() + seconds, next(self._order), fetch))
            self._changed.notify()

    def _next(self) -> Fetch | None:
        """Waits for a flight to take; None when closing."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                while self._deferred and self._deferred[0][0] <= now:
                    self._enqueue(heapq.heappop(self._deferred)[2])
                while self._ready:
                    fetch = heapq.heappop(self._ready)[2]
                    if not fetch.taken:  # else queued twice: its priority was raised
                        fetch.taken = True
                        return fetch
                self._changed.wait(self._deferred[0][0] - now if self._deferred else None)
        return None

    def _serve(self, worker: Worker) -> None:
        while (fetch := self._next()) is not None:
            try:
                self._fetch(worker, fetch)
                self._finish(fetch, None)
            except RetryLater as later:
                self._defer(fetch, later.seconds)
            except FetchError as error:
                self._finish(fetch, _shutting_down() if self._closing else error)
            except StoreError as error:
                _log.error("%s: %s", fetch.clip.key, error)
                self._finish(fetch, FetchError(FailureKind.LOCAL, str(error), errno=error.errno))
            except Exception as error:
                _log.exception("%s: unexpected error", fetch.clip.key)
                self._finish(fetch, FetchError(FailureKind.LOCAL, f"unexpected {type(error).__name__}: {error}"))

    def _fetch(self, worker: Worker, fetch: Fetch) -> None:
        """Gets a clip into the store.

        Raises:
            RetryLater: another process is at it, or there is no budget for it now.
            FetchError: it cannot be had.
        """
        clip = fetch.clip
        try:
            claim = self._store.claim(clip, protect_used_since=fetch.protect_used_since)
        except FetchError as error:
            if fetch.protect_used_since == math.inf:
                self._remember(clip, error)
            raise
        if claim is None:
            if self._store.is_cached(clip):  # had by somebody who is still getting others with it
                return
            raise RetryLater(_LOOK_AGAIN)
        with claim:
            # Looked up under the claim, for another process may have just been through with it.
            stored = self._store.open(clip)
            if stored is not None:
                stored.close()
                return
            known = self.known_failure(clip)
            if known is not None:
                raise known
            with fetch.lock:
                fetch.claim = claim
            try:
                self._fetch_claimed(worker, fetch, claim)
            except FetchError as error:
                if not self._closing and not fetch.ended:
                    self._remember(clip, error)
                raise
            finally:
                with fetch.lock:
                    fetch.claim = None

    def _fetch_claimed(self, worker: Worker, fetch: Fetch, claim: Claim) -> None:
        """Asks one source after the other."""
        clip, failures, note = fetch.clip, list[FetchError](), ""
        started = time.monotonic()
        for source in self._settings.sources.order:
            folder = claim.folder / source
            folder.mkdir()
            arrival = Delivery(self, fetch, claim, source)
            try:
                path = self._ask(worker, source, fetch, folder, started + self._settings.timeout, arrival.on_clip)
                if path is not None:
                    arrival.publish(path)
            except NotInSource as missing:
                note = missing.note or note
                continue
            except InProgressElsewhere:
                raise RetryLater(_LOOK_FOR_OTHERS) from None
            except FetchError as error:
                if arrival.delivered:
                    _log.warning("%s: what came with it is not complete: %s: %s", clip.key, source, error.reason)
                    return
                if fetch.source and not self._closing:  # else it was not even asked
                    self.stats.record_refused(source, error.kind)
                failures.append(error)
            finally:
                fetch.source = None
            if arrival.delivered:
                return
        if failures:
            # Of two failures of one kind the later one counts: the archives cannot say why a clip is gone.
            failure = min(reversed(failures), key=lambda error: KIND_PRECEDENCE.index(error.kind))
        else:
            # Without the name of a source, so that a prefetch goes on: the next clip may be in another archive.
            advice = "" if note else "; give an index of its archive (kinetics-fs index), or a --folder that has it"
            failure = FetchError(FailureKind.CONFIG, f"no source has this clip{advice}")
        if note:
            # Remembered with the failure, so that a higher limit makes `known_failure` try again.
            failure = FetchError(
                failure.kind,
                f"{failure.reason[:_MAX_REASON]}; {note}",
                source=failure.source,
                errno=failure.errno,
                retry_after=failure.retry_after,
            )
        raise failure

    def _ask(
        self, worker: Worker, source: str, fetch: Fetch, folder: Path, deadline: float, on_clip: OnClip
    ) -> Path | None:
        """Asks one source, and lets everyone know how it behaves."""
        permit = self._permit(source, fetch)
        fetch.source = source
        outcome: FetchError | None = _shutting_down()  # unless something else becomes of it
        asked = True
        try:
            left = max(0.0, deadline - time.monotonic())
            with log_step(_log, f"fetch {fetch.clip.key}: {source}"):
                path = worker.fetch(fetch.clip, source, folder, timeout=left, on_clip=on_clip)
            outcome = None
        except (NotInSource, InProgressElsewhere):
            asked = False
            raise
        except FetchError as error:
            outcome = error
            raise
        finally:
            if asked:
                self._store.throttle.record(permit, outcome)
            else:
                self._store.throttle.cancel(permit)
        return path

    def _permit(self, source: str, fetch: Fetch) -> Permit:
        """The right to ask a source for a clip.

        Raises:
            FetchError: it is left alone, or the budget is used up for longer than an open waits (BLOCKED).
            RetryLater: the budget is used up for now.
        """
        urgent = fetch.priority is Priority.FOREGROUND
        hourly = self._settings.max_fetches_per_hour if source == "youtube" else None
        try:
            return self._store.throttle.acquire(source, max_per_hour=hourly, urgent=urgent)
        except RateLimited as budget:
            waited = time.monotonic() - fetch.since
            if urgent and waited + budget.seconds > self._settings.timeout:
                raise FetchError(
                    FailureKind.BLOCKED,
                    f"the budget of {hourly} clips an hour is used up for {budget.seconds:.0f} s",
                    source=source,
                    retry_after=budget.seconds,
                ) from None
            raise RetryLater(min(budget.seconds, _LOOK_FOR_BUDGET[urgent])) from None

    def _remember(self, clip: Clip, error: FetchError) -> None:
        source, reason = error.source or "fetch", one_line(error.reason)
        if error.kind is FailureKind.BLOCKED:
            self.stats.record_failed(clip, source, error.kind, reason, None)
            # It says nothing about the clip; the origin is remembered instead.
            facts = _facts(clip, error, self._asked_again(error))
            _log.warning("%s: %s: %s: %s", clip.key, error.source or "fetch", error.kind, error.reason, extra=facts)
            return
        try:
            failure = self._store.failures.remember(clip, error)
        except StoreError as trouble:
            self.stats.record_failed(clip, source, error.kind, reason, None)
            facts = _facts(clip, error, None)
            _log.error("%s: %s: %s (not remembered: %s)", clip.key, error.kind, error.reason, trouble, extra=facts)
            return
        self.stats.record_failed(clip, source, error.kind, reason, failure.retry_at)
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
        until = {state.name: state.blocked_until for state in self._store.throttle.states()}.get(error.source)
        return until or (None if error.retry_after is None else time.time() + error.retry_after)

    def _store_sibling(self, clip: Clip, path: Path, source: str) -> None:
        """Stores a clip that came with another, if there is room, and tells who waits for it."""
        fetch = self._fetches.get(clip)
        if fetch is not None and self._hand_to(fetch, path, source):
            return
        claim = None
        with contextlib.suppress(FetchError):  # no room: nobody asked for it
            claim = self._store.claim(clip, size=path.stat().st_size, protect_used_since=0)
        if claim is None:
            path.unlink()
            return
        with claim:
            if self._store.is_cached(clip):
                path.unlink()
            else:
                self.stats.record_fetched(source, claim.publish(path, source))
        with self._changed:
            fetch = self._fetches.get(clip)
            if fetch is None or fetch.taken:
                return
            fetch.taken = True
        self._finish(fetch, None)

    def _hand_to(self, fetch: Fetch, path: Path, source: str) -> bool:
        """Gives a clip to a worker of ours that is looking for it just now, if there is one; whether there was."""
        with fetch.lock:
            if fetch.claim is None:
                return False
            self.stats.record_fetched(source, fetch.claim.publish(path, source, last=False))
            self._finish(fetch, None)
        return True

    def _finish(self, fetch: Fetch, error: FetchError | None) -> None:
        with self._changed:
            if fetch.ended:
                return
            fetch.ended = True
            self._fetches.pop(fetch.clip, None)
            waiters = list(fetch.waiters)
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
