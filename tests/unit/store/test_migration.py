"""The change of a cache of an earlier format: once, whole, and at no moment with a loss."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.catalog.clip import parse_clip_name
from kinetics_fs.errors import ArchiveError, StoreError
from kinetics_fs.fill.archive_job import read_progress
from kinetics_fs.media.profile import SOURCE, UNKNOWN
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout, Store
from kinetics_fs.store.layout import FORMAT, CacheFormat, read_format, write_format
from kinetics_fs.store.migration import migrate
from tests.support.command_line import ENVIRONMENT
from tests.support.store import SmallDisk, assert_in_step, query

FIXTURE = Path(__file__).parents[2] / "support" / "old_cache.tar.gz"
PINNED = "archery__01_000000_000010"
OF_YOUTUBE = "surfing__01_000000_000010"
EVICTED = "-evicted_01_000000_000010"


def as_clip(key: str) -> Clip:
    clip = parse_clip_name(f"{key}.mp4")
    assert clip is not None
    return clip


@pytest.fixture
def old(fast_tmp_path: Path) -> Path:
    """A cache of format 1, in which one clip is from YouTube."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(fast_tmp_path, filter="data")
    cache = fast_tmp_path / "cache"
    query(cache / "ledger.sqlite", "UPDATE clip SET source = 'youtube', opened_at = 1.0 WHERE key = ?", OF_YOUTUBE)
    [(tag,)] = query(cache / "clips" / "cache.db", "SELECT tag FROM Cache WHERE key = ?", OF_YOUTUBE)
    tag = json.dumps(json.loads(tag) | {"source": "youtube"})
    query(cache / "clips" / "cache.db", "UPDATE Cache SET tag = ? WHERE key = ?", tag, OF_YOUTUBE)
    return cache


def old_state(cache: Path) -> dict[str, Any]:
    """Return what a cache of format 1 has."""
    return state(
        cache / "ledger.sqlite",
        "SELECT key, size, sha256, source, stored_at, opened_at, pinned FROM clip WHERE {}held ORDER BY key",
        ("origin", "name"),
        "asked",
    )


def new_state(cache: Path) -> dict[str, Any]:
    """Return what a cache of format 2 has. A profile is no part of it."""
    return state(
        cache / "state.sqlite",
        "SELECT key, size, sha256, source, stored_at, opened_at, pinned FROM clip WHERE {}cached ORDER BY key",
        ("breaker", "source"),
        "request",
    )


def state(database: Path, clips: str, blocks: tuple[str, str], requests: str) -> dict[str, Any]:
    folder = database.parent
    return {
        "cached": {row[0]: row for row in query(database, clips.format(""))},
        "evicted": query(database, clips.format("NOT ")),
        "pins": query(database, "SELECT key FROM pin ORDER BY key"),
        "failures": query(database, "SELECT * FROM failure ORDER BY key"),
        "history": query(database, "SELECT * FROM history"),
        "blocks": query(database, f"SELECT {blocks[1]}, reason, blocked_at, blocked_until, trips FROM {blocks[0]}"),
        "requests": query(database, f"SELECT count(*) FROM {requests}"),
        "files": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for name in ("fills", "prefetches", "catalog", "clips")
            for path in folder.glob(f"{name}/**/*")
            if path.is_file() and "cache.db" not in path.name
        },
    }


def assert_migrated(cache: Path, before: dict[str, Any]) -> None:
    """Check that a store has what the cache had before; opens and closes the store."""
    with Store(cache) as store:
        assert_in_step(cache)
        profiles = {file.clip.key: file.profile for file in store.cached_files()}
        assert profiles == {key: UNKNOWN if key == OF_YOUTUBE else SOURCE for key in profiles}
        sizes = store.sizes([EVICTED, PINNED])
        assert (sizes[EVICTED].cached, sizes[PINNED].cached) == (False, True)
        for key, row in before["cached"].items():
            opened = store.open(as_clip(key))
            assert opened is not None
            with os.fdopen(opened.fd, "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == row[2]
    after = new_state(cache)
    # The store completes fetches that were published when their process died.
    assert before["cached"].items() <= {key: (*row[:5], *before["cached"].get(key, row)[5:]) for key, row in
                                        after["cached"].items()}.items()  # fmt: skip
    assert {**after, "cached": None} == {**before, "cached": None}
    assert read_format(cache) == CacheFormat(FORMAT)
    assert not list(cache.glob("ledger*")) and not (cache / "owners").exists()


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file but those that SQLite creates for readers."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def test_a_cache_of_format_1_keeps_everything(old: Path) -> None:
    before = old_state(old)
    assert before["cached"] and before["evicted"] and before["failures"] and before["history"] and before["requests"]
    assert_migrated(old, before)
    assert_migrated(old, before)


def _open_and_die(cache: Path, steps: int) -> int:
    """Change the format in a child process that is killed after some steps; return its exit status.

    A step is a new name, a statement that ends a transaction or changes the journal, or one in the middle of each.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = steps

    def step(text: str, _: object = None) -> None:
        nonlocal left
        if text.startswith(("os.rename", "COMMIT", "PRAGMA journal_mode", "INSERT INTO clip", "UPDATE")):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    class Connection(sqlite3.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.set_trace_callback(step)

    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)  # type: ignore[assignment]
    sys.addaudithook(step)
    try:
        migrate(CacheLayout(cache))
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_a_kill_at_any_moment_loses_nothing(old: Path) -> None:
    before, copy = old_state(old), old.with_name("copy")
    killed = 0
    for steps in count():
        shutil.copytree(old, copy)
        status = _open_and_die(copy, steps)
        if status != signal.SIGKILL:
            break
        killed += 1
        assert_migrated(copy, before)
        shutil.rmtree(copy)
    assert status == 0
    assert killed > 8


def test_only_one_of_several_processes_changes_the_format(old: Path) -> None:
    before = old_state(old)
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO); from pathlib import Path;"
        "from kinetics_fs.store import Store; store = Store(Path(sys.argv[1])); print(store.usage().clips)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, old],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outcomes = [(*process.communicate(), process.returncode) for process in processes]
    assert {code for *_, code in outcomes} == {0}, outcomes
    assert len({output for output, *_ in outcomes}) == 1
    assert sum("changing its format" in log for _, log, _ in outcomes) == 1
    assert_migrated(old, before)


def test_a_cache_that_an_earlier_version_uses_is_refused(old: Path) -> None:
    before, everything = old_state(old), tree(old)
    [lock, *_] = (old / "owners").iterdir()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=f"cannot change {old} .* a process of an earlier version uses it"):
            Store(old)
        assert tree(old) == everything
    assert_migrated(old, before)


def test_a_state_database_that_is_read_meanwhile_is_not_renamed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinetics_fs.store.migration._BUSY_TIMEOUT", 0.1)
    before = old_state(old)
    reader = sqlite3.connect(old / "ledger.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM clip").fetchone()
    with pytest.raises(StoreError, match="a process of an earlier version uses it"):
        Store(old)
    reader.close()
    assert_migrated(old, before)


def test_a_cache_on_a_full_disk_stays_as_it_is(old: Path, small_disk: SmallDisk) -> None:
    before = old_state(old)
    disk = small_disk(2 * 1024 * 1024)
    cache = disk / "cache"
    shutil.copytree(old, cache)
    filler = disk / "filler"
    for left in (0, 4096, 12 * 4096, 40 * 4096):
        free = os.statvfs(disk)
        filler.write_bytes(
            b"x" * (free.f_bavail * free.f_frsize + (filler.stat().st_size if filler.exists() else 0) - left)
        )
        with Store(cache) as store:
            assert "the disk is full" in store.status().cache.error
            assert list(store.cached_clips()), "they are read from a copy in memory, which was changed"
    filler.unlink()
    assert_migrated(cache, before)


def test_a_state_database_of_a_version_without_pins_is_changed(old: Path) -> None:
    ledger = old / "ledger.sqlite"
    for statement in (
        "DROP INDEX clip_by_pin_and_use",
        "ALTER TABLE clip DROP COLUMN pinned",
        "DROP TABLE pin",
        "CREATE INDEX clip_in_order_of_eviction ON clip (opened_at) WHERE held",
    ):
        query(ledger, statement)
    with Store(old) as store:
        assert store.pins.totals() == (0, 0, 0)
        assert store.is_cached(as_clip(PINNED))
        store.pins.add([as_clip(PINNED)])
        assert store.pins.totals().cached == 1
    indexes = query(old / "state.sqlite", "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'clip'")
    assert ("clip_in_order_of_eviction",) not in indexes


def test_a_lost_state_database_of_format_1_is_built_again(old: Path) -> None:
    for path in old.glob("ledger.sqlite*"):
        path.unlink()
    with Store(old) as store:
        record = store.record(as_clip(OF_YOUTUBE))
        assert record is not None and record.profile == UNKNOWN
        assert_in_step(old)


# Formats of later versions


def _tag(cache: Path) -> None:
    write_format(cache, CacheFormat(FORMAT + 1))


def _state(cache: Path) -> None:
    query(CacheLayout(cache).state_database, "PRAGMA user_version = 99")


def _table(cache: Path) -> None:
    query(CacheLayout(cache).clip_table, "PRAGMA user_version = 99")


@pytest.fixture
def new(old: Path) -> Iterator[Path]:
    Store(old).close()
    yield old


@pytest.mark.parametrize("raise_format", [_tag, _state, _table])
def test_a_later_format_is_refused_and_nothing_changes(new: Path, raise_format: Any) -> None:
    raise_format(new)
    before = tree(new)
    for limit in (None, 1):
        with pytest.raises(
            StoreError, match=r"knows formats up to 2; update kinetics-fs, or choose another --cache-dir"
        ):
            Store(new, limit=limit, shrink=True)
    assert tree(new) == before


def test_indexes_of_a_later_version_are_refused_and_nothing_changes(new: Path) -> None:
    path = CacheLayout(new).archive_indexes
    query(path, "PRAGMA user_version = 99")
    before = tree(new)
    with pytest.raises(ArchiveError, match=r"cannot use .*archives\.sqlite: it has format 99, .*; update kinetics-fs"):
        ArchiveIndexDB(path)
    assert tree(new) == before


def test_a_checkpoint_of_a_later_version_is_refused_and_stays(new: Path) -> None:
    [path] = new.glob("fills/*/*.indexed")
    assert read_progress(path) is not None
    path.write_bytes(path.read_bytes().replace(b"kinetics-fs fill 2\n", b"kinetics-fs fill 3\n"))
    with pytest.raises(StoreError, match=r"cannot use .*\.indexed: it has format 3, .*; update kinetics-fs"):
        read_progress(path)
    path.write_bytes(b"kinetics-fs fill 1\n")
    assert read_progress(path) is None
