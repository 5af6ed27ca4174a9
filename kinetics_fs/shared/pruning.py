"""Deletion of clips that are no longer needed from a shared store, and of objects that dead processes left in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.shared.backend import AccessRefused, ListedObject, ObjectDamaged, StoreUnreachable
from kinetics_fs.shared.leases import LEASES, MAX_LEASE_AGE, MIN_DONE_AGE, LeaseState
from kinetics_fs.shared.store import GONE, PROBES, ListedClip, SharedStore
from kinetics_fs.store.failures import retry_delay
from kinetics_fs.util.parallel import map_in_order

_DAY = 86400.0
MIN_AGE = 7 * _DAY
"""Seconds for which a clip stays in any case, by the clock of the store."""
_PROBE_AGE = 3600.0
"""Seconds after which an object with which a machine tried the store is left over."""
_FAILURE_KEPT = 30 * _DAY
"""Seconds after its time to retry for which a failure stays. It has no effect any more."""
_THREADS = 8
"""Records that are read at the same time."""
_BATCH = 1000
"""Objects that are deleted by one request."""
_PROGRESS_STEP = 1000


class AffectedArchives(Protocol):
    """The archives of which clips are deleted."""

    @property
    def are_affected(self) -> bool:
        """Whether any clip may be from an archive."""
        ...

    def add(self, clip: Clip, profile: str) -> None:
        """Note a clip."""
        ...

    def is_affected(self, archive: str) -> bool:
        """Return whether an archive may have had one of the clips."""
        ...


@dataclass
class PruneResult:
    """The deleted objects; those that would be deleted if nothing was.

    Attributes:
        deleted: objects were deleted.
        listed: clips that were looked at so far.
        clips: deleted clips.
        bytes: their bytes.
        young: chosen clips that stay because they are younger than 7 days.
        failures: deleted failures whose time to retry has passed long ago.
        leases: deleted leases that are over.
        probes: deleted objects with which machines tried the store.
        fills: deleted completion records of archives that may have had the clips.
        interrupted: Ctrl-C ended it early.
    """

    deleted: bool
    listed: int = 0
    clips: int = 0
    bytes: int = 0
    young: int = 0
    failures: int = 0
    leases: int = 0
    probes: int = 0
    fills: int = 0
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the result as an object for `json.dumps`."""
        return {name: value for name, value in vars(self).items() if name != "listed"}


OnProgress = Callable[[PruneResult], object]
"""Receives the result so far."""


def prune_store(
    store: SharedStore,
    *,
    chosen: Callable[[ListedClip], bool] | None,
    archives: AffectedArchives,
    delete: bool,
    on_progress: OnProgress = lambda result: None,
) -> PruneResult:
    """Delete clips, and the leases, failures and probes that have no effect any more.

    Args:
        store: the store.
        chosen: returns whether a clip is to be deleted; None if none is.
        archives: receives these clips.
        delete: delete them; else only count them.
        on_progress: receives the result so far.

    Raises:
        SharedStoreError: the store cannot be used, or its clock cannot be read.
    """
    pruning = _Pruning(store, _time(store), archives, on_progress)
    try:
        if chosen is not None:
            pruning.find_clips(chosen)
        pruning.find_leases()
        pruning.find_failures()
        pruning.find_probes()
        if delete:
            pruning = _Pruning(store, pruning.now, archives, on_progress, delete=True)
            if chosen is not None:
                # Records of fills before the clips: no crash may leave a record of clips that the store lacks.
                pruning.forget_fills()
                pruning.find_clips(chosen)
                pruning.forget_fills()  # a fill may have ended meanwhile
            pruning.find_leases()
            pruning.find_failures()
            pruning.find_probes()
        else:
            pruning.result.fills = sum(archives.is_affected(fill.archive) for fill in store.fills())
    except KeyboardInterrupt:
        pruning.result.interrupted = True
    return pruning.result


def _time(store: SharedStore) -> float:
    """Return the time by the clock of the store, which is known only from an object that was just written."""
    capabilities = store.probe()
    if not capabilities.can_write:
        raise AccessRefused(f"cannot prune {store.backend.address}: {capabilities.reason}")
    now = store.clock.now()
    if now is None:
        raise StoreUnreachable(f"cannot prune {store.backend.address}: it does not show what was written; try again")
    return now


class _Pruning:
    """One pass over the store, which counts objects, or deletes them, too."""

    def __init__(
        self,
        store: SharedStore,
        now: float,
        archives: AffectedArchives,
        on_progress: OnProgress,
        *,
        delete: bool = False,
    ) -> None:
        self._store = store
        self._archives = archives
        self._on_progress = on_progress
        self._delete = delete
        self.now = now
        self.result = PruneResult(delete)

    def find_clips(self, chosen: Callable[[ListedClip], bool]) -> None:
        """Prune the chosen clips that are old enough."""
        clips = self._old_clips(chosen)
        while batch := list(islice(clips, _BATCH)):
            if self._delete:
                self._store.delete_clips((one.clip, one.profile) for one in batch)
            self.result.clips += len(batch)
            self.result.bytes += sum(one.size for one in batch)

    def _old_clips(self, chosen: Callable[[ListedClip], bool]) -> Iterator[ListedClip]:
        for listed in self._store.listing():
            self.result.listed += 1
            if self.result.listed % _PROGRESS_STEP == 0:
                self._on_progress(self.result)
            if not chosen(listed):
                continue
            if listed.modified > self.now - MIN_AGE:
                self.result.young += 1
            else:
                self._archives.add(listed.clip, listed.profile)
                yield listed

    def forget_fills(self) -> None:
        """Delete the completion records of archives that may have had the clips."""
        if self._archives.are_affected:
            self.result.fills += self._store.forget_fills(self._archives.is_affected)

    def find_leases(self) -> None:
        """Prune leases that are over."""

        def is_over(entry: ListedObject) -> bool:
            try:
                record = self._store.records.read(entry.key)
            except ObjectDamaged:
                return entry.modified < self.now - MAX_LEASE_AGE
            if record is None:
                return False
            state = LeaseState.of(entry.key, record, self.now)
            return state.age > (MIN_DONE_AGE if state.is_done else MAX_LEASE_AGE)

        self.result.leases = self._prune(LEASES, MIN_DONE_AGE, is_over)

    def find_failures(self) -> None:
        """Prune failures whose time to retry has passed long ago."""

        def is_old(entry: ListedObject) -> bool:
            try:
                report = self._store.read_gone(entry.key)
            except ObjectDamaged:
                return True
            if report is None:
                return False
            return report.last_at + retry_delay(report.kind, report.attempts) < self.now - _FAILURE_KEPT

        self.result.failures = self._prune(GONE, _FAILURE_KEPT, is_old)

    def find_probes(self) -> None:
        """Prune objects with which machines tried the store."""
        self.result.probes = self._prune(PROBES, _PROBE_AGE, lambda entry: True)

    def _prune(self, prefix: str, age: float, is_unused: Callable[[ListedObject], bool]) -> int:
        """Prune the objects below a prefix that are unused, and were created so many seconds ago; return their number.

        A folder lists a record with the time of its creation. A machine that changes the record between the answer of
        `is_unused` and the deletion loses its lease or failure, which costs a repeated fetch and no more.
        """
        old = (entry for entry in self._store.backend.scan(prefix) if entry.modified < self.now - age)
        judged = map_in_order(lambda entry: (entry.key, is_unused(entry)), old, _THREADS, queued=4 * _THREADS)
        unused = (key for key, answer in judged if answer)
        number = 0
        while batch := list(islice(unused, _BATCH)):
            if self._delete:
                self._store.backend.delete(*batch)
            number += len(batch)
        return number
