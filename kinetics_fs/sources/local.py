"""Which clips the folders and the indexes of archives have, without fetching them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.errors import KineticsError
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.folder import FolderSource
from kinetics_fs.sources.settings import SourceSettings

_log = logging.getLogger(__name__)


class LocalClips:
    """The clips that can be found without the network. One thread at a time may use it.

    Args:
        settings: settings of the sources.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self._index_db = Path(settings.archive_index) if "archive" in settings.order else None
        self._folders: FolderSource | None = None
        if "folder" in settings.order:
            catalog = Path(settings.catalog) if settings.catalog else None
            self._folders = FolderSource([Path(folder) for folder in settings.folders], catalog)

    def among(self, keys: Collection[str]) -> set[str]:
        """Return the keys (`Clip.key`) of the clips that a folder or an index has."""
        found = set[str]()
        try:
            if self._index_db is not None and self._index_db.is_file():
                with ArchiveIndexDB(self._index_db) as index_db:
                    found |= index_db.listed(list(keys))
            if self._folders is not None:
                for key in keys:
                    clip = parse_clip_name(f"{key}.mp4")
                    if clip is not None and key not in found and self._folders.has(clip):
                        found.add(key)
        except KineticsError as error:
            _log.warning("cannot find clips in folders and indexes: %s", error)
        return found
