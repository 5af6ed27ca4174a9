"""The clips of indexed archives, as rows for a catalog: the name of an archive says the split and mostly the class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinetics_fs.catalog import Clip
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import ArchiveClasses, folder_of_release


class IndexedClips:
    """The clips of the indexed archives of a release; implements `catalog.ArchiveClips`.

    Args:
        index_db: file of the archive index database; it exists.
        release: name of the release.

    Raises:
        ArchiveError: the file is damaged.
    """

    def __init__(self, index_db: Path, release: str) -> None:
        self._path = index_db
        self._release = release
        folder = folder_of_release(release)
        with ArchiveIndexDB(index_db) as opened:
            versions = sorted(item for item in opened.versions().items() if item[0].startswith(f"{folder}/"))
        self._archives = [name for name, _ in versions]
        self.stamp = hashlib.sha256(repr(versions).encode()).hexdigest() if versions else ""

    def clips(self, labels: Sequence[str]) -> Iterator[tuple[str, str, str, Clip]]:
        """Yield the archive, split, label and clip of each."""
        classes = ArchiveClasses(self._release, labels)
        with ArchiveIndexDB(self._path) as index_db:
            for archive in self._archives:
                if (split_and_label := classes.of(archive)) is not None:
                    for clip in index_db.clips(archive):
                        yield archive, *split_and_label, clip
