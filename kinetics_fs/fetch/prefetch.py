"""Fetching many clips in the background: a few at a time, in their order, behind whoever waits in `open`."""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from enum import StrEnum
from functools import partial

from kinetics_fs.catalog import Clip
from kinetics_fs.control.status import PrefetchProgress
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.fetcher import Fetcher, Priority
from kinetics_fs.store import Store

_log = logging.getLogger(__name__)

_LOOK_FOR_ROOM = 1.0
_LOOK_AGAIN = 60.0
"""Seconds to wait for what may have become better: a reader who comes nearer; all else, if nobody says how long."""

_MOST_FAULTS = 10
"""Clips in a row whose sources could not be reached, after which the next ones are spared the same."""


def _is_hopeless(error: FetchError) -> bool:
    """Whether every further clip would meet it, too: this machine or installation is at fault, or we are blocked."""
    # A clip that no source has is CONFIG, too, but of no source; the next one may be there.
    of_config = error.kind is FailureKind.CONFIG and bool(error.source)
    return of_config or error.kind in (FailureKind.LOCAL, FailureKind.BLOCKED)


class State(StrEnum):
    """How far it is."""

    RUNNING = "running"
    WAITING = "waiting"
    """For room, or for a source that wants to be left alone."""
    DONE = "done"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """Something is wrong here that every further clip would meet."""


class Prefetch:
    """Fetches clips.

    It makes room by evicting what was there before it began, and none of the clips themselves: of a selection that does
    not fit, the first part is there in the end.

    Args:
        fetcher: fetches each.
        store: where they go.
        clips: drawn one by one, a few before they are fetched.
        total: how many they are.
        window: how many to have under way.
        priority: of each.
        patient: wait for a source that wants to be left alone, and for room; else stop.
        ahead_of: the reader who will come for the clips in this order, if there is one.
        changed: called whenever a count changes, by any thread.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        store: Store,
        clips: Iterable[Clip],
        total: int,
        *,
        window: int,
        priority: Priority = Priority.BACKGROUND,
        patient: bool = False,
        ahead_of: AccessCursor | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._fetcher = fetcher
        self._store = store
        self._clips = clips
        self._window = window
        self._priority = priority
        self._patient = patient
        self._reader = ahead_of
        self._told = changed
        self._changed = threading.Condition()
        self._under_way: dict[Clip, Future[None]] = {}
        self._again: list[tuple[int, Clip]] = []
        """Those that were put off, a heap in the order of the clips: what comes first is asked for first."""
        self._pause_until = 0.0
        self._began = time.time()
        self._failures: Counter[str] = Counter()
        self._faults = 0
        """Clips in a row whose sources could not be reached."""
        self.total = total
        self.state = State.RUNNING
        self.fetched = self.already_cached = 0
        self.problem: FetchError | None = None
        """What it waits for, or why it stopped."""

    @property
    def failed(self) -> int:
        """How many could not be had."""
        return self._failures.total()

    def progress(self) -> PrefetchProgress:
        """Return the state of the prefetch and the number of clips by result."""
        return PrefetchProgress(
            state=self.state,
            reason=None if self.problem is None else str(self.problem),
            clips=self.total,
            fetched=self.fetched,
            already_cached=self.already_cached,
            failed=self.failed,
            failures=dict(self._failures),
        )

    def run(self) -> None:
        """Fetches them all; returns when that is done, or came to an end otherwise."""
        if self._reader is not None:
            self._reader.watch(self._look_again)
        for number, clip in enumerate(self._clips):
            if not self._wait(partial(self._has_room, clip)):
                break
            if self._reader is not None:
                self._reader.expect(clip)
            if self._store.is_cached(clip):
                self._note_held(clip)
            else:
                self._request(number, clip)
        self._wait(lambda: not self._under_way)
        with self._changed:
            if self.state in (State.RUNNING, State.WAITING):
                self.state, self.problem = State.DONE, None
        self._told()

    def cancel(self) -> None:
        """Ends it: what is queued is dropped, what has begun goes on for whoever comes next. For any thread."""
        with self._changed:
            if self.state in (State.RUNNING, State.WAITING):
                self.state = State.CANCELLED
            futures = list(self._under_way.values())
            self._changed.notify_all()
        for future in futures:
            future.cancel()

    def _has_room(self, clip: Clip) -> bool:
        return len(self._under_way) < self._window and (self._reader is None or self._reader.can_expect(clip))

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, enough: Callable[[], bool]) -> bool:
        """Waits, and first asks again for what was put off; whether it is to go on."""
        while True:
            with self._changed:
                if self.state in (State.CANCELLED, State.STOPPED):
                    return False
                pause = self._pause_until - time.monotonic()
                if pause <= 0 and self.state is State.WAITING:
                    self.state, self.problem = State.RUNNING, None
                if pause > 0 or (self._again and len(self._under_way) >= self._window):
                    self._changed.wait(pause if pause > 0 else None)
                    continue
                if not self._again:
                    if enough():
                        return True
                    self._changed.wait()
                    continue
                number, clip = heapq.heappop(self._again)
            self._request(number, clip)

    def _request(self, number: int, clip: Clip) -> None:
        spared = self._began if self._reader is None else self._reader.spared_since()
        future = self._fetcher.request(clip, self._priority, protect_used_since=spared)
        with self._changed:
            self._under_way[clip] = future
        future.add_done_callback(partial(self._ended, number, clip))

    def _note_held(self, clip: Clip) -> None:
        self._store.touch(clip)  # it must not go for those that follow
        self.already_cached += 1
        self._told()

    def _ended(self, number: int, clip: Clip, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        with self._changed:
            self._under_way.pop(clip, None)
            if self.state in (State.CANCELLED, State.STOPPED) and (error or future.cancelled()):
                pass  # ended by us
            elif error is None:
                self.fetched += 1
                self._faults = 0
            elif isinstance(error, FetchError) and self._is_put_off(error):
                heapq.heappush(self._again, (number, clip))
            else:
                self._failures[str(getattr(error, "kind", "unexpected"))] += 1
                if isinstance(error, FetchError) and (_is_hopeless(error) or self._is_cut_off(clip, error)):
                    self.state, self.problem = State.STOPPED, error
            self._changed.notify_all()
        self._told()

    def _is_cut_off(self, clip: Clip, error: FetchError) -> bool:
        """Whether it looks as if there were no network. What is remembered from before says nothing of now."""
        if error.kind is not FailureKind.TRANSIENT:
            self._faults = 0
        elif (failure := self._store.failures.get(clip)) is not None and failure.last_at >= self._began:
            self._faults += 1
        return self._faults >= _MOST_FAULTS and not self._patient

    def _is_put_off(self, error: FetchError) -> bool:
        """Whether the clip is to be asked for again later, as all that follow are."""
        if not self._patient or error.kind not in (FailureKind.BLOCKED, FailureKind.LOCAL):
            return False
        if error.kind is FailureKind.LOCAL:
            pause = _LOOK_FOR_ROOM if self._reader is not None else _LOOK_AGAIN
        else:
            pause = max(1.0, error.retry_after or _LOOK_AGAIN)
        if self.state is not State.WAITING:
            _log.warning("prefetch: waits %.0f s: %s", pause, error)
        self._pause_until = max(self._pause_until, time.monotonic() + pause)
        self.state, self.problem = State.WAITING, error
        return True


class AccessCursor:
    """How far somebody has come who opens clips in a known order. Safe for threads.

    Evictions go by the time of the last use. So what was fetched for a place that the reader has not reached is spared
    by that time; and what he has passed counts as never used, although he has used it last: in his order, he will need
    it later than all that is coming.

    Args:
        store: where the clips are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._coming: deque[tuple[Clip, float]] = deque()
        self._times: Counter[Clip] = Counter()
        """How often each is coming."""
        self._overtook: set[Clip] = set()
        """Opened while none was coming: the reader may be before us, and never come to them again."""
        self._shares: dict[Clip, int] = {}
        """The bytes that each of them was taken to need."""
        self._size = 0
        """Bytes of them all."""
        self._capacity, self._asked = 0, -math.inf
        self._moved: Callable[[], None] = lambda: None

    def watch(self, moved: Callable[[], None]) -> None:
        """Has `moved` called whenever the reader has come further."""
        self._moved = moved

    def can_expect(self, clip: Clip) -> bool:
        """Whether the cache can hold the clip beside all that has not been reached."""
        if not self._coming or clip in self._shares:
            return True
        # To ask for it goes through all that is pinned.
        if time.monotonic() - self._asked > _LOOK_FOR_ROOM:
            self._capacity, self._asked = self._store.capacity(), time.monotonic()
        return self._size + self._store.expected_size(clip) <= self._capacity

    def expect(self, clip: Clip) -> None:
        """The clip is the next in the order, and in the cache from now on, or soon; unless it was passed already."""
        share = self._store.expected_size(clip)
        with self._lock:
            if clip in self._overtook:
                self._overtook.remove(clip)
                return
            self._coming.append((clip, time.time()))
            if clip not in self._shares:
                self._shares[clip] = share
                self._size += share
            self._times[clip] += 1

    def opened(self, clip: Clip) -> None:
        """The reader has opened a clip, and so has passed all before it."""
        with self._lock:
            if not self._coming:
                self._overtook.add(clip)
            if not self._times[clip]:
                return
            self._overtook.clear()
            passed = None
            while passed != clip:
                passed, _ = self._coming.popleft()
                self._times[passed] -= 1
                if self._times[passed]:
                    self._store.touch(passed)
                else:
                    del self._times[passed]
                    self._size -= self._shares.pop(passed)
                    self._store.mark_unused(passed)
        self._moved()

    def spared_since(self) -> float:
        """What was used since then, in seconds since the epoch, has not been reached yet."""
        with self._lock:
            return self._coming[0][1] if self._coming else time.time()
