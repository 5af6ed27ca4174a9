"""The store: clips on disk, whole or absent, within a limit, shared by processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.control.status import CacheStatus, SourceStatus, StoreStatus
from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.store.clip_files import ClipFiles, ClipRecord, OpenClipFile
from kinetics_fs.store.database import StateDatabase
from kinetics_fs.store.disk import Staged, Unreadable, clip_filename, key_in
from kinetics_fs.store.eviction import TYPICAL_CLIP_BYTES, Room
from kinetics_fs.store.failures import Failure, FailureLog
from kinetics_fs.store.history import History
from kinetics_fs.store.layout import CacheLayout, prepare_folder
from kinetics_fs.store.pins import Pins
from kinetics_fs.store.process_lock import ProcessLock
from kinetics_fs.store.throttle import Origins
from kinetics_fs.store.uses import Uses

_log = logging.getLogger(__name__)

_KEYS_PER_QUERY = 500


class StoredClip(NamedTuple):
    """A clip of the store, open for reading. The bytes stay readable until `fd` is closed, evicted or not."""

    fd: int
    size: int
    stored_at: float
    """When this content was published, in seconds since the epoch: tells one content of a clip from another."""

    def close(self) -> None:
        os.close(self.fd)


class KnownSize(NamedTuple):
    """The size of a clip that was ever here, in bytes, and whether it is here now."""

    size: int
    cached: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store holds and may hold, in bytes."""

    clips: int
    bytes: int
    limit: int | None
    reserved: int
    disk_free: int


class Store:
    """The clips in one cache folder.

    Safe for threads and for processes, but not across a fork: open it in the process that uses it.

    Args:
        folder: the cache folder; made, with mode 0700, if it is not there.
        limit: most bytes of clips to hold, None for no limit of our own.
        min_free: bytes of the disk to leave free, whatever the limit says.

    Raises:
        StoreError: the folder cannot be made, is not ours alone, or its databases cannot be read.
    """

    def __init__(self, folder: Path, *, limit: int | None = None, min_free: int = 0) -> None:
        self.folder = folder
        prepare_folder(folder)
        self.layout = CacheLayout(folder)
        self._incoming = self.layout.incoming
        self._clips = self.layout.clips
        with contextlib.ExitStack() as opened, self._explained():
            for child in (self._incoming, self._clips, self.layout.process_locks):
                child.mkdir(mode=0o700, exist_ok=True)
            self._database = opened.enter_context(contextlib.closing(StateDatabase(self.layout.state_database)))
            self._table = opened.enter_context(contextlib.closing(ClipFiles(self._clips)))
            self._room = Room(folder, self._incoming, self._table, limit=limit, min_free=min_free)
            self._uses = Uses(self._database)
            with self._database.exclusive() as db:
                self._owner = opened.enter_context(contextlib.closing(ProcessLock(self.layout.process_locks)))
                self._sweep(db)
                self._reconcile(db)
            self._opened = opened.pop_all()
        self.failure_log = FailureLog(self._database)
        """All that can be asked of, and done to, what is remembered of clips that could not be had."""
        self.origins = Origins(self._database)
        """Who wants to be left alone, and how much was asked of whom."""
        self.pins = Pins(self._database)
        """Which clips are never evicted, here or not."""
        self.history = History(self._database, self._table.totals)
        """How full it was over time, and what was fetched and opened."""
        self._in_flight: set[str] = set()
        """Tokens of the claims that this store has given out."""

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what opening a folder may raise into a sentence for people."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot use {self.folder} as the cache folder: {error.strerror}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"the cache folder {self.folder} is damaged ({error}): move it away or give another --cache-dir"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is only in memory and gives the folder up."""
        with self._opened:
            self._uses.write()

    @property
    def evicted(self) -> int:
        """Clips that this store has evicted since it was opened; other processes evict, too."""
        return self._room.evicted

    # What is here

    def open(self, clip: Clip) -> StoredClip | None:
        """Opens a clip for reading, or returns None when it is not here.

        A file that is not as long as when it was published (a disk that lost writes, a stray hand) is dropped and
        counts as not here.
        """
        opened = self.open_nowait(clip)
        if opened is None and self.is_cached(clip):
            with self._database.exclusive() as db:
                # Once more, now that nobody can be publishing it.
                opened = self.open_nowait(clip)
                if opened is None:
                    _log.warning("%s: the cached file is lost or damaged, dropped", clip.key)
                    self._room.drop(db, clip.key)
        return opened

    def open_nowait(self, clip: Clip) -> StoredClip | None:
        """As `open`, but without waiting for another process: a damaged file stays, for `open` to drop it."""
        key = clip.key
        try:
            found = self._table.find(key)
        except Unreadable as error:
            raise FetchError(FailureKind.LOCAL, f"cannot open: {error}", errno=error.errno) from error
        if found is None:
            return None
        if found.size != found.record.size:
            os.close(found.fd)
            return None
        self._uses.note(key)
        return StoredClip(found.fd, found.size, found.record.stored_at)

    def is_cached(self, clip: Clip) -> bool:
        """Whether the clip is here, as far as the ledger knows."""
        with self._database.connection() as db:
            return db.execute("SELECT 1 FROM clip WHERE key = ? AND held", (clip.key,)).fetchone() is not None

    def capacity(self) -> int:
        """The bytes of clips that there can be at most, beside those that are pinned, as limit and disk are now."""
        return self._room.capacity() - self.pins.totals().bytes

    def expected_size(self, clip: Clip) -> int:
        """The bytes that a clip takes of that: as it was if it was ever here, else those of a typical one."""
        with self._database.connection() as db:
            row = db.execute("SELECT size, held AND pinned FROM clip WHERE key = ?", (clip.key,)).fetchone()
        size, pinned = row or (TYPICAL_CLIP_BYTES, False)
        return 0 if pinned else size

    def record(self, clip: Clip) -> ClipRecord | None:
        """What is known of a clip, also after its eviction."""
        with self._database.connection() as db:
            row = db.execute(
                "SELECT size, sha256, source, stored_at, held FROM clip WHERE key = ?", (clip.key,)
            ).fetchone()
        return None if row is None else ClipRecord(*row)

    def sizes(self, keys: Sequence[str]) -> dict[str, KnownSize]:
        """The exact sizes of those clips that were ever here, both by `Clip.key`."""
        found: dict[str, KnownSize] = {}
        with self._database.connection() as db:
            if db.execute("SELECT 1 FROM clip LIMIT 1").fetchone() is None:
                return found
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                rows = db.execute(f"SELECT key, size, held FROM clip WHERE key IN ({marks})", some)
                found.update((key, KnownSize(size, bool(held))) for key, size, held in rows)
        return found

    def cached_clips(self) -> Iterator[tuple[Clip, int]]:
        """Every clip that is here, as far as the ledger knows, with its size in bytes; by key, a page at a time."""
        last = ""
        while True:
            with self._database.connection() as db:
                rows = db.execute(
                    "SELECT key, size FROM clip WHERE held AND key > ? ORDER BY key LIMIT ?", (last, _KEYS_PER_QUERY)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for key, size in rows:
                clip = parse_clip_name(f"{key}.mp4")
                if clip is not None:
                    yield clip, size

    def peek(self, clip: Clip) -> OpenClipFile | None:
        """Opens a clip's file as it is, for a check of it: does not count as a use. None if the clip is not here.

        Raises:
            FileNotFoundError: the clip should be here, but it has no file.
            FetchError: the file cannot be opened now (LOCAL).
        """
        try:
            found = self._table.find(clip.key)
            if found is not None or not self.is_cached(clip):
                return found
            # Once more, while nobody can be evicting or publishing it.
            with self._database.exclusive():
                found = self._table.find(clip.key)
                if found is None and self.is_cached(clip):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), clip.key)
                return found
        except Unreadable as error:
            raise FetchError(FailureKind.LOCAL, f"cannot open: {error}", errno=error.errno) from error

    def drop_file(self, clip: Clip, filename: str | None) -> bool:
        """Removes a clip if its file is this one still, or, if None, if it has none; whether it was so."""
        with self._database.exclusive() as db:
            found = self._table.find(clip.key)
            if found is not None:
                os.close(found.fd)
            if (found.filename if found else None) != filename:
                return False
            self._room.drop(db, clip.key)
            return True

    def unknown_files(self) -> Iterator[Path]:
        """What is among the files of clips, but of no clip that is here."""
        for folder in sorted(self._clips.iterdir()):
            if folder.name.startswith("cache.db"):
                continue
            if not re.fullmatch("[0-9a-f]{2}", folder.name) or folder.is_symlink() or not folder.is_dir():
                yield folder
                continue
            names = [f"{folder.name}/{path.name}" for path in folder.iterdir()]
            unknown = self._unknown(names)
            if unknown:
                # Once more, while nobody can be publishing: a file has its name before it has its row.
                with self._database.exclusive():
                    unknown = self._unknown(unknown)
            yield from (self._clips / name for name in unknown)

    def _unknown(self, names: Sequence[str]) -> list[str]:
        known = self._table.names(key for name in names if (key := key_in(name)))
        return [name for name in names if name not in known and os.path.lexists(self._clips / name)]

    def remove_unknown_file(self, path: Path) -> bool:
        """Removes one of the `unknown_files`, if it has a name that we give; whether it is gone."""
        name = str(path.relative_to(self._clips))
        with self._database.exclusive():
            if key_in(name) is None or not self._unknown([name]):
                return False
            self._table.remove_unknown(name)
        return True

    def drop(self, clip: Clip) -> None:
        """Removes a clip; its size stays known. Open readers keep their bytes."""
        with self._database.exclusive() as db:
            self._room.drop(db, clip.key)

    def status(self) -> StoreStatus:
        """Return the size and limits of the cache, the state of the sources, and the number of remembered failures."""
        now = time.time()
        pinned = self.pins.totals()
        return StoreStatus(
            cache=CacheStatus(
                folder=str(self.folder),
                **asdict(self.usage()),
                pinned_clips=pinned.clips,
                pinned_cached=pinned.cached,
                pinned_bytes=pinned.bytes,
            ),
            sources={
                origin.name: SourceStatus(
                    blocked_for=None if origin.blocked_until is None else max(0, round(origin.blocked_until - now)),
                    reason=origin.reason,
                    fetches_last_hour=origin.fetches_last_hour,
                )
                for origin in self.origins.states()
            },
            failures={str(kind): number for kind, number in self.failure_counts().items()},
        )

    def usage(self) -> Usage:
        """What is held now."""
        clips, size = self._table.totals()
        with self._database.connection() as db:
            (reserved,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM flight").fetchone()
        return Usage(
            clips=clips,
            bytes=size,
            limit=self._room.limit,
            reserved=reserved,
            disk_free=self._room.disk_free(),
        )

    # Getting a clip

    def claim(self, clip: Clip, *, size: int | None = None, protect_used_since: float = math.inf) -> Claim | None:
        """Takes it on to fetch a clip, with room reserved for it, or returns None while another process is at it.

        Args:
            clip: which.
            size: its bytes, where they are known.
            protect_used_since: room is made only by evicting what was not used since then, in seconds since the epoch;
                with 0 by evicting nothing.

        Raises:
            FetchError: there is no room (LOCAL, ENOSPC).
        """
        self._uses.write()
        token = uuid.uuid4().hex
        with self._database.exclusive() as db:
            row = db.execute("SELECT token, owner FROM flight WHERE key = ?", (clip.key,)).fetchone()
            if row is not None:
                if row[0] in self._in_flight or (row[1] != self._owner.name and self._owner.is_alive(row[1])):
                    return None
                self._clear_flight(db, clip.key, row[0])
            if size is None:
                known = db.execute("SELECT size FROM clip WHERE key = ?", (clip.key,)).fetchone()
                size = known[0] if known else None
            expected = TYPICAL_CLIP_BYTES if size is None else size
            self._clear_dead_flights(db)
            try:
                self._room.make(
                    db, expected, certain=False, known=size is not None, protect_used_since=protect_used_since
                )
            except FetchError:
                # Who waited for another process to fetch it shall find it, even if it took the last of the room.
                if not self.is_cached(clip):
                    raise
            db.execute(
                "INSERT INTO flight (key, token, owner, bytes) VALUES (?, ?, ?, ?)",
                (clip.key, token, self._owner.name, expected),
            )
            self._in_flight.add(token)
        folder = self._incoming / token
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            self._end_flight(token, ended=False)
            raise FetchError(FailureKind.LOCAL, f"cannot begin: {error}", errno=error.errno) from error
        return Claim(self, clip, token, folder, protect_used_since)

    def _publish(self, claim: Claim, path: Path, source: str, *, last: bool) -> int:
        size, digest = _seal(path)
        key, now = claim.clip.key, time.time()
        with self._database.exclusive() as db:
            if last:
                self._delete_flight(db, claim.token)
            else:
                # No longer reserved; but its folder is in use until the claim is given up, and must not be swept away.
                db.execute("UPDATE flight SET bytes = 0 WHERE token = ?", (claim.token,))
            self._clear_dead_flights(db)
            self._room.make(db, size, certain=True, known=True, protect_used_since=claim.protect_used_since)
            record = ClipRecord(size, digest, source, now, cached=True)
            self._table.put(key, Staged(path, size, claim.token), record)
            self._write_record(db, key, record)
        return size

    def _end_flight(self, token: str, *, ended: bool) -> None:
        # The files first: on a full disk the ledger can perhaps be written only afterwards.
        shutil.rmtree(self._incoming / token, ignore_errors=True)
        self._in_flight.discard(token)
        if ended:
            return
        try:
            with self._database.exclusive() as db:
                self._delete_flight(db, token)
        except StoreError as error:
            _log.error("%s", error)  # the next claim clears it

    @staticmethod
    def _delete_flight(db: sqlite3.Connection, token: str) -> None:
        db.execute("DELETE FROM flight WHERE token = ?", (token,))

    # Failures

    def failure(self, clip: Clip) -> Failure | None:
        """Why the clip could not be had when last tried; None when it is here or was never tried."""
        return self.failure_log.get(clip)

    def failures(self) -> Iterator[Failure]:
        """All remembered failures, the latest first."""
        return self.failure_log.all()

    def failure_counts(self) -> dict[FailureKind, int]:
        """How many failures of each kind are remembered."""
        return self.failure_log.counts()

    def remember_failure(self, clip: Clip, error: FetchError) -> Failure:
        """Records that a clip could not be had; the wait until the next try grows with each alike failure in a row."""
        return self.failure_log.remember(clip, error)

    def forget_failures(self, clips: Iterable[Clip] | None = None) -> int:
        """Forgets the failures of these clips, or all; returns how many there were."""
        return self.failure_log.forget(clips)

    # The order of use

    def touch(self, clip: Clip) -> None:
        """Counts a clip as used just now."""
        self._uses.note(clip.key)

    def mark_unused(self, clip: Clip) -> None:
        """Counts a clip as never used: it is among the first to go when room is needed."""
        self._uses.forget(clip.key)

    # Keeping files, table and ledger in step

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Clears what dead processes left: their fetches, folders of which nobody knows, and locks."""
        self._clear_dead_flights(db)
        under_way = {token for (token,) in db.execute("SELECT token FROM flight")}
        for path in self._incoming.iterdir():
            if path.name not in under_way:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.layout.process_locks.iterdir():
            self._owner.is_alive(path.name)

    def _clear_dead_flights(self, db: sqlite3.Connection) -> None:
        for key, token, owner in db.execute("SELECT key, token, owner FROM flight").fetchall():
            if not self._owner.is_alive(owner):
                self._clear_flight(db, key, token)

    def _clear_flight(self, db: sqlite3.Connection, key: str, token: str) -> None:
        """Undoes a fetch whose process died, at whatever point it did."""
        if re.fullmatch("[0-9a-f]{32}", token) and parse_clip_name(f"{key}.mp4"):
            shutil.rmtree(self._incoming / token, ignore_errors=True)
            found = self._table.find(key)
            if found is not None:
                os.close(found.fd)
            if found is not None and found.filename == clip_filename(key, token):
                # In the table, but dead before the ledger knew it.
                self._write_record(db, key, found.record)
            else:
                # Moved in, but dead before the table knew it: a file that nobody would ever find or evict.
                self._table.remove_file(key, token)
        self._delete_flight(db, token)

    def _reconcile(self, db: sqlite3.Connection) -> None:
        """Makes the ledger agree with the table of files, after a crash between the two or the loss of one."""
        ours = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM clip WHERE held").fetchone()
        if self._table.totals() == self._table.counted() == ours:
            return
        db.execute("UPDATE clip SET held = 0")
        for key, record in self._table.mend():
            self._write_record(db, key, record)

    @staticmethod
    def _write_record(db: sqlite3.Connection, key: str, record: ClipRecord) -> None:
        db.execute(
            "INSERT INTO clip (key, size, sha256, source, stored_at, opened_at, held, pinned)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?5, 1, EXISTS (SELECT 1 FROM pin WHERE key = ?1))"
            " ON CONFLICT (key) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256,"
            " source = excluded.source, stored_at = excluded.stored_at,"
            " opened_at = max(opened_at, excluded.opened_at), held = 1, pinned = excluded.pinned",
            (key, record.size, record.sha256, record.source, record.stored_at),
        )
        db.execute("DELETE FROM failure WHERE key = ?", (key,))


class Claim:
    """The right and the duty to fetch one clip. Use as a context: leaving it gives up what was not published."""

    def __init__(self, store: Store, clip: Clip, token: str, folder: Path, protect_used_since: float) -> None:
        self._store = store
        self.protect_used_since = protect_used_since
        self._ended = False
        self.clip = clip
        self.token = token
        self.folder = folder
        """A private, empty folder on the store's own filesystem, for anything this fetch writes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._store._end_flight(self.token, ended=self._ended)

    def publish(self, path: Path, source: str, *, last: bool = True) -> int:
        """Makes a finished and verified file the clip, at once and for everyone.

        Args:
            path: a regular file in `folder`; it is moved.
            source: name of the source that it came from.
            last: nothing more will be written to `folder`.

        Returns:
            Its bytes.

        Raises:
            FetchError: there is no room after all (LOCAL, ENOSPC), or the file cannot be read (LOCAL).
        """
        try:
            size = self._store._publish(self, path, source, last=last)
            self._ended = last
            return size
        except OSError as error:
            raise FetchError(
                FailureKind.LOCAL, f"cannot store the clip: {error}", source=source, errno=error.errno
            ) from error


def _seal(path: Path) -> tuple[int, str]:
    """Forces a file to the disk, makes it read-only unless it has other names, and returns its size and SHA-256."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_nlink == 1:  # else it is somebody's file, too
            os.fchmod(fd, 0o400)
        os.fsync(fd)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(fd).st_size, digest
