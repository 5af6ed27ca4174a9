"""The limit holds, the least recently opened clip goes first, and nothing goes that need not."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.store import Store
from kinetics_fs.store import store as store_module
from tests.store import children
from tests.store.conftest import SmallDisk
from tests.store.helpers import (
    UNIT,
    assert_in_step,
    clip,
    clip_files,
    held,
    is_absent,
    is_whole,
    keep,
    query,
    read,
    write,
)
from tests.store.processes import end, start

# The limit


class Step(NamedTuple):
    """Something that is done to the store, with a clip."""

    verb: str
    number: int
    units: int


class Model:
    """What the store must hold, told in the simplest way: a list, the least recently opened clip first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.here: list[int] = []
        self.sizes: dict[int, int] = {}

    def make_room(self, units: int) -> None:
        while sum(self.sizes[number] for number in self.here) + units > self.limit:
            self.here.pop(0)

    def keep(self, number: int, units: int) -> None:
        self.make_room(self.sizes.get(number, 1))  # what is guessed, for the claim
        self.make_room(units)  # what it is
        if number in self.here:
            self.here.remove(number)
        self.here.append(number)
        self.sizes[number] = units

    def open(self, number: int) -> bool:
        if number not in self.here:
            return False
        self.here.remove(number)
        self.here.append(number)
        return True

    def drop(self, number: int) -> None:
        if number in self.here:
            self.here.remove(number)


STEPS = st.lists(
    st.builds(
        Step, st.sampled_from(["keep", "keep", "open", "open", "drop", "reopen"]), st.integers(0, 4), st.integers(1, 3)
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(3, 6))
def test_the_store_holds_what_a_list_would(steps: list[Step], limit: int) -> None:
    model = Model(limit)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        store = Store(Path(name), limit=limit * UNIT)
        for verb, number, units in steps:
            match verb:
                case "keep":
                    keep(store, clip(number), units * UNIT)
                    model.keep(number, units)
                case "open":
                    assert is_whole(store, clip(number), model.sizes.get(number, 1) * UNIT) == model.open(number)
                case "drop":
                    store.drop(clip(number))
                    model.drop(number)
                case "reopen":
                    store.close()
                    store = Store(Path(name), limit=limit * UNIT)
            assert held(store, 5) == sorted(model.here)
            assert store.usage().bytes == sum(model.sizes[number] for number in model.here) * UNIT <= limit * UNIT
            known = {clip(number): (units * UNIT, number in model.here) for number, units in model.sizes.items()}
            assert store.sizes([clip(number) for number in range(5)]) == known
        assert_in_step(Path(name))
        store.close()


def test_usage_says_what_is_held_and_reserved(folder: Path) -> None:
    with Store(folder, limit=10 * UNIT) as store:
        keep(store, clip(0), 3 * UNIT)
        claim = store.claim(clip(1))
        assert claim is not None
        with claim:
            usage = store.usage()
            assert (usage.clips, usage.bytes, usage.reserved, usage.limit) == (1, 3 * UNIT, UNIT, 10 * UNIT)
            disk = os.statvfs(folder)
            assert usage.disk_total == disk.f_blocks * disk.f_frsize
            assert usage.disk_free == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.05)
        assert store.usage().reserved == 0


def test_a_smaller_limit_is_kept_from_the_next_clip_on(folder: Path) -> None:
    with Store(folder) as store:
        for number in range(6):
            keep(store, clip(number))
    with Store(folder, limit=2 * UNIT) as store:
        keep(store, clip(6))
        assert held(store, 7) == [5, 6]


def test_clips_under_way_have_their_room_kept(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        for number in range(3):
            keep(store, clip(number))
        first, second = store.claim(clip(3)), store.claim(clip(4))
        assert first is not None
        assert second is not None
        with first, second:
            assert held(store, 3) == [2]
            first.publish(write(first), "test")
            second.publish(write(second), "test")
        assert held(store, 5) == [2, 3, 4]


def test_a_clip_of_known_size_has_just_that_reserved(folder: Path) -> None:
    with Store(folder, limit=4 * UNIT) as store:
        keep(store, clip(0), 3 * UNIT)
        store.drop(clip(0))
        keep(store, clip(1))
        keep(store, clip(2))
        claim = store.claim(clip(0))
        assert claim is not None
        with claim:
            assert store.usage().reserved == 3 * UNIT
            assert held(store, 3) == [2]


def test_more_clips_go_at_once_than_one_look_finds(folder: Path) -> None:
    with Store(folder, limit=200 * 1000) as store:
        for number in range(150):
            keep(store, clip(number), 1)
    with Store(folder, limit=UNIT) as store:
        keep(store, clip(200), UNIT)
        assert held(store, 201) == [200]
        assert_in_step(folder)


# What cannot fit


def assert_no_room(error: FetchError) -> None:
    assert error.kind is FailureKind.LOCAL
    assert error.errno == errno.ENOSPC
    assert "--cache-size" in error.reason


def test_a_clip_larger_than_the_limit_is_refused(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        with pytest.raises(FetchError) as caught:
            keep(store, clip(9), 3 * UNIT + 1)
        assert_no_room(caught.value)
        assert is_absent(store, clip(9))


def test_a_clip_that_is_refused_leaves_the_store_in_step(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        for number in range(3):
            keep(store, clip(number))
        with pytest.raises(FetchError):
            keep(store, clip(9), 3 * UNIT + 1)
        assert_in_step(folder)


def test_a_clip_that_is_refused_evicts_no_more_than_its_claim_did(folder: Path) -> None:
    with Store(folder, limit=3 * UNIT) as store:
        for number in range(3):
            keep(store, clip(number))
        with pytest.raises(FetchError):
            keep(store, clip(9), 3 * UNIT + 1)
        assert [number for number in range(3) if is_whole(store, clip(number))] == [1, 2]


def test_a_clip_known_to_be_larger_than_the_limit_is_not_even_fetched(folder: Path) -> None:
    with Store(folder) as store:
        for number in range(2):
            keep(store, clip(number))
        keep(store, clip(9), 4 * UNIT)
        store.drop(clip(9))
    with Store(folder, limit=3 * UNIT) as store:
        with pytest.raises(FetchError) as caught:
            store.claim(clip(9))
        assert_no_room(caught.value)
        assert [number for number in range(2) if is_whole(store, clip(number))] == [0, 1]
        assert_in_step(folder)


def test_a_limit_below_the_guess_still_holds_small_clips(folder: Path) -> None:
    with Store(folder, limit=UNIT // 2) as store:
        keep(store, clip(0), UNIT // 4)
        assert is_whole(store, clip(0), UNIT // 4)


# The order of use


@pytest.fixture
def three(folder: Path) -> Path:
    """The folder of a closed store with the clips 0, 1 and 2, put there in that order."""
    with Store(folder) as store:
        for number in range(3):
            keep(store, clip(number))
    return folder


def test_the_least_recently_opened_goes_first(three: Path) -> None:
    with Store(three, limit=3 * UNIT) as store:
        assert read(store, clip(1))
        assert read(store, clip(0))
        keep(store, clip(3))
        assert held(store, 4) == [0, 1, 3]
        keep(store, clip(4))
        assert held(store, 5) == [0, 3, 4]


def test_the_order_of_use_outlives_the_process(three: Path) -> None:
    with Store(three) as store:
        assert read(store, clip(0))
    with Store(three, limit=3 * UNIT) as store:
        keep(store, clip(3))
        assert held(store, 4) == [0, 2, 3]


def test_the_order_of_use_is_that_of_all_processes(three: Path) -> None:
    with Store(three, limit=3 * UNIT) as store:
        assert read(store, clip(1))
        assert end(start(children.open_clip, three, 0)) == 0
        keep(store, clip(3))
        assert held(store, 4) == [0, 1, 3]


def test_an_older_note_does_not_undo_a_later_one(three: Path) -> None:
    with Store(three) as slow:
        assert read(slow, clip(0))
        assert read(slow, clip(1))
        with Store(three) as quick:
            assert read(quick, clip(0))
    with Store(three, limit=3 * UNIT) as store:
        keep(store, clip(3), 2 * UNIT)
        assert held(store, 4) == [0, 3]


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """What shows a write to any file of the folder, but for SQLite's shared memory."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if not path.name.endswith("-shm")
    }


def test_opening_writes_nothing(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_NOTE_OPENS_EVERY", 60.0)
    with Store(three) as store:
        before = state_of(three)
        for _ in range(100):
            for number in range(3):
                assert not is_absent(store, clip(number))
            assert is_absent(store, clip(9))
        assert state_of(three) == before


def test_many_opens_are_noted_together_after_a_while(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_NOTE_OPENS_EVERY", 0.05)

    def opened_at() -> list[float]:
        return [at for (at,) in query(three / "ledger.sqlite", "SELECT opened_at FROM clip ORDER BY key")]

    with Store(three) as store:
        before = time.time()
        for number in range(3):
            assert not is_absent(store, clip(number))
        assert max(opened_at()) < before, "not at once"
        deadline = time.monotonic() + 10
        while min(opened_at()) < before:
            assert time.monotonic() < deadline, "never noted"
            time.sleep(0.01)


# The disk


def free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def test_the_disk_keeps_free_what_it_is_told_to(small_disk: SmallDisk) -> None:
    folder = small_disk(16 * UNIT) / "cache"
    with Store(folder, min_free=8 * UNIT) as store:
        for number in range(12):
            keep_dense(store, number)
            assert free(folder) >= 8 * UNIT
        assert held(store, 12)[-1] == 11
        assert_in_step(folder)


def test_nothing_goes_while_the_disk_has_room(small_disk: SmallDisk) -> None:
    folder = small_disk(16 * UNIT) / "cache"
    with Store(folder, min_free=8 * UNIT) as store:
        for number in range(6):
            keep_dense(store, number)
        assert free(folder) >= 9 * UNIT
        claim = store.claim(clip(6))
        assert claim is not None
        with claim:
            path = claim.folder / "finished.mp4"
            path.write_bytes(b"x" * UNIT)
            assert free(folder) >= 8 * UNIT, "it fits as it is"
            claim.publish(path, "test")
        assert held(store, 7) == list(range(7))


def test_a_disk_that_others_fill_gives_no_room(small_disk: SmallDisk) -> None:
    disk = small_disk(8 * UNIT)
    with Store(disk / "cache", min_free=4 * UNIT) as store:
        (disk / "other").write_bytes(b"x" * 5 * UNIT)
        with pytest.raises(FetchError) as caught:
            store.claim(clip(0))
        assert_no_room(caught.value)
        (disk / "other").unlink()
        keep(store, clip(0))
        assert is_whole(store, clip(0))


def test_a_claim_without_room_evicts_nothing(small_disk: SmallDisk) -> None:
    disk = small_disk(10 * UNIT)
    with Store(disk / "cache", min_free=4 * UNIT) as store:
        keep_dense(store, 0)
        (disk / "other").write_bytes(b"x" * 7 * UNIT)
        with pytest.raises(FetchError):
            store.claim(clip(1))
        assert not is_absent(store, clip(0)), "its bytes would not have been enough"
        assert_in_step(store.folder)


def keep_dense(store: Store, number: int) -> None:
    """Puts a clip into the store that takes its room on the disk."""
    claim = store.claim(clip(number))
    assert claim is not None
    with claim:
        path = claim.folder / "finished.mp4"
        path.write_bytes(b"x" * UNIT)
        claim.publish(path, "test")


def fill(disk: Path) -> Path:
    """Takes every last byte of the disk."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (UNIT, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


@pytest.mark.parametrize("moment", ["before the claim", "before publishing"])
def test_a_full_disk_is_an_error_that_says_so_and_no_clip(small_disk: SmallDisk, moment: str) -> None:
    disk = small_disk(8 * UNIT)
    with Store(disk / "cache") as store:
        for number in range(2):
            keep_dense(store, number)
        filler = None
        with pytest.raises((FetchError, StoreError)):
            if moment == "before the claim":
                filler = fill(disk)
            claim = store.claim(clip(2))
            assert claim is not None
            with claim:
                path = claim.folder / "finished.mp4"
                path.touch()  # an empty file: nothing but the store itself needs room
                filler = filler or fill(disk)
                claim.publish(path, "test")
                raise StoreError("it was published, against all odds")
        assert filler is not None
        filler.unlink()
        for number in range(3):
            if not is_absent(store, clip(number)):
                assert read(store, clip(number)) == (b"x" * UNIT if number < 2 else b"")
        keep_dense(store, 3)
        assert not is_absent(store, clip(3)), "the store works again when there is room again"
    with Store(disk / "cache"):
        assert_in_step(disk / "cache")


Act = Callable[[Store], object]

ACTS: dict[str, Act] = {
    "drop": lambda store: store.drop(clip(0)),
    "remember a failure": lambda store: store.remember_failure(clip(7), FetchError(FailureKind.GONE, "x" * 10_000)),
    "forget failures": lambda store: store.forget_failures(),
}


@pytest.mark.parametrize("name", ACTS)
def test_on_a_full_disk_everything_fails_with_a_sentence_if_at_all(small_disk: SmallDisk, name: str) -> None:
    disk = small_disk(4 * UNIT)
    with Store(disk / "cache") as store:
        keep_dense(store, 0)
        filler = fill(disk)
        try:
            ACTS[name](store)
        except (FetchError, StoreError) as error:
            assert "\n" not in str(error)
        assert is_absent(store, clip(0)) or read(store, clip(0)) == b"x" * UNIT
        filler.unlink()
        keep_dense(store, 1)


def test_cached_clips_are_read_from_a_full_disk(small_disk: SmallDisk) -> None:
    disk = small_disk(4 * UNIT)
    with Store(disk / "cache") as store:
        keep_dense(store, 0)
        filler = fill(disk)
        assert read(store, clip(0)) == b"x" * UNIT
        filler.unlink()


def test_a_store_cannot_be_opened_on_a_full_disk_and_says_so(small_disk: SmallDisk) -> None:
    disk = small_disk(4 * UNIT)
    filler = fill(disk)
    with pytest.raises(StoreError) as caught:
        Store(disk / "cache")
    assert "\n" not in str(caught.value)
    filler.unlink()
    Store(disk / "cache").close()


def test_a_process_out_of_file_descriptors_loses_no_clip(three: Path) -> None:
    assert end(start(children.open_without_descriptors, three, 0)) == 0
    with Store(three) as store:
        assert held(store, 3) == [0, 1, 2]
        assert is_whole(store, clip(0))
    assert len(clip_files(three)) == 3
