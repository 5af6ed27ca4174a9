"""Checks of a cache: a quick look at its databases, and the verification of every byte of its clips.

A check changes no clip, delays no other process, and does not count as a use of a clip. A file is read through one
descriptor from its beginning to its end, so that a clip that is evicted or replaced meanwhile is judged by the bytes
that it had.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FetchError
from kinetics_fs.media.profile import UNKNOWN
from kinetics_fs.store.clip_files import OpenClipFile
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.store.faults import CacheFaults
from kinetics_fs.store.layout import CacheLayout
from kinetics_fs.store.migration import upgrade_copy
from kinetics_fs.store.store import CachedFile, Store
from kinetics_fs.store.throttle import SourceState, Throttle
from kinetics_fs.util.disk import UNWRITABLE, DiskFault, examine, fault_of
from kinetics_fs.util.parallel import map_in_order
from kinetics_fs.util.sqlite_copy import CopyError, copy_to_memory
from kinetics_fs.util.text import count

Inspect = Callable[[Path], float | None]
"""Returns the seconds that the pictures of a file cover; None if they cannot be measured. Raises FetchError if the file
is damaged, OSError if whether it is cannot be decided now."""


class CacheSummary(NamedTuple):
    """The content of a cache according to its state database."""

    clips: int
    """Cached clips."""
    bytes: int
    """Their bytes."""
    limit: int | None
    """Maximum of these bytes; None for no limit."""
    sources: list[SourceState]


def summarize_cache(folder: Path) -> CacheSummary | None:
    """Return the summary of a cache directory without opening it as a `Store`, which would repair it.

    Returns:
        None if the directory has no state database.

    Raises:
        StoreError: the state database cannot be read.
    """
    path = CacheLayout(folder).state_database
    if not path.exists():
        return None
    faults = CacheFaults(folder)
    with closing(StateDatabase(path, faults, UNKNOWN)) as database:
        fault = examine(path)
        if fault is None:
            database.open()
        elif fault.errno in UNWRITABLE:
            database.use_copy(fault, upgrade_copy)
        else:
            raise faults.error(fault)
        [(clips, size)] = database.query("SELECT count(*), coalesce(sum(size), 0) FROM clip WHERE cached")
        [(limit,)] = database.query("SELECT max(bytes) FROM size_limit")
        return CacheSummary(clips, size, limit, Throttle(database).states())


def quick_check(database: Path, timeout: float, *, if_damaged: str) -> DiskFault | None:
    """Run SQLite's quick check on a database; on a copy in memory if its disk cannot be written.

    Args:
        database: the file.
        timeout: seconds after which the check stops; a fault that was not found until then stays unknown.
        if_damaged: what to do if the content of the file is damaged.

    Returns:
        Why the database cannot be used; None if no fault was found.

    Raises:
        FileNotFoundError: there is no such file.
    """
    database.stat()
    deadline = time.monotonic() + timeout
    unusable = examine(database)
    if unusable is not None and unusable.errno not in UNWRITABLE:
        return unusable
    try:
        with closing(_open_to_check(database, timeout, copy=unusable is not None)) as db:
            db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            [(result,), *_] = db.execute("PRAGMA quick_check(1)").fetchall()
    except CopyError as error:
        return DiskFault(f"{database} cannot be copied into memory ({error})", "check its disk")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        return fault_of(error, database, if_damaged=if_damaged)
    return None if result == "ok" else DiskFault(f"{database} is damaged ({result})", if_damaged, damaged=True)


def _open_to_check(database: Path, timeout: float, *, copy: bool) -> sqlite3.Connection:
    if copy:
        return copy_to_memory(database)[1]
    # Opened for writing, because a crash may have left a journal that SQLite must apply first.
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", timeout=timeout, uri=True)


class Condition(StrEnum):
    """The condition of a clip that should be cached."""

    GOOD = "good"
    DAMAGED = "damaged"
    """Its bytes differ from those that were stored."""
    LOST = "lost"
    """It has no file."""
    UNREADABLE = "unreadable"
    """Its file cannot be read now, which proves nothing about its bytes."""
    EVICTED = "evicted"
    """It was evicted while other clips were checked."""


class Verdict(NamedTuple):
    """The result of checking one file of a clip."""

    clip: Clip
    profile: str
    size: int
    condition: Condition
    reason: str = ""
    """Empty if the clip is good."""
    filename: str | None = None
    """The file that was checked; None if there was none."""
    duration: float | None = None
    """Seconds that the pictures cover, if the cache did not know them and they were measured."""


def verify_clips(
    store: Store,
    files: Iterable[CachedFile],
    *,
    measure: Inspect | None = None,
    decode: Inspect | None = None,
    threads: int | None = None,
) -> Iterator[Verdict]:
    """Compare files of clips with the size and the SHA-256 with which they were stored, several at a time.

    Args:
        store: the store that has the clips.
        files: the files, as from `Store.cached_files`. Consumed a few ahead of the verdicts.
        measure: called with each file whose bytes are right and whose duration is unknown; None to skip this.
        decode: called instead with each file whose bytes are right; None to skip this.
        threads: number of files to check at a time; None for the number of cores.

    Returns:
        A verdict for each file, in the order of `files`.
    """
    return map_in_order(lambda file: _verify(store, file, measure, decode), files, threads or os.cpu_count() or 1)


def remove_bad(store: Store, verdict: Verdict) -> bool:
    """Remove a damaged or lost clip, so that it can be fetched again, unless it was replaced since it was checked.

    A process that has the clip open keeps the bytes that it has.

    Returns:
        True if the clip was removed.
    """
    return store.remove_if_unchanged(verdict.clip, verdict.profile, verdict.filename)


def _verify(store: Store, cached: CachedFile, measure: Inspect | None, decode: Inspect | None) -> Verdict:
    try:
        opened = store.peek(cached.clip, cached.profile)
    except FileNotFoundError:
        return Verdict(*cached, Condition.LOST, "it has no file")
    except FetchError as error:
        return Verdict(*cached, Condition.UNREADABLE, error.reason)
    if opened is None:
        return Verdict(*cached, Condition.EVICTED, "it was evicted during the check")
    try:
        with os.fdopen(opened.fd, "rb", buffering=0) as file:
            fault, measured = _find_fault(file, opened), None
            is_known = opened.record.duration is not None
            inspect = decode or (None if is_known else measure)
            if inspect is not None and not fault:
                try:
                    # By the descriptor: the same file, even if its name was removed or given to another file.
                    measured = inspect(Path(f"/dev/fd/{file.fileno()}"))
                except FetchError as error:
                    fault = error.reason
    except OSError as error:
        return Verdict(*cached, Condition.UNREADABLE, f"cannot read the file: {error.strerror}")
    return Verdict(
        *cached,
        Condition.DAMAGED if fault else Condition.GOOD,
        fault,
        opened.filename,
        None if is_known else measured,
    )


def _find_fault(file: FileIO, opened: OpenClipFile) -> str:
    """Return how the bytes of a clip's file differ from those that were stored; empty if they do not.

    Raises:
        OSError: the file cannot be read now.
    """
    if opened.size != opened.record.size:
        return f"it has {count(opened.size, 'byte')} instead of {opened.record.size:,}"
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno == errno.EIO:
            return "the disk cannot read it"
        raise
    if digest != opened.record.sha256:
        return "its bytes differ from those that were stored (SHA-256)"
    return ""
