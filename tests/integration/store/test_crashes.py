"""`kill -9` at every step of everything that changes the store, and what other processes find afterwards.

A step is a change of a file or a commit of a database, as the interpreter reports them. No part of the store is
replaced, so that steps that are added to it later are covered, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.store import Store
from tests.support import store_subprocess
from tests.support.store import (
    UNIT,
    assert_in_step,
    assert_nothing_unknown,
    cached_numbers,
    clip,
    clip_file,
    is_whole,
    keep,
    lose,
)
from tests.support.store_subprocess import LIMIT, UNTOUCHED
from tests.support.subprocesses import KILLED, end, start, steps

Action = Callable[[Store], None]
every_action = pytest.mark.parametrize("action", UNTOUCHED, ids=lambda action: action.__name__)

SIZES = {0: UNIT, 1: UNIT, 2: UNIT}
"""The cached clips before the action."""


class Folder(NamedTuple):
    """A copy of the seed in which one process dies."""

    path: Path
    step: int
    log: Path


class Deaths:
    """Processes that are killed: one before its first step, one before its second, and so on to the last.

    Faults that are found after each death are collected and reported together.
    """

    def __init__(self, seed: Path, folder: Path) -> None:
        self._seed = seed
        self._folder = folder
        self._wrong: list[str] = []
        self.steps: list[str] = []
        """The steps of a process that was not killed."""

    def folders(self) -> Iterator[Folder]:
        """Yield a folder for each death. Iterate to the end."""
        for step in range(1, 200):
            folder = Folder(self._folder / f"cache-{step}", step, self._folder / f"log-{step}")
            shutil.copytree(self._seed, folder.path)
            yield folder
            shutil.rmtree(folder.path)
            self.steps = steps(folder.log)
            if len(self.steps) < step:
                return
        raise AssertionError("the process has too many steps")

    @staticmethod
    def kill(folder: Folder, work: Callable[..., None], *arguments: object) -> None:
        code = end(start(work, *arguments, folder.path, folder.step, folder.log))
        assert code == (KILLED if len(steps(folder.log)) == folder.step else 0)

    @contextmanager
    def finding(self, folder: Folder) -> Iterator[None]:
        """Collect the faults that the block finds."""
        try:
            yield
        except (AssertionError, KineticsError) as error:
            where = steps(folder.log)[-1].replace(str(folder.path), "…")
            self._wrong.append(f"died before step {folder.step}, {where}: {str(error).splitlines()[0]}")

    def verdict(self) -> None:
        if self._wrong:
            pytest.fail("\n".join(self._wrong), pytrace=False)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a full, closed store, to be copied."""
    folder = tmp_path_factory.mktemp("seed") / "cache"
    with Store(folder, limit=LIMIT) as store:
        for number, size in SIZES.items():
            keep(store, clip(number), size)
        store.failures.remember(clip(3), FetchError(FailureKind.TRANSIENT, "not yet"))
    return folder


def assert_recovered(store: Store, sizes: dict[int, int]) -> None:
    assert_nothing_unknown(store.folder)
    for number, size in sizes.items():
        cached = is_whole(store, clip(number), size)
        assert cached == store.is_cached(clip(number)), f"clip {number} disagrees with the state database"
        if cached:
            assert store.failures.get(clip(number)) is None, f"clip {number} is cached and has a failure"
    assert store.usage().bytes <= LIMIT
    assert_in_step(store.folder)


@every_action
def test_after_a_crash_the_next_process_finds_each_clip_whole_or_absent(
    action: Action, seed: Path, fast_tmp_path: Path
) -> None:
    deaths = Deaths(seed, fast_tmp_path)
    sizes = {**SIZES, 3: 2 * UNIT if action is store_subprocess.publish_larger else UNIT}
    for folder in deaths.folders():
        deaths.kill(folder, store_subprocess.die_during, action)
        with deaths.finding(folder), Store(folder.path, limit=LIMIT) as store:
            assert_recovered(store, sizes)
            for number in UNTOUCHED[action]:
                assert is_whole(store, clip(number)), f"clip {number} was lost"
            for number, size in sizes.items():
                keep(store, clip(number), size)
                assert is_whole(store, clip(number), size), f"clip {number} cannot be fetched again"
            assert_in_step(folder.path)
    deaths.verdict()


@every_action
def test_a_running_process_recovers_the_reservations_of_a_dead_one(
    action: Action, seed: Path, fast_tmp_path: Path
) -> None:
    deaths = Deaths(seed, fast_tmp_path)
    for folder in deaths.folders():
        with Store(folder.path, limit=LIMIT) as store:
            deaths.kill(folder, store_subprocess.die_during, action)
            with deaths.finding(folder):
                for number in (4, 5, 6):
                    keep(store, clip(number))
                    assert is_whole(store, clip(number)), f"clip {number} cannot be fetched"
                    assert store.usage().bytes <= LIMIT
                assert cached_numbers(store, 7) == [4, 5, 6], "the dead process still reserves space"
    deaths.verdict()


def test_every_kind_of_step_is_covered(seed: Path, fast_tmp_path: Path) -> None:
    deaths = Deaths(seed, fast_tmp_path)
    for folder in deaths.folders():
        deaths.kill(folder, store_subprocess.die_during, store_subprocess.publish_instead)
    kinds = [step.split()[0] for step in deaths.steps]
    renamed = kinds.index("os.rename")
    assert {"os.remove", "os.mkdir", "open", "COMMIT"} <= set(kinds[:renamed]), "eviction, claim, the file written"
    assert kinds[renamed:].count("COMMIT") >= 2, "the row, then the state database"
    assert "os.rmdir" in kinds[renamed:], "the end of the claim"


def test_a_crash_during_recovery(seed: Path, fast_tmp_path: Path) -> None:
    bad = shutil.copytree(seed, fast_tmp_path / "bad")
    assert end(start(store_subprocess.claim_and_die, bad, 3)) == KILLED
    clip_file(bad, clip(1)).unlink()
    lose(bad / "state.sqlite")

    deaths = Deaths(bad, fast_tmp_path)
    for folder in deaths.folders():
        deaths.kill(folder, store_subprocess.die_recovering)
        with deaths.finding(folder), Store(folder.path, limit=LIMIT) as store:
            assert_recovered(store, SIZES)
            keep(store, clip(3))
            assert is_whole(store, clip(3))
    deaths.verdict()
