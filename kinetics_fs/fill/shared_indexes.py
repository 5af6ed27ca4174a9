"""Archive indexes in a shared store: what one machine built serves all."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from kinetics_fs.errors import ArchiveError
from kinetics_fs.fill.plan import retry_indexed
from kinetics_fs.shared import IndexKey, ObjectDamaged, SharedStore
from kinetics_fs.shared.backend import MAX_FILE
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index import ArchiveIndex, read_indexes, write_index
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB, check_import
from kinetics_fs.store import FailureLog

_log = logging.getLogger(__name__)


def version_tag(version: Version) -> str:
    """Return the text that stands for a version of an archive in the keys of a shared store."""
    return f"{version.size} {version.etag or ''}".strip()


def put_index(store: SharedStore, index: ArchiveIndex) -> None:
    """Put an index into a shared store, unless it has it.

    Raises:
        SharedStoreError: the store cannot be used.
    """
    file = io.BytesIO()
    write_index(index, file)
    if file.tell() > MAX_FILE:
        _log.warning("%s: its index is too large for the shared store", index.archive)
    else:
        store.put_index(_key(index), file.getvalue())


def put_missing(store: SharedStore, index_db: ArchiveIndexDB, archives: Collection[str]) -> None:
    """Put the indexes of these archives into a shared store, except those that it has.

    Raises:
        SharedStoreError: the store cannot be used.
    """
    known = set(store.indexes())
    for index in index_db.indexes([*archives]):
        if _key(index) not in known:
            put_index(store, index)


def import_indexes_of(
    store: SharedStore, index_db: ArchiveIndexDB, folder: Path, versions: Mapping[str, Version], failures: FailureLog
) -> None:
    """Import the indexes of archives that this machine lacks in these versions.

    Args:
        store: the shared store.
        index_db: receives the indexes.
        folder: folder of the database.
        versions: the versions, by archive.
        failures: see `import_shared_indexes`.

    Raises:
        SharedStoreError: the store cannot be used.
        ArchiveError: the database cannot be used.
    """
    known = index_db.versions()
    for archive, version in versions.items():
        if archive not in known or not known[archive].matches(version):
            _import(store, IndexKey.of(archive, version_tag(version)), index_db, folder)
    retry_indexed(index_db, failures)


def import_shared_indexes(store: SharedStore, index_db: ArchiveIndexDB, folder: Path, failures: FailureLog) -> int:
    """Import the indexes of a shared store that this machine lacks; takes one listing if it has them all.

    The index of an archive that this machine has read stays. Others are replaced by newer ones.

    Args:
        store: the shared store.
        index_db: receives the indexes.
        folder: folder of the database.
        failures: the failures of the cache. A clip that was said to be in no archive is tried again if an index has it.

    Returns:
        The number of indexes that were imported.

    Raises:
        SharedStoreError: the store cannot be used.
        ArchiveError: the database cannot be used.
    """
    own = {IndexKey.of(name, "").archive for name in index_db.versions(confirmed=True)}
    known = {IndexKey.of(name, version_tag(version)) for name, version in index_db.versions().items()}
    imported = sum(
        _import(store, key, index_db, folder) for key in store.indexes() if key.archive not in own and key not in known
    )
    if imported:
        retry_indexed(index_db, failures)
    return imported


def share_indexes(store: SharedStore, index_db: ArchiveIndexDB) -> int:
    """Put the indexes of archives that this machine has read into a shared store that lacks them.

    Args:
        store: the shared store.
        index_db: has the indexes.

    Returns:
        The number of indexes that the store lacked.

    Raises:
        SharedStoreError: the store cannot be used.
        ArchiveError: the database cannot be used.
    """
    own = index_db.versions(confirmed=True)
    stored = set(store.indexes()) if own else set()
    lacking = [name for name, version in own.items() if IndexKey.of(name, version_tag(version)) not in stored]
    for index in index_db.indexes(lacking):
        put_index(store, index)
    return len(lacking)


def _import(store: SharedStore, key: IndexKey, index_db: ArchiveIndexDB, folder: Path) -> bool:
    """Import an index, which is untrusted; return whether the store has a valid one."""
    try:
        body = store.get_index(key)
        if body is None:
            return False
        [index] = read_indexes(io.BytesIO(body))
        if _key(index) != key:
            raise ArchiveError("it is the index of another archive")
        index = check_import(index, folder)
    except (ArchiveError, ObjectDamaged, ValueError) as error:
        _log.warning("cannot import the index %s of the shared store: %s", key.archive, error)
        return False
    index_db.add(index, confirmed=False)
    return True


def _key(index: ArchiveIndex) -> IndexKey:
    return IndexKey.of(index.archive, version_tag(Version(index.size, index.etag)))
