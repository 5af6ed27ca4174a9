"""Clips out of archives: of one whose index is here by one request for little more than the clip's own bytes; of the
archive of a class also with all others that are in it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.media import Media
from kinetics_fs.sources.archive.base import Archive, ArchiveChanged, Version
from kinetics_fs.sources.archive.extract import extract
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB, ClipLocation
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.stream import ArchiveStreamer
from kinetics_fs.sources.base import NotInSource

_log = logging.getLogger(__name__)


class ArchiveSource:
    """The archives below one address.

    Args:
        base: where they all are: an http(s) or s3 address, or a folder.
        shelf: file of their indexes.
        whole: reads those that are not indexed, or are by now another version; None if nothing does.
    """

    name = "archive"

    def __init__(self, base: str, index_db: Path, whole: ArchiveStreamer | None = None) -> None:
        self._base = base
        self._path = index_db
        self._whole = whole
        self._index_db: ArchiveIndexDB | None = None

    def fetch(self, clip: Clip, folder: Path) -> Media | None:
        try:
            # Only now: a damaged one must not keep other sources from being asked.
            self._index_db = self._index_db or ArchiveIndexDB(self._path)
            places = self._index_db.find(clip)
            failures: list[FetchError] = []
            media = self._by_index(clip, places, folder, failures)
            if media is not None:
                return media
            if self._whole is not None and self._whole.bring(clip, folder):
                return None
        except ArchiveError as error:
            raise FetchError(FailureKind.CONFIG, str(error), source=self.name) from error
        if not failures:
            raise NotInSource
        # One that may yet bring it says more than one that never will.
        raise min(failures, key=lambda failure: failure.kind is FailureKind.CORRUPT)

    def _by_index(
        self, clip: Clip, places: list[ClipLocation], folder: Path, failures: list[FetchError]
    ) -> Media | None:
        for place in places:
            path = folder / clip.name
            try:
                self._read(clip, place, path)
            except ArchiveError as error:
                failures.append(FetchError(FailureKind.CORRUPT, f"{place.archive}: {error}", source=self.name))
            except FetchError as error:
                if isinstance(error, ArchiveChanged) and self._whole is not None:
                    self._whole.invalidate(place.archive)
                error.source = self.name
                failures.append(error)
            else:
                return Media(path, 0.0, None, whole=True)
            _log.info("%s: %s", clip.key, failures[-1].reason)
            path.unlink(missing_ok=True)
        return None

    def _read(self, clip: Clip, place: ClipLocation, path: Path) -> None:
        archive = open_archive(archive_address(self._base, place.archive))
        try:
            _extract(clip, place, archive, place.version, path)
        except ArchiveChanged:
            # A copy on another server goes by another tag. Whether it is one, the clip itself tells: what stands before
            # it, and its checksum.
            version = archive.version()
            if version.size != place.version.size:
                raise
            path.unlink(missing_ok=True)
            try:
                _extract(clip, place, archive, version, path)
            except ArchiveError as error:
                raise ArchiveChanged(archive.address) from error
            assert self._index_db is not None
            self._index_db.update_etag(place.archive, version.etag)


class WholeArchiveSource:
    """The archives of classes, however large, where they are not indexed.

    Args:
        whole: reads them.
    """

    name = "whole-archive"

    def __init__(self, whole: ArchiveStreamer) -> None:
        self._whole = whole

    def fetch(self, clip: Clip, folder: Path) -> None:
        try:
            if self._whole.bring(clip, folder):
                return
        except ArchiveError as error:
            raise FetchError(FailureKind.CONFIG, str(error), source=self.name) from error
        raise NotInSource


def _extract(clip: Clip, place: ClipLocation, archive: Archive, version: Version, path: Path) -> None:
    record = place.record
    with path.open("xb") as file:
        pieces = archive.read(record.begin, record.end, version)
        for piece in extract(clip, record, pieces, gzipped=place.gzipped):
            file.write(piece)
