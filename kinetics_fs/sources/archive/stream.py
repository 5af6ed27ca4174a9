"""Reading of class archives on demand.

When a clip of a class is requested whose archive has no index, the archive is read once: all its clips are stored, and
it is indexed on the way, so that it need not be read again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.sources.archive.access import ArchiveAccess
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import UNUSABLE
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import archive_address, archives_of_clip, names_split
from kinetics_fs.sources.archive.limit import limit_note
from kinetics_fs.sources.archive.location import missing_note
from kinetics_fs.sources.base import InProgressElsewhere, NotInSource, OnClip
from kinetics_fs.util.logs import log_step

_log = logging.getLogger(__name__)

_VERSION_TTL = 600.0
"""Seconds for which the version of an archive, or its absence, is remembered."""
_UNREACHABLE_TTL = 300.0
"""Seconds for which an unreachable server is not asked again. Otherwise each clip of hundreds of classes would wait for
its timeout before the next source is asked."""

_TRIES = 2
"""Tries of the request for a version; there are other sources."""


class _NotInArchive(Exception):
    """A complete archive does not have the clip."""


class _IncompleteRead(NamedTuple):
    """The result of reading a damaged or incomplete archive. It is not read again for each clip that it lacks."""

    version: Version
    until: float
    """Monotonic time after which it is read again."""
    reason: str
    delivered: frozenset[Clip]
    """Clips that were read from it."""

    def lacks(self, clip: Clip, version: Version) -> bool:
        """Return whether a clip cannot be read from this version of the archive."""
        return self.version == version and time.monotonic() < self.until and clip not in self.delivered

    def failure(self, name: str) -> FetchError:
        """Return the failure of a clip that the archive lacks, which proves nothing about the clip."""
        return FetchError(FailureKind.TRANSIENT, f"{name} is incomplete: {self.reason}")


class ArchiveStreamer:
    """Reads class archives that have no index, and indexes them on the way.

    Args:
        base: location of all archives: an http(s) or s3 address, or a folder.
        index_db: file of the archive index database.
        lock_file: file of which a byte range is locked while an archive is read, so that no two processes read the same
            one.
        catalog: file of the catalog, which gives the class of a clip; None if there is none.
        limit: size in bytes up to which an archive is read; None for any size.
        on_clip: receives the clips.
        wait_until_stored: returns when every clip that `on_clip` has received is in the store or was refused.
        access: reads the archives.
    """

    def __init__(
        self,
        base: str,
        index_db: Path,
        lock_file: Path,
        catalog: Path | None,
        limit: int | None,
        on_clip: OnClip,
        wait_until_stored: Callable[[], None],
        access: ArchiveAccess,
    ) -> None:
        self._base = base
        self._index_db_path = index_db
        self._lock_file = lock_file
        self._catalog_path = catalog
        self._limit = limit
        self._on_clip = on_clip
        self._wait_until_stored = wait_until_stored
        self._access = access
        self._index_db: ArchiveIndexDB | None = None
        self._catalog: Catalog | None = None
        self._lock_fd: int | None = None
        self._versions: dict[str, tuple[float, Version | None]] = {}
        """Known versions of archives, None for a missing one, and the monotonic time until which each is valid."""
        self._unreachable: tuple[float, FetchError] | None = None
        self._incomplete: dict[str, _IncompleteRead] = {}

    def read_for(self, clip: Clip, folder: Path) -> None:
        """Read the class archive of a clip, and pass its clips to the callback.

        Args:
            clip: the requested clip.
            folder: folder for the files.

        Raises:
            NotInSource: there is no class archive, it is indexed, or it exceeds the limit; then there is a note.
            InProgressElsewhere: another process is reading the archive.
            FetchError: the archive cannot be read, is incomplete (TRANSIENT), or does not contain the clip (GONE).
        """
        if self._catalog_path is None:
            raise NotInSource
        self._catalog = self._catalog or Catalog(self._catalog_path)
        self._index_db = self._index_db or ArchiveIndexDB(self._index_db_path)
        note = ""
        failure: FetchError | None = None
        names = archives_of_clip(self._base, self._catalog, clip)
        if not names:
            raise NotInSource(missing_note(self._base))
        lacking = []
        for name in names:
            version = self._version(name)
            if version is None:
                continue
            earlier = self._incomplete.get(name)
            if self._is_indexed(name, version):
                lacking.append(name)
            elif self._limit is not None and version.size > self._limit:
                note = limit_note("its class archive", version.size, self._limit)
            elif earlier is not None and earlier.lacks(clip, version):
                failure = earlier.failure(name)
            else:
                try:
                    self._read_locked(name, version, clip, folder)
                    return
                except _NotInArchive:
                    lacking.append(name)
                except FetchError as error:  # another archive may have a good copy
                    failure = error
        if failure is not None:
            raise failure
        if lacking == names and all(map(names_split, names)) and not self._index_db.find(clip):
            raise FetchError(FailureKind.GONE, f"not in the archives: {' and '.join(lacking)} does not have it")
        raise NotInSource(note)

    def forget_version(self, name: str) -> None:
        """Ask for the version of an archive again, because it has changed."""
        self._versions.pop(name, None)

    def _version(self, name: str) -> Version | None:
        """Return the current version of an archive; None if it does not exist."""
        now = time.monotonic()
        valid_until, version = self._versions.get(name, (now, None))
        if valid_until > now:
            return version
        if self._unreachable is not None and self._unreachable[0] > now:
            raise self._unreachable[1]
        try:
            version = self._access.version(archive_address(self._base, name), tries=_TRIES)
        except FetchError as error:
            if error.kind is not FailureKind.CONFIG:
                self._unreachable = time.monotonic() + _UNREACHABLE_TTL, error
                raise
            version = None
        self._versions[name] = time.monotonic() + _VERSION_TTL, version
        return version

    def _is_indexed(self, name: str, version: Version) -> bool:
        assert self._index_db is not None
        indexed = self._index_db.version(name)
        return indexed is not None and indexed.matches(version)

    def _read_locked(self, name: str, version: Version, clip: Clip, folder: Path) -> None:
        """Read an archive, unless another process is reading it or has just read it."""
        offset = int.from_bytes(hashlib.sha256(f"{self._base} {name}".encode()).digest()[:7], "little")
        if self._lock_fd is None:
            self._lock_fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Each archive has one byte of the lock file. The kernel releases the lock when this process dies.
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as error:
            raise InProgressElsewhere from error
        try:
            if self._is_indexed(name, version):
                raise InProgressElsewhere
            with log_step(_log, f"fetch {clip.key}: worker {os.getpid()}: read all of {name}"):
                self._read(name, version, clip, folder)
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1, offset)

    def _read(self, name: str, version: Version, requested: Clip, folder: Path) -> None:
        _log.info("%s: reading all of %s, %d bytes", requested.key, name, version.size)
        assert self._catalog is not None and self._index_db is not None
        catalog = self._catalog
        results: dict[Clip, FetchError | None] = {}
        """Clips that have passed; for those that the callback refused, the reason."""

        def wanted(clip: Clip) -> bool:
            is_delivered = clip in results and results[clip] is None
            return not is_delivered and bool(catalog.locate(clip))

        def on_clip(clip: Clip, path: Path) -> None:
            results[clip] = self._emit(clip, path, name)

        try:
            address = archive_address(self._base, name)
            read = self._access.stream(name, address, version, folder, wanted, on_clip)
        except ArchiveError as error:
            delivered = frozenset(clip for clip, refusal in results.items() if refusal is None)
            self._incomplete[name] = _IncompleteRead(version, time.monotonic() + _VERSION_TTL, str(error), delivered)
            raise self._incomplete[name].failure(name) from error
        # A process that finds the index must not read a clip again that is on its way into the store.
        self._wait_until_stored()
        if read.complete:
            self._index_db.add(read.index)
        if read.index.records.get(requested) == UNUSABLE:
            raise FetchError(FailureKind.CORRUPT, f"{name} has only an empty file, a link or the like for it")
        if requested not in results:
            raise _NotInArchive
        if (failure := results[requested]) is not None:
            raise failure

    def _emit(self, clip: Clip, path: Path, name: str) -> FetchError | None:
        """Pass a clip to the callback. Return the reason if the callback refuses it."""
        try:
            self._on_clip(clip, path)
        except FetchError as error:
            _log.warning("%s: not stored from %s: %s", clip.key, name, error.reason)
            path.unlink(missing_ok=True)
            return error
        return None
