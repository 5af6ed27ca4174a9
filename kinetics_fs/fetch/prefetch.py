"""Fetching many clips: a few at a time, in their order, after the clips that a process waits for in `open`."""

from __future__ import annotations

import heapq
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from kinetics_fs.catalog import Clip, parse_clip_name
from kinetics_fs.control.status import PrefetchProgress, PrefetchState
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.access_cursor import AccessCursor
from kinetics_fs.fetch.fetcher import Fetcher, FetchFuture, Priority
from kinetics_fs.fetch.pace import PrefetchPace
from kinetics_fs.store import ActivityCounts, HistoryRecorder, Store
from kinetics_fs.util.ticker import every

_log = logging.getLogger(__name__)

_SPACE_RETRY_INTERVAL = 1.0
"""Seconds until a prefetch ahead of a reader tries again after the cache was full: the reader moves on."""

_RETRY_INTERVAL = 60.0
"""Seconds until any other prefetch tries again, if a source does not say when."""

_BLOCK_POLL_INTERVAL = 2.0
"""Seconds between two checks whether a source is still blocked."""

_MAX_CONSECUTIVE_FAULTS = 10
"""Clips in a row whose sources could not be reached, after which a prefetch assumes that there is no network."""

_BATCH = 4096
"""Clips whose access times are written together."""

_TYPICAL_BYTES = 2_000_000
"""Bytes that a clip is expected to take before the first one has arrived."""
_MAX_SHARE = 0.95
"""Largest estimate of how much of a clip has arrived."""

_PROGRESS_INTERVAL = 0.5
"""Seconds between two reports of the progress while no clip ends."""

_LIST_LINE = re.compile(r"(?:.*/)?([A-Za-z0-9_-]{11}_[0-9]{6}_[0-9]{6})(?:\.mp4)?(?:\s+-?[0-9]+)?\s*")
"""A path, file name or key of a clip, and possibly a class index after it, as in the lists of data loaders."""


def parse_clip_list(lines: Iterable[str]) -> tuple[list[Clip], int]:
    """Return the clips that the lines of a list name, in their order, and the number of lines that name none.

    A line has a path, a file name or a key of a clip, and may have a class index after it.
    """
    clips = []
    invalid = 0
    for line in lines:
        match = _LIST_LINE.fullmatch(line)
        clip = parse_clip_name(f"{match[1]}.mp4") if match else None
        if clip is None:
            invalid += 1
        else:
            clips.append(clip)
    return clips, invalid


@dataclass(frozen=True)
class PrefetchResult(PrefetchProgress):
    """The result of a prefetch.

    Attributes:
        problem: the failure that ended the prefetch early, because every other clip would fail the same way.
        interrupted: Ctrl-C ended the prefetch early.
    """

    problem: FetchError | None
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and whether the prefetch was interrupted."""
        left_out = (
            *("state", "reason", "kind", "retry_at", "problem"),
            *("in_progress", "bytes_per_second", "seconds_left", "limit"),
        )
        return {name: value for name, value in vars(self).items() if name not in left_out}


def prefetch_clips(
    fetcher: Fetcher,
    store: Store,
    clips: Iterable[Clip],
    total: int,
    *,
    window: int,
    keep: Iterable[Clip] = (),
    on_progress: Callable[[PrefetchProgress], object] = lambda progress: None,
) -> PrefetchResult:
    """Fetch the clips that are not cached; return when they are, or when a problem ends the prefetch early.

    Args:
        fetcher: fetches the clips.
        store: the store that the fetcher fetches into.
        clips: the clips; each is drawn shortly before it is requested.
        total: number of clips.
        window: number of clips to request at the same time.
        keep: cached clips that are not evicted for these.
        on_progress: receives the progress so far whenever a number changes, and twice a second; called by any thread.
    """

    def report() -> None:
        on_progress(prefetch.progress())

    prefetch = Prefetch(fetcher, store, clips, total, window=window, keep=keep, on_change=report)
    interrupted = False
    stats = fetcher.stats
    counts = HistoryRecorder(store.history, lambda: ActivityCounts(stats.fetched, stats.failed))
    with counts, every(_PROGRESS_INTERVAL, report):
        try:
            prefetch.run()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            prefetch.cancel()
    return PrefetchResult(**vars(prefetch.progress()), problem=prefetch.problem, interrupted=interrupted)


class Prefetch:
    """Fetches clips in their order.

    It evicts clips that were cached before it began, but none that it is to keep and none that it fetched: if not all
    clips fit, the first of those that were not cached are fetched.

    Args:
        fetcher: fetches the clips.
        store: the store that the fetcher fetches into.
        clips: the clips; each is drawn shortly before it is requested.
        total: number of clips.
        window: number of clips to request at the same time.
        keep: cached clips that are not evicted for these, drawn before the first request.
        priority: priority of the requests.
        patient: wait for space and for a source that blocks this address; else stop.
        cursor: position of the process that will open the clips in this order, if there is one.
        on_change: called whenever a number changes, by any thread.

    Attributes:
        total: number of clips.
        state: the state of the prefetch.
        fetched: number of clips that were fetched.
        problem: why it waits or stopped; None otherwise.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        store: Store,
        clips: Iterable[Clip],
        total: int,
        *,
        window: int,
        keep: Iterable[Clip] = (),
        priority: Priority = Priority.BACKGROUND,
        patient: bool = False,
        cursor: AccessCursor | None = None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._fetcher = fetcher
        self._store = store
        self._clips = clips
        self._window = window
        self._keep = keep
        self._priority = priority
        self._patient = patient
        self._cursor = cursor
        self._on_change = on_change
        self._changed = threading.Condition()
        self._requested: dict[Clip, FetchFuture] = {}
        self._postponed: list[tuple[int, Clip]] = []
        """Clips to request again, a heap by their positions in the order."""
        self._pause_until = 0.0
        self._blocked_source = ""
        """Source whose block is the reason of the pause; empty if there is another reason."""
        self._started_at = time.time()
        self._failures: Counter[str] = Counter()
        self._consecutive_faults = set[Clip]()
        self._pace = PrefetchPace(fetcher, store)
        self._pace_lock = threading.Lock()
        self._kept = 0
        """Number of those that are cached: the progress counts them from the beginning."""
        self._passed_cached = 0
        self._bytes = 0
        """Bytes of the clips that have arrived, or failed."""
        self.total = total
        self.state = PrefetchState.RUNNING
        self.fetched = 0
        self.problem: FetchError | None = None

    @property
    def failed(self) -> int:
        """Number of unavailable clips."""
        return self._failures.total()

    @property
    def already_cached(self) -> int:
        """Number of clips that needed no fetch, those that are still ahead included."""
        return max(self._passed_cached, self._kept)

    def progress(self) -> PrefetchProgress:
        """Return the state of the prefetch and the number of clips by result."""
        with self._changed:
            received = [future.received for future in self._requested.values()]
            typical = self._bytes / self.fetched if self.fetched and self._bytes else _TYPICAL_BYTES
            in_progress = sum(min(_MAX_SHARE, size / typical) for size in received)
            left = max(0, self.total - self.fetched - self.already_cached - self.failed)
            is_waiting = self.state is PrefetchState.WAITING
            retry_at = time.time() + max(0.0, self._pause_until - time.monotonic()) if is_waiting else None
            bytes_so_far = self._bytes + sum(received)
        with self._pace_lock:
            seconds_left, limit = self._pace.estimate(left, in_progress)
        ended, problem = self.state.has_ended, self.problem
        return PrefetchProgress(
            state=self.state,
            reason=None if problem is None else str(problem),
            kind=None if problem is None else str(problem.kind),
            retry_at=retry_at,
            clips=self.total,
            fetched=self.fetched,
            already_cached=self.already_cached,
            failed=self.failed,
            failures=dict(self._failures),
            in_progress=round(in_progress, 2),
            bytes=bytes_so_far,
            bytes_per_second=0 if ended else self._fetcher.stats.bytes_per_second(),
            seconds_left=None if ended else seconds_left,
            limit=None if ended else limit,
        )

    def run(self) -> None:
        """Fetch all clips; return when that is done, or when the prefetch was cancelled or stopped."""
        if self._cursor is not None:
            self._cursor.watch(self._wake)
        self._protect_kept()
        for position, clip in enumerate(self._clips):
            if not self._wait(partial(self._can_request, clip)):
                break
            if self._cursor is not None:
                self._cursor.append(clip)
            if self._store.is_cached(clip) and not self._fetcher.wants_longer(clip):
                self._pass_cached(clip)
            else:
                self._request(position, clip)
        self._wait(lambda: not self._requested)
        with self._changed:
            if not self.state.has_ended:
                self.state, self.problem = PrefetchState.DONE, None
                self._kept = 0  # some may have been evicted meanwhile
        self._on_change()

    def cancel(self) -> None:
        """Cancel the requests that are queued. Fetches in progress continue. For any thread."""
        with self._changed:
            if not self.state.has_ended:
                self.state = PrefetchState.CANCELLED
            futures = list(self._requested.values())
            self._changed.notify_all()
        for future in futures:
            future.cancel()

    def _protect_kept(self) -> None:
        """Make the clips to keep count as used since the prefetch began, before any fetch can evict one of them."""
        kept = iter(self._keep)
        while not self.state.has_ended and (batch := list(islice(kept, _BATCH))):
            self._kept += self._store.touch_cached(batch)

    def _can_request(self, clip: Clip) -> bool:
        # A clip that is listed twice is fetched once: it is cached when its turn comes again.
        is_free = len(self._requested) < self._window and clip not in self._requested
        return is_free and (self._cursor is None or self._cursor.has_space_for(clip))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready`, and request postponed clips first; return False if the prefetch has ended."""
        while True:
            with self._changed:
                if self.state.has_ended:
                    return False
                pause = self._pause_until - time.monotonic()
                if pause > 0 and self._blocked_source and not self._is_blocked(self._blocked_source):
                    pause = self._pause_until = 0.0
                if pause <= 0 and self.state is PrefetchState.WAITING:
                    self.state, self.problem = PrefetchState.RUNNING, None
                is_busy = len(self._requested) >= self._window
                if pause > 0 or (self._postponed and (is_busy or self._postponed[0][1] in self._requested)):
                    self._changed.wait(min(pause, _BLOCK_POLL_INTERVAL) if pause > 0 else None)
                    continue
                if not self._postponed:
                    if ready():
                        return True
                    self._changed.wait()
                    continue
                position, clip = heapq.heappop(self._postponed)
            self._request(position, clip)

    def _request(self, position: int, clip: Clip) -> None:
        since = self._started_at if self._cursor is None else self._cursor.protect_used_since()
        future = self._fetcher.request(clip, self._priority, protect_used_since=since)
        with self._changed:
            self._requested[clip] = future
        future.add_done_callback(partial(self._finish, position, clip))

    def _pass_cached(self, clip: Clip) -> None:
        self._store.touch(clip)  # it must not be evicted for the clips that follow
        self._passed_cached += 1
        self._on_change()

    def _finish(self, position: int, clip: Clip, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        assert isinstance(future, FetchFuture)
        with self._changed:
            self._requested.pop(clip, None)
            self._bytes += future.received
            if self.state.has_ended and (error or future.cancelled()):
                pass  # cancelled by this prefetch
            elif error is None:
                self.fetched += 1
                self._count_pace()
                self._consecutive_faults.clear()
            elif isinstance(error, FetchError) and self._can_postpone(error):
                heapq.heappush(self._postponed, (position, clip))
            else:
                self._failures[str(getattr(error, "kind", "unexpected"))] += 1
                if future.fetch is not None:  # a failure that was known says nothing about the speed
                    self._count_pace()
                if isinstance(error, FetchError) and (_affects_every_clip(error) or self._is_offline(clip, error)):
                    self.state, self.problem = PrefetchState.STOPPED, error
            self._changed.notify_all()
        self._on_change()

    def _count_pace(self) -> None:
        with self._pace_lock:
            self._pace.add()

    def _is_offline(self, clip: Clip, error: FetchError) -> bool:
        """Count a fault of the network, and return whether so many in a row mean that there is no network."""
        if error.kind is not FailureKind.TRANSIENT:
            self._consecutive_faults.clear()
        elif (failure := self._store.failures.get(clip)) is not None and failure.last_at >= self._started_at:
            self._consecutive_faults.add(clip)  # a failure remembered from before says nothing about the network now
        return len(self._consecutive_faults) >= _MAX_CONSECUTIVE_FAULTS and not self._patient

    def _can_postpone(self, error: FetchError) -> bool:
        """Begin a pause if a later request for the clip may succeed, and return whether it may."""
        if not self._patient or error.kind not in (FailureKind.BLOCKED, FailureKind.LOCAL):
            return False
        if error.kind is FailureKind.LOCAL:
            pause = _SPACE_RETRY_INTERVAL if self._cursor is not None else _RETRY_INTERVAL
        else:
            pause = max(1.0, error.retry_after or _RETRY_INTERVAL)
        if self.state is not PrefetchState.WAITING:
            _log.warning("prefetch: waiting %.0f s: %s", pause, error)
        self._pause_until = max(self._pause_until, time.monotonic() + pause)
        self._blocked_source = error.source if self._is_blocked(error.source) else ""
        self.state, self.problem = PrefetchState.WAITING, error
        return True

    def _is_blocked(self, source: str) -> bool:
        """Return whether a source is blocked now: another process may have tested it, or a user ended the block."""
        until = self._store.throttle.blocked_until(source)
        return until is not None and until > time.time()


def _affects_every_clip(error: FetchError) -> bool:
    """Return whether every other clip would fail the same way: a misconfigured machine, or a blocked address."""
    # CONFIG without a source means that no source has this clip; a source may have the next one.
    misconfigured = error.kind is FailureKind.CONFIG and bool(error.source)
    return misconfigured or error.kind in (FailureKind.LOCAL, FailureKind.BLOCKED)
