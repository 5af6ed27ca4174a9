"""The fetcher: a queue of clips, and threads that have worker processes fetch them into the store, each clip once."""

from __future__ import annotations

import contextlib
import enum
import functools
import heapq
import itertools
import logging
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.control.status import FetchStatus, InFlightFetch, SharedStatus
from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError, StoreError
from kinetics_fs.fetch.folder_report import FolderReport
from kinetics_fs.fetch.outcomes import FailedElsewhere, FailureMemory, RetryLater, combine_failures
from kinetics_fs.fetch.permits import Permits, RequestPermit
from kinetics_fs.fetch.pool import OnVerifiedClip, VerifiedFile, Worker
from kinetics_fs.fetch.stats import FetchStats
from kinetics_fs.sources import InProgressElsewhere, NotInSource, SourceSettings
from kinetics_fs.store import VERDICTS, Claim, ControlNeeded, RateLimited, Store, is_short
from kinetics_fs.util.logs import log_step
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.fetch.shared_clips import SharedClips
    from kinetics_fs.shared import Connection, Work

_log = logging.getLogger(__name__)

YOUTUBE = "youtube"
SHARED = "shared"
"""What logs, the status and metrics show as the source of a clip from the shared store."""

_CLAIM_POLL_INTERVAL = 0.1
"""Seconds until a clip that another process is fetching is looked up again."""

_ARCHIVE_POLL_INTERVAL = 1.0
"""The same if another process is reading the archive that has the clip. If the fetcher's own process is reading it, the
clip arrives without polling."""

_BUDGET_POLL_INTERVAL = 15.0
"""Maximum seconds until a source whose hourly limit is reached is tried again."""

_CONTROL_POLL_INTERVAL = 0.2
"""Seconds until a source that another worker tests with a control is tried again."""

_CONTROL_TIMEOUT = 60.0
"""Seconds that a control may take."""

FLUSH_TIMEOUT = 30.0
"""Seconds in which clips are uploaded to the shared store when the fetcher closes."""

_FOREGROUND_BUDGET_POLL_INTERVAL = 1.0
"""The same for a clip that a process waits for in `open`."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Settings of the fetcher.

    Args:
        workers: number of clips to fetch at the same time, each in a process of its own.
        timeout: seconds that a clip may take, from the moment when a worker starts on it to the verified file.
        max_fetches_per_hour: number of clips to request from YouTube per hour; None for no limit.
        replace_short: before a short clip of another source is used, ask YouTube once whether it has a longer one.
        sources: settings of the sources, which the worker processes receive as JSON.
    """

    workers: int = 4
    timeout: float = 300.0
    max_fetches_per_hour: int | None = None
    replace_short: bool = False
    sources: SourceSettings = field(default_factory=SourceSettings)


class Priority(enum.IntEnum):
    """Priority of a request; the lowest number is served first."""

    FOREGROUND = 0
    """A process waits for the clip in `open`."""
    SOON = 1
    """A process will probably open the clip soon."""
    BACKGROUND = 2
    """A prefetch requested the clip."""


class FetchState(enum.Enum):
    """The state of a fetch."""

    QUEUED = enum.auto()
    """No worker has it. It may be deferred."""
    RUNNING = enum.auto()
    """A worker has it."""
    ENDED = enum.auto()
    """All its waiters know the result, or none was left. Another fetch of the same clip may have begun, and a worker
    may still read siblings of the clip."""


@dataclass(slots=True)
class Fetch:
    """A requested clip that is neither cached nor failed yet. The lock of the fetcher guards all but `claim`.

    Args:
        clip: the clip.
        priority: highest priority of its requests.
        protect_used_since: clips used since then, in seconds since the epoch, are not evicted for it.
        id: tells the fetch from others in logs and in the status.
        state: where it stands.
        waiters: futures of its requests.
        requested_at: time of the first request, by the monotonic clock.
        source: the source that is being asked; None if none is.
        received: bytes that the sources have sent for it so far.
        claim_lock: guards `claim`.
        claim: the right to publish the clip, from the moment when a thread acquires it to its release.
        is_stored: the clip was stored, and a longer one is wanted.
        work: the work that other machines wait for; None if they do not.
    """

    clip: Clip
    priority: Priority
    protect_used_since: float
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    state: FetchState = FetchState.QUEUED
    waiters: list[Future[None]] = field(default_factory=list)
    requested_at: float = field(default_factory=time.monotonic)
    source: str | None = None
    received: int = 0
    claim_lock: threading.Lock = field(default_factory=threading.Lock)
    claim: Claim | None = None
    is_stored: bool = False
    work: Work | None = None


class FetchFuture(Future[None]):
    """The future of a request.

    Attributes:
        fetch: the fetch that the request began or joined; None if it failed at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetch: Fetch | None = None

    @property
    def received(self) -> int:
        """Bytes that the sources have sent for the clip so far."""
        return 0 if self.fetch is None else self.fetch.received


class Delivery:
    """Receives what one source delivers for a fetch: the requested clip, and siblings from the same download.

    Attributes:
        delivered: the requested clip is in the store.
    """

    def __init__(self, fetcher: Fetcher, fetch: Fetch, claim: Claim, source: str) -> None:
        self._fetcher = fetcher
        self._fetch = fetch
        self._claim = claim
        self._source = source
        self._asked_at = time.monotonic()
        self.delivered = False

    def on_clip(self, clip: Clip, file: VerifiedFile) -> None:
        """Store a clip while the source goes on to read."""
        if clip != self._fetch.clip:
            self._fetcher._store_sibling(clip, file, self._source)
        elif not self.delivered:
            self.publish(file, last=False)
            if not self._fetcher.wants_longer(clip):
                self._fetcher._finish(self._fetch, None)  # siblings may arrive for a long time after it

    def publish(self, file: VerifiedFile, *, last: bool = True) -> None:
        """Store the requested clip.

        Args:
            file: the clip.
            last: nothing else is stored under the claim.
        """
        if self._fetch.state is FetchState.ENDED:  # another fetch delivered it as a sibling
            self.delivered = True
            return
        with log_step(_log, f"fetch {self._fetch.clip.key}: publish"):
            size = self._claim.publish(file.path, self._source, cut=file.cut, duration=file.duration, last=last)
        self.delivered = True
        self._fetcher._note_published(self._fetch.clip, file, self._source, self._fetch)
        if not self._fetch.received:  # linked or copied from a folder
            self._fetcher._count_received(self._fetch, size)
        now = time.monotonic()
        self._fetcher.stats.record_fetched(self._source, size, now - self._asked_at)
        self._fetcher._log_fetched(self._fetch, self._source)


class Fetcher:
    """Fetches clips into a store. Safe for threads.

    Args:
        store: receives the clips, and remembers failures.
        settings: settings of the fetcher.
        connection: the shared store, which is asked before all sources; None for none. The fetcher starts and ends it.

    Attributes:
        stats: number of fetched and failed clips, and the speed.

    Raises:
        SharedStoreError: the address of the connection has no store, or one that this program cannot use.
    """

    def __init__(self, store: Store, settings: FetchSettings, connection: Connection | None = None) -> None:
        self._store = store
        self._settings = settings
        self._changed = threading.Condition()
        self._fetches: dict[Clip, Fetch] = {}
        """The fetches that have not ended."""
        self._ready: list[tuple[Priority, int, Fetch]] = []
        """A heap. A fetch whose priority was raised is in it more than once; the first entry counts."""
        self._deferred: list[tuple[float, int, Fetch]] = []
        """A heap of fetches to enqueue again, by the monotonic time at which they are due."""
        self._order = itertools.count()
        self._closing = False
        self._rate_limited_until = -math.inf
        self._replaces_short = settings.replace_short and YOUTUBE in settings.sources.order
        self.stats = FetchStats()
        self._failures = FailureMemory(store, self.stats, settings.sources, is_shared=connection is not None)
        self._shared: SharedClips | None = None
        if connection is not None:
            from kinetics_fs.fetch.shared_clips import SharedClips

            self._shared = SharedClips(connection, store, self._failures)
        self._permits = Permits(store.throttle, self._limit, connection)
        self._folder_report = FolderReport(settings.sources.folders)
        self._workers = [Worker(settings.sources, lambda: store.scratch) for _ in range(settings.workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"fetch-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def request(
        self, clip: Clip, priority: Priority = Priority.FOREGROUND, *, protect_used_since: float = math.inf
    ) -> FetchFuture:
        """Request a clip, or join a request for the same clip. Never waits for the network.

        Args:
            clip: the clip.
            priority: priority of the request.
            protect_used_since: see `Store.claim`. If this leaves no space, the failure is not remembered.

        Returns:
            A future that is done when the clip is in the store, or raises a `FetchError`. If a failure is remembered
            and not due for a retry, the future raises that without asking a source. Cancel the future if the clip is
            no longer wanted: a queued fetch without waiters is dropped, one that a worker has continues.
        """
        waiter = FetchFuture()
        with self._changed:
            fetch = self._fetches.get(clip)
            if fetch is None:
                failure = self.known_failure(clip)
                if failure is not None or self._closing:
                    waiter.set_exception(failure or _shutting_down())
                    return waiter
                fetch = self._fetches[clip] = Fetch(clip, priority, protect_used_since)
                self._enqueue(fetch)
            elif priority < fetch.priority:
                fetch.priority = priority
                if fetch.state is FetchState.QUEUED:
                    self._enqueue(fetch)
            fetch.protect_used_since = max(fetch.protect_used_since, protect_used_since)
            fetch.waiters.append(waiter)
            waiter.fetch = fetch
        waiter.add_done_callback(functools.partial(self._leave, fetch))
        return waiter

    def fetch_ahead(self, clip: Clip) -> None:
        """Request a clip that a process will probably open soon, unless it is already being fetched."""
        if not self.is_fetching(clip):
            self.request(clip, Priority.SOON)

    def known_failure(self, clip: Clip) -> FetchError | None:
        """Return the remembered failure of a clip; None if there is none, or if it is due for a retry."""
        return self._failures.get(clip)

    def wants_longer(self, clip: Clip) -> bool:
        """Return whether a cached clip is short, and is to be requested because YouTube may have a longer one."""
        return self._replaces_short and self._store.short_clips.may_be_longer(clip)

    @property
    def sources(self) -> SourceSettings:
        """Settings of the sources."""
        return self._settings.sources

    @property
    def max_fetches_per_hour(self) -> int | None:
        """The limit on requests to YouTube; None if there is no limit, or YouTube is not asked."""
        return self._limit(YOUTUBE) if YOUTUBE in self.sources.order else None

    @property
    def max_bandwidth(self) -> float | None:
        """Bytes per second that all workers together may receive from YouTube; None for no limit."""
        share = self.sources.max_bandwidth
        return None if share is None else share * self._settings.workers

    @property
    def is_rate_limited(self) -> bool:
        """Whether clips that no process waits for in `open` have to wait, because the hourly limit is reached."""
        return time.monotonic() < self._rate_limited_until

    def is_fetching(self, clip: Clip) -> bool:
        """Return whether the clip is queued or in flight."""
        return clip in self._fetches

    def status(self) -> FetchStatus:
        """Return the progress of the fetches."""
        now = time.monotonic()
        with self._changed:
            fetches = list(self._fetches.values())
        queue = Counter(fetch.priority for fetch in fetches if fetch.state is FetchState.QUEUED)
        return FetchStatus(
            pending=len(fetches),
            queue={priority.name.lower(): queue[priority] for priority in Priority},
            in_flight=tuple(
                InFlightFetch(
                    id=fetch.id,
                    clip=fetch.clip.key,
                    label="",
                    priority=fetch.priority.name.lower(),
                    seconds=round(now - fetch.requested_at, 1),
                    source=fetch.source,
                    bytes=fetch.received,
                )
                for fetch in fetches
                if fetch.state is FetchState.RUNNING
            ),
            fetched=self.stats.fetched,
            failed=self.stats.failed,
            rates=self.stats.rates(),
            last_failures=tuple(self.stats.last_failures()),
            sandbox=next((str(one.confinement) for one in self._workers if one.confinement is not None), None),
        )

    def shared_status(self) -> SharedStatus | None:
        """Return how the shared store is used; None without one."""
        return None if self._shared is None else self._shared.connection.status()

    def list_shared_sizes(self) -> Callable[[Sequence[str]], Mapping[str, int]] | None:
        """List the shared store in the background.

        Returns:
            The function that returns the sizes in bytes that are known of clips, by `Clip.key`; None if there is no
            store that can be listed cheaply.
        """
        sizes = None if self._shared is None else self._shared.connection.list_sizes()
        return None if sizes is None else sizes.find

    def drain_uploads(self, report: Callable[[int], None]) -> None:
        """Upload all clips that wait for their upload to the shared store.

        Args:
            report: receives the number of clips that are left, about once a second.

        Raises:
            SharedStoreError: nothing can be uploaded at the moment.
        """
        while self._shared is not None and not self._closing:
            left = self._shared.connection.flush(1.0)
            report(left)
            if not left:
                return
            status = self._shared.connection.status()
            reason = status.error or (status.uploads.paused if status.uploads is not None else "")
            if reason:
                raise SharedStoreError(f"cannot upload {count(left, 'clip')} to {status.address}: {reason}")

    def close(self) -> None:
        """End all fetches with a `FetchError`, and the worker processes. No unfinished file is left.

        With a shared store, this takes up to 30 seconds in which clips are uploaded.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join()
        self._folder_report.stop()
        for fetch in list(self._fetches.values()):
            self._finish(fetch, _shutting_down())
        if self._shared is not None:
            self._shared.close(FLUSH_TIMEOUT)

    # The queue

    def _leave(self, fetch: Fetch, waiter: Future[None]) -> None:
        """Drop a cancelled waiter, and a queued fetch that has no other."""
        if not waiter.cancelled():
            return
        with self._changed:
            fetch.waiters.remove(waiter)
            if fetch.waiters or fetch.state is not FetchState.QUEUED:
                return
            self._drop(fetch)
        self._end_work(fetch)

    def _drop(self, fetch: Fetch) -> None:
        fetch.state = FetchState.ENDED
        self._fetches.pop(fetch.clip, None)

    @staticmethod
    def _end_work(fetch: Fetch) -> None:
        """Let other machines fetch a clip themselves that they waited for."""
        work, fetch.work = fetch.work, None
        if work is not None:
            work.abandon("no longer wanted")

    def _enqueue(self, fetch: Fetch) -> None:
        heapq.heappush(self._ready, (fetch.priority, next(self._order), fetch))
        self._changed.notify()

    def _defer(self, fetch: Fetch, seconds: float) -> None:
        with self._changed:
            if fetch.state is FetchState.ENDED:  # the clip was delivered as a sibling meanwhile
                return
            if fetch.waiters:
                fetch.state = FetchState.QUEUED
                heapq.heappush(self._deferred, (time.monotonic() + seconds, next(self._order), fetch))
                self._changed.notify()
                return
            self._drop(fetch)
        self._end_work(fetch)

    def _next(self) -> Fetch | None:
        """Wait for a queued fetch and return it as running; return None when the fetcher closes."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                while self._deferred and self._deferred[0][0] <= now:
                    self._enqueue(heapq.heappop(self._deferred)[2])
                while self._ready:
                    fetch = heapq.heappop(self._ready)[2]
                    if fetch.state is FetchState.QUEUED:
                        fetch.state = FetchState.RUNNING
                        return fetch
                self._changed.wait(self._deferred[0][0] - now if self._deferred else None)
        return None

    def _finish(self, fetch: Fetch, error: FetchError | None) -> None:
        """End a fetch, and give its waiters the result."""
        with self._changed:
            if fetch.state is FetchState.ENDED:
                return
            self._drop(fetch)
            waiters = list(fetch.waiters)
        self._end_work(fetch)
        for waiter in waiters:
            if not waiter.set_running_or_notify_cancel():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    # Fetching

    def _serve(self, worker: Worker) -> None:
        while (fetch := self._next()) is not None:
            try:
                self._fetch(worker, fetch)
                self._finish(fetch, None)
            except RetryLater as later:
                _log.debug("fetch %s: deferred for %.1f s: %s", fetch.clip.key, later.seconds, later)
                self._defer(fetch, later.seconds)
            except FetchError as error:
                self._finish(fetch, _shutting_down() if self._closing else error)
            except StoreError as error:
                failure = FetchError(FailureKind.LOCAL, str(error), cause_errno=error.errno)
                self._failures.report(fetch.clip, failure, fetch.id, remembered=False)
                self._finish(fetch, failure)
            except Exception as error:
                _log.exception("%s: unexpected error", fetch.clip.key)
                self._finish(fetch, FetchError(FailureKind.LOCAL, f"unexpected {type(error).__name__}: {error}"))

    def _fetch(self, worker: Worker, fetch: Fetch) -> None:
        """Fetch a clip into the store.

        Raises:
            RetryLater: another process or machine is fetching the clip, the hourly limit of a source is reached, or the
                clip is stored and a longer one is wanted.
            FetchError: the clip is unavailable.
        """
        clip = fetch.clip
        # The cached clip must not be evicted for a longer one, which may not exist.
        size = 0 if self.wants_longer(clip) else None
        try:
            with log_step(_log, f"fetch {clip.key}: claim"), fetch.claim_lock:
                claim = self._store.claim(clip, size=size, protect_used_since=fetch.protect_used_since)
                fetch.claim = claim
        except FetchError as error:
            if fetch.protect_used_since == math.inf:
                self._fail(worker, fetch, error)
            raise
        if claim is None:
            # Perhaps stored by a process that is still reading its siblings.
            if self._store.is_cached(clip) and not self.wants_longer(clip):
                return
            raise RetryLater(_CLAIM_POLL_INTERVAL, "another process is fetching it")
        with self._held(fetch, claim):
            # Look again under the claim: another process may have finished with the clip just now.
            stored = self._store.open(clip)
            if stored is not None:
                stored.close()
                if self.wants_longer(clip):
                    self._fetch_longer(worker, fetch, claim)
                return
            if self._shared is not None and self._fetch_shared(worker, self._shared, fetch, claim):
                return
            held = self._failures.held(clip)
            others = () if held is None else self._failures.other_sources(clip, held)
            if held is not None and not others:
                self._failures.note_asked(clip)
                raise held
            try:
                if held is None:
                    self._fetch_claimed(worker, fetch, claim, self._settings.sources.order, [])
                else:
                    self._fetch_claimed(worker, fetch, claim, others, [held])
            except FetchError as error:
                if held is not None:  # stays remembered, so that its source is not asked before its retry is due
                    self._failures.note_asked(clip)
                    if error is not held:
                        _log.warning("%s: %s: %s: %s", clip.key, error.source, error.kind, error.reason)
                    raise
                if self._closing or fetch.state is FetchState.ENDED or isinstance(error, FailedElsewhere):
                    raise
                failure = self._fail(worker, fetch, error)
                if self._shared is not None and fetch.work is not None:
                    work, fetch.work = fetch.work, None
                    self._shared.note_failed(clip, failure, work)
                raise failure from error
        if self.wants_longer(clip) and not fetch.is_stored:
            fetch.is_stored = True
            raise RetryLater(0.0, "it is short")  # under another claim, because each stored file needs its own

    def _fetch_shared(self, worker: Worker, shared: SharedClips, fetch: Fetch, claim: Claim) -> bool:
        """Store a clip that the shared store has; return whether it has it.

        If not, and this machine may upload what any source delivers, the other machines wait for this one from now on.

        Raises:
            RetryLater: another machine is fetching the clip.
            FetchError: another machine has just failed to fetch it, or it cannot be stored.
        """
        if fetch.work is not None and fetch.work.is_leased:  # the fetch was deferred
            return False
        try:
            if self._failures.held(fetch.clip) is not None or shared.connection.write == YOUTUBE:
                return self._find_shared(shared, fetch, claim)
            return self._begin_shared(shared, fetch, claim)
        except FailedElsewhere as error:
            if error.kind in VERDICTS and self._failures.held(fetch.clip) is not None:
                return False  # the other sources of this machine may have it
            _log.warning("%s: another machine could not fetch it: %s: %s", fetch.clip.key, error.kind, error.reason)
            raise
        except FetchError as error:
            raise self._fail(worker, fetch, error) from error

    def _find_shared(self, shared: SharedClips, fetch: Fetch, claim: Claim) -> bool:
        """Store a clip that the shared store has; return whether it has it. See `_fetch_shared`."""
        asked_at = time.monotonic()
        fetch.source = SHARED
        try:
            size = shared.find(fetch.clip, claim)
        finally:
            fetch.source = None
        if size is not None:
            self._note_taken(fetch, size, asked_at)
        return size is not None

    def _begin_shared(self, shared: SharedClips, fetch: Fetch, claim: Claim) -> bool:
        """Store a clip that the shared store has, or let the other machines wait for this one; see `_fetch_shared`."""
        asked_at = time.monotonic()
        patient = asked_at - fetch.requested_at < self._settings.timeout
        fetch.source = SHARED
        try:
            with log_step(_log, f"fetch {fetch.clip.key}: shared store"):
                found = shared.begin(fetch.clip, claim, patient=patient)
        finally:
            fetch.source = None
        if isinstance(found, int):
            self._note_taken(fetch, found, asked_at)
            return True
        fetch.work = found
        return False

    def _note_taken(self, fetch: Fetch, size: int, asked_at: float) -> None:
        self._count_received(fetch, size)
        self.stats.record_fetched(SHARED, size, time.monotonic() - asked_at)
        self._log_fetched(fetch, SHARED)

    def _note_published(self, clip: Clip, file: VerifiedFile, source: str, fetch: Fetch | None) -> None:
        """Let the other machines have a clip that a source delivered.

        Args:
            clip: the clip.
            file: the file that was published.
            source: name of the source.
            fetch: the fetch of the clip; None for a sibling that nothing requested.
        """
        if self._shared is None:
            return
        work = None if fetch is None else fetch.work
        if fetch is not None:
            fetch.work = None
        self._shared.note_published(clip, source, cut=file.cut, work=work)
        self._shared.share_verdicts()

    def _log_fetched(self, fetch: Fetch, source: str) -> None:
        seconds = time.monotonic() - fetch.requested_at
        _log.info("%s: fetched from %s in %.1f s (fetch %s)", fetch.clip.key, source, seconds, fetch.id)

    @contextlib.contextmanager
    def _held(self, fetch: Fetch, claim: Claim) -> Iterator[None]:
        """Release the claim of a fetch at the end, but not while a sibling is published under it."""
        try:
            yield
        finally:
            with fetch.claim_lock, claim:
                fetch.claim = None

    def _fetch_longer(self, worker: Worker, fetch: Fetch, claim: Claim) -> None:
        """Store YouTube's version of a cached short clip, if it is longer: the store then shows that one.

        Raises:
            RetryLater: the hourly limit of YouTube is reached, and no process waits for the clip in `open`.
        """
        clip, record = fetch.clip, self._store.record(fetch.clip)
        known = 0.0 if record is None or record.duration is None else record.duration
        folder = claim.folder / YOUTUBE
        folder.mkdir()
        deadline = time.monotonic() + self._settings.timeout
        failure: FetchError | None = None
        try:
            file = self._ask(worker, YOUTUBE, fetch, folder, deadline, None)
            if file is not None and file.duration > known:
                Delivery(self, fetch, claim, YOUTUBE).publish(file)
                return
        except RetryLater:
            if fetch.priority is Priority.FOREGROUND:
                return
            raise
        except FetchError as error:
            if self._closing:
                return
            failure = error
            if fetch.source:
                self.stats.record_undelivered(YOUTUBE, error.kind)
        finally:
            fetch.source = None
        if failure is not None and failure.kind in VERDICTS and self._permits.is_suspected(YOUTUBE):
            failure = FetchError(FailureKind.TRANSIENT, failure.reason)  # the verdict does not count
        reason = "what YouTube has is not longer" if failure is None else f"{YOUTUBE}: {failure.kind}: {failure.reason}"
        _log.warning("%s: it has %.1f of %d s and stays: %s", clip.key, known, clip.duration, reason)
        self._store.short_clips.remember(clip, failure)

    def _fetch_claimed(
        self, worker: Worker, fetch: Fetch, claim: Claim, sources: Sequence[str], failures: list[FetchError]
    ) -> None:
        """Ask one source after the other.

        Args:
            worker: the worker process that asks.
            fetch: the fetch.
            claim: the right to publish the clip.
            sources: names of the sources to ask.
            failures: those that are already known of other sources.

        Raises:
            RetryLater: another process is reading the archive that has the clip.
            FetchError: no source delivered the clip.
        """
        clip, note = fetch.clip, ""
        deadline = time.monotonic() + self._settings.timeout
        for source in sources:
            shared = self._shared if source == YOUTUBE and fetch.work is None else None
            if shared is not None and shared.connection.write == YOUTUBE and self._begin_shared(shared, fetch, claim):
                return
            folder = claim.folder / source
            folder.mkdir()
            delivery = Delivery(self, fetch, claim, source)
            try:
                file = self._ask(worker, source, fetch, folder, deadline, delivery.on_clip)
                if file is not None:
                    delivery.publish(file)
            except NotInSource as missing:
                note = missing.note or note
                if source == "folder":
                    self._folder_report.start()
                continue
            except InProgressElsewhere:
                raise RetryLater(_ARCHIVE_POLL_INTERVAL, "another process is reading the archive that has it") from None
            except FetchError as error:
                if delivery.delivered:
                    _log.warning("%s: not all of its siblings arrived: %s: %s", clip.key, source, error.reason)
                    return
                if fetch.source and not self._closing:  # None if the source was blocked and not asked
                    self.stats.record_undelivered(source, error.kind)
                failures.append(error)
            finally:
                fetch.source = None
            if delivery.delivered:
                refusal = next((failure for failure in failures if failure.source == YOUTUBE), None)
                if refusal is not None and self._replaces_short:
                    self._store.short_clips.remember(clip, refusal)
                return
        raise combine_failures(failures, note)

    def _ask(
        self, worker: Worker, source: str, fetch: Fetch, folder: Path, deadline: float, on_clip: OnVerifiedClip | None
    ) -> VerifiedFile | None:
        """Ask one source for a clip, and record whether the source blocks this address.

        Args:
            worker: the worker process that asks.
            source: name of the source.
            fetch: the fetch.
            folder: empty folder for the files.
            deadline: monotonic time at which the worker is ended.
            on_clip: receives clips that arrive before the source has ended; None for a source that has one at a time.

        Returns:
            The verified file; None if `on_clip` received it.
        """
        with log_step(_log, f"fetch {fetch.clip.key}: permit for {source}"):
            permit = self._acquire_permit(worker, source, fetch)
        fetch.source = source
        received_before = fetch.received

        def on_received(received: int) -> None:
            self._count_received(fetch, received_before + received)

        result: FetchError | None = _shutting_down()  # stays if an exception of another type ends the fetch
        asked = True
        try:
            remaining = max(0.0, deadline - time.monotonic())
            with log_step(_log, f"fetch {fetch.clip.key}: {source}"):
                file = worker.fetch(
                    fetch.clip, source, folder, timeout=remaining, on_clip=on_clip, on_received=on_received
                )
            result = None
        except (NotInSource, InProgressElsewhere):
            asked = False
            raise
        except FetchError as error:
            result = error
            raise
        finally:
            if asked:
                self.stats.record_request(source)
                self._permits.record(permit, result)
            else:
                self._permits.cancel(permit)
        return file

    def _count_received(self, fetch: Fetch, received: int) -> None:
        self.stats.record_received(max(0, received - fetch.received))
        fetch.received = received

    def _acquire_permit(self, worker: Worker, source: str, fetch: Fetch) -> RequestPermit:
        """Return the permit to ask a source for a clip.

        Raises:
            FetchError: the source blocks this address, or its hourly limit is reached for longer than an open may wait
                (BLOCKED).
            RetryLater: the hourly limit of the source is reached, or a control tests the source.
        """
        urgent = fetch.priority is Priority.FOREGROUND
        waited = time.monotonic() - fetch.requested_at
        try:
            while not self._closing:
                try:
                    return self._permits.acquire(source, urgent=urgent)
                except ControlNeeded:
                    with contextlib.suppress(FetchError):
                        if not self._try_control(worker, source):
                            raise RetryLater(_CONTROL_POLL_INTERVAL, f"a control tests {source}") from None
            raise _shutting_down()
        except FetchError as block:
            if block.retry_after == 0 and waited < self._settings.timeout and self._permits.is_suspected(source):
                raise RetryLater(_CONTROL_POLL_INTERVAL, f"a clip tests {source}") from None
            raise
        except RateLimited as limited:
            limit = self._permits.limit(source)
            if not urgent:
                self._rate_limited_until = time.monotonic() + limited.seconds
            if urgent and waited + limited.seconds > self._settings.timeout:
                raise FetchError(
                    FailureKind.BLOCKED,
                    f"the limit of {limit} clips per hour is reached for another {limited.seconds:.0f} s; wait or"
                    " raise --max-fetches-per-hour",
                    source=source,
                    retry_after=limited.seconds,
                ) from None
            interval = _FOREGROUND_BUDGET_POLL_INTERVAL if urgent else _BUDGET_POLL_INTERVAL
            raise RetryLater(
                min(limited.seconds, interval), f"the limit of {limit} clips per hour of {source} is reached"
            ) from None

    def _limit(self, source: str) -> int | None:
        return self._settings.max_fetches_per_hour if source == YOUTUBE else None

    # Suspected sources

    def _fail(self, worker: Worker, fetch: Fetch, error: FetchError) -> FetchError:
        """Remember and log the failure of a clip, and return what the waiters receive: the failure, or a block."""
        clip = fetch.clip
        try:
            self._failures.remember(clip, error)
        except StoreError:
            self._failures.report(clip, error, fetch.id, remembered=False)
            return error
        if error.kind in VERDICTS and (block := self._doubt(worker, error.source)) is not None:
            error = block
        self._failures.report(clip, error, fetch.id)
        return error

    def _doubt(self, worker: Worker, source: str) -> FetchError | None:
        """Have controls test a source if it is suspected; return the block if they prove nothing."""
        while self._permits.is_suspected(source):
            try:
                if self._try_control(worker, source):
                    continue
            except FetchError as block:
                return block
            except RateLimited as limited:
                reason = "suspected, and the hourly limit leaves no request for a control"
                return FetchError(FailureKind.BLOCKED, reason, source=source, retry_after=limited.seconds)
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, _CONTROL_POLL_INTERVAL):
                    return _shutting_down()
        return None

    def _try_control(self, worker: Worker, source: str) -> bool:
        """Have a worker ask a suspected source for a control; return False if another worker does that at the moment.

        Raises:
            FetchError: no control is due, because the source is blocked or a clip tests it (BLOCKED).
            RateLimited: the hourly limit of the source is reached.
        """
        control = self._permits.acquire_control(source)
        if control is None:
            return False
        video = control.local.choose(self._settings.sources.well_known_videos)
        if video is None:
            error: FetchError | None = None  # nothing can test this site, so its verdicts count
        else:
            _log.warning("%s: suspected, because too many videos in a row are unavailable; control: %s", source, video)
            try:
                worker.check(video, source, timeout=min(self._settings.timeout, _CONTROL_TIMEOUT))
                error = None
            except FetchError as failure:
                error = failure
                _log.warning("%s: the control %s proves nothing: %s: %s", source, video, error.kind, error.reason)
        if self._closing:
            self._permits.cancel_control(control)
            raise _shutting_down()
        self._permits.record_control(control, error)
        if error is None and self._shared is not None:
            self._shared.share_verdicts()
        return True

    # Siblings

    def _store_sibling(self, clip: Clip, file: VerifiedFile, source: str) -> None:
        """Store a clip that arrived with another one, if there is space, and end the fetch of it, if there is one."""
        fetch = self._fetches.get(clip)
        replace = self._replaces_short and is_short(clip, file.duration)
        # Without the lock, the fetch might claim the clip between the two looks, and the sibling would be lost.
        with fetch.claim_lock if fetch is not None else contextlib.nullcontext():
            if fetch is not None and fetch.claim is not None and not replace:
                self._hand_to(fetch, fetch.claim, file, source)
                return
            claim = None
            with contextlib.suppress(FetchError):  # there is no space, and nothing requested the clip
                claim = self._store.claim(clip, size=file.path.stat().st_size, protect_used_since=0)
        if claim is None:
            file.path.unlink()
            return
        with claim:
            if self._store.is_cached(clip):
                file.path.unlink()
            else:
                with log_step(_log, f"fetch {clip.key}: publish"):
                    size = claim.publish(file.path, source, cut=file.cut, duration=file.duration)
                self.stats.record_fetched(source, size)
                self._note_published(clip, file, source, fetch)
        if replace:  # by the fetch, if there is one
            return
        with self._changed:
            fetch = self._fetches.get(clip)
            if fetch is None or fetch.state is not FetchState.QUEUED:
                return
            fetch.state = FetchState.RUNNING
        self._finish(fetch, None)

    def _hand_to(self, fetch: Fetch, claim: Claim, file: VerifiedFile, source: str) -> None:
        """Publish a clip under the claim of a fetch that is looking for it."""
        with log_step(_log, f"fetch {fetch.clip.key}: publish"):
            size = claim.publish(file.path, source, cut=file.cut, duration=file.duration, last=False)
        self.stats.record_fetched(source, size)
        self._note_published(fetch.clip, file, source, fetch)
        self._finish(fetch, None)


def _shutting_down() -> FetchError:
    return FetchError(FailureKind.TRANSIENT, "shutting down")
