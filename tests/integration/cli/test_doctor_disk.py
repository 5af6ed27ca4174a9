"""`doctor` names what a filesystem lacks that SQLite needs; the other errors of such a cache do so, too."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kinetics_fs.errors import StoreError
from kinetics_fs.store import CacheLayout, Store, quick_check
from kinetics_fs.util.disk import fault_of
from tests.support.command_line import run_command
from tests.support.featureless_filesystem import featureless_filesystem

CAUSES = {
    "locks": "the filesystem has no file locks",
    "mmap": "files on the filesystem cannot be mapped into memory (mmap)",
}


@pytest.mark.debian
@pytest.mark.parametrize("lacking", CAUSES)
def test_a_filesystem_that_sqlite_cannot_use_is_named(tmp_path: Path, lacking: str) -> None:
    folder = tmp_path / "folder"
    with featureless_filesystem(folder, tmp_path / "disk", lacking) as disk:
        new = run_command("doctor", "--offline", "--cache-dir", disk / "new")
        assert f"fuse: {CAUSES[lacking]}" in new.stdout
        Store(tmp_path / "cache").close()
        shutil.copytree(tmp_path / "cache", folder / "cache")
        table = CacheLayout(disk / "cache").clip_table
        found = run_command("doctor", "--offline", "--cache-dir", disk / "cache")
        assert f"fuse: {CAUSES[lacking]}" in found.stdout
        assert "damaged" not in found.stdout
        fault = quick_check(table, 1, if_damaged="remove it")
        assert fault is not None and fault.cause == CAUSES[lacking]
        with closing(sqlite3.connect(table, timeout=0)) as db, pytest.raises(sqlite3.OperationalError) as caught:
            db.execute("CREATE TABLE new (x)")
        assert fault_of(caught.value, table).cause == CAUSES[lacking]
        if lacking == "mmap":  # without locks, SQLite waits for a minute
            with pytest.raises(StoreError, match=r"cannot be mapped into memory \(mmap\); use a local disk"):
                Store(disk / "cache")
