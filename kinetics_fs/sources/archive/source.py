"""Archives as a source of clips.

A clip of an indexed archive is read by one range request for little more than its own bytes. A class archive without an
index is read whole, if it is small enough, and all its clips are stored.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources.archive.access import ArchiveAccess, ArchiveMember, DirectAccess
from kinetics_fs.sources.archive.base import ArchiveChanged
from kinetics_fs.sources.archive.index import UNUSABLE
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB, ClipLocation
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.limit import limit_note
from kinetics_fs.sources.archive.remote import TRIES
from kinetics_fs.sources.archive.stream import ArchiveStreamer
from kinetics_fs.sources.base import NotInSource, OnClip
from kinetics_fs.sources.settings import MAX_ARCHIVE_DOWNLOAD
from kinetics_fs.util.logs import log_step

_log = logging.getLogger(__name__)


class ArchiveSource:
    """The archives below one address.

    Args:
        base: location of all archives: an http(s) or s3 address, or a folder.
        index_db: file of the archive index database.
        limit: maximum number of bytes to read by index for one clip; None for no limit.
        streamer: reads class archives that have no index, or have changed; None reads by index only.
        on_clip: receives a clip of which there are several copies. If it refuses one, the next is read.
        access: reads the archives; None to read them in this process.
    """

    name = "archive"

    def __init__(
        self,
        base: str,
        index_db: Path,
        *,
        limit: int | None = MAX_ARCHIVE_DOWNLOAD,
        streamer: ArchiveStreamer | None = None,
        on_clip: OnClip | None = None,
        access: ArchiveAccess | None = None,
    ) -> None:
        self._base = base
        self._index_db_path = index_db
        self._limit = limit
        self._streamer = streamer
        self._on_clip = on_clip
        self._access = access or DirectAccess()
        self._index_db: ArchiveIndexDB | None = None

    def fetch(self, clip: Clip, folder: Path) -> Media | None:
        try:
            # Opened here and not before, so that a damaged database does not keep other sources from being tried.
            self._index_db = self._index_db or ArchiveIndexDB(self._index_db_path)
            return self._fetch(clip, folder)
        except ArchiveError as error:
            raise FetchError(FailureKind.CONFIG, str(error), source=self.name) from error

    def _fetch(self, clip: Clip, folder: Path) -> Media | None:
        """Try the archives whose index has the clip, then the class archive."""
        assert self._index_db is not None
        failures: list[FetchError] = []
        note = ""
        locations = self._index_db.find(clip)
        for location in locations:
            if location.record == UNUSABLE:
                reason = f"{location.archive} has only an empty file, a link or the like for it"
                failures.append(FetchError(FailureKind.CORRUPT, reason, source=self.name))
                continue
            size = location.record.end - location.record.begin
            if self._limit is not None and size > self._limit:
                note = limit_note(f"its part in {location.archive}", size, self._limit)
                continue
            path = folder / clip.name
            try:
                with log_step(_log, f"fetch {clip.key}: worker {os.getpid()}: read {location.archive} by its index"):
                    self._read(clip, location, path)
                if self._on_clip is not None and len(locations) > 1:
                    self._on_clip(clip, path)
                    return None
                return Media(path, 0.0, None, whole=True)
            except ArchiveError as error:
                failure = FetchError(FailureKind.CORRUPT, f"{location.archive}: {error}", source=self.name)
            except FetchError as error:
                failure = error
                failure.source = self.name
                if isinstance(error, ArchiveChanged) and self._streamer is not None:
                    self._streamer.forget_version(location.archive)
            _log.info("%s: %s", clip.key, failure.reason)
            failures.append(failure)
            path.unlink(missing_ok=True)
        if self._streamer is not None:
            try:
                self._streamer.read_for(clip, folder)
                return None
            except NotInSource as missing:
                if missing.note:
                    # A changed archive is one without an index, so its size is the reason.
                    note = missing.note
                    failures = [failure for failure in failures if not isinstance(failure, ArchiveChanged)]
        if not failures:
            raise NotInSource(note)
        # A failure that may pass says more than one that will not.
        raise min(failures, key=lambda failure: failure.kind is FailureKind.CORRUPT)

    def _read(self, clip: Clip, location: ClipLocation, path: Path) -> None:
        """Read a clip by its index record into a file.

        Raises:
            ArchiveChanged: the archive is another version than the indexed one.
            FetchError: the archive cannot be read.
            ArchiveError: the bytes are not those of the clip.
        """
        address = archive_address(self._base, location.archive)
        member = ArchiveMember(clip, address, location.version, location.record, location.gzipped)
        try:
            self._access.extract(member, path)
        except ArchiveChanged:
            # A copy on another server has another tag. The tar header before the clip, and the clip's checksum, show
            # whether it is the same archive.
            version = self._access.version(address, tries=TRIES)
            if version.size != location.version.size:
                raise
            path.unlink(missing_ok=True)
            try:
                self._access.extract(member._replace(version=version), path)
            except ArchiveError as error:
                raise ArchiveChanged(address) from error
            assert self._index_db is not None
            self._index_db.update_etag(location.archive, version.etag)
