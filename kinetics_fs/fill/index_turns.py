"""The turns of machines that build and share indexes: each reads every archive without a shared index."""

from __future__ import annotations

import logging

from kinetics_fs.errors import SharedStoreError
from kinetics_fs.fill.archive_job import Summary
from kinetics_fs.fill.shared_indexes import put_index
from kinetics_fs.fill.turns import Turns
from kinetics_fs.shared import SharedStore
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex

_log = logging.getLogger(__name__)


class IndexTurns(Turns):
    """Shares the indexes of the archives that this machine reads.

    Args:
        store: the shared store.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    def finish(self, archive: str, version: Version, summary: Summary, index: ArchiveIndex | None) -> None:
        """Put the index of an archive into the store. If the store is away, a later run does it."""
        if index is not None and not summary.taken_over:
            try:
                put_index(self._store, index)
            except SharedStoreError as error:
                _log.warning("the index of %s is not shared yet: %s; run the same command again", archive, error)
