"""Write-back: clips that this machine fetched go to the shared store in the background.

Threads take the entries of the `UploadQueue` one after the other. If the store is unreachable, it waits, longer each
time. If the store refuses the upload of a sound clip (permission, quota, expired credentials), every other upload would
be refused, too: the queue pauses, shows the reason in the status, and tries again after a while. No entry is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError, StoreError
from kinetics_fs.shared.backend import MAX_FILE, AccessRefused, ObjectDamaged
from kinetics_fs.shared.leases import Lease
from kinetics_fs.shared.store import ClipFacts, SharedStore
from kinetics_fs.shared.upload_queue import QueueStatus, Upload, UploadQueue
from kinetics_fs.store import Store

_log = logging.getLogger(__name__)

_FIRST_WAIT, _MAX_WAIT = 1.0, 60.0
"""Seconds until the next try if the store is unreachable; doubled with each further one."""
_FIRST_PAUSE, _MAX_PAUSE = 60.0, 1800.0
"""The same if it refuses."""
_THREADS = 2
"""Uploads at the same time."""
_POLL_INTERVAL = 5.0
"""Seconds until an empty queue is looked at again: other processes add to it."""


class LocalClip(NamedTuple):
    """A cached clip."""

    body: bytes
    facts: ClipFacts


class LocalClips(Protocol):
    """The cached clips of this machine."""

    def read(self, clip: Clip, profile: str) -> LocalClip | None:
        """Return a clip with the digest of its publication; None if it is not cached any more.

        Raises:
            ObjectDamaged: it is too large for a shared store.
            FetchError: it cannot be read now.
            StoreError: the cache cannot be used.
        """
        ...


class CachedClips:
    """The clips of a cache, as `LocalClips`.

    Args:
        store: the cache.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, clip: Clip, profile: str) -> LocalClip | None:
        """See `LocalClips.read`."""
        try:
            opened = self._store.peek(clip, profile)
        except FileNotFoundError:
            return None
        if opened is None:
            return None
        with os.fdopen(opened.fd, "rb") as file:
            if opened.size > MAX_FILE:
                raise ObjectDamaged(f"cannot upload {clip.key}: it is larger than {MAX_FILE // 1024**2} MiB")
            body = file.read(MAX_FILE)
        record = opened.record
        return LocalClip(body, ClipFacts(record.size, record.sha256, record.source, record.duration))


@dataclass(frozen=True, slots=True)
class WriteBackStatus:
    """The state of the write-back of this process.

    Attributes:
        queue: length of the queue, of all processes.
        uploaded: clips that this process uploaded.
        bytes: their bytes.
        paused: why nothing is uploaded at the moment; empty if it is.
        seconds: until the next try; 0 if nothing is paused.
    """

    queue: QueueStatus
    uploaded: int
    bytes: int
    paused: str
    seconds: float


class WriteBack:
    """Uploads the clips of a queue. Safe for threads.

    Args:
        store: the shared store.
        queue: the queue of the cache.
        clips: the cached clips.
        note_answer: called whenever the store has taken a clip, or had it.
        monotonic: a clock in seconds.
    """

    def __init__(
        self,
        store: SharedStore,
        queue: UploadQueue,
        clips: LocalClips,
        *,
        note_answer: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._queue = queue
        self._clips = clips
        self._note_answer = note_answer
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._leases: dict[Upload, Lease] = {}
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._in_progress = 0
        self._uploaded = 0
        self._bytes = 0
        self._paused = ""
        self._paused_until = 0.0
        self._faults = 0

    @property
    def is_paused(self) -> bool:
        """Whether nothing can be uploaded at the moment. Then take no lease: other machines would wait in vain."""
        return bool(self._paused)

    def add(self, clip: Clip, profile: str, lease: Lease | None = None) -> None:
        """Enqueue a clip that was fetched just now.

        Args:
            clip: the clip; it is cached.
            profile: its profile.
            lease: ends when the clip is in the store. Other machines may wait for it, so it goes first.
        """
        upload = Upload(clip, profile)
        with self._changed:  # so that `_end_leases_of_others` finds each lease with its entry
            if lease is not None:
                self._leases[upload] = lease
            self._queue.add([upload], urgent=lease is not None)
            self._changed.notify()
        if self._paused:
            self._end_lease(upload, FetchError(FailureKind.TRANSIENT, self._paused))

    def upload_next(self) -> bool:
        """Upload the next clip of the queue; return whether there was one.

        Raises:
            SharedStoreError: the store cannot take it now; it stays in the queue.
            StoreError: the cache or its queue cannot be used.
        """
        upload = self._queue.take()
        if upload is None:
            return False
        with self._changed:
            self._in_progress += 1
        try:
            self._upload(upload)
        finally:
            with self._changed:
                self._in_progress -= 1
                self._changed.notify_all()
        return True

    def _upload(self, upload: Upload) -> None:
        dropped = ""
        try:
            found = self._read(upload)
            if found is None:
                dropped = "evicted"
            else:
                if self._store.put_clip(upload.clip, upload.profile, found.body, found.facts):
                    with self._changed:
                        self._uploaded += 1
                        self._bytes += found.facts.size
                self._note_answer()
        except ObjectDamaged as error:  # of the cached file, or something in the way that is no object
            _log.warning("%s: not uploaded: %s", upload.clip.key, error)
            dropped = "refused"
        except (SharedStoreError, StoreError) as error:
            self._queue.give_back(upload)
            self._end_lease(upload, FetchError(FailureKind.TRANSIENT, str(error)))
            raise
        self._queue.finish(upload, dropped)
        self._end_lease(upload, FetchError(FailureKind.TRANSIENT, f"not uploaded: {dropped}") if dropped else None)

    def _read(self, upload: Upload) -> LocalClip | None:
        try:
            return self._clips.read(upload.clip, upload.profile)
        except FetchError as error:
            raise StoreError(f"cannot read the cached clip {upload.clip.key}: {error.reason}") from error

    def _end_lease(self, upload: Upload, error: FetchError | None) -> None:
        with self._changed:
            lease = self._leases.pop(upload, None)
        if lease is None:
            return
        if error is None:
            lease.release()
        else:
            lease.fail(error, 0.0)  # another machine fetches the clip itself

    # In the background

    def start(self) -> None:
        """Upload in threads until `close`. Does nothing if they run already."""
        if self._threads:
            return
        self._threads = [
            threading.Thread(target=self._run, name=f"shared-write-back-{number}", daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                if (wait := self._paused_until - self._monotonic()) > 0:
                    self._changed.wait(wait)
                    continue
            if not self.step():
                self._end_leases_of_others()
                with self._changed:
                    if not self._closing:
                        self._changed.wait(_POLL_INTERVAL)

    def _end_leases_of_others(self) -> None:
        """End the leases of clips that another process of the cache has uploaded, or that a full queue dropped."""
        with self._changed:
            waiting = list(self._leases)
        with contextlib.suppress(StoreError):
            for upload in waiting:
                if not self._queue.has(upload):
                    self._end_lease(upload, None)  # a machine that acquires it looks for the clip

    def step(self) -> bool:
        """Upload the next clip, unless it cannot be done; return whether to go on at once."""
        try:
            uploaded = self.upload_next()
        except (SharedStoreError, StoreError) as error:
            self._pause(error)
            return True
        with self._changed:
            if uploaded and self._paused:
                _log.warning("the write-back to %s goes on", self._store.backend.address)
            if uploaded:
                self._paused, self._faults = "", 0
        return uploaded

    def _pause(self, error: Exception) -> None:
        first, longest = (_FIRST_PAUSE, _MAX_PAUSE) if isinstance(error, AccessRefused) else (_FIRST_WAIT, _MAX_WAIT)
        with self._changed:
            if str(error) != self._paused:
                _log.warning("the write-back to %s waits: %s", self._store.backend.address, error)
            self._paused = str(error)
            self._paused_until = self._monotonic() + min(first * 2.0 ** min(self._faults, 16), longest)
            self._faults += 1
            waiting = list(self._leases)
        for upload in waiting:  # other machines need not wait for as long as it takes
            self._end_lease(upload, FetchError(FailureKind.TRANSIENT, str(error)))

    def resume(self) -> None:
        """Try again at once, for example with new credentials."""
        with self._changed:
            self._paused_until = 0.0
            self._faults = 0
            self._changed.notify_all()

    def flush(self, timeout: float) -> int:
        """Upload what is in the queue, and return how many clips are left in it after the timeout.

        Args:
            timeout: seconds. The upload of one clip is not interrupted.
        """
        deadline = self._monotonic() + timeout
        while self._monotonic() < deadline:
            if self.step():
                if self._paused:
                    break
                continue
            with self._changed:
                if not self._in_progress:
                    break
                self._changed.wait(1.0)  # for an upload of a thread, which may come back to the queue
        return self._queue.status().clips

    def status(self) -> WriteBackStatus:
        """Return what the write-back does."""
        with self._changed:
            wait = max(0.0, self._paused_until - self._monotonic()) if self._paused else 0.0
            return WriteBackStatus(self._queue.status(), self._uploaded, self._bytes, self._paused, wait)

    def close(self) -> None:
        """End the threads after the uploads in progress. The other entries stay in the queue."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
