"""Helpers for tests of a store: clips to put into it, and the content of its directory read without it."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.store import CacheLayout, Claim, Store
from kinetics_fs.store.eviction import TYPICAL_CLIP_BYTES
from tests.support.annotations import youtube_id

SmallDisk = Callable[[int], Path]
"""Returns the mount point of a new disk with this many bytes."""

UNIT = TYPICAL_CLIP_BYTES
"""Size of the clips of these tests. The store assumes it for an unknown clip, so its assumption is exact."""


@contextmanager
def fast_folder() -> Iterator[Path]:
    """Yield an empty folder; in memory if possible, where a sync is free."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def clip(number: int) -> Clip:
    """Return a clip that is different for each number."""
    return Clip(youtube_id(number), number, number + 10)


def head(wanted: Clip) -> bytes:
    """Return the first bytes of a clip, as `write` writes them."""
    return f"the bytes of {wanted.key}\n".encode()


def write(claim: Claim, size: int = UNIT) -> Path:
    """Write a finished file for a claimed clip. The file is sparse, so that writing it is fast."""
    path = claim.folder / "finished.mp4"
    path.write_bytes(head(claim.clip)[:size])
    os.truncate(path, size)
    return path


def keep(store: Store, wanted: Clip, size: int = UNIT) -> None:
    """Put a clip into the store."""
    claim = store.claim(wanted)
    assert claim is not None
    with claim:
        claim.publish(write(claim, size), "test")


def keep_clips(store: Store, count: int) -> None:
    """Put the first `count` clips into the store, in their order."""
    for number in range(count):
        keep(store, clip(number))


def fill(disk: Path) -> Path:
    """Fill the disk to its last byte."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (UNIT, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


def read_clip(store: Store, wanted: Clip) -> bytes | None:
    """Return the bytes of a clip; None if it is not cached."""
    opened = store.open(wanted)
    if opened is None:
        return None
    with os.fdopen(opened.fd, "rb") as file:
        data = file.read()
    assert len(data) == opened.size
    return data


def is_whole(store: Store, wanted: Clip, size: int = UNIT) -> bool:
    """Return whether a clip is cached; fail if its bytes are wrong."""
    data = read_clip(store, wanted)
    if data is None:
        return False
    if data != head(wanted)[:size].ljust(size, b"\0"):
        raise AssertionError(f"{wanted.key} is cached, but its bytes are wrong")
    return True


def is_absent(store: Store, wanted: Clip) -> bool:
    """Return whether an open of the clip is a miss."""
    opened = store.open(wanted)
    if opened is not None:
        opened.close()
    return opened is None


def cached_numbers(store: Store, count: int) -> list[int]:
    """Return which of the first `count` clips are cached according to the store, without opening any."""
    return [number for number in range(count) if store.is_cached(clip(number))]


def cached_content(cache: Path) -> dict[Clip, bytes]:
    """Return the bytes of every cached clip of a cache directory."""
    with Store(cache) as store:
        content = {clip: data for clip, _ in store.cached_clips() if (data := read_clip(store, clip)) is not None}
        assert store.usage().clips == len(content)  # a read of a damaged clip removes it
    return content


def clip_files(folder: Path) -> list[Path]:
    """Return all files in the clips folder, whether or not they are in the table."""
    return [path for path in CacheLayout(folder).clips.glob("*/*") if not path.is_dir()]


def clip_file(folder: Path, wanted: Clip) -> Path:
    """Return the file of a clip."""
    (path,) = [path for path in clip_files(folder) if path.name.startswith(wanted.key)]
    return path


def query(database: Path, sql: str, *values: object) -> list[Any]:
    """Run a statement on a database without the store. Return its rows."""
    with closing(sqlite3.connect(database, timeout=60)) as db, db:
        return db.execute(sql, values).fetchall()


def change_row(folder: Path, wanted: Clip, **columns: object) -> None:
    """Write other values to the row of a clip, as a cache directory of another machine may have them."""
    assignments = ", ".join(f"{name} = ?" for name in columns)
    table = CacheLayout(folder).clip_table
    query(table, f"UPDATE Cache SET {assignments} WHERE key = ?", *columns.values(), row_key(wanted))


def row_key(wanted: Clip, profile: str = SOURCE) -> str:
    """Return the key of the row of a clip in the table of files."""
    return f"{wanted.key}.{profile}"


def permissions(path: Path) -> int:
    """Return the permission bits of a file or a folder."""
    return stat.S_IMODE(path.stat().st_mode)


def lose(database: Path) -> None:
    """Remove a database with its write-ahead log."""
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


@dataclass(frozen=True)
class Contents:
    """The content of a cache directory, read without the store."""

    rows: dict[str, tuple[str, int]]
    """Rows of the table of files: key with profile → (file name, size)."""
    cached: dict[str, int]
    """Cached clips according to the state database: key with profile → size."""
    counted: tuple[int, int]
    """Number of clips and bytes as diskcache counts them."""
    files: set[str]
    incoming: set[str]
    fetches: set[str]
    locks: set[str]


def contents(folder: Path) -> Contents:
    """Read the content of a cache directory."""
    layout = CacheLayout(folder)
    table, state = layout.clip_table, layout.state_database
    counted = dict(query(table, "SELECT key, value FROM Settings WHERE key IN ('count', 'size')"))
    return Contents(
        rows={key: (name, size) for key, name, size in query(table, "SELECT key, filename, size FROM Cache")},
        cached=dict(query(state, "SELECT key || '.' || profile, size FROM clip WHERE cached")),
        counted=(counted["count"], counted["size"]),
        files={str(path.relative_to(layout.clips)) for path in clip_files(folder)},
        incoming={path.name for path in layout.incoming.iterdir()},
        fetches={token for (token,) in query(state, "SELECT token FROM fetch")},
        locks={path.name for path in layout.process_locks.iterdir()},
    )


def assert_nothing_unknown(folder: Path) -> None:
    """Check that the store knows every file that takes space."""
    found = contents(folder)
    assert found.files <= {name for name, _ in found.rows.values()}, "a clip file without a row"
    assert found.incoming == found.fetches, "remains of a fetch"


def assert_in_step(folder: Path, processes: int = 1) -> None:
    """Check that files, table and state database agree, and that no fetch or process has left anything."""
    assert_nothing_unknown(folder)
    found = contents(folder)
    sizes = {key: size for key, (_, size) in found.rows.items()}
    assert {name for name, _ in found.rows.values()} <= found.files, "a row without a file"
    assert found.cached == sizes, "the state database disagrees with the table of files"
    assert found.counted == (len(sizes), sum(sizes.values())), "the table of files has miscounted"
    assert not found.fetches, "a row of a fetch that is not in progress"
    assert len(found.locks) == processes, "lock files of dead processes"


def assert_cache_full(error: FetchError) -> None:
    """Check kind, errno and reason of an error for a full cache."""
    assert error.kind is FailureKind.LOCAL
    assert error.errno == errno.ENOSPC
    assert "--cache-size" in error.reason or "--min-free" in error.reason
