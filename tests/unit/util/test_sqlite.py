"""The pool of SQLite connections, its transactions and its errors."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.util.disk import DiskFault
from kinetics_fs.util.sqlite import Database, transaction


class Translated(Exception):
    """The exception that callers get."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "a?b#c.sqlite"


def opened(path: Path, *, immutable: bool = False) -> Database:
    return Database(path, translate=lambda fault: Translated(fault.cause), if_damaged="remove it", immutable=immutable)


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with closing(opened(path)) as database:
        with database.connection() as db:
            db.execute("CREATE TABLE number (value INTEGER UNIQUE)")
        yield database


def numbers(database: Database) -> list[int]:
    return [value for (value,) in database.query("SELECT value FROM number ORDER BY value")]


def test_a_connection_is_reused(database: Database) -> None:
    with database.connection() as first:
        pass
    with database.connection() as second, database.connection() as third:
        assert second is first
        assert third is not first


def test_statements_outside_of_a_transaction_are_committed_at_once(database: Database, path: Path) -> None:
    with database.connection() as db:
        db.execute("INSERT INTO number VALUES (1)")
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT value FROM number").fetchall() == [(1,)]


def test_a_transaction_is_committed_as_a_whole_or_rolled_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.exclusive() as db:
        db.execute("INSERT INTO number VALUES (1)")
        raise ZeroDivisionError
    assert numbers(database) == []
    with database.exclusive() as db:
        db.execute("INSERT INTO number VALUES (2)")
    assert numbers(database) == [2]


def test_no_other_connection_writes_beside_an_exclusive_transaction(database: Database, path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=0)) as other:
        with database.exclusive(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("INSERT INTO number VALUES (1)")
        other.rollback()


def test_a_transaction_left_open_is_rolled_back(database: Database) -> None:
    with database.connection() as db:
        db.execute("BEGIN")
        db.execute("INSERT INTO number VALUES (1)")
    assert numbers(database) == []


def test_transactions_can_follow_each_other_on_one_connection(database: Database) -> None:
    with database.connection() as db:
        with transaction(db, "DEFERRED"):
            db.execute("INSERT INTO number VALUES (1)")
        with pytest.raises(ZeroDivisionError), transaction(db):
            db.execute("INSERT INTO number VALUES (2)")
            raise ZeroDivisionError
        assert not db.in_transaction
    assert numbers(database) == [1]


def test_errors_of_sqlite_are_translated_and_others_are_not(database: Database) -> None:
    with pytest.raises(Translated, match="UNIQUE"), database.exclusive() as db:
        db.execute("INSERT INTO number VALUES (1), (1)")
    with pytest.raises(Translated, match="no such table"):
        database.query("SELECT * FROM missing")
    with pytest.raises(KeyError), database.connection():
        raise KeyError


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"not a database " * 100)
    database = opened(file)
    with pytest.raises(Translated, match="not a database"):
        database.query("SELECT * FROM number")


def test_an_immutable_file_can_only_be_read(database: Database, path: Path) -> None:
    with closing(opened(path, immutable=True)) as reader:
        assert reader.query("SELECT * FROM number") == []
        with pytest.raises(Translated, match="permission denied"):
            reader.query("INSERT INTO number VALUES (1)")


def test_an_immutable_file_stays_readable_when_it_is_removed(database: Database, path: Path) -> None:
    with closing(opened(path, immutable=True)) as reader:
        assert reader.query("SELECT * FROM number") == []
        path.unlink()
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: numbers(reader), range(20))) == [[]] * 20


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (Path.unlink, r"/a\?b#c.sqlite was removed or renamed while it was in use"),
    "renamed": (lambda path: path.rename(path.with_name("other")), "was removed or renamed"),
    "replaced": (
        lambda path: shutil.copy(path, path.with_name("copy")) and path.with_name("copy").replace(path),
        "replaced",
    ),
    "folder renamed": (
        lambda path: path.parent.rename(path.parent.with_name("other")),
        r"/folder was removed or renamed",
    ),
    "folder replaced by a file": (
        lambda path: (path.parent.rename(path.parent.with_name("other")), path.parent.write_bytes(b"")),
        "/folder was replaced while it was in use",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_connection_writes_to_a_file_that_is_no_longer_at_its_path(
    database: Database, path: Path, damage: str
) -> None:
    assert numbers(database) == []
    function, cause = DAMAGES[damage]
    function(path)
    with pytest.raises(Translated, match=cause), database.exclusive() as db:
        db.execute("INSERT INTO number VALUES (1)")
    with pytest.raises(Translated, match=cause):
        numbers(database)


def test_a_file_that_comes_back_is_used_again(database: Database, path: Path) -> None:
    assert numbers(database) == []
    other = path.rename(path.with_name("other"))
    with pytest.raises(Translated):
        numbers(database)
    other.rename(path)
    assert numbers(database) == []


def test_a_borrowed_connection_is_closed_when_its_caller_is_done(database: Database) -> None:
    borrowed, closed = threading.Event(), threading.Event()
    results: list[object] = []

    def use() -> None:
        with database.connection() as db:
            borrowed.set()
            closed.wait(10)
            results.append(db.execute("SELECT 1").fetchone())
        with pytest.raises(sqlite3.ProgrammingError):
            db.execute("SELECT 1")
        results.append("closed")

    thread = threading.Thread(target=use)
    thread.start()
    borrowed.wait(10)
    database.close()
    closed.set()
    thread.join()
    assert results == [(1,), "closed"]
    with pytest.raises(ValueError, match="closed"):
        database.query("SELECT 1")


def test_a_copy_can_be_read_and_not_changed(database: Database, path: Path) -> None:
    with database.exclusive() as db:
        db.execute("INSERT INTO number VALUES (1)")
    with database.connection() as borrowed:

        def upgrade(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE new (x)")

        database.use_copy(DiskFault("the disk is full", "free space"), upgrade)
        with database.connection() as db, database.connection() as other:
            assert db.execute("SELECT value FROM number").fetchall() == [(1,)]
            assert other.execute("SELECT x FROM new").fetchall() == []
        with pytest.raises(Translated, match="the disk is full"), database.exclusive():
            pass
        borrowed.execute("INSERT INTO number VALUES (2)")
    assert numbers(database) == [1], "the connection to the file is not used for the copy"
    database.use_file()
    assert numbers(database) == [1, 2]
    with database.exclusive() as db:
        db.execute("INSERT INTO number VALUES (3)")


def test_what_cannot_be_copied_is_a_translated_error(tmp_path: Path) -> None:
    with (
        closing(opened(tmp_path / "missing")) as database,
        pytest.raises(Translated, match=r"the disk is full, and .*missing cannot be copied into memory"),
    ):
        database.use_copy(DiskFault("the disk is full", "free space"), lambda db: None)
