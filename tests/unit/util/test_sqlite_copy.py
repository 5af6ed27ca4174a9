"""Copies of SQLite databases in memory, as of a disk that cannot be written."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.util.sqlite import transaction
from kinetics_fs.util.sqlite_copy import CopyError, copy_to_memory

_ROWS = "SELECT key, value FROM item ORDER BY key"


@contextlib.contextmanager
def written(path: Path, random: random.Random) -> Iterator[sqlite3.Connection]:
    """Write a database in WAL mode by random transactions; yield the connection that keeps its log."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {random.choice([512, 4096, 65536])}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {random.choice([0, 5, 1000])}")
        db.execute("CREATE TABLE item (key INTEGER PRIMARY KEY, value BLOB)")
        for _ in range(random.randrange(60)):
            db.execute("BEGIN")
            for _ in range(random.randrange(5)):
                value = random.randbytes(random.randrange(3000))
                db.execute("INSERT OR REPLACE INTO item VALUES (?, ?)", (random.randrange(100), value))
            if random.random() < 0.2:
                db.execute("DELETE FROM item WHERE key < ?", (random.randrange(100),))
            db.execute(random.choice(["COMMIT"] * 4 + ["ROLLBACK"]))
            if random.random() < 0.05:
                db.execute("VACUUM")
        yield db


def copied(path: Path) -> list[tuple[int, bytes]] | None:
    """Return the rows of a copy; None if it has no table."""
    _, copy = copy_to_memory(path)
    with closing(copy):
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'item'").fetchone() is None:
            return None
        return copy.execute(_ROWS).fetchall()


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_has_what_is_committed_in_the_file_and_in_its_log(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a b?.sqlite"
    with written(path, random.Random(seed)) as db:
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        found = copied(path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
        assert found == db.execute(_ROWS).fetchall()


@pytest.mark.parametrize("seed", range(8))
def test_a_log_that_a_crash_damaged_is_used_as_far_as_sqlite_uses_it(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path, crashed = tmp_path / "x.sqlite", tmp_path / "crashed"
    crashed.mkdir()
    with written(path, chance):
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", crashed)
    log = crashed / "x.sqlite-wal"
    data = bytearray(log.read_bytes())
    if chance.random() < 0.5:
        del data[chance.randrange(1, len(data)) :]
    data[chance.randrange(len(data))] ^= 0x55
    log.write_bytes(data)
    found = copied(crashed / path.name)
    with closing(sqlite3.connect(crashed / path.name)) as db:
        has_table = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'item'").fetchone()
        assert found == (db.execute(_ROWS).fetchall() if has_table else None)


def test_connections_share_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with written(path, random.Random(1)):
        address, copy = copy_to_memory(path)
    with closing(copy), closing(sqlite3.connect(address, uri=True)) as other:
        copy.execute("CREATE TABLE another (x)")
        assert other.execute("SELECT * FROM another").fetchall() == []


def test_a_copy_of_a_database_that_a_process_writes_to_is_one_that_it_committed(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    done = threading.Event()

    def move() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as db:
            db.execute("PRAGMA wal_autocheckpoint = 20")
            while not done.is_set():
                with transaction(db):
                    db.execute("UPDATE account SET value = value - key WHERE key < 500")
                    db.execute("UPDATE account SET value = value + (key - 500) WHERE key >= 500")

    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE account (key INTEGER PRIMARY KEY, value INTEGER, filler BLOB DEFAULT (zeroblob(200)))")
        db.executemany("INSERT INTO account (key, value) VALUES (?, 0)", ((key,) for key in range(1000)))
    with ThreadPoolExecutor(1) as thread:
        writer = thread.submit(move)
        try:
            for _ in range(3):
                _, copy = copy_to_memory(path)
                with closing(copy):
                    assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                    assert copy.execute("SELECT sum(value) FROM account").fetchone() == (0,)
        finally:
            done.set()
        writer.result()


def test_what_cannot_be_copied_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CopyError, match="No such file"):
        copy_to_memory(tmp_path / "missing")
    (tmp_path / "text").write_bytes(b"no database")
    with pytest.raises(CopyError, match="file is not a database"):
        copy_to_memory(tmp_path / "text")
    os.truncate(tmp_path / "text", 0)
    with pytest.raises(CopyError, match="file is not a database"):
        copy_to_memory(tmp_path / "text")
