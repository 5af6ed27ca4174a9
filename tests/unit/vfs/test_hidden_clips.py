"""Hidden clips, without a kernel."""

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
from kinetics_fs.store import LASTING_KINDS, LastingFailure, Store
from kinetics_fs.vfs import ROOT, FilesystemOptions, Name
from kinetics_fs.vfs.hidden import HiddenClips
from tests.support.example_filesystem import CLIPS, FULL, TWICE, ExampleFilesystem, content, example_filesystem, put
from tests.support.mounts import mark_gone, wait_until
from tests.support.store import fast_folder

GONE = FetchError(FailureKind.GONE, "removed", source="youtube")
SORTED = sorted(CLIPS, key=lambda clip: clip.name)
A_WEEK = 7 * 86400.0


@pytest.fixture
def example() -> Iterator[ExampleFilesystem]:
    with fast_folder() as folder, example_filesystem(folder, FilesystemOptions(hide_unavailable=True)) as example:
        yield example


@contextmanager
def watched(example: ExampleFilesystem) -> Iterator[SimpleQueue[Name]]:
    """Run a watcher of the filesystem; yield the queue of the names that it reports."""
    told: SimpleQueue[Name] = SimpleQueue()
    watch = example.fs.watch_names(told.put)
    assert watch is not None
    try:
        yield told
    finally:
        watch.stop()
        watch.join(30)
        assert not watch.is_alive()


def look(example: ExampleFilesystem) -> set[Name]:
    """Refresh the hidden clips; return the names that appeared or disappeared."""
    assert example.fs._hidden is not None
    names = example.fs._hidden.refresh()
    assert len(names) == len(set(names))
    return set(names)


def listed(example: ExampleFilesystem, split: str = "train") -> list[str]:
    return [entry.name for entry in example.fs.entries(example.directory(split))]


def is_found(example: ExampleFilesystem, clip: Clip, split: str = "train") -> bool:
    try:
        example.ino(clip, split)
    except FileNotFoundError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def names(clips: Collection[Clip]) -> list[str]:
    return sorted(clip.name for clip in clips)


def split_list(example: ExampleFilesystem, split: str = "train") -> list[str]:
    """Return the paths in `<split>.csv`."""
    handle = example.fs.open(example.control(f"{split}.csv")).result()
    assert handle.size == example.fs.attributes(example.control(f"{split}.csv")).size
    return [line.rpartition(" ")[0] for line in handle.read(0, handle.size + 1).decode().splitlines()]


def test_gone_clip_is_hidden_in_every_class(example: ExampleFilesystem) -> None:
    clip = CLIPS[0]
    before = example.fs.statistics().files
    numbers = [example.ino(other) for other in CLIPS[1:]]
    mark_gone(example.store, [clip])
    assert is_found(example, clip)
    assert {(name.directory, name.name) for name in look(example)} == {
        (directory, clip.name)
        for directory in (example.directory(), example.directory("validation"), odd_directory(example))
    }
    for split in ("train", "validation"):
        assert clip.name not in listed(example, split)
        assert not is_found(example, clip, split)
        assert not any(clip.name in path for path in split_list(example, split))
    assert example.fs.statistics().files == before - 3
    assert example.fs.hidden.total == 3
    assert [example.ino(other) for other in CLIPS[1:]] == numbers
    assert clip.name in example.fs.open(example.control("failures.csv")).result().read(0, 10_000).decode()


def odd_directory(example: ExampleFilesystem) -> int:
    train = example.fs.lookup(ROOT, "train")
    [ino] = [entry.ino for entry in example.fs.entries(train) if entry.name != FULL]
    return ino


def test_clips_without_a_lasting_failure_or_cached_or_due_stay_visible(example: ExampleFilesystem) -> None:
    for clip, kind in zip(CLIPS, FailureKind, strict=False):
        example.store.failures.remember(clip, FetchError(kind, "reason"))
    lasting = (FailureKind.GONE, FailureKind.CREDENTIALS, FailureKind.CORRUPT)
    hidden = [clip for clip, kind in zip(CLIPS, FailureKind, strict=False) if kind in lasting]
    put(example.store, CLIPS[20], content(CLIPS[20]))
    example.store.failures.remember(CLIPS[20], GONE)
    example.store.failures.remember(CLIPS[21], GONE)
    example.store.failures.make_due(CLIPS[21])
    mark_gone(example.store, [CLIPS[22]], time.time() - A_WEEK - 1)
    look(example)
    assert listed(example) == names(set(CLIPS) - set(hidden))


def test_hidden_clip_reappears(example: ExampleFilesystem) -> None:
    mark_gone(example.store, CLIPS[:10])
    assert len(look(example)) == 10 + TWICE + 3
    example.store.failures.forget(CLIPS[:1])
    example.store.failures.make_due(CLIPS[1])
    put(example.store, CLIPS[2], content(CLIPS[2]))
    assert {name.name for name in look(example)} == {clip.name for clip in CLIPS[:3]}
    assert listed(example) == names(set(CLIPS) - set(CLIPS[3:10]))
    assert look(example) == set()
    example.store.remove(CLIPS[2])
    example.store.failures.forget()
    look(example)
    assert listed(example) == names(CLIPS)
    assert example.fs.hidden.total == 0


def test_class_without_visible_clips_stays_as_an_empty_directory(example: ExampleFilesystem) -> None:
    mark_gone(example.store, CLIPS[:TWICE])
    look(example)
    assert listed(example, "validation") == []
    assert example.fs.attributes(example.directory("validation")).links == 2
    assert split_list(example, "validation") == []


def test_nothing_is_hidden_without_the_option() -> None:
    with fast_folder() as folder, example_filesystem(folder) as example:
        mark_gone(example.store, CLIPS)
        assert example.fs.watch_names(lambda _name: None) is None
        assert listed(example) == names(CLIPS)
        assert is_found(example, CLIPS[0])
        assert example.fs.hidden.total == 0


def test_invalid_rows_of_the_database_hide_nothing(example: ExampleFilesystem) -> None:
    with closing(sqlite3.connect(example.store.layout.state_database, isolation_level=None)) as database:
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
            database.execute(
                "INSERT INTO failure VALUES (?, 'gone', '', '', NULL, 0, ?, 1, ?)", (key, number, retry_at)
            )
    look(example)
    assert listed(example) == names(set(CLIPS) - {CLIPS[5]})


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_listing_in_progress_neither_skips_nor_repeats(example: ExampleFilesystem, data: st.DataObject) -> None:
    """Names that are visible all the time are listed once and in order, whatever else changes."""
    example.store.failures.forget()
    look(example)
    directory, offset = example.directory(), 0
    seen: list[str] = []
    ever_gone: set[Clip] = set()
    while True:
        if data.draw(st.booleans()):
            first = data.draw(st.integers(0, len(SORTED) - 1))
            some = SORTED[first : first + data.draw(st.integers(1, 80))]
            if data.draw(st.booleans()):
                mark_gone(example.store, some)
                ever_gone |= set(some)
            else:
                example.store.failures.forget(some)
            look(example)
        page = example.fs.entries_with_attributes(directory, offset, data.draw(st.integers(1, 150)))
        if not page:
            break
        offset += len(page)
        seen += [entry[0] for entry in page if entry is not None]
    assert seen == sorted(set(seen))
    assert set(seen) >= {clip.name for clip in set(CLIPS) - ever_gone}


@given(gone=st.sets(st.integers(0, 40)), count=st.integers(1, 41))
def test_position_of_a_visible_name(gone: set[int], count: int) -> None:
    left = [position for position in range(60) if position not in gone]
    hidden = HiddenClips(positions={7: sorted(gone)})
    assert [hidden.position(7, number) for number in range(len(left))] == left
    assert list(hidden.between(7, 5, count)) == [position for position in sorted(gone) if 5 <= position < count]


@given(gone=st.sets(st.sampled_from(CLIPS)), offset=st.integers(0, 30_000), size=st.integers(1, 30_000))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_of_the_split_list_is_correct(
    example: ExampleFilesystem, gone: set[Clip], offset: int, size: int
) -> None:
    example.store.failures.forget()
    mark_gone(example.store, gone)
    look(example)
    expected = "".join(f"train/{FULL}/{name} 0\n" for name in names(set(CLIPS) - gone)).encode()
    handle = example.fs.open(example.control("train.csv")).result()
    assert handle.read(0, len(expected)) == expected
    begin = min(offset, len(expected))
    assert (
        handle.read(begin, min(size, len(expected) - begin)) == expected[begin : begin + size][: len(expected) - begin]
    )


def test_split_list_keeps_its_content_while_open(example: ExampleFilesystem) -> None:
    mark_gone(example.store, CLIPS[:7])
    look(example)
    handle = example.fs.open(example.control("train.csv")).result()
    before = handle.read(0, handle.size)
    assert handle.live
    mark_gone(example.store, CLIPS[5:300])
    look(example)
    assert handle.read(0, handle.size + 1) == before
    assert len(split_list(example)) < before.count(b"\n")


# The watch --------------------------------------------------------------------------------------------------------


def told_of(told: SimpleQueue[Name], clips: Collection[Clip], directory: int) -> None:
    """Wait until the watcher has reported these names of a directory."""
    missing = {clip.name for clip in clips}
    while missing:
        name = told.get(timeout=30)
        if name.directory == directory:
            missing.remove(name.name)


def test_watcher_reports_failures_of_other_processes(example: ExampleFilesystem) -> None:
    with watched(example) as told, Store(example.store.folder) as other:
        mark_gone(other, CLIPS[:50])
        told_of(told, CLIPS[:50], example.directory())
        assert listed(example) == names(CLIPS[50:])
        other.failures.forget(CLIPS[:20])
        told_of(told, CLIPS[:20], example.directory())
        assert listed(example) == names(set(CLIPS) - set(CLIPS[20:50]))


def test_watcher_reports_failures_from_before_it_started(example: ExampleFilesystem) -> None:
    mark_gone(example.store, CLIPS[:5])
    with watched(example) as told:
        told_of(told, CLIPS[:5], example.directory())


def test_watcher_reports_a_clip_that_is_due(example: ExampleFilesystem) -> None:
    mark_gone(example.store, CLIPS[:1], time.time() - A_WEEK + 3)
    look(example)
    assert not is_found(example, CLIPS[0])
    with watched(example) as told:
        told_of(told, CLIPS[:1], example.directory())
    assert is_found(example, CLIPS[0])


@pytest.mark.parametrize("kind", LASTING_KINDS)
def test_clip_that_an_open_finds_unavailable_is_hidden_at_once(example: ExampleFilesystem, kind: FailureKind) -> None:
    failure = FetchError(kind, "not for us", source="youtube")
    with watched(example) as told:
        ino = example.ino(CLIPS[30])
        opened = example.fs.open(ino)
        example.store.failures.remember(CLIPS[30], failure)
        example.fetcher.fail(CLIPS[30], failure)
        assert opened.exception(timeout=30) is failure
        told_of(told, CLIPS[30:31], example.directory())
        assert not is_found(example, CLIPS[30])
        assert example.fs.attributes(ino).ino == ino


def test_watcher_survives_a_failing_database(example: ExampleFilesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert example.fs._hidden is not None
    really: Callable[..., dict[str, LastingFailure]] = example.store.failures.unavailable
    failed: list[bool] = []

    def unavailable(*arguments: Collection[str]) -> dict[str, LastingFailure]:
        with example.store._database.connection() as db:
            if not failed:
                failed.append(True)
                db.execute("SELECT * FROM no_such_table")
        return really(*arguments)

    monkeypatch.setattr(example.store.failures, "unavailable", unavailable)
    with watched(example) as told:
        wait_until(lambda: failed)
        mark_gone(example.store, CLIPS[:3])
        told_of(told, CLIPS[:3], example.directory())


def test_positions_are_those_of_the_listing(example: ExampleFilesystem) -> None:
    positions = example.fs._catalog.positions([clip.key for clip in CLIPS] + ["nothing", "a" * 25])
    for directory in {one.directory for one in positions}:
        found = [entry.name for entry in example.fs.entries(directory)]
        mine = [one for one in positions if one.directory == directory]
        assert [one.position for one in mine] == list(range(len(found)))
        assert [f"{one.key}.mp4" for one in mine] == found
        assert bisect_left(found, found[-1]) == mine[-1].position


def test_clips_that_another_source_has_stay_visible() -> None:
    asked: list[set[str]] = []

    def elsewhere(keys: Collection[str]) -> set[str]:
        asked.append(set(keys))
        return {CLIPS[0].key, CLIPS[1].key} & set(keys)

    options = FilesystemOptions(hide_unavailable=True, elsewhere=elsewhere)
    with fast_folder() as folder, example_filesystem(folder, options) as example:
        mark_gone(example.store, CLIPS[:5])
        look(example)
        assert listed(example) == names(set(CLIPS) - set(CLIPS[2:5]))
        mark_gone(example.store, CLIPS[5:7])
        look(example)
        assert listed(example) == names(set(CLIPS) - set(CLIPS[2:7]))
        example.store.failures.remember(CLIPS[0], FetchError(FailureKind.CORRUPT, "broken", source="folder"))
        look(example)
        assert listed(example) == names(set(CLIPS) - set(CLIPS[2:7]) - {CLIPS[0]}), "what the folder has is broken"
    assert [keys for keys in asked if keys] == [
        {clip.key for clip in CLIPS[:5]},
        {clip.key for clip in CLIPS[5:7]},
    ], "each clip is looked for once"
