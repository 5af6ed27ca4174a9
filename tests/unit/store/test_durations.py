"""Durations: the store remembers how long the pictures of each clip are, as long as they are those of the clip."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.store import CacheLayout, Store
from kinetics_fs.store.clip_files import MeasuredFile
from tests.support.store import change_row, clip, contents, keep, lose, query, row_key, write


def keep_seconds(store: Store, wanted: Clip, duration: float | None) -> None:
    """Put a clip with a duration into the store."""
    claim = store.claim(wanted)
    assert claim is not None
    with claim:
        claim.publish(write(claim), "test", duration=duration)


def duration(store: Store, wanted: Clip) -> float | None:
    record = store.record(wanted)
    assert record is not None
    return record.duration


@pytest.mark.parametrize(
    ("measured", "seconds", "is_short"),
    [
        *((10.0, 10, False), (9.0, 10, False), (8.96, 10, True), (0.04, 10, True), (12.5, 10, False)),
        *((0.0, 10, True), (1.8, 2, False), (1.7, 2, True), (None, 10, False)),
    ],
)
def test_a_clip_is_short_below_nine_tenths_of_its_row(
    folder: Path, measured: float | None, seconds: int, is_short: bool
) -> None:
    short = Clip("-_012345678", 90_000, 90_000 + seconds)
    with Store(folder) as store:
        keep_seconds(store, short, measured)
        keep_seconds(store, clip(0), 1.0)

        assert store.short_clips.count([short.key, clip(1).key]) == is_short


def test_the_duration_of_a_clip_is_kept_when_it_is_evicted(folder: Path) -> None:
    with Store(folder) as store:
        keep_seconds(store, clip(0), 4.04)
        keep_seconds(store, clip(1), None)
        assert store.short_clips.count([clip(number).key for number in range(3)]) == 1

    with Store(folder) as store:
        store.remove(clip(0))

        assert (duration(store, clip(0)), duration(store, clip(1))) == (4.04, None)


def test_another_file_of_the_clip_has_its_own_duration(folder: Path) -> None:
    with Store(folder) as store:
        keep_seconds(store, clip(0), 4.0)
        keep_seconds(store, clip(0), 9.5)
        assert duration(store, clip(0)) == 9.5

        keep_seconds(store, clip(0), None)
        assert duration(store, clip(0)) is None
        assert store.short_clips.count([clip(0).key]) == 0


def test_durations_survive_the_loss_of_the_state_database(folder: Path) -> None:
    with Store(folder) as store:
        keep_seconds(store, clip(0), 4.0)
        keep_seconds(store, clip(1), None)
        store.add_durations([MeasuredFile(clip(1).key, SOURCE, contents(folder).rows[row_key(clip(1))][0], 7.0)])
    lose(CacheLayout(folder).state_database)

    with Store(folder) as store:
        assert (duration(store, clip(0)), duration(store, clip(1))) == (4.0, 7.0)


def test_a_duration_is_added_only_to_the_file_that_was_measured(folder: Path) -> None:
    with Store(folder) as store:
        keep(store, clip(0))
        keep(store, clip(1))
        files = {number: contents(folder).rows[row_key(clip(number))][0] for number in (0, 1)}
        keep(store, clip(1))

        store.add_durations(MeasuredFile(clip(number).key, SOURCE, file, 5.0) for number, file in files.items())

        assert (duration(store, clip(0)), duration(store, clip(1))) == (5.0, None)


@pytest.mark.parametrize("value", ["long", b"\0", 1e999, -1.0, "nan"])
def test_an_invalid_duration_is_unknown(folder: Path, value: object) -> None:
    layout = CacheLayout(folder)
    with Store(folder) as store:
        keep_seconds(store, clip(0), 4.0)
    query(layout.state_database, "UPDATE clip SET duration = ?", value)
    with Store(folder) as store:
        assert duration(store, clip(0)) is None
        assert store.short_clips.count([clip(0).key]) == 0


@pytest.mark.parametrize("value", ['"long"', "[1]", "1e999", "-1.0", "NaN", "null", "true"])
def test_an_invalid_duration_in_the_table_of_files_is_unknown(folder: Path, value: str) -> None:
    with Store(folder) as store:
        keep_seconds(store, clip(0), 4.0)
    [(tag,)] = query(CacheLayout(folder).clip_table, "SELECT tag FROM Cache")
    change_row(folder, clip(0), tag=tag.replace('"duration": 4.0', f'"duration": {value}'))
    lose(CacheLayout(folder).state_database)

    with Store(folder) as store:
        assert store.is_cached(clip(0))
        assert duration(store, clip(0)) is None
