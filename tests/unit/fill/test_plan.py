"""In which order several machines take archives, and which archives are left."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kinetics_fs.errors import SettingError
from kinetics_fs.fill.plan import ArchivesLeft, Shard

NAMES = [f"600/val/part_{number:02}.tar.gz" for number in range(16)]


def order(shard: Shard) -> list[str]:
    ranks = shard.ranks(NAMES)
    return sorted(NAMES, key=ranks.__getitem__)


@pytest.mark.parametrize("count", [1, 3, 5, 16, 40])
def test_shards_cover_all_archives_once_and_each_machine_takes_the_rest(count: int) -> None:
    shards = [Shard(index, count) for index in range(count)]
    own = [name for shard in shards for name, rank in shard.ranks(NAMES).items() if rank == 0]
    assert sorted(own) == NAMES
    for shard in shards:
        assert sorted(order(shard)) == NAMES


def test_a_machine_goes_on_with_the_shard_of_the_next() -> None:
    ranks = Shard(2, 4).ranks(NAMES)
    assert [ranks[NAMES[position]] for position in (2, 6, 3, 0, 1)] == [0, 0, 1, 2, 3]


def test_machines_of_an_unknown_number_start_far_from_each_other() -> None:
    first = [order(Shard(index, None))[0] for index in range(8)]
    assert len(set(first)) == 8
    positions = sorted(NAMES.index(name) for name in first)
    assert max(after - before for before, after in pairwise(positions)) <= 4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "8", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_PROCID": "3"}, None),
        ({"JOB_COMPLETION_INDEX": "5"}, (5, None)),
        ({"JOB_COMPLETION_INDEX": ""}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "JOB_COMPLETION_INDEX": "5"}, (5, None)),
    ],
)
def test_the_shard_comes_from_slurm_or_kubernetes(
    environment: dict[str, str], expected: tuple[int, int | None] | None
) -> None:
    shard = Shard.of_environment(environment)
    assert (shard and (shard.index, shard.count)) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "/", "1/", "/2", "2/2", "-1/2", "1/0", "1/2/3", "a/b", "1/2 ", "٣/٤", "1.0/2"]
)
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="cannot use --shard"):
        Shard.parse(text)
    assert Shard.parse("0/1") == Shard(0, 1)


@pytest.mark.parametrize(
    ("left", "expected"),
    [([], ""), ([0], "0"), ([0, 1, 2, 3, 7], "0-3,7"), ([1, 3, 5], "1,3,5"), ([14, 15], "14-15"), (range(16), "0-15")],
)
def test_archives_that_are_left_are_positions_of_an_array(left: list[int], expected: str) -> None:
    assert ArchivesLeft(NAMES, [NAMES[number] for number in left], {}).array == expected
