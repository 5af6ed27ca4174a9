"""Open clips: one shared file per inode, and one state object for each open that waits for a fetch.

Threading: every method may be called from any thread. A fetch ends in a thread of the fetcher, which then opens the
clip and completes the future of the waiting open; the front end only ever waits for that future.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from kinetics_fs.catalog import Clip, Entry
from kinetics_fs.control.status import OpenCounts
from kinetics_fs.errors import FetchError, StoreError
from kinetics_fs.store import LASTING_KINDS, MAX_FETCHES_PER_OPEN, Store, evicted_too_early
from kinetics_fs.vfs.budget import FetchBudget
from kinetics_fs.vfs.nodes import Handle


class Fetcher(Protocol):
    """The part of a fetcher that the filesystem uses. Safe for threads."""

    def request(self, clip: Clip) -> Future[None]:
        """Request a clip for a process that waits for it; join the fetch in progress if there is one.

        Returns:
            A future that is done when the clip is in the store, or raises a `FetchError`. Cancel it to leave.
        """
        ...

    def fetch_ahead(self, clip: Clip) -> None:
        """Request a clip that a process will probably open soon."""
        ...

    def wants_longer(self, clip: Clip) -> bool:
        """Return True if a cached clip is short and is to be requested, because a longer one may exist."""
        ...

    def is_fetching(self, clip: Clip) -> bool:
        """Return True if a fetch of the clip is queued or in progress."""
        ...

    def known_failure(self, clip: Clip) -> FetchError | None:
        """Return the remembered failure of a clip; None if there is none or its retry is due."""
        ...


class OpenPhase(enum.Enum):
    """What happened to the open of a clip."""

    WAITING = enum.auto()
    """It begins to wait for a fetch."""
    OPEN = enum.auto()
    """The clip is open."""


OnOpen = Callable[[Entry, OpenPhase], None]
"""Called for each open of a clip, in each phase that it reaches."""


class OpenState(enum.StrEnum):
    """Where an open of a clip that was not in the cache stands."""

    WAITING = "waiting"
    FETCHED = "fetched"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class SharedFile:
    """The one file behind all handles of an inode.

    A kernel caches one set of pages per inode: while any handle is open, every other handle must show the same bytes,
    even if the clip was evicted and fetched again in the meantime.
    """

    __slots__ = ("fd", "ino", "needs_invalidation", "size", "users", "version")

    def __init__(self, ino: int, fd: int, size: int, version: float, *, needs_invalidation: bool) -> None:
        self.ino = ino
        self.fd = fd
        self.size = size
        self.version = version
        self.needs_invalidation = needs_invalidation
        self.users = 0


class ClipHandle:
    """An open clip. Its bytes stay, whatever happens to the store."""

    __slots__ = ("_opens", "file")

    live = False

    def __init__(self, opens: ClipOpens, file: SharedFile) -> None:
        self._opens = opens
        self.file = file

    @property
    def size(self) -> int:
        return self.file.size

    def consume_invalidation(self) -> bool:
        return self._opens._consume_invalidation(self.file)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fd, size, offset)

    def close(self) -> None:
        self._opens._release(self.file)


class ClipOpens:
    """Opens clips, out of the cache or after a fetch, and counts how the opens ended.

    Args:
        store: the cache.
        fetcher: fetches clips that are not in the cache.
        budget: limits the fetches that opens start.
        shown_since: time of the mount, in seconds since the epoch: content that was published before it was shown
            from the beginning, so that no kernel knows other content.
        on_open: see `OnOpen`; must return quickly.
        on_unavailable: called with each clip that an open found to have a lasting failure.
    """

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        budget: FetchBudget,
        *,
        shown_since: float,
        on_open: OnOpen,
        on_unavailable: Callable[[Clip], None],
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._budget = budget
        self._shown_since = shown_since
        self._on_open = on_open
        self._on_unavailable = on_unavailable
        self._files: dict[int, SharedFile] = {}
        self._versions: dict[int, float] = {}
        """The content of an inode that its readers were last shown, where it is not that of the beginning."""
        self._lock = threading.Lock()
        self._hits = self._misses = 0
        self._ended = Counter[OpenState]()
        self._ended_lock = threading.Lock()

    def open_cached(self, entry: Entry) -> ClipHandle | None:
        """Open a clip that is in the cache; return None if it is not, or if a longer one is to be fetched first.

        Raises:
            FetchError: the clip is in the cache, but its file cannot be opened.
            StoreError: the cache cannot be read.
        """
        # All handles of an inode show the same bytes, and a mount that may not fetch shows what it has.
        is_open = entry.ino in self._files
        try:
            if not is_open and self._fetcher.wants_longer(entry.clip) and self._budget.refusal() is None:
                return None
            handle = self._open_file(entry, fetched=False)
        except (FetchError, StoreError):
            self._misses += 1
            self._count(OpenState.FAILED)
            raise
        self._hits += handle is not None
        return handle

    def open_missing(self, entry: Entry) -> Future[Handle]:
        """Fetch a clip for which `open_cached` returned None, and open it.

        The cache is not asked again: if another process has published the clip since then, the fetcher finds it.

        Returns:
            A future of the handle. Cancel it to give up.
        """
        self._misses += 1
        waiting = WaitingOpen(
            entry,
            self._store,
            self._fetcher,
            self._budget,
            open_file=lambda: self._open_file(entry, fetched=True),
            on_open=self._on_open,
            on_unavailable=self._on_unavailable,
            on_end=self._count,
        )
        waiting.start()
        return waiting.future

    def shared_file(self, ino: int) -> SharedFile | None:
        """Return the open file of an inode; None if no handle is open."""
        return self._files.get(ino)

    def counts(self) -> OpenCounts:
        """Return the number of opens so far, by how they ended."""
        hits, misses = self._hits, self._misses
        with self._ended_lock:
            fetched, failed, interrupted = (
                self._ended[state] for state in (OpenState.FETCHED, OpenState.FAILED, OpenState.INTERRUPTED)
            )
        return OpenCounts.of(
            from_cache=hits, not_in_cache=misses, fetched=fetched, failed=failed, interrupted=interrupted
        )

    def _open_file(self, entry: Entry, *, fetched: bool) -> ClipHandle | None:
        """Return a handle on the file that the other handles of the inode share, or on the cached one."""
        ino = entry.ino
        with self._lock:
            file = self._files.get(ino)
            if file is None:
                stored = self._store.open_nowait(entry.clip)
                if stored is None:
                    return None
                is_new = (fetched or stored.stored_at >= self._shown_since) and (
                    self._versions.get(ino) != stored.stored_at
                )
                file = SharedFile(ino, stored.fd, stored.size, stored.stored_at, needs_invalidation=is_new)
                self._files[ino] = file
            file.users += 1
        self._on_open(entry, OpenPhase.OPEN)
        return ClipHandle(self, file)

    def _consume_invalidation(self, file: SharedFile) -> bool:
        with self._lock:
            needed, file.needs_invalidation = file.needs_invalidation, False
            if needed:
                self._versions[file.ino] = file.version
        return needed

    def _release(self, file: SharedFile) -> None:
        with self._lock:
            file.users -= 1
            if file.users:
                return
            del self._files[file.ino]
        os.close(file.fd)

    def _count(self, state: OpenState) -> None:
        with self._ended_lock:
            self._ended[state] += 1


class WaitingOpen:
    """One open of a clip that is not in the cache.

    ::

        WAITING ──the clip is fetched and can be opened──────────────▶ FETCHED
        │     ▲
        │     └──evicted before it could be opened: fetch again, at most three times
        ├──the fetch fails, the budget is used up, or no fetch is left──▶ FAILED
        └──the caller cancels the future──────────────────────────────▶ INTERRUPTED

    Args:
        entry: the clip.
        store: knows the size of a fetched clip.
        fetcher: fetches the clip.
        budget: limits the fetches.
        open_file: opens the fetched clip; returns None if it is not cached any more.
        on_open: see `OnOpen`.
        on_unavailable: called with the clip if it has a lasting failure.
        on_end: called with the last state.

    Attributes:
        future: the handle, for the caller.
        state: where the open stands.
    """

    def __init__(
        self,
        entry: Entry,
        store: Store,
        fetcher: Fetcher,
        budget: FetchBudget,
        *,
        open_file: Callable[[], ClipHandle | None],
        on_open: OnOpen,
        on_unavailable: Callable[[Clip], None],
        on_end: Callable[[OpenState], None],
    ) -> None:
        self.future: Future[Handle] = Future()
        self.state = OpenState.WAITING
        self._entry = entry
        self._store = store
        self._fetcher = fetcher
        self._budget = budget
        self._open_file = open_file
        self._on_open = on_open
        self._on_unavailable = on_unavailable
        self._on_end = on_end
        self._fetches = 0
        self._fetch: Future[None] | None = None
        self._is_first_waiter = False
        self.future.add_done_callback(self._end)

    def start(self) -> None:
        """Request the clip."""
        try:
            self._request()
        except BaseException as error:
            self._fail(error)

    def _request(self) -> None:
        clip = self._entry.clip
        self._is_first_waiter = not self._fetcher.is_fetching(clip)
        if self._is_first_waiter and (refusal := self._budget.refusal()) is not None:
            raise self._fetcher.known_failure(clip) or refusal
        self._fetches += 1
        self._on_open(self._entry, OpenPhase.WAITING)
        fetch = self._fetch = self._fetcher.request(clip)
        if self._is_first_waiter and not fetch.done():  # a remembered failure is done at once and costs nothing
            self._budget.count_fetch()
        fetch.add_done_callback(self._on_fetch_done)
        if self.future.cancelled():  # between two fetches: `_end` saw the one before
            fetch.cancel()

    def _on_fetch_done(self, fetch: Future[None]) -> None:
        """Open the clip, or request it again; runs in a thread of the fetcher."""
        if self.future.cancelled():
            return
        clip = self._entry.clip
        try:
            fetch.result()
            if self._is_first_waiter and (record := self._store.record(clip)) is not None:
                self._budget.count_bytes(record.size)
            handle = self._open_file()
            if handle is not None:
                self._succeed(handle)
            elif self._fetches < MAX_FETCHES_PER_OPEN:
                self._request()
            else:
                raise evicted_too_early()
        except BaseException as error:  # whatever it is: a process waits for this future
            self._fail(error)
            if isinstance(error, FetchError) and error.kind in LASTING_KINDS:
                self._on_unavailable(clip)

    def _succeed(self, handle: Handle) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(handle)
        else:
            handle.close()

    def _fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _end(self, future: Future[Handle]) -> None:
        if future.cancelled():
            self.state = OpenState.INTERRUPTED
            if self._fetch is not None:
                self._fetch.cancel()
        else:
            self.state = OpenState.FETCHED if future.exception() is None else OpenState.FAILED
        self._on_end(self.state)
