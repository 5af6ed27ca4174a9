"""Archives of classes, read whole for the first clip that is wanted of one: all others of its class come with it."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import IO

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.sources.archive.base import Archive, Version
from kinetics_fs.sources.archive.index import ArchiveIndex
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import archive_address, archives_of_clip
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Scan
from kinetics_fs.sources.archive.tar import Begin, End
from kinetics_fs.sources.base import InProgressElsewhere, OnClip

_log = logging.getLogger(__name__)

_ASK_AGAIN = 600.0
"""Seconds for which it is believed that an archive is there, or is not."""
_ASK_AGAIN_AFTER_FAILURE = 300.0
"""Seconds for which it is believed that none can be reached: clips of hundreds of classes may be wanted meanwhile, and
each would wait for a server that does not answer before it is asked for elsewhere."""

_TRIES = 2
"""To find out whether there is an archive at all: other sources are at hand."""


def stream_clips(
    archive: Archive,
    version: Version,
    scan: Scan,
    path_of: Callable[[Clip, int], Path | None],
    *,
    begin: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Generator[tuple[Clip, Path | None], None, None]:
    """Read an archive to its end and write its clips to files.

    Args:
        archive: the archive to read.
        version: version of the archive to read.
        scan: scan to feed; it builds the index.
        path_of: returns the file to create for a clip of a size in bytes; None skips the clip.
        begin: offset in the archive from which to read, in bytes, as the scan requires.
        progress: called with the offset up to which the archive was read.

    Yields:
        Each clip when all its bytes have passed, with its complete file, or None if it was skipped. The scan can make a
        checkpoint at this moment.

    Raises:
        FetchError: the archive cannot be read.
        ArchiveError: the archive is damaged.
        OSError: a file cannot be written.
    """
    path: Path | None = None
    file: IO[bytes] | None = None
    done = begin
    try:
        with closing(archive.stream(begin, version)) as pieces:
            for data in pieces:
                for event in scan.feed(data):
                    if isinstance(event, Begin):
                        path = path_of(event.clip, event.size)
                        file = path.open("xb") if path is not None else None
                    elif not isinstance(event, End):
                        if file is not None:
                            file.write(event)
                    else:
                        if file is not None:
                            file.close()
                        yield event.clip, path
                done += len(data)
                progress(done)
        scan.finish()
    finally:
        if file is not None:
            file.close()


class ArchiveStreamer:
    """Reads the archives of classes. It becomes indexed on the way: then it need not be read whole again.

    Args:
        base: where all archives are: an http(s) or s3 address, or a folder.
        shelf: file of the indexes; beside it is the lock by which no two processes read one archive.
        catalog: file of the catalog, which tells the class of a clip; None if there is none.
        most: bytes up to which an archive is read; None for any.
        on_clip: takes the clips.
    """

    def __init__(self, base: str, index_db: Path, catalog: Path | None, most: int | None, on_clip: OnClip) -> None:
        self._base = base
        self._index_db_path = index_db
        self._catalog_path = catalog
        self._most = most
        self._emit_clip = on_clip
        self._index_db: ArchiveIndexDB | None = None
        self._catalog: Catalog | None = None
        self._lock: int | None = None
        self._asked: dict[str, tuple[float, Version | None]] = {}
        """Until when what is believed of each archive."""
        self._unreachable: tuple[float, FetchError] | None = None

    def bring(self, clip: Clip, folder: Path) -> bool:
        """Reads the archive of the clip's class, unless it is indexed, too large, or not there; whether it did.

        Raises:
            InProgressElsewhere: somebody is reading it.
            FetchError: it cannot be read, or does not have the clip (GONE).
        """
        if self._catalog_path is None or self._most == 0:
            return False
        self._catalog = self._catalog or Catalog(self._catalog_path)
        self._index_db = self._index_db or ArchiveIndexDB(self._index_db_path)
        without = []
        for name in archives_of_clip(self._base, self._catalog, clip):
            archive = open_archive(archive_address(self._base, name))
            version = self._version(name)
            if version is None:
                continue
            if self._is_indexed(name, version):
                without.append(name)
            elif self._most is None or version.size <= self._most:
                self._read(name, archive, version, clip, folder)
                return True
        if without and not self._index_db.find(clip):
            raise _not_in(without[0])
        return False

    def invalidate(self, name: str) -> None:
        """Forgets what is believed of an archive: it turned out to be another version."""
        self._asked.pop(name, None)

    def _version(self, name: str) -> Version | None:
        """Which version of an archive is there; None if none is."""
        now = time.monotonic()
        until, version = self._asked.get(name, (now, None))
        if until > now:
            return version
        if self._unreachable is not None and self._unreachable[0] > now:
            raise self._unreachable[1]
        try:
            version = open_archive(archive_address(self._base, name), tries=_TRIES).version()
        except FetchError as error:
            if error.kind is not FailureKind.CONFIG:
                self._unreachable = time.monotonic() + _ASK_AGAIN_AFTER_FAILURE, error
                raise
            version = None
        self._asked[name] = time.monotonic() + _ASK_AGAIN, version
        return version

    def _is_indexed(self, name: str, version: Version) -> bool:
        assert self._index_db is not None
        indexed = self._index_db.version(name)
        return indexed is not None and indexed.matches(version)

    def _read(self, name: str, archive: Archive, version: Version, clip: Clip, folder: Path) -> None:
        place = int.from_bytes(hashlib.sha256(f"{self._base} {name}".encode()).digest()[:7], "little")
        if self._lock is None:
            self._lock = os.open(f"{self._index_db_path}.reading", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # One byte of the file for each archive. The kernel lets go of it when this process dies.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            raise InProgressElsewhere from error
        try:
            if self._is_indexed(name, version):  # by who was at it a moment ago
                raise InProgressElsewhere
            self._stream(name, archive, version, clip, folder)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place)

    def _stream(self, name: str, archive: Archive, version: Version, wanted: Clip, folder: Path) -> None:
        _log.info("%s: reading all of %s, %d bytes", wanted.key, name, version.size)
        assert self._catalog is not None and self._index_db is not None
        catalog = self._catalog
        scan = Scan(index=finds_block_boundaries())
        failure: FetchError | None = _not_in(name)

        def path_of(clip: Clip, size: int) -> Path | None:
            return folder / clip.name if catalog.locate(clip) else None

        try:
            with closing(stream_clips(archive, version, scan, path_of)) as clips:
                for clip, path in clips:
                    if path is not None:
                        error = self._give(clip, path, name)
                        failure = error if clip == wanted else failure
        except ArchiveError as error:
            raise FetchError(FailureKind.CORRUPT, f"{name}: {error}") from error
        if finds_block_boundaries():
            self._index_db.add(ArchiveIndex(name, version.size, version.etag, scan.gzipped, scan.records))
        if failure is not None:
            raise failure

    def _give(self, clip: Clip, path: Path, name: str) -> FetchError | None:
        """Hands a clip over; why it could not be, if so."""
        try:
            self._emit_clip(clip, path)
        except FetchError as error:
            _log.warning("%s: not taken from %s: %s", clip.key, name, error.reason)
            path.unlink(missing_ok=True)
            return error
        return None


def _not_in(name: str) -> FetchError:
    return FetchError(FailureKind.GONE, f"not in the archives: {name} does not have it")
