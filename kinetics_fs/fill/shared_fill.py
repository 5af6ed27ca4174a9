"""The fill of a shared store by several machines, which have nothing between them but the store.

A machine takes a lease of an archive, reads it, and writes a completion record. A machine that dies keeps no archive:
its lease is over after some minutes, and another machine continues at the checkpoint in the store. All of this saves
work only: two machines that read one archive end with the same objects.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import FailureKind, FetchError, KineticsError, SharedStoreError
from kinetics_fs.fill.archive_job import Summary, UnfinishedArchive
from kinetics_fs.fill.plan import coverage_of
from kinetics_fs.fill.shared_indexes import import_indexes_of, put_index, version_tag
from kinetics_fs.fill.turns import Turn, Turns
from kinetics_fs.fill.waiting import until_reachable
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import (
    ALL_CLIPS,
    ARCHIVE_TTL,
    AccessRefused,
    CompletedFill,
    Lease,
    LeaseHeld,
    Leases,
    SharedStore,
    archive_lease,
)
from kinetics_fs.shared.listing import StoredClips
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import FailureLog

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_DAMAGED_FOR = 600.0
"""Seconds for which no further machine reads an archive that two machines found to be damaged."""
_MAX_REQUESTS = 8


class SharedFill(Turns):
    """Takes turns with the other machines that fill a store. Use it as a context to take turns.

    Args:
        store: the store.
        catalog: the selection.
        index: the archives are indexed on the way.

    Attributes:
        store: the store.
        unlisted: archives whose clips are all stored, whether an annotation names them or not.

    Raises:
        SharedStoreError: the place is no store, or cannot be used.
    """

    def __init__(self, store: SharedStore, catalog: Catalog, *, index: bool) -> None:
        self._writable = store.open(create=False)
        self.store = store
        self.unlisted: Container[str] = ()
        self._catalog = catalog
        self._index = index
        self._node = socket.gethostname()
        self._leases = Leases(store.records, store.clock, f"{self._node}:{os.getpid()}")
        self._can_lease = False
        self._held: dict[str, Lease] = {}
        self._read_by_others: set[str] = set()
        self._lost: FetchError | None = None
        """Why the store cannot be used any more."""

    def __enter__(self) -> Self:
        """Find out what the store can do.

        Raises:
            SharedStoreError: it cannot be written to.
        """
        address = self.store.backend.address
        if not self._writable:
            raise SharedStoreError(f"cannot fill {address}: a newer version of kinetics-fs made it; update kinetics-fs")
        abilities = self.store.probe()
        if not abilities.can_write:
            raise SharedStoreError(f"cannot fill {address}: {abilities.reason}")
        self._can_lease = abilities.has_conditional_writes
        if not self._can_lease:
            _log.warning("%s; several machines may read one archive at the same time", abilities.reason)
        self._leases.start(min(5.0, ARCHIVE_TTL / 6))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leases.close()

    def coverage(self, archive: str) -> str:
        """Return the digest of what is stored from an archive."""
        return coverage_of(self._catalog, all_clips=archive in self.unlisted)

    def complete(self, versions: Mapping[str, Version]) -> set[str]:
        """Return the names of the archives of which the store has all wanted clips, and the index if it is wanted.

        Raises:
            SharedStoreError: the store cannot be used.
        """
        pool = ThreadPoolExecutor(_MAX_REQUESTS)
        try:
            found = pool.map(self._is_complete, versions, versions.values())
            return {name for name, complete in zip(versions, found, strict=True) if complete}
        finally:
            pool.shutdown(cancel_futures=True)

    def _is_complete(self, archive: str, version: Version) -> bool:
        fill = self.store.get_fill(archive, version_tag(version), self.coverage(archive))
        return fill is not None and (fill.indexed or not self._index)

    # Turns

    def take(self, archive: str, version: Version) -> Turn:
        """See `Turns.take`."""
        return self._ask(lambda: self._take(archive, version))

    def _take(self, archive: str, version: Version) -> Turn:
        name = archive_lease(archive, version_tag(version))
        try:
            if archive in self._read_by_others and self._leases.look(name) is not None:
                return Turn.WAIT  # by one request
            if self._is_complete(archive, version):
                return Turn.DONE
            if not self._can_lease:
                return Turn.READ
            lease = self._leases.acquire(name, ARCHIVE_TTL)
        except FetchError as error:
            raise FetchError(FailureKind.CORRUPT, error.reason) from error
        if isinstance(lease, LeaseHeld):
            self._read_by_others.add(archive)
            return Turn.WAIT
        if self._is_complete(archive, version):  # since the look before the lease
            lease.release()
            return Turn.DONE
        self._held[archive] = lease
        return Turn.READ

    def finish(self, archive: str, version: Version, summary: Summary, index: ArchiveIndex | None) -> None:
        """See `Turns.finish`."""
        fill = CompletedFill(
            archive=archive,
            etag=version_tag(version),
            # Another selection of an archive that has more clips must read it once more.
            coverage=self.coverage(archive) if summary.not_wanted else ALL_CLIPS,
            indexed=self._index,
            clips=summary.in_shared,
            bytes=summary.in_shared_bytes,
            node=self._node,
        )
        if index is not None:
            self._ask(lambda: put_index(self.store, index))
        self._ask(lambda: self.store.put_fill(fill))
        if (lease := self._held.pop(archive, None)) is not None:
            lease.release()

    def fail(self, archive: str, error: KineticsError) -> None:
        """See `Turns.fail`. Other machines try the archive, too, unless two found that it is damaged."""
        if (lease := self._held.pop(archive, None)) is None:
            return
        if isinstance(error, UnfinishedArchive):
            lease.fail(FetchError(FailureKind.CORRUPT, f"{error} (read by {self._node})"), _DAMAGED_FOR)
        else:
            lease.fail(FetchError(FailureKind.TRANSIENT, str(error)), 0.0)

    # Results

    def import_indexes(self, versions: Mapping[str, Version], path: Path, failures: FailureLog) -> None:
        """Import the indexes of archives that other machines have read, as far as this one lacks them.

        Args:
            versions: the versions of the archives, by name.
            path: file of the archive index database.
            failures: the failures of the cache. Clips that were said to be in no archive are tried again.

        Raises:
            FetchError: the store cannot be used (LOCAL).
            ArchiveError: the database cannot be used.
        """
        if versions:
            with ArchiveIndexDB(path) as index_db:
                self._ask(lambda: import_indexes_of(self.store, index_db, path.parent, versions, failures))

    def listing(self) -> StoredClips:
        """List the clips of the store. The caller closes the result.

        Raises:
            FetchError: the store cannot be used (LOCAL).
        """
        return self._ask(lambda: StoredClips(self.store, None, lambda number: None))

    def forget_lost(
        self, missing: Iterable[Clip], versions: Mapping[str, Version], index_db: ArchiveIndexDB, listing: StoredClips
    ) -> list[str]:
        """Delete the completion records of archives of which the store has lost clips, and return their names.

        Args:
            missing: clips of the selection that the store lacks. Some may be corrupt in their archives, and were never
                there.
            versions: the archives that are complete by their records, with their versions.
            index_db: the indexes.
            listing: the clips of the store.

        Raises:
            FetchError: the store cannot be used (LOCAL).
        """
        suspects = {location.archive for clip in missing for location in index_db.find(clip)} & versions.keys()
        return [name for name in sorted(suspects) if self._is_lost(name, versions[name], index_db, listing)]

    def _is_lost(self, archive: str, version: Version, index_db: ArchiveIndexDB, listing: StoredClips) -> bool:
        fill = self._ask(lambda: self.store.get_fill(archive, version_tag(version), self.coverage(archive)))
        if fill is None:
            return True
        clips = index_db.clips(archive)
        if fill.coverage != ALL_CLIPS and archive not in self.unlisted:
            clips = [clip for clip in clips if self._catalog.locate(clip)]
        if sum(listing.has(clip, SOURCE) for clip in clips) >= fill.clips:
            return False
        with suppress(AccessRefused):
            until_reachable(lambda: self.store.delete_fill(fill), otherwise=AccessRefused)
        return True

    def _ask(self, request: Callable[[], _Result]) -> _Result:
        """Do a request as `until_reachable`. A store that was lost once is not waited for again."""
        if self._lost is not None:
            raise self._lost
        try:
            return until_reachable(request)
        except FetchError as error:
            if error.kind is FailureKind.LOCAL:
                self._lost = error
            raise
