"""Profiles: one cache has clips that were cut with different settings, and each store shows those of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.profile import SOURCE, UNKNOWN, CutProfile, is_profile
from kinetics_fs.store import CacheLayout, Condition, Store, verify_clips
from kinetics_fs.store.check import remove_bad
from tests.support.store import (
    UNIT,
    assert_in_step,
    assert_nothing_unknown,
    clip,
    clip_files,
    contents,
    lose,
    query,
    read_clip,
    write,
)

HIGH, LOW = CutProfile(360), CutProfile(144)


def keep(store: Store, wanted: Clip, size: int = UNIT, *, cut: bool = True, duration: float | None = None) -> None:
    """Put a clip into the store, cut with its settings or as a source publishes it."""
    claim = store.claim(wanted)
    assert claim is not None
    with claim:
        claim.publish(write(claim, size), "youtube" if cut else "archive", cut=cut, duration=duration)


def size_of(store: Store, wanted: Clip) -> int | None:
    """Return the size of a clip when it is opened; None if it is not cached."""
    data = read_clip(store, wanted)
    return None if data is None else len(data)


# Names


def test_the_names_of_profiles_never_change() -> None:
    # They are in caches and in shared stores.
    assert CutProfile().name == "1d88a8b2635266f8"
    assert CutProfile(144).name == "62470e47da8512a9"
    assert CutProfile(360, exact=False).name == "0151782390954c2c"


def test_settings_that_change_the_pictures_change_the_name() -> None:
    settings = [
        CutProfile(),
        CutProfile(144),
        CutProfile(exact=False),
        CutProfile.of(360, exact=True, ytdlp={"format": "worst"}),
        CutProfile.of(360, exact=True, ytdlp={"format": "worst", "format_sort": ["res"]}),
    ]
    assert len({profile.name for profile in settings}) == len({str(profile) for profile in settings}) == len(settings)
    assert all(is_profile(profile.name) for profile in settings)
    assert CutProfile.of(360, exact=True, ytdlp={"retries": 7}) == CutProfile()


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "Source", "3A6B6A9BA4A3D0F0", "3a6b6a9ba4a3d0f", "source\n"])
def test_other_texts_are_no_profiles(text: str) -> None:
    assert not is_profile(text)


# What a store shows


def test_a_clip_that_was_cut_with_other_settings_is_not_cached(folder: Path) -> None:
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0), UNIT)

        assert high.is_cached(clip(0))
        assert not low.is_cached(clip(0))
        assert size_of(low, clip(0)) is None
        assert low.peek(clip(0)) is None
        assert low.record(clip(0)) is None
        assert low.sizes([clip(0).key]) == {}
        assert list(low.cached_clips()) == []

        keep(low, clip(0), UNIT // 2)
        for store, size in ((high, UNIT), (low, UNIT // 2)):
            assert size_of(store, clip(0)) == size
            assert store.sizes([clip(0).key]) == {clip(0).key: (size, True)}
            assert list(store.cached_clips()) == [(clip(0), size)]
            record = store.record(clip(0))
            assert record is not None and (record.profile, record.size) == (store.profile.name, size)
        assert [file.profile for file in high.cached_files()] == sorted([HIGH.name, LOW.name])
        assert (high.usage().clips, high.usage().bytes) == (2, UNIT + UNIT // 2)
        assert_in_step(folder, processes=2)


def test_every_store_shows_what_a_source_publishes(folder: Path) -> None:
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0), cut=False)

        assert size_of(low, clip(0)) == size_of(high, clip(0)) == UNIT
        record = low.record(clip(0))
        assert record is not None and record.profile == SOURCE


@pytest.mark.parametrize("cut_first", [True, False])
def test_its_own_settings_are_before_what_a_source_publishes(folder: Path, cut_first: bool) -> None:
    sizes = {True: UNIT // 2, False: UNIT}
    with Store(folder, profile=HIGH) as store, Store(folder, profile=LOW) as other:
        for cut in (cut_first, not cut_first):
            keep(store, clip(0), sizes[cut], cut=cut)

        assert size_of(store, clip(0)) == store.sizes([clip(0).key])[clip(0).key].size == UNIT // 2
        assert size_of(other, clip(0)) == other.sizes([clip(0).key])[clip(0).key].size == UNIT


def test_a_running_process_shows_the_longer_clip_that_another_one_stored(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0), cut=False, duration=4.0)
        assert size_of(store, clip(0)) == UNIT  # and remembers which file it is
        with Store(folder) as other:
            keep(other, clip(0), UNIT // 2, duration=10.0)
        assert size_of(store, clip(0)) == UNIT // 2


def test_the_size_of_an_evicted_clip_is_that_of_the_own_settings(folder: Path) -> None:
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0), UNIT)
        keep(low, clip(0), UNIT // 2)
        low.remove(clip(0))

        assert high.sizes([clip(0).key]) == {clip(0).key: (UNIT, False)}
        assert low.sizes([clip(0).key]) == {clip(0).key: (UNIT // 2, False)}
        assert_in_step(folder, processes=2)


def test_a_lost_file_of_the_own_settings_leaves_the_other_one(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0), UNIT // 2)
        keep(store, clip(0), UNIT, cut=False)
    [own] = [path for path in clip_files(folder) if path.stat().st_size == UNIT // 2]
    own.unlink()
    with Store(folder) as store:
        assert size_of(store, clip(0)) == UNIT
        assert_in_step(folder)


def test_a_failure_hides_a_clip_only_where_it_is_not_cached(folder: Path) -> None:
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0))
        low.failures.remember(clip(0), FetchError(FailureKind.GONE, "Video unavailable", source="youtube"))

        assert list(low.failures.unavailable()) == [clip(0).key]
        assert list(high.failures.unavailable()) == []


# What applies to all files


def test_eviction_counts_and_evicts_all_profiles(folder: Path) -> None:
    with Store(folder, profile=HIGH, limit=2 * UNIT) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0))
        keep(low, clip(0))
        assert size_of(high, clip(0)) == UNIT  # used last
        keep(high, clip(1))

        assert (high.is_cached(clip(0)), low.is_cached(clip(0)), high.is_cached(clip(1))) == (True, False, True)
        assert high.usage().bytes == 2 * UNIT
        assert_in_step(folder, processes=2)


def test_a_pin_keeps_the_files_of_all_profiles(folder: Path) -> None:
    with Store(folder, profile=HIGH, limit=4 * UNIT) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0))
        high.pins.add([clip(0), clip(9)])
        keep(low, clip(0))
        keep(low, clip(0), cut=False)
        for number in range(1, 5):
            keep(low, clip(number))

        assert {file.profile for file in high.cached_files([clip(0).key])} == {HIGH.name, LOW.name, SOURCE}
        assert high.pins.totals() == low.pins.totals() == (2, 1, 3 * UNIT)
        assert high.pins.of([clip(0).key]) == (1, 1, 3 * UNIT)
        assert high.capacity() == UNIT
        low.pins.remove([clip(0)])
        assert high.pins.totals() == (1, 0, 0)


def test_damaged_files_of_all_profiles_are_found_and_removed(folder: Path) -> None:
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0))
        keep(low, clip(0), UNIT // 2)
        keep(high, clip(0), UNIT // 4, cut=False)
        [bad] = [path for path in clip_files(folder) if path.stat().st_size == UNIT // 2]
        bad.chmod(0o600)
        bad.write_bytes(b"x" * (UNIT // 2))

        verdicts = list(verify_clips(high, high.cached_files()))
        assert {one.profile: one.condition for one in verdicts} == {
            HIGH.name: Condition.GOOD,
            LOW.name: Condition.DAMAGED,
            SOURCE: Condition.GOOD,
        }
        assert [remove_bad(high, one) for one in verdicts if one.condition is Condition.DAMAGED] == [True]
        assert size_of(low, clip(0)) == UNIT // 4
        assert list(high.unknown_files()) == []
        assert_in_step(folder, processes=2)


def test_profiles_survive_the_loss_of_the_state_database(folder: Path) -> None:
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        keep(high, clip(0), UNIT)
        keep(low, clip(0), UNIT // 2)
    lose(CacheLayout(folder).state_database)
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        assert (size_of(high, clip(0)), size_of(low, clip(0))) == (UNIT, UNIT // 2)
        assert_in_step(folder, processes=2)


def test_a_fetch_whose_process_died_is_completed_with_its_profile(folder: Path) -> None:
    with Store(folder, profile=LOW) as low:
        keep(low, clip(0))
        [(name, _)] = contents(folder).rows.values()
        token = name.split(".")[1]
    state = CacheLayout(folder).state_database
    query(state, "DELETE FROM clip")
    query(state, "INSERT INTO fetch VALUES (?, ?, ?, 1)", clip(0).key, token, "0" * 32)
    with Store(folder, profile=HIGH) as high, Store(folder, profile=LOW) as low:
        assert (high.is_cached(clip(0)), low.is_cached(clip(0))) == (False, True)
        assert_in_step(folder, processes=2)


def test_a_row_with_an_invalid_profile_is_removed(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
    layout = CacheLayout(folder)
    query(layout.clip_table, "UPDATE Cache SET key = ? WHERE key LIKE ?", f"{clip(0).key}.../x", f"{clip(0).key}%")
    lose(layout.state_database)
    with Store(folder) as store:
        assert (store.is_cached(clip(0)), store.is_cached(clip(1))) == (False, True)
        assert_nothing_unknown(folder)
        assert_in_step(folder)


def test_what_is_cached_with_unknown_settings_is_shown_last(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0), UNIT // 2)
        keep(store, clip(1), UNIT // 2)
    layout = CacheLayout(folder)
    query(layout.state_database, "UPDATE clip SET profile = ?", UNKNOWN)
    query(layout.clip_table, "UPDATE Cache SET key = substr(key, 1, 26) || ?", UNKNOWN)
    for profile in (HIGH, LOW):
        with Store(folder, profile=profile) as store:
            assert size_of(store, clip(0)) == UNIT // 2
            record = store.record(clip(0))
            assert record is not None and record.profile == UNKNOWN
    with Store(folder, profile=LOW) as store:
        keep(store, clip(0), cut=False)
        keep(store, clip(1), UNIT // 4)
        assert (size_of(store, clip(0)), size_of(store, clip(1))) == (UNIT, UNIT // 4)
