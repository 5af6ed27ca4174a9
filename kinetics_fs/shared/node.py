"""One machine's part in a shared store, as the fetcher sees it.

For each clip that is not cached, the fetcher asks `Node.begin`, before any source. The answer is the clip itself, a
`Wait` because another machine fetches it, or `Work`: fetch it from a source, then call `Work.finish` or `Work.fail`.

The store may be away at any time. Then every clip is work without a lease, and the store is not asked again for a
while (`Outage`), so that no open waits for its timeouts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError
from kinetics_fs.shared.backend import ObjectDamaged
from kinetics_fs.shared.leases import Lease, LeaseHeld, Leases
from kinetics_fs.shared.outage import Outage
from kinetics_fs.shared.store import SharedClip, SharedStore, clip_lease
from kinetics_fs.shared.write_back import WriteBack
from kinetics_fs.store import Failure, FailureReport
from kinetics_fs.store.failures import retry_delay

_log = logging.getLogger(__name__)

_FIRST_POLL, _MAX_POLL = 0.2, 2.0
"""Seconds until a clip that another machine fetches is looked up again: a quarter of the time waited so far."""
_MAX_LEASE_FAILURE = 60.0
"""Longest time in seconds for which all machines believe one machine's failure."""
_MAX_WAITED = 10_000
"""Clips of other machines that are remembered for the time waited so far."""

_OF_THE_CLIP = {FailureKind.TRANSIENT, FailureKind.CORRUPT, FailureKind.GONE}
"""Failures that other machines would probably meet, too. The others are of this machine, its address or its account."""

NoteGone = Callable[[FailureReport], FetchError | None]
"""Receives the failure of a clip that another machine has shared; returns the error if it holds on this machine, too:
this machine may have sources that the other one does not have."""


class Wait(NamedTuple):
    """Another machine fetches the clip.

    Attributes:
        owner: its name.
        seconds: until the next look.
    """

    owner: str
    seconds: float


class Work:
    """A clip that this machine is to fetch from a source. Call `finish` or `fail` once."""

    def __init__(self, node: Node, clip: Clip, lease: Lease | None) -> None:
        self._node = node
        self._clip = clip
        self._lease = lease

    @property
    def is_leased(self) -> bool:
        """Whether other machines wait for this one."""
        return self._lease is not None and not self._lease.is_lost

    def finish(self, profile: str) -> None:
        """Enqueue the clip, which is cached by now, for its upload. The lease ends when it is in the store.

        Args:
            profile: that of the clip as it was fetched.
        """
        self._node._finish(self._clip, profile, self._lease)

    def abandon(self, reason: str) -> None:
        """Let the other machines fetch the clip themselves, at once."""
        if self._lease is not None:
            self._lease.fail(FetchError(FailureKind.TRANSIENT, reason), 0.0)

    def fail(self, error: FetchError, verdict: Failure | None = None) -> None:
        """Let the other machines know, as far as the failure is of the clip and not of this machine.

        Args:
            error: why the clip could not be fetched.
            verdict: the failure to share with all machines; None if there is none.
        """
        self._node._fail(error, verdict, self._lease)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """How this machine uses the shared store.

    Attributes:
        address: of the store.
        hits: clips that came from the store.
        misses: clips that this machine had to fetch itself.
        waits: clips for which it waited for another machine.
        damaged: damaged objects that it met.
        leases: names of the leases that it holds.
    """

    address: str
    hits: int
    misses: int
    waits: int
    damaged: int
    leases: Sequence[str]


class Node:
    """The use of a shared store by one process. Safe for threads.

    Args:
        store: the shared store.
        leases: its leases; None if it has no conditional writes.
        write_back: uploads clips; None if this machine does not write. Then it takes no lease.
        profiles: profiles of clips that this machine can use; the first is that of the clips that it cuts.
        outage: whether the store can be used at the moment.
        note_gone: receives the failures that other machines have shared.
        monotonic: a clock in seconds.
        now: the time in seconds since the epoch, while the clock of the store is unknown.
    """

    def __init__(
        self,
        store: SharedStore,
        leases: Leases | None,
        write_back: WriteBack | None,
        profiles: Sequence[str],
        outage: Outage,
        note_gone: NoteGone,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._leases = leases
        self._write_back = write_back
        self._profiles = tuple(profiles)
        self._outage = outage
        self._note_gone = note_gone
        self._monotonic = monotonic
        self._now = now
        self._lock = threading.Lock()
        self._last_profile = self._profiles[0]
        """The profile of the last hit. It is tried first: a store that was filled from archives has few others."""
        self._waiting: OrderedDict[Clip, float] = OrderedDict()
        """When a clip was first asked for, by the monotonic clock."""
        self._hits = self._misses = self._waits = self._damaged = 0

    def set_abilities(self, leases: Leases | None, write_back: WriteBack | None) -> None:
        """Use other abilities of the store from now on; the arguments are those of the constructor."""
        self._leases, self._write_back = leases, write_back

    def find(self, clip: Clip) -> SharedClip | None:
        """Return a clip that is not cached, if the store has it.

        Raises:
            FetchError: the clip is gone.
        """
        if self._outage.is_on:
            return None
        try:
            found = self._read(clip)
            if found is None:
                self._check_gone(clip)
        except SharedStoreError as error:
            self._outage.begin(error)
            return None
        self._outage.end()
        return found

    def begin(self, clip: Clip, *, patient: bool = True) -> SharedClip | Wait | Work:
        """Return a clip that is not cached, or what to do about it.

        Args:
            clip: the clip.
            patient: whether to wait for another machine that fetches it.

        Raises:
            FetchError: the clip is gone, or another machine has just failed to fetch it.
        """
        if self._outage.is_on:
            return self._work(clip, None)
        try:
            found = self._begin(clip, patient=patient)
        except SharedStoreError as error:
            self._outage.begin(error)
            return self._work(clip, None)
        self._outage.end()
        return found

    def _begin(self, clip: Clip, *, patient: bool) -> SharedClip | Wait | Work:
        name = clip_lease(clip, self._profiles[0])
        if patient and self._leases is not None and clip in self._waiting and (held := self._leases.look(name)):
            return self._wait(clip, held)  # by one request, as long as nothing has changed
        if (found := self._read(clip)) is not None:
            return found
        self._check_gone(clip)
        if self._leases is None or not patient:
            return self._work(clip, None)
        if self._write_back is None or self._write_back.is_paused:
            held = self._leases.look(name)
            if held is not None:
                return self._wait(clip, held)
            return self._read(clip) or self._work(clip, None)  # it may have arrived before the look at the lease
        lease = self._leases.acquire(name)
        if isinstance(lease, LeaseHeld):
            return self._wait(clip, lease)
        if lease.is_new:
            return self._work(clip, lease)
        try:
            # `has_clip` sees it even where a client of NFS remembers that there was none.
            is_stored = any(self._store.has_clip(clip, profile) for profile in self._profiles)
            found = self._read(clip) if is_stored else None
        except SharedStoreError:
            lease.release()
            raise
        if found is not None:
            lease.release()
            return found
        return self._work(clip, lease)

    def _read(self, clip: Clip) -> SharedClip | None:
        first = self._last_profile
        for profile in (first, *(one for one in self._profiles if one != first)):
            try:
                found = self._store.get_clip(clip, profile)
            except ObjectDamaged as error:
                self._note_damage(clip, str(error))
                continue
            if found is not None:
                with self._lock:
                    self._hits += 1
                    self._waiting.pop(clip, None)
                    self._last_profile = profile
                return found
        return None

    def reject(self, clip: Clip, found: SharedClip) -> None:
        """Note that a clip is no video although it has the digest in its metadata. The next upload replaces it."""
        self._store.mark_damaged(clip, found)
        with self._lock:
            self._hits -= 1
        self._note_damage(clip, f"{self._store.backend.address} has something else that is no mp4 file")

    def _note_damage(self, clip: Clip, reason: str) -> None:
        _log.error("%s: %s; fetching it from a source", clip.key, reason)
        with self._lock:
            self._damaged += 1

    def _check_gone(self, clip: Clip) -> None:
        """Raise the failure of a clip that other machines have shared, if it holds and its retry is not due."""
        try:
            report = self._store.get_gone(clip)
        except ObjectDamaged as error:
            _log.warning("%s", error)
            return
        if report is None:
            return
        now = self._store.clock.now() or self._now()
        if min(report.last_at, now) + retry_delay(report.kind, report.attempts) <= now:
            return
        if (failure := self._note_gone(report)) is not None:
            raise failure

    def _wait(self, clip: Clip, held: LeaseHeld) -> Wait:
        now = self._monotonic()
        with self._lock:
            if clip not in self._waiting:
                self._waits += 1
                self._waiting[clip] = now
                if len(self._waiting) > _MAX_WAITED:
                    self._waiting.popitem(last=False)
            waited = now - self._waiting[clip]
        return Wait(held.owner, min(max(waited / 4, _FIRST_POLL), _MAX_POLL, max(held.seconds, _FIRST_POLL)))

    def _work(self, clip: Clip, lease: Lease | None) -> Work:
        with self._lock:
            self._misses += 1
            self._waiting.pop(clip, None)
        return Work(self, clip, lease)

    def _finish(self, clip: Clip, profile: str, lease: Lease | None) -> None:
        if self._write_back is not None:
            self._write_back.add(clip, profile, lease)

    def _fail(self, error: FetchError, verdict: Failure | None, lease: Lease | None) -> None:
        if verdict is not None and self.share(verdict):
            if lease is not None:
                lease.release()
            return
        if lease is not None:
            believed = retry_delay(error.kind, 1, error.retry_after) if error.kind in _OF_THE_CLIP else 0.0
            lease.fail(error, min(believed, _MAX_LEASE_FAILURE))

    def share(self, verdict: Failure) -> bool:
        """Share the failure of a clip with all machines; return whether that was possible."""
        if self._write_back is None or self._outage.is_on:
            return False
        try:
            self._store.put_gone(verdict)
        except SharedStoreError as fault:
            self._outage.begin(fault)
            return False
        return True

    def status(self) -> NodeStatus:
        """Return how this machine uses the store."""
        leases = self._leases.held() if self._leases is not None else []
        with self._lock:
            return NodeStatus(self._store.backend.address, self._hits, self._misses, self._waits, self._damaged, leases)
