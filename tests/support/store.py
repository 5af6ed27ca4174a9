"""A store seen from outside: clips to put into it, and everything that stands in its folder."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import CacheLayout, Claim, Store
from kinetics_fs.store.eviction import TYPICAL_CLIP_BYTES

SmallDisk = Callable[[int], Path]
"""Makes a disk of so many bytes."""

UNIT = TYPICAL_CLIP_BYTES
"""The size of our clips: what the store guesses for a clip that it does not know, so that no guess is wrong."""


@contextmanager
def quick_place() -> Iterator[Path]:
    """An empty folder, for a while; in memory if possible, where a sync costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def clip(number: int) -> Clip:
    """A clip, another one for each number."""
    return Clip(f"{'-' if number % 2 else 'a'}{number:010d}", number, number + 10)


def head(wanted: Clip) -> bytes:
    """How the bytes of a clip begin, as `write` makes them."""
    return f"the bytes of {wanted.key}\n".encode()


def write(claim: Claim, size: int = UNIT) -> Path:
    """A finished file for a claimed clip; sparse, so that it costs no time."""
    path = claim.folder / "finished.mp4"
    path.write_bytes(head(claim.clip)[:size])
    os.truncate(path, size)
    return path


def keep(store: Store, wanted: Clip, size: int = UNIT) -> None:
    """Puts a clip into the store."""
    claim = store.claim(wanted)
    assert claim is not None
    with claim:
        claim.publish(write(claim, size), "test")


def read(store: Store, wanted: Clip) -> bytes | None:
    """The bytes of a clip, None when it is not here."""
    opened = store.open(wanted)
    if opened is None:
        return None
    with os.fdopen(opened.fd, "rb") as file:
        data = file.read()
    assert len(data) == opened.size
    return data


def stored_clips(cache: Path, clips: Iterable[Clip]) -> dict[Clip, bytes]:
    """Return the content of those clips that are in the cache."""
    with Store(cache) as store:
        return {wanted: content for wanted in clips if (content := read(store, wanted)) is not None}


def is_whole(store: Store, wanted: Clip, size: int = UNIT) -> bool:
    """Whether a clip is here, True, or absent, False. Anything between fails."""
    data = read(store, wanted)
    if data is None:
        return False
    if data != head(wanted)[:size].ljust(size, b"\0"):
        raise AssertionError(f"{wanted.key} is here, but its bytes are not the clip")
    return True


def is_absent(store: Store, wanted: Clip) -> bool:
    """Whether an open of the clip is a miss."""
    opened = store.open(wanted)
    if opened is not None:
        opened.close()
    return opened is None


def held(store: Store, count: int) -> list[int]:
    """Which of the first `count` clips the store says it holds, without opening any."""
    return [number for number in range(count) if store.is_cached(clip(number))]


def clip_files(folder: Path) -> list[Path]:
    """All files of clips, whether the store knows them or not."""
    return [path for path in CacheLayout(folder).clips.glob("*/*") if not path.is_dir()]


def clip_file(folder: Path, wanted: Clip) -> Path:
    """The one file of a clip."""
    (path,) = [path for path in clip_files(folder) if path.name.startswith(wanted.key)]
    return path


def query(database: Path, sql: str, *values: object) -> list[Any]:
    """What a statement returns, done to one of the databases behind the store's back."""
    with closing(sqlite3.connect(database, timeout=60)) as db, db:
        return db.execute(sql, values).fetchall()


def change_row(folder: Path, wanted: Clip, **columns: object) -> None:
    """Writes other values into the row of a clip, as a cache folder from elsewhere may have them."""
    assignments = ", ".join(f"{name} = ?" for name in columns)
    table = CacheLayout(folder).clip_table
    query(table, f"UPDATE Cache SET {assignments} WHERE key = ?", *columns.values(), wanted.key)


def lose(database: Path) -> None:
    """Removes a database and what SQLite keeps beside it."""
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()


@dataclass(frozen=True)
class Contents:
    """Everything that a cache folder holds, read without the store."""

    rows: dict[str, tuple[str, int]]
    """Table of files: key → (file name, size)."""
    held: dict[str, int]
    """StateDatabase: key of each clip that is held → size."""
    counted: tuple[int, int]
    """What the table of files says of itself: number of clips, and bytes."""
    files: set[str]
    incoming: set[str]
    fetches: set[str]
    owners: set[str]


def contents(folder: Path) -> Contents:
    """Everything that stands in a cache folder."""
    table, ledger = CacheLayout(folder).clip_table, CacheLayout(folder).state_database
    counted = dict(query(table, "SELECT key, value FROM Settings WHERE key IN ('count', 'size')"))
    return Contents(
        rows={key: (name, size) for key, name, size in query(table, "SELECT key, filename, size FROM Cache")},
        held=dict(query(ledger, "SELECT key, size FROM clip WHERE held")),
        counted=(counted["count"], counted["size"]),
        files={str(path.relative_to(CacheLayout(folder).clips)) for path in clip_files(folder)},
        incoming={path.name for path in CacheLayout(folder).incoming.iterdir()},
        fetches={token for (token,) in query(ledger, "SELECT token FROM flight")},
        owners={path.name for path in CacheLayout(folder).process_locks.iterdir()},
    )


def assert_nothing_unknown(folder: Path) -> None:
    """No file takes room that the store does not know of."""
    found = contents(folder)
    assert found.files <= {name for name, _ in found.rows.values()}, "a file of a clip that no row names"
    assert found.incoming == found.fetches, "leftovers of a fetch"


def assert_in_step(folder: Path, owners: int = 1) -> None:
    """Files, table and ledger agree, and nothing is left over of any fetch or any process."""
    assert_nothing_unknown(folder)
    found = contents(folder)
    sizes = {key: size for key, (_, size) in found.rows.items()}
    assert {name for name, _ in found.rows.values()} <= found.files, "a row without a file"
    assert found.held == sizes, "the ledger disagrees with the table of files"
    assert found.counted == (len(sizes), sum(sizes.values())), "the table of files has miscounted"
    assert not found.fetches, "a fetch that is not under way"
    assert len(found.owners) == owners, "lock files of processes that are gone"


def assert_no_room(error: FetchError) -> None:
    """That the error says it in every way it can."""
    assert error.kind is FailureKind.LOCAL
    assert error.errno == errno.ENOSPC
    assert "--cache-size" in error.reason
