"""`kill -9` at every step of everything that changes the store: what the next process finds, and the others.

A step is a change of a file or a commit of a database, as the interpreter itself reports them: no part of the
store is replaced, and a step that is added to it tomorrow is died at, too.
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
from tests.support import store_subprocess as children
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
"""The clips that the store holds before the action."""


class Folder(NamedTuple):
    """A copy of the seed, for one process to die in."""

    path: Path
    step: int
    log: Path


class Deaths:
    """A process killed at its first step, a new one at its second, and so on to the last.

    What is found wrong after each is collected, to be told all together.
    """

    def __init__(self, seed: Path, place: Path) -> None:
        self._seed = seed
        self._place = place
        self._wrong: list[str] = []
        self.steps: list[str] = []
        """What a process does that nobody kills."""

    def folders(self) -> Iterator[Folder]:
        """A folder for each death; to be gone through to the end."""
        for step in range(1, 200):
            folder = Folder(self._place / f"cache-{step}", step, self._place / f"log-{step}")
            shutil.copytree(self._seed, folder.path)
            yield folder
            shutil.rmtree(folder.path)
            self.steps = steps(folder.log)
            if len(self.steps) < step:
                return
        raise AssertionError("it never ends")

    @staticmethod
    def kill(folder: Folder, work: Callable[..., None], *arguments: object) -> None:
        code = end(start(work, *arguments, folder.path, folder.step, folder.log))
        assert code == (KILLED if len(steps(folder.log)) == folder.step else 0)

    @contextmanager
    def finding(self, folder: Folder) -> Iterator[None]:
        """Notes what the block finds wrong."""
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
    """A full store, closed; to be copied."""
    folder = tmp_path_factory.mktemp("seed") / "cache"
    with Store(folder, limit=LIMIT) as store:
        for number, size in SIZES.items():
            keep(store, clip(number), size)
        store.failures.remember(clip(3), FetchError(FailureKind.TRANSIENT, "not yet"))
    return folder


def assert_recovered(store: Store, sizes: dict[int, int]) -> None:
    assert_nothing_unknown(store.folder)
    for number, size in sizes.items():
        here = is_whole(store, clip(number), size)
        assert here == store.is_cached(clip(number)), f"clip {number} is not as the state database says"
        if here:
            assert store.failures.get(clip(number)) is None, f"clip {number} is here, and so is its failure"
    assert store.usage().bytes <= LIMIT
    assert_in_step(store.folder)


@every_action
def test_the_next_process_finds_each_clip_whole_or_absent_and_nothing_left_over(
    action: Action, seed: Path, place: Path
) -> None:
    deaths = Deaths(seed, place)
    sizes = {**SIZES, 3: 2 * UNIT if action is children.publish_larger else UNIT}
    for folder in deaths.folders():
        deaths.kill(folder, children.die_during, action)
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
def test_a_process_that_lives_on_keeps_clips_as_before(action: Action, seed: Path, place: Path) -> None:
    deaths = Deaths(seed, place)
    for folder in deaths.folders():
        with Store(folder.path, limit=LIMIT) as store:
            deaths.kill(folder, children.die_during, action)
            with deaths.finding(folder):
                for number in (4, 5, 6):
                    keep(store, clip(number))
                    assert is_whole(store, clip(number)), f"clip {number} cannot be fetched"
                    assert store.usage().bytes <= LIMIT
                assert cached_numbers(store, 7) == [4, 5, 6], "the dead process keeps room from the living"
    deaths.verdict()


def test_the_deaths_come_at_the_steps_that_matter(seed: Path, place: Path) -> None:
    deaths = Deaths(seed, place)
    for folder in deaths.folders():
        deaths.kill(folder, children.die_during, children.publish_instead)
    kinds = [step.split()[0] for step in deaths.steps]
    renamed = kinds.index("os.rename")
    assert {"os.remove", "os.mkdir", "open", "COMMIT"} <= set(kinds[:renamed]), "eviction, claim, the file written"
    assert kinds[renamed:].count("COMMIT") >= 2, "the row, then the state database"
    assert "os.rmdir" in kinds[renamed:], "the end of the claim"


def test_a_death_while_recovering_is_recovered_from(seed: Path, place: Path) -> None:
    bad = shutil.copytree(seed, place / "bad")
    assert end(start(children.claim_and_die, bad, 3)) == KILLED
    clip_file(bad, clip(1)).unlink()
    lose(bad / "ledger.sqlite")

    deaths = Deaths(bad, place)
    for folder in deaths.folders():
        deaths.kill(folder, children.die_recovering)
        with deaths.finding(folder), Store(folder.path, limit=LIMIT) as store:
            assert_recovered(store, SIZES)
            keep(store, clip(3))
            assert is_whole(store, clip(3))
    deaths.verdict()
