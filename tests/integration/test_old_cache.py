"""Open a cache directory that an earlier version of the program made (commit 644940b).

Users keep their caches: a version that changes names on the disk also changes those of an earlier cache. These are the
names of files and folders, of SQL tables and columns, and the words that are stored in them.
`tests/support/make_old_cache.sh` documents how the fixture was made. Never make it again with later code: add another
fixture beside it.

The last command on the cache was a fill that was killed. So the fixture also holds the remains of a crash: logs of
SQLite, fetches that were under way, and lock files of dead processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs import Library
from tests.support.command_line import Mounted, run_command

pytestmark = pytest.mark.server

FIXTURE = Path(__file__).parents[1] / "support" / "old_cache.tar.gz"
FACTS: dict[str, Any] = json.loads(FIXTURE.with_name("old_cache.json").read_text())
SURFING, ZUMBA = "600/val/surfing water.tar.gz", "600/val/zumba.tar.gz"
TIMES = {
    "failure": ("first_at", "last_at", "retry_at"),
    "origin": ("blocked_at", "blocked_until"),
    "asked": ("at",),
    "history": ("at",),
}
"""The columns of times after which a row no longer counts, by table of `ledger.sqlite`."""
HOUR = 3600
FETCH_BYTES = 2 * 1024 * 1024
"""The bytes that a fetch of a clip of unknown size reserves."""


class Old:
    """The old cache, with its times moved as if its last command had ended a minute ago.

    Attributes:
        cache: The cache directory.
        archives: The folder of the archives that the fills read.
        later: Seconds by which times were moved. Times of the history move by whole hours only.
    """

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.archives = folder / "archives"
        self.later = int(time.time()) - 60 - FACTS["made_at"]
        with tarfile.open(FIXTURE) as archive:
            archive.extractall(folder, filter="data")
        with closing(sqlite3.connect(self.cache / "ledger.sqlite")) as db, db:
            for table, columns in TIMES.items():
                later = self.later // HOUR * HOUR if table == "history" else self.later
                moved = ", ".join(f"{column} = {column} + {later}" for column in columns)
                assert db.execute(f"UPDATE {table} SET {moved}").rowcount > 0

    def arguments(self, *, selection: bool = True) -> tuple[str | Path, ...]:
        """Return the arguments that name the cache. No server has the annotations: the cache holds a copy."""
        store = ("--cache-dir", self.cache)
        return ("--annotations", FACTS["annotations"], *store) if selection else store

    def run(self, *command: str | Path, selection: bool = True, code: int = 0) -> Any:
        """Run a command and return the JSON that it prints."""
        done = run_command(*command, "--json", *self.arguments(selection=selection))
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def sums(self) -> dict[str, str]:
        """Return the SHA-256 of each clip in the cache by its key, read through `Library`."""
        found = {}
        with Library(annotations=FACTS["annotations"], cache_dir=self.cache, min_free=0) as library:
            for path in library.paths():
                if library.is_cached(path):
                    with library.open(path) as file:
                        found[Path(path).stem] = hashlib.sha256(file.read()).hexdigest()
        return found


@pytest.fixture
def old(tmp_path: Path) -> Old:
    return Old(tmp_path)


def test_clips_have_their_bytes(old: Old) -> None:
    sums = old.sums()

    half_filled = {key: value for key, value in sums.items() if key in FACTS["sha256_of_half_filled"]}
    assert {key: value for key, value in sums.items() if key not in half_filled} == FACTS["sha256"]
    assert 0 < len(half_filled) < len(FACTS["sha256_of_half_filled"])
    assert half_filled.items() <= FACTS["sha256_of_half_filled"].items()

    checked = old.run("verify", selection=False)
    assert (checked["clips"], checked["good"]) == (len(sums), len(sums))
    assert checked["unknown_files"] == []


def test_verify_measures_old_clips(old: Old) -> None:
    before = old.run("status", "--coverage")
    assert (before["short"], before["cached"]) == (0, old.run("verify")["clips"])

    # The clips are of 1 s, their annotations of 10 s.
    after = old.run("status", "--coverage")
    assert after["short"] == after["cached"] == before["cached"] > 0


def test_remains_of_the_crash_are_cleared(old: Old) -> None:
    incoming, owners, locks = (old.cache / name for name in ("incoming", "owners", "locks"))

    def count(database: str, table: str) -> int:
        with closing(sqlite3.connect(old.cache / database)) as db:
            [(number,)] = db.execute(f"SELECT count(*) FROM {table}")
            return int(number)

    assert count("ledger.sqlite", "flight") == len(list(incoming.iterdir())) > 0
    assert list(owners.iterdir())

    assert old.run("status", selection=False)["cache"]["reserved"] == 0

    assert count("state.sqlite", "fetch") == len(list(incoming.iterdir())) == len(list(locks.iterdir())) == 0
    assert not owners.exists()
    assert not list(old.cache.glob("ledger.sqlite*"))


def test_failures(old: Old) -> None:
    moved = [
        failure | {name: pytest.approx(failure[name] + old.later, abs=0.01) for name in TIMES["failure"]}
        for failure in FACTS["failures"]
    ]
    assert {failure["kind"] for failure in moved} == {"gone", "transient", "credentials", "corrupt"}
    assert old.run("failures", "list", selection=False) == moved

    told, before = old.run("status", "--coverage"), FACTS["survey"]
    assert {name: told[name] for name in ("clips", "evicted", "unavailable", "kinds")} == {
        name: before[name] for name in ("clips", "evicted", "unavailable", "kinds")
    }
    assert told["due"] == 1, "only the transient failure is due after a minute"


def test_block_and_budget_of_a_source(old: Old) -> None:
    sources = old.run("status", selection=False)["sources"]

    assert sources["youtube"]["reason"] == FACTS["origin"]["reason"]
    assert sources["youtube"]["fetches_last_hour"] == FACTS["origin"]["asked_in_an_hour"]
    assert 0 < sources["youtube"]["blocked_for"] <= 2 * HOUR


def test_pins(old: Old, tmp_path: Path) -> None:
    def renamed(row: dict[str, Any]) -> dict[str, Any]:
        return {{"here": "cached"}.get(name, name): value for name, value in row.items()}

    total, classes = FACTS["pins"]["total"], FACTS["pins"]["classes"]
    assert old.run("pin", "list") == {"total": renamed(total), "classes": [renamed(row) for row in classes]}

    # All other clips are evicted for a new one, under a limit that leaves just enough space for it beside the pins.
    new = max(FACTS["sha256_of_half_filled"])
    listing = tmp_path / "list"
    listing.write_text(f"{new}\n")
    limit = f"{FACTS['pins']['total']['bytes'] + FETCH_BYTES}B"
    source = ("--source", "archive", "--archive-url", old.archives)
    old.run("index", "build", "--archive", ZUMBA, "--archive-url", old.archives)
    assert old.run("prefetch", "--list", listing, *source, "--cache-size", limit, "--shrink")["fetched"] == 1
    assert set(old.sums()) == {"archery__01_000000_000010", "archery__02_000000_000010", new}

    done = run_command("pin", "remove", "--all", *old.arguments(selection=False))
    assert done.returncode == 0, done.stderr
    assert old.run("pin", "list")["total"]["clips"] == 0


def test_history(old: Old) -> None:
    later = old.later // HOUR * HOUR
    assert old.run("report")["history"] == [sample | {"at": sample["at"] + later} for sample in FACTS["history"]]


def test_indexes(old: Old) -> None:
    assert old.run("index", "list", selection=False) == [row | {"confirmed": True} for row in FACTS["index"]]

    read = old.run("index", "verify", "--archive", SURFING, "--all", "--archive-url", old.archives, selection=False)
    assert read.pop("bytes") > 0
    assert read == {"archives": 1, "wrong_archives": {}, "clips_read": 2, "wrong_clips": {}}
    again = old.run("index", "build", "--archive", SURFING, "--archive-url", old.archives)
    assert again["archives"] == {"read": [], "read_before": [SURFING], "failed": {}}


def test_archive_that_was_filled_from_is_not_read_again(old: Old) -> None:
    surfing = ("--split", "validation", "--class", "surfing water")

    told = old.run("fill", "--archive-url", old.archives, *surfing, code=3)

    assert told["archives"] == {"read": [], "read_before": [SURFING], "failed": {}}
    assert (told["bytes_read"], told["stored"], told["in_no_archive"]) == (0, 0, 1)


def test_fill_that_was_killed_is_gone_on_with(old: Old) -> None:
    # A checkpoint is named by a hash of the address of the archives, and they are in another folder now.
    [checkpoint] = old.cache.glob("fills/*/*.indexed")

    def name(address: str | Path) -> str:
        return hashlib.sha256(f"{address} {ZUMBA}".encode()).hexdigest()[:32] + ".indexed"

    assert checkpoint.name == name(FACTS["base_of_archives"])
    checkpoint.rename(checkpoint.with_name(name(old.archives)))

    told = old.run("fill", "--archive-url", old.archives, "--split", "validation", "--class", "zumba")

    assert told["archives"] == {"read": [ZUMBA], "read_before": [], "failed": {}}
    assert 0 < told["bytes_read"] < (old.archives / ZUMBA).stat().st_size
    # The new index includes the clips that were read before the kill.
    assert told["indexed"] == len(FACTS["sha256_of_half_filled"])
    assert old.sums() == FACTS["sha256"] | FACTS["sha256_of_half_filled"]
    assert not list(old.cache.glob("fills/*/*.indexed"))


def test_catalogs_of_another_schema_are_built_again_once(old: Old) -> None:
    def catalogs() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in old.cache.glob("catalog/*.sqlite")}

    def clips() -> list[int]:
        selections = ((), ("--split", "train", "--class", "archery"), ("--split", "validation", "--class", "zumba"))
        return [old.run("status", "--coverage", *selection)["clips"] for selection in selections]

    before = catalogs()
    assert len(before) > 1

    assert clips() == [FACTS["survey"]["clips"], 3, 14]

    after = catalogs()
    assert before.items() <= after.items() and len(after) == len(before) + 3
    assert clips() == [FACTS["survey"]["clips"], 3, 14]
    assert catalogs() == after


def test_mount(old: Old, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mount"
    # The prefetches that a mount has not finished are in a folder named by a hash of the mount point.
    [unfinished] = old.cache.glob("prefetches/*")

    def name(mountpoint: str | Path) -> str:
        return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24]

    assert unfinished.name == name(FACTS["mountpoint"])
    unfinished = unfinished.rename(unfinished.with_name(name(mountpoint)))

    nowhere = ("--source", "youtube", "--video-url", "http://127.0.0.1:1/{id}")
    with Mounted(mountpoint, *old.arguments(), *nowhere) as mount:
        [evicted] = FACTS["evicted"]
        clips = {path.stem: path for path in mountpoint.rglob("*.mp4")}
        assert len(clips) == FACTS["survey"]["clips"]
        assert clips[evicted].stat().st_size == FACTS["evicted"][evicted]
        read = {key: hashlib.sha256(clips[key].read_bytes()).hexdigest() for key in FACTS["sha256"]}
        assert read == FACTS["sha256"]

        deadline = time.monotonic() + 30
        while any(one["state"] != "done" for one in mount.status()["prefetches"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Their clips were imported after the mount ended.
        assert [
            (one["selection"], one["clips"], one["already_cached"], one["failed"])
            for one in mount.status()["prefetches"]
        ] == [("train; juggling balls", 2, 2, 0), ("a list of clips", 1, 1, 0)]
    assert not list(unfinished.iterdir())
