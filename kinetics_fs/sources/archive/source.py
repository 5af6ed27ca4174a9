"""Clips straight out of archives whose indexes are here: one request for little more than the clip's own bytes."""

from __future__ import annotations

import logging
from pathlib import Path

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.sources.archive.access import open_archive
from kinetics_fs.sources.archive.extract import extract
from kinetics_fs.sources.archive.places import archive_address
from kinetics_fs.sources.archive.shelf import Place, Shelf
from kinetics_fs.sources.base import Media, NotHere

_log = logging.getLogger(__name__)


class ArchiveSource:
    """The archives below one address.

    Args:
        base: where they all are: an http(s) or s3 address, or a folder.
        shelf: file of their indexes.
    """

    name = "archive"

    def __init__(self, base: str, shelf: Path) -> None:
        self._base = base
        self._path = shelf
        self._shelf: Shelf | None = None

    def fetch(self, clip: Clip, folder: Path) -> Media:
        try:
            # Only now: a damaged one must not keep other sources from being asked.
            self._shelf = self._shelf or Shelf(self._path)
            places = self._shelf.find(clip)
        except ArchiveError as error:
            raise FetchError(FailureKind.CONFIG, str(error), source=self.name) from error
        if not places:
            raise NotHere
        failures: list[FetchError] = []
        for place in places:
            path = folder / clip.name
            try:
                self._extract(clip, place, path)
            except ArchiveError as error:
                failures.append(FetchError(FailureKind.CORRUPT, f"{place.archive}: {error}", source=self.name))
            except FetchError as error:
                error.source = self.name
                failures.append(error)
            else:
                return Media(path, 0.0, None, whole=True)
            _log.info("%s: %s", clip.key, failures[-1].reason)
            path.unlink(missing_ok=True)
        # One that may yet bring it says more than one that never will.
        raise min(failures, key=lambda failure: failure.kind is FailureKind.CORRUPT)

    def _extract(self, clip: Clip, place: Place, path: Path) -> None:
        record = place.record
        archive = open_archive(archive_address(self._base, place.archive))
        pieces = archive.read(record.begin, record.end, place.version)
        with path.open("xb") as file:
            for piece in extract(clip, record, pieces, gzipped=place.gzipped):
                file.write(piece)
