"""What a tree leaves out, without a kernel."""

from __future__ import annotations

import errno
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from queue import SimpleQueue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import FailureReport, Store
from kinetics_fs.vfs import ROOT, FilesystemOptions, Name
from kinetics_fs.vfs.hidden import HiddenClips
from tests.support.example_filesystem import CLIPS, FULL, TWICE, World, a_world, content, put
from tests.support.mounts import wait_until
from tests.support.store import quick_place

GONE = FetchError(FailureKind.GONE, "removed", source="youtube")
SORTED = sorted(CLIPS, key=lambda clip: clip.name)
A_WEEK = 7 * 86400.0


@pytest.fixture
def world() -> Iterator[World]:
    with quick_place() as folder, a_world(folder, FilesystemOptions(hide_unavailable=True)) as world:
        yield world


@contextmanager
def watched(world: World) -> Iterator[SimpleQueue[Name]]:
    """A watch on the tree, and what it tells."""
    told: SimpleQueue[Name] = SimpleQueue()
    watch = world.tree.watch_names(told.put)
    assert watch is not None
    try:
        yield told
    finally:
        watch.stop()
        watch.join(30)
        assert not watch.is_alive()


def look(world: World) -> set[Name]:
    """Has the tree look at what is gone; the names that came or went."""
    assert world.tree._hidden is not None
    names = world.tree._hidden.refresh()
    assert len(names) == len(set(names))
    return set(names)


def mark_gone(store: Store, clips: Collection[Clip], at: float | None = None) -> None:
    at = time.time() if at is None else at
    store.failures.import_reports(
        FailureReport(clip, FailureKind.GONE, "removed", "youtube", at, at, 1) for clip in clips
    )


def listed(world: World, split: str = "train") -> list[str]:
    return [entry.name for entry in world.tree.entries(world.directory(split))]


def is_found(world: World, clip: Clip, split: str = "train") -> bool:
    try:
        world.ino(clip, split)
    except FileNotFoundError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def names(clips: Collection[Clip]) -> list[str]:
    return sorted(clip.name for clip in clips)


def split_list(world: World, split: str = "train") -> list[str]:
    """The paths in `<split>.csv`."""
    handle = world.tree.open(world.control(f"{split}.csv")).result()
    assert handle.size == world.tree.attributes(world.control(f"{split}.csv")).size
    return [line.rpartition(" ")[0] for line in handle.read(0, handle.size + 1).decode().splitlines()]


def test_clip_that_is_gone_is_left_out_everywhere_it_stands(world: World) -> None:
    clip = CLIPS[0]
    before = world.tree.statistics().files
    numbers = [world.ino(other) for other in CLIPS[1:]]
    mark_gone(world.store, [clip])
    assert is_found(world, clip)
    assert {(name.directory, name.name) for name in look(world)} == {
        (directory, clip.name) for directory in (world.directory(), world.directory("validation"), odd_directory(world))
    }
    for split in ("train", "validation"):
        assert clip.name not in listed(world, split)
        assert not is_found(world, clip, split)
        assert not any(clip.name in path for path in split_list(world, split))
    assert world.tree.statistics().files == before - 3
    assert world.tree.hidden.total == 3
    assert [world.ino(other) for other in CLIPS[1:]] == numbers
    assert clip.name in world.tree.open(world.control("failures.csv")).result().read(0, 10_000).decode()


def odd_directory(world: World) -> int:
    train = world.tree.lookup(ROOT, "train")
    [ino] = [entry.ino for entry in world.tree.entries(train) if entry.name != FULL]
    return ino


def test_what_is_not_gone_or_is_here_or_is_due_stays(world: World) -> None:
    for clip, kind in zip(CLIPS, FailureKind, strict=False):
        world.store.failures.remember(clip, FetchError(kind, "reason"))
    gone = [clip for clip, kind in zip(CLIPS, FailureKind, strict=False) if kind is FailureKind.GONE]
    put(world.store, CLIPS[20], content(CLIPS[20]))
    world.store.failures.remember(CLIPS[20], GONE)
    world.store.failures.remember(CLIPS[21], GONE)
    world.store.failures.make_due(CLIPS[21])
    mark_gone(world.store, [CLIPS[22]], time.time() - A_WEEK - 1)
    look(world)
    assert listed(world) == names(set(CLIPS) - set(gone))


def test_clip_comes_back(world: World) -> None:
    mark_gone(world.store, CLIPS[:10])
    assert len(look(world)) == 10 + TWICE + 3
    world.store.failures.forget(CLIPS[:1])
    world.store.failures.make_due(CLIPS[1])
    put(world.store, CLIPS[2], content(CLIPS[2]))
    assert {name.name for name in look(world)} == {clip.name for clip in CLIPS[:3]}
    assert listed(world) == names(set(CLIPS) - set(CLIPS[3:10]))
    assert look(world) == set()
    world.store.remove(CLIPS[2])
    world.store.failures.forget()
    look(world)
    assert listed(world) == names(CLIPS)
    assert world.tree.hidden.total == 0


def test_class_of_which_everything_is_gone_stays_empty(world: World) -> None:
    mark_gone(world.store, CLIPS[:TWICE])
    look(world)
    assert listed(world, "validation") == []
    assert world.tree.attributes(world.directory("validation")).links == 2
    assert split_list(world, "validation") == []


def test_without_the_option_nothing_is_left_out() -> None:
    with quick_place() as folder, a_world(folder) as world:
        mark_gone(world.store, CLIPS)
        assert world.tree.watch_names(lambda _name: None) is None
        assert listed(world) == names(CLIPS)
        assert is_found(world, CLIPS[0])
        assert world.tree.hidden.total == 0


def test_rows_that_are_not_ours_hide_nothing(world: World) -> None:
    with closing(sqlite3.connect(world.store.layout.state_database, isolation_level=None)) as ledger:
        for number, (key, retry_at) in enumerate(
            [
                (CLIPS[0].key, "tomorrow"),
                (CLIPS[1].key, 1e18),
                (CLIPS[2].key, b"\xff"),
                (CLIPS[3].key.encode(), 1e10),
                (f"{CLIPS[4].key}.mp4", 1e10),
                ("\udcff".encode(errors="surrogateescape"), 1e10),
                ("no key", 1e10),
                (CLIPS[5].key, 1e10),
            ]
        ):
            ledger.execute("INSERT INTO failure VALUES (?, 'gone', '', '', NULL, 0, ?, 1, ?)", (key, number, retry_at))
    look(world)
    assert listed(world) == names(set(CLIPS) - {CLIPS[5]})


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_listing_that_goes_on_neither_skips_nor_repeats(world: World, data: st.DataObject) -> None:
    """Whatever comes and goes meanwhile, all that was there all the time is listed once, in order."""
    world.store.failures.forget()
    look(world)
    directory, place = world.directory(), 0
    seen: list[str] = []
    ever_gone: set[Clip] = set()
    while True:
        if data.draw(st.booleans()):
            first = data.draw(st.integers(0, len(SORTED) - 1))
            some = SORTED[first : first + data.draw(st.integers(1, 80))]
            if data.draw(st.booleans()):
                mark_gone(world.store, some)
                ever_gone |= set(some)
            else:
                world.store.failures.forget(some)
            look(world)
        page = world.tree.entries_with_attributes(directory, place, data.draw(st.integers(1, 150)))
        if not page:
            break
        place += len(page)
        seen += [entry[0] for entry in page if entry is not None]
    assert seen == sorted(set(seen))
    assert set(seen) >= {clip.name for clip in set(CLIPS) - ever_gone}


@given(gone=st.sets(st.integers(0, 40)), count=st.integers(1, 41))
def test_place_is_that_of_the_name_that_is_left(gone: set[int], count: int) -> None:
    left = [place for place in range(60) if place not in gone]
    hidden = HiddenClips(positions={7: sorted(gone)})
    assert [hidden.position(7, number) for number in range(len(left))] == left
    assert list(hidden.between(7, 5, count)) == [place for place in sorted(gone) if 5 <= place < count]


@given(gone=st.sets(st.sampled_from(CLIPS)), offset=st.integers(0, 30_000), size=st.integers(1, 30_000))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_of_the_split_list_is_that_part(world: World, gone: set[Clip], offset: int, size: int) -> None:
    world.store.failures.forget()
    mark_gone(world.store, gone)
    look(world)
    expected = "".join(f"train/{FULL}/{name} 0\n" for name in names(set(CLIPS) - gone)).encode()
    handle = world.tree.open(world.control("train.csv")).result()
    assert handle.read(0, len(expected)) == expected
    begin = min(offset, len(expected))
    assert (
        handle.read(begin, min(size, len(expected) - begin)) == expected[begin : begin + size][: len(expected) - begin]
    )


def test_split_list_stays_as_it_was_opened(world: World) -> None:
    mark_gone(world.store, CLIPS[:7])
    look(world)
    handle = world.tree.open(world.control("train.csv")).result()
    before = handle.read(0, handle.size)
    assert handle.live
    mark_gone(world.store, CLIPS[5:300])
    look(world)
    assert handle.read(0, handle.size + 1) == before
    assert len(split_list(world)) < before.count(b"\n")


# The watch --------------------------------------------------------------------------------------------------------


def told_of(told: SimpleQueue[Name], clips: Collection[Clip], directory: int) -> None:
    """Waits until these names of a directory were told."""
    missing = {clip.name for clip in clips}
    while missing:
        name = told.get(timeout=30)
        if name.directory == directory:
            missing.remove(name.name)


def test_what_others_find_out_is_noticed(world: World) -> None:
    with watched(world) as told, Store(world.store.folder) as other:
        mark_gone(other, CLIPS[:50])
        told_of(told, CLIPS[:50], world.directory())
        assert listed(world) == names(CLIPS[50:])
        other.failures.forget(CLIPS[:20])
        told_of(told, CLIPS[:20], world.directory())
        assert listed(world) == names(set(CLIPS) - set(CLIPS[20:50]))


def test_what_was_found_out_before_the_watch_began_is_noticed(world: World) -> None:
    mark_gone(world.store, CLIPS[:5])
    with watched(world) as told:
        told_of(told, CLIPS[:5], world.directory())


def test_wait_that_is_over_is_noticed(world: World) -> None:
    mark_gone(world.store, CLIPS[:1], time.time() - A_WEEK + 3)
    look(world)
    assert not is_found(world, CLIPS[0])
    with watched(world) as told:
        told_of(told, CLIPS[:1], world.directory())
    assert is_found(world, CLIPS[0])


def test_clip_that_an_open_finds_gone_is_left_out(world: World) -> None:
    with watched(world) as told:
        ino = world.ino(CLIPS[30])
        opened = world.tree.open(ino)
        world.store.failures.remember(CLIPS[30], GONE)
        world.errands.fail(CLIPS[30], GONE)
        assert opened.exception(timeout=30) is GONE
        told_of(told, CLIPS[30:31], world.directory())
        assert not is_found(world, CLIPS[30])
        assert world.tree.attributes(ino).ino == ino


def test_watch_survives_a_ledger_that_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.tree._hidden is not None
    really: Callable[..., dict[str, float]] = world.store.failures.gone
    failed: list[bool] = []

    def gone(*arguments: Collection[str]) -> dict[str, float]:
        with world.store._database.connection() as db:
            if not failed:
                failed.append(True)
                db.execute("SELECT * FROM no_such_table")
        return really(*arguments)

    monkeypatch.setattr(world.store.failures, "gone", gone)
    with watched(world) as told:
        wait_until(lambda: failed)
        mark_gone(world.store, CLIPS[:3])
        told_of(told, CLIPS[:3], world.directory())


def test_places_are_those_of_the_listing(world: World) -> None:
    places = world.tree._catalog.positions([clip.key for clip in CLIPS] + ["nothing", "a" * 25])
    for directory in {place.directory for place in places}:
        found = [entry.name for entry in world.tree.entries(directory)]
        mine = [place for place in places if place.directory == directory]
        assert [place.position for place in mine] == list(range(len(found)))
        assert [f"{place.key}.mp4" for place in mine] == found
        assert bisect_left(found, found[-1]) == mine[-1].position
