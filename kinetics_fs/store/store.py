"""The store: cached clips, whole or absent, within a limit, shared by processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.control.status import CacheStatus, SourceStatus, StoreStatus
from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.media.profile import SOURCE, CutProfile
from kinetics_fs.store.clip_files import (
    ClipFiles,
    ClipRecord,
    MeasuredFile,
    OpenClipFile,
    StagedFile,
    Unreadable,
    key_of_filename,
    parse_duration,
)
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.store.eviction import TYPICAL_CLIP_BYTES, AccessTimes, Evictor
from kinetics_fs.store.failures import FailureLog
from kinetics_fs.store.faults import CacheFaults
from kinetics_fs.store.history import History
from kinetics_fs.store.layout import CacheLayout, prepare_folder
from kinetics_fs.store.migration import migrate, old_state_database, upgrade_copy
from kinetics_fs.store.pins import Pins
from kinetics_fs.store.process_lock import ProcessLock
from kinetics_fs.store.short_clips import ShortClips, keep_failure
from kinetics_fs.store.throttle import Throttle
from kinetics_fs.util.disk import UNWRITABLE, DiskFault, examine, fault_of
from kinetics_fs.util.logs import log_step

_log = logging.getLogger(__name__)

_KEYS_PER_QUERY = 500

_RECOVERY_INTERVAL = 5.0
"""Seconds between two attempts to open a cache for writing whose disk could not be written."""


class StoredClip(NamedTuple):
    """A cached clip, open for reading. Its bytes stay readable until `fd` is closed, even if it is evicted."""

    fd: int
    size: int
    stored_at: float
    """When this content was published, in seconds since the epoch: tells one content of a clip from another."""

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class CachedFile(NamedTuple):
    """The file of a cached clip, by its profile, and its size in bytes. A clip may have a file for each profile."""

    clip: Clip
    profile: str
    size: int


class KnownSize(NamedTuple):
    """The size in bytes of a clip that is or was cached, and whether it is cached now."""

    size: int
    cached: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the cache is.

    Attributes:
        clips: cached clips of all profiles: a clip that two profiles have counts twice.
        bytes: their bytes.
        limit: maximum bytes; None for no limit.
        reserved: bytes reserved for fetches in progress.
        disk_free: free bytes of the disk.
    """

    clips: int
    bytes: int
    limit: int | None
    reserved: int
    disk_free: int


class Space(NamedTuple):
    """How many bytes of clips the cache may hold, by its limit and by its disk.

    Attributes:
        total: the maximum; at least `used`.
        used: the bytes of the cached clips.
        available: bytes that can still be cached, by evicting clips if needed: all but those of pinned clips.
    """

    total: int
    used: int
    available: int


class Store:
    """The clips of one cache directory.

    A cache may have a clip more than once, cut with different settings. A store shows one of these files for each clip:
    the one with its own settings, else the one that an archive or a folder published, else one whose settings are
    unknown. A clip that was only cut with other settings is not cached for it. Pins, the limit and eviction apply to
    all files.

    Safe for threads and for processes, but not across a fork: open a store in the process that uses it.

    Attributes:
        folder: the cache directory.
        layout: its paths.
        faults: what keeps the cache from working at the moment.
        profile: the settings with which clips are cut that it stores.
        failures: why clips are unavailable.
        throttle: the circuit breaker and the rate limit of each source.
        pins: the clips that are never evicted.
        short_clips: the clips whose pictures cover much less than the annotated seconds.
        history: how full the cache was over time, and what was fetched and opened.

    Args:
        folder: the cache directory; created with mode 0700 if it is missing.
        limit: maximum bytes of clips, for all processes from now on; `none` for no limit; None to leave it as it is.
        profile: the settings with which clips are cut that it shows and stores.
        shrink: clips may be evicted at once, if `limit` is less than the cached clips have.
        min_free: bytes to leave free on the disk, whatever the limit is.

    Raises:
        StoreError: the directory cannot be created, belongs to another user, or its databases cannot be read; or
            `limit` requires that clips are evicted, and `shrink` is not given or they are pinned; or the directory has
            the format of a later version, or that of an earlier one and is in use.
    """

    def __init__(
        self,
        folder: Path,
        *,
        profile: CutProfile = CutProfile(),  # noqa: B008  # it is immutable
        limit: int | Literal["none"] | None = None,
        shrink: bool = False,
        min_free: int = 0,
    ) -> None:
        self.folder = folder
        self.profile = profile
        prepare_folder(folder)
        self.layout = CacheLayout(folder)
        self.faults = CacheFaults(folder)
        self._clips = self.layout.clips
        self._incoming = self.layout.incoming
        self._limit, self._shrink = limit, shrink
        self._database = StateDatabase(self.layout.state_database, self.faults, profile.name)
        self._files = ClipFiles(self.layout, self.faults, profile.name)
        self._evictor = Evictor(self.layout, self.faults, self._database, self._files, min_free=min_free)
        self._access_times = AccessTimes(self._database)
        self._opened = contextlib.ExitStack()
        self._scratch: Path | None = None
        self._recovering = threading.Lock()
        self._next_recovery = 0.0
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        self.failures = FailureLog(self._database)
        self.throttle = Throttle(self._database)
        self.pins = Pins(self._database)
        self.short_clips = ShortClips(self._database)
        self.history = History(self._database, self._files.totals)
        self._in_flight: set[str] = set()
        """Tokens of the claims of this store."""

    def _open(self) -> None:
        """Open the cache; if its disk cannot be written, copies of its databases.

        Raises:
            StoreError: it cannot be used.
        """
        try:
            self._open_files()
        except StoreError as error:
            if error.errno not in UNWRITABLE:
                raise
            fault = self.faults.fault
            if fault is None or fault.errno != error.errno:  # the migration met it
                fault = fault_of(OSError(error.errno, str(error)), self.layout.root)
                self.faults.error(fault)
            try:
                self._open_copies(fault)
            except FileNotFoundError:
                raise error from None

    def _open_files(self) -> None:
        """Open the cache for reading and writing, and repair what dead processes left."""
        with contextlib.ExitStack() as opened, self._translated_errors():
            migrate(self.layout)
            for child in (self._incoming, self._clips, self.layout.process_locks):
                child.mkdir(mode=0o700, exist_ok=True)
            self._database.open()
            self._files.open_table()
            with self._database.exclusive() as db:
                self._lock = opened.enter_context(contextlib.closing(ProcessLock(self.layout.process_locks)))
                self._scratch = self.layout.scratch / self._lock.name
                self._sweep(db)
                self._reconcile(db)
                if self._limit is not None:
                    self._evictor.set_limit(db, self._limit, shrink=self._shrink)
            self._opened = opened.pop_all()
        self.faults.end()

    def _open_copies(self, fault: DiskFault) -> None:
        """Copy the databases into memory, so that cached clips can be read although the disk cannot be written.

        Raises:
            StoreError: they cannot be read.
            FileNotFoundError: there are none.
        """
        state, old_state = self.layout.state_database, old_state_database(self.layout)
        is_old = not state.exists() and old_state.exists()
        self.layout.clip_table.stat()
        (old_state if is_old else state).stat()
        self._database.use_copy(fault, upgrade_copy, old_state if is_old else state)
        self._files.use_copy(fault)

    def _recover(self) -> None:
        """Use the files again, if copies are used because the disk could not be written, and it can be now."""
        if self._database.read_only is None or not self._recovering.acquire(blocking=False):
            return
        try:
            if time.monotonic() < self._next_recovery or examine(self._clips) is not None:
                return
            self._next_recovery = time.monotonic() + _RECOVERY_INTERVAL
            with contextlib.suppress(StoreError):
                self._open()
        finally:
            self._recovering.release()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except FetchError:
            raise
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> StoreError:
        return self.faults.error(fault_of(error, self.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Write the access times that are only in memory, if that is possible, and close the databases."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(StoreError):
            self._access_times.write()
        self._close()

    def _close(self) -> None:
        self._opened.close()
        self._files.close()
        self._database.close()

    @property
    def scratch(self) -> Path:
        """Where confined processes of this process have their folders, on the filesystem of the cache.

        It need not exist, and cannot be created while the disk cannot be written. It is removed when the store is
        closed, or by another process when this one is dead.
        """
        return self._scratch or self.layout.scratch / "unwritable"

    # Reading

    def open(self, clip: Clip) -> StoredClip | None:
        """Open a clip for reading; return None if it is not cached.

        A file whose size differs from that at publication (a disk that lost writes, another program) is removed and
        counts as not cached.

        Raises:
            FetchError: the file exists but cannot be opened now (LOCAL).
        """
        opened = self.open_nowait(clip)
        if opened is None and self.is_cached(clip):
            with self._database.exclusive() as db:
                # Once more, now that no process can be publishing it.
                while (opened := self.open_nowait(clip)) is None and (
                    shown := db.execute("SELECT profile FROM shown WHERE key = ? AND cached", (clip.key,)).fetchone()
                ):
                    _log.warning("%s: the cached file (%s) is lost or damaged; removed", clip.key, *shown)
                    self._evictor.remove(db, clip.key, *shown)
        return opened

    def open_nowait(self, clip: Clip) -> StoredClip | None:
        """Open a clip as `open` does, but never wait for another process: a damaged file stays.

        Raises:
            FetchError: the file exists but cannot be opened now (LOCAL).
        """
        key = clip.key
        try:
            opened = self._files.open(key)
        except Unreadable as error:
            raise _cannot_open(error) from error
        if opened is None:
            return None
        if opened.size != opened.record.size:
            os.close(opened.fd)
            return None
        self._access_times.touch(key)
        return StoredClip(opened.fd, opened.size, opened.record.stored_at)

    def peek(self, clip: Clip, profile: str | None = None) -> OpenClipFile | None:
        """Open the file of a clip as it is, without counting this as a use. Return None if the clip is not cached.

        Args:
            clip: the clip.
            profile: the profile of the file; None for the one that the store shows.

        Raises:
            FileNotFoundError: the clip is cached according to the state database, but has no file.
            FetchError: the file exists but cannot be opened now (LOCAL).
        """
        try:
            opened = self._open_file(clip.key, profile)
            if opened is not None or not self._is_cached(clip.key, profile):
                return opened
            # Once more, while no process can be evicting or publishing it.
            with self._database.exclusive():
                opened = self._open_file(clip.key, profile)
                if opened is None and self._is_cached(clip.key, profile):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), clip.key)
                return opened
        except Unreadable as error:
            raise _cannot_open(error) from error

    def _open_file(self, key: str, profile: str | None) -> OpenClipFile | None:
        return self._files.open(key) if profile is None else self._files.open_profile(key, profile)

    def is_cached(self, clip: Clip) -> bool:
        """Return whether a clip is cached according to the state database."""
        return self._is_cached(clip.key, None)

    def _is_cached(self, key: str, profile: str | None) -> bool:
        table, of_profile = ("shown", "") if profile is None else ("clip", "AND profile = :profile")
        statement = f"SELECT 1 FROM {table} WHERE key = :key AND cached {of_profile}"
        return bool(self._database.query(statement, {"key": key, "profile": profile}))

    def cached_clips(self) -> Iterator[tuple[Clip, int]]:
        """Yield every cached clip with its size in bytes, by key. Reads a page at a time."""
        last = ""
        while True:
            rows = self._database.query(
                "SELECT key, size FROM shown WHERE cached AND key > ? ORDER BY key LIMIT ?", (last, _KEYS_PER_QUERY)
            )
            if not rows:
                return
            last = rows[-1][0]
            for key, size in rows:
                clip = parse_clip_name(f"{key}.mp4")
                if clip is not None:
                    yield clip, size

    def cached_files(self, keys: Sequence[str] | None = None, *, source: str | None = None) -> Iterator[CachedFile]:
        """Yield the files of the cached clips, of all profiles, by key. Reads a page at a time.

        Args:
            keys: the clips, by `Clip.key`; None for all.
            source: only clips that this source delivered; None for all.
        """
        among = "" if keys is None else "key IN (SELECT value FROM json_each(:keys)) AND"
        among += "" if source is None else " source = :source AND"
        last, last_profile = "", ""
        while True:
            rows = self._database.query(
                f"SELECT key, profile, size FROM clip WHERE {among} cached AND (key, profile) > (:last, :last_profile)"
                " ORDER BY key, profile LIMIT :limit",
                {
                    "keys": json.dumps(keys),
                    "source": source,
                    "last": last,
                    "last_profile": last_profile,
                    "limit": _KEYS_PER_QUERY,
                },
            )
            if not rows:
                return
            last, last_profile, _ = rows[-1]
            for key, profile, size in rows:
                clip = parse_clip_name(f"{key}.mp4")
                if clip is not None:
                    yield CachedFile(clip, profile, size)

    def record(self, clip: Clip) -> ClipRecord | None:
        """Return the metadata of a clip that is or was cached; None if it never was."""
        rows = self._database.query(
            "SELECT profile, size, sha256, source, stored_at, cached, duration FROM shown WHERE key = ?", (clip.key,)
        )
        if not rows:
            return None
        profile, size, sha256, source, stored_at, cached, duration = rows[0]
        return ClipRecord(profile, size, sha256, source, stored_at, bool(cached), parse_duration(duration))

    def sizes(self, keys: Sequence[str]) -> dict[str, KnownSize]:
        """Return the exact sizes of the clips that are or were cached, by `Clip.key`."""
        sizes: dict[str, KnownSize] = {}
        with self._database.connection() as db:
            if db.execute("SELECT 1 FROM clip LIMIT 1").fetchone() is None:
                return sizes
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                rows = db.execute(f"SELECT key, size, cached FROM shown WHERE key IN ({marks})", some)
                sizes.update((key, KnownSize(size, bool(cached))) for key, size, cached in rows)
        return sizes

    def add_durations(self, measured: Iterable[MeasuredFile]) -> None:
        """Remember how long clips are that were cached without their durations."""
        with self._database.exclusive() as db:
            for file in self._files.add_durations(measured):
                db.execute(
                    "UPDATE clip SET duration = ? WHERE key = ? AND profile = ?",
                    (file.duration, file.key, file.profile),
                )

    # Access times

    def touch(self, clip: Clip) -> None:
        """Count a clip as used now."""
        self._access_times.touch(clip.key)

    def touch_cached(self, clips: Sequence[Clip]) -> int:
        """Count those of the clips that are cached as used now, at once for all processes. Return their number."""
        now = time.time()
        cached = [(now, key) for key, size in self.sizes([clip.key for clip in clips]).items() if size.cached]
        if cached:
            with self._database.exclusive() as db:
                db.executemany("UPDATE clip SET opened_at = max(opened_at, ?) WHERE key = ?", cached)
        return len(cached)

    def mark_unused(self, clip: Clip) -> None:
        """Count a clip as never used: it is among the first to be evicted."""
        self._access_times.reset(clip.key)

    # Usage

    @property
    def evicted(self) -> int:
        """Clips that this store has evicted since it was opened. Other processes evict clips, too."""
        return self._evictor.evicted

    def capacity(self) -> int:
        """Return the maximum bytes of clips, beside the pinned clips, that the limit and the disk allow now."""
        return self._evictor.capacity() - self.pins.totals().bytes

    def expected_size(self, clip: Clip) -> int:
        """Return the bytes of `capacity` that a clip takes: its size if it is or was cached, else a typical size."""
        rows = self._database.query("SELECT size, cached AND pinned FROM shown WHERE key = ?", (clip.key,))
        size, pinned = rows[0] if rows else (TYPICAL_CLIP_BYTES, False)
        return 0 if pinned else size

    def usage(self) -> Usage:
        """Return how full the cache is."""
        clips, size = self._files.totals()
        [(reserved,)] = self._database.query("SELECT coalesce(sum(bytes), 0) FROM fetch")
        return Usage(
            clips=clips,
            bytes=size,
            limit=self._evictor.limit(),
            reserved=reserved,
            disk_free=self._evictor.disk_free(),
        )

    def space(self) -> Space:
        """Return how many bytes of clips the cache may hold."""
        _, used = self._files.totals()
        capacity = self._evictor.capacity()
        return Space(max(capacity, used), used, max(0, capacity - self.pins.totals().bytes))

    def status(self) -> StoreStatus:
        """Return the size and limits of the cache, the state of the sources, and the number of remembered failures."""
        self._recover()
        if (
            self.faults.current is not None
            and self._database.read_only is None
            and all(examine(path) is None for path in (self.layout.state_database, self.layout.clip_table))
        ):
            self.faults.end()
        try:
            return self._status()
        except StoreError as error:
            return StoreStatus(CacheStatus(str(self.folder), error=str(error)), sources={}, failures={})

    def _status(self) -> StoreStatus:
        now = time.time()
        pinned = self.pins.totals()
        return StoreStatus(
            cache=CacheStatus(
                folder=str(self.folder),
                **asdict(self.usage()),
                pinned_clips=pinned.clips,
                pinned_cached=pinned.cached,
                pinned_bytes=pinned.bytes,
                error=str(self.faults.current or ""),
            ),
            sources={
                source.name: SourceStatus(
                    blocked_for=None if source.blocked_until is None else max(0, round(source.blocked_until - now)),
                    reason=source.reason,
                    fetches_last_hour=source.fetches_last_hour,
                )
                for source in self.throttle.states()
            },
            failures={str(kind): count for kind, count in self.failures.counts().items()},
        )

    # Removing

    def remove(self, clip: Clip) -> None:
        """Remove a clip, of all profiles; its size stays known. Processes that have it open keep its bytes."""
        with self._database.exclusive() as db:
            for (profile,) in db.execute("SELECT profile FROM clip WHERE key = ?", (clip.key,)).fetchall():
                self._evictor.remove(db, clip.key, profile)

    def remove_if_unchanged(self, clip: Clip, profile: str, filename: str | None) -> bool:
        """Remove the file of a clip unless it was replaced.

        Args:
            clip: the clip.
            profile: the profile of the file.
            filename: the file that the clip must still have, as in `OpenClipFile`; None if it must still have none.

        Returns:
            True if the file was removed.
        """
        with self._database.exclusive() as db:
            opened = self._files.open_profile(clip.key, profile)
            if opened is not None:
                os.close(opened.fd)
            if (opened.filename if opened else None) != filename:
                return False
            self._evictor.remove(db, clip.key, profile)
            return True

    def unknown_files(self) -> Iterator[Path]:
        """Yield the files and folders in the clips folder that belong to no cached clip."""
        for folder in sorted(self._clips.iterdir()):
            if folder.name.startswith(self.layout.clip_table.name):
                continue
            if not re.fullmatch("[0-9a-f]{2}", folder.name) or folder.is_symlink() or not folder.is_dir():
                yield folder
                continue
            filenames = [f"{folder.name}/{path.name}" for path in folder.iterdir()]
            unknown = self._unknown(filenames)
            if unknown:
                # Once more, while no process can be publishing: a file has its name before it has its row.
                with self._database.exclusive():
                    unknown = self._unknown(unknown)
            yield from (self._clips / filename for filename in unknown)

    def _unknown(self, filenames: Sequence[str]) -> list[str]:
        known = self._files.filenames(key for name in filenames if (key := key_of_filename(name)))
        return [name for name in filenames if name not in known and os.path.lexists(self._clips / name)]

    def remove_unknown_file(self, path: Path) -> bool:
        """Remove one of the `unknown_files`, provided that its name is that of a clip file.

        Returns:
            True if it was removed.
        """
        filename = str(path.relative_to(self._clips))
        with self._database.exclusive():
            if key_of_filename(filename) is None or not self._unknown([filename]):
                return False
            self._files.remove_unknown(filename)
        return True

    # Fetching

    def claim(self, clip: Clip, *, size: int | None = None, protect_used_since: float = math.inf) -> Claim | None:
        """Claim the fetch of a clip and reserve space for it. Return None while another process is fetching it.

        Args:
            clip: the clip.
            size: its bytes, if they are known.
            protect_used_since: clips used since this time, in seconds since the epoch, are not evicted for this one;
                with 0, no clip is evicted.

        Raises:
            FetchError: there is not enough space (LOCAL, ENOSPC), or the cache cannot be changed (LOCAL).
        """
        with _as_fetch_error():
            return self._claim(clip, size, protect_used_since)

    def _claim(self, clip: Clip, size: int | None, protect_used_since: float) -> Claim | None:
        self._recover()
        self._access_times.write()
        self._files.check()
        token = uuid.uuid4().hex
        with self._database.exclusive() as db:
            row = db.execute("SELECT token, process FROM fetch WHERE key = ?", (clip.key,)).fetchone()
            if row is not None:
                if row[0] in self._in_flight or (row[1] != self._lock.name and self._lock.is_alive(row[1])):
                    return None
                self._clear_fetch(db, clip.key, row[0])
            if size is None:
                known = db.execute("SELECT size FROM shown WHERE key = ?", (clip.key,)).fetchone()
                size = known[0] if known else None
            expected = self._typical_size() if size is None else size
            self._clear_dead_fetches(db)
            try:
                self._evictor.make_room(db, expected, certain=False, protect_used_since=protect_used_since)
            except FetchError:
                # Another process may have fetched the clip just now and used the last of the space for it. A caller
                # that waited for that must find the clip.
                if not self.is_cached(clip):
                    raise
            db.execute(
                "INSERT INTO fetch (key, token, process, bytes) VALUES (?, ?, ?, ?)",
                (clip.key, token, self._lock.name, expected),
            )
            self._in_flight.add(token)
        folder = self._incoming / token
        try:
            self._incoming.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700)
        except OSError as error:
            self._end_fetch(clip.key, token, ended=False)
            raise self._error(error) from error
        self.faults.end()
        return Claim(self, clip, token, folder, protect_used_since)

    def _typical_size(self) -> int:
        """Return the space to reserve for a clip of unknown size; none in a cache that is smaller than that."""
        limit = self._evictor.limit()
        return TYPICAL_CLIP_BYTES if limit is None or limit >= TYPICAL_CLIP_BYTES else 0

    def _publish(self, claim: Claim, path: Path, source: str, *, cut: bool, duration: float | None, last: bool) -> int:
        key, profile, now = claim.clip.key, self.profile.name if cut else SOURCE, time.time()
        with log_step(_log, f"publish {key}: seal and fsync"):
            size, digest = _seal(path)
        with log_step(_log, f"publish {key}: evict and move"), self._database.exclusive() as db:
            if last:
                self._delete_fetch(db, claim.token)
            else:
                # Its space is no longer reserved. The row stays, so that no process removes the folder that is in use.
                db.execute("UPDATE fetch SET bytes = 0 WHERE token = ?", (claim.token,))
            self._clear_dead_fetches(db)
            self._evictor.make_room(db, size, certain=True, protect_used_since=claim.protect_used_since)
            record = ClipRecord(profile, size, digest, source, now, cached=True, duration=duration)
            self._files.put(key, StagedFile(path, size, claim.token), record)
            self._write_record(db, key, record)
            if cut:
                db.execute("INSERT OR IGNORE INTO profile (name, settings) VALUES (?, ?)", (profile, str(self.profile)))
        return size

    def _end_fetch(self, key: str, token: str, *, ended: bool) -> None:
        # The files first: on a full disk, the database can perhaps be written only afterwards.
        shutil.rmtree(self._incoming / token, ignore_errors=True)
        self._in_flight.discard(token)
        if ended:
            return
        with contextlib.suppress(StoreError), self._database.exclusive() as db:  # else the next claim clears it
            # The clip may be in the table already, if the state database could not be written then.
            self._clear_fetch(db, key, token)

    @staticmethod
    def _delete_fetch(db: sqlite3.Connection, token: str) -> None:
        db.execute("DELETE FROM fetch WHERE token = ?", (token,))

    # Repairing what dead processes left (docs/crash-safety.md)

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove what dead processes left: rows of fetches, unknown folders, and lock files."""
        self._clear_dead_fetches(db)
        in_flight = {token for (token,) in db.execute("SELECT token FROM fetch")}
        for path in self._incoming.iterdir():
            if path.name not in in_flight:
                shutil.rmtree(path, ignore_errors=True)
        for folder in (self.layout.scratch, self.layout.process_locks):
            for path in folder.iterdir() if folder.is_dir() else ():
                if not self._lock.is_alive(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _clear_dead_fetches(self, db: sqlite3.Connection) -> None:
        for key, token, process in db.execute("SELECT key, token, process FROM fetch").fetchall():
            if not self._lock.is_alive(process):
                self._clear_fetch(db, key, token)

    def _clear_fetch(self, db: sqlite3.Connection, key: str, token: str) -> None:
        """Undo or complete a fetch whose process died, wherever it died."""
        if re.fullmatch("[0-9a-f]{32}", token) and parse_clip_name(f"{key}.mp4"):
            shutil.rmtree(self._incoming / token, ignore_errors=True)
            record = self._files.find(key, token)
            if record is not None:
                # The clip is in the table; the process died before it wrote the state database.
                self._write_record(db, key, record)
                self._files.remove_earlier_files(key)
            else:
                # The file may be in place without a row in the table: nothing else would ever find or evict it.
                self._files.remove_file(key, token)
        self._delete_fetch(db, token)

    def _reconcile(self, db: sqlite3.Connection) -> None:
        """Make the state database agree with the table of files, after a crash or the loss of one of the two."""
        state = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM clip WHERE cached").fetchone()
        if self._files.totals() == self._files.count() == state:
            return
        db.execute("UPDATE clip SET cached = 0")
        for key, record in self._files.repair():
            self._write_record(db, key, record)

    @staticmethod
    def _write_record(db: sqlite3.Connection, key: str, record: ClipRecord) -> None:
        db.execute(
            "INSERT INTO clip (key, profile, size, sha256, source, stored_at, opened_at, cached, pinned, duration)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, 1, EXISTS (SELECT 1 FROM pin WHERE key = ?1), ?7)"
            " ON CONFLICT (key, profile) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256,"
            " source = excluded.source, stored_at = excluded.stored_at,"
            " opened_at = max(opened_at, excluded.opened_at), cached = 1, pinned = excluded.pinned,"
            " duration = excluded.duration",
            (key, record.profile, record.size, record.sha256, record.source, record.stored_at, record.duration),
        )
        for source, retry_at in db.execute(
            "DELETE FROM failure WHERE key = ? RETURNING source, retry_at", (key,)
        ).fetchall():
            keep_failure(db, key, str(source), retry_at)


class Claim:
    """The exclusive right to fetch one clip. As a context manager, it removes what was not published.

    Attributes:
        clip: the clip.
        token: 32 hexadecimal digits that identify this fetch.
        folder: a private, empty folder on the filesystem of the cache, for all files of this fetch.
        protect_used_since: see `Store.claim`.
    """

    def __init__(self, store: Store, clip: Clip, token: str, folder: Path, protect_used_since: float) -> None:
        self._store = store
        self._ended = False
        self.clip = clip
        self.token = token
        self.folder = folder
        self.protect_used_since = protect_used_since

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store._end_fetch(self.clip.key, self.token, ended=self._ended)

    def publish(
        self, path: Path, source: str, *, cut: bool = False, duration: float | None = None, last: bool = True
    ) -> int:
        """Make a finished and verified file the clip, for all processes at once.

        Args:
            path: a regular file in `folder`; it is moved.
            source: name of the source that delivered it.
            cut: it was cut with the settings of `Store.profile`, and is not as the source publishes it.
            duration: seconds that its pictures cover; None if they were not measured.
            last: True if nothing more will be written to `folder`.

        Returns:
            The bytes of the file.

        Raises:
            FetchError: there is not enough space (LOCAL, ENOSPC), the file cannot be read, or the cache cannot be
                changed (LOCAL).
        """
        with _as_fetch_error(source), self._store._translated_errors():
            size = self._store._publish(self, path, source, cut=cut, duration=duration, last=last)
        self._ended = last
        return size


@contextlib.contextmanager
def _as_fetch_error(source: str = "") -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise FetchError(FailureKind.LOCAL, str(error), source=source, cause_errno=error.errno) from error


def _cannot_open(error: Unreadable) -> FetchError:
    return FetchError(FailureKind.LOCAL, f"cannot open the cached file: {error}", cause_errno=error.errno)


def _seal(path: Path) -> tuple[int, str]:
    """Force a file to the disk and make it read-only. Return its size and its SHA-256.

    A file with further names keeps its mode: it is a hard link to a file of the user.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_nlink == 1:
            os.fchmod(fd, 0o400)
        os.fsync(fd)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(fd).st_size, digest
