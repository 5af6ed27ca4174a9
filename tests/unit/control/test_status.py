"""The typed status and its JSON."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest

from kinetics_fs.control.describe import (
    describe_budget,
    describe_failures,
    describe_mount,
    describe_source,
    describe_statuses,
)
from kinetics_fs.control.status import (
    BudgetStatus,
    FailedFetch,
    InvalidStatusError,
    MountStatus,
    OpenCounts,
    PrefetchState,
    SourceStatus,
    StoreStatus,
    UnreachableMount,
)
from tests.support.status import STATUS

KEYS = ("-demo_video_000000_000010", "demo-video2_000000_000010")


def as_json() -> Any:
    return json.loads(json.dumps(STATUS.to_json()))


def test_status_survives_json() -> None:
    assert MountStatus.from_json(as_json()) == STATUS


def test_an_unknown_state_of_a_prefetch_is_an_invalid_status() -> None:
    value = as_json()
    value["prefetches"][0]["state"] = "paused"
    with pytest.raises(InvalidStatusError, match=r"'prefetches\[0\].state' is 'paused', not one of running, waiting, "):
        MountStatus.from_json(value)


def test_unknown_keys_of_a_newer_version_are_ignored() -> None:
    value = as_json()
    value["new"] = value["fetch"]["new"] = 1
    assert MountStatus.from_json(value) == STATUS


@pytest.mark.parametrize(
    ("keys", "replacement", "problem"),
    [
        (["fetch", "in_flight"], None, "'fetch.in_flight' is NoneType, not list"),
        (["fetch", "in_flight", 0, "seconds"], "1", "'fetch.in_flight[0].seconds' is str, not float"),
        (["sources", "youtube"], [], "'sources.youtube' is list, not dict"),
        (["pid"], True, "'pid' is bool, not int"),
        (["budget", "allowed"], 1, "'budget.allowed' is int, not bool"),
        (["frontend", "name"], 3, "'frontend.name' is int, not str"),
    ],
)
def test_wrong_type_is_named(keys: list[Any], replacement: object, problem: str) -> None:
    value = inner = as_json()
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = replacement
    with pytest.raises(InvalidStatusError) as caught:
        MountStatus.from_json(value)
    assert caught.value.problem == problem
    assert str(caught.value).startswith(f"cannot read the status of the mount: {problem}; it runs another version")


@pytest.mark.parametrize("keys", [["opens"], ["cache", "folder"], ["fetch", "rates", "last_hour"]])
def test_missing_key_is_named(keys: list[str]) -> None:
    value = inner = as_json()
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    with pytest.raises(InvalidStatusError, match="is missing") as caught:
        MountStatus.from_json(value)
    assert repr(".".join(keys)) in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 7])
def test_status_that_is_not_an_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidStatusError, match=r"the status is .*, not dict"):
        MountStatus.from_json(value)


def test_open_counts_that_follow_from_others() -> None:
    counts = OpenCounts.of(from_cache=2, not_in_cache=8, fetched=2, failed=1, interrupted=0)
    assert (counts.hit_rate, counts.waiting) == (0.2, 5)
    assert OpenCounts.of(from_cache=0, not_in_cache=0, fetched=0, failed=0, interrupted=0).hit_rate is None


def test_description_for_people() -> None:
    lines = describe_statuses([STATUS], None)
    assert lines[0] == "/mnt/kinetics (of the user somebody): Kinetics-600, 1,000 clips"
    text = "\n".join(lines)
    for part in (
        "3 of them, known to be unavailable",
        "42, since 2026-01-01 ",
        "native, passthrough",
        "3 from the cache, 1 not cached (hit rate 75.0%); 1 waiting",
        "1 pending, 7 done, 1 failed",
        "-demo_video_000010_000020 (surfing water) starting, 4.1 kB after 2 s; foreground",
        "youtube: 8 clips requested in the last hour",
        "2 clips pinned, 1 of them cached, 50 bytes",
        "1, running: 6 of 10 clips, 3.0 MB, 500.0 kB/s, about 90 s left; 2 fetched, 3 already cached; 1 unavailable",
        "-demo_video_000000_000010 (surfing water): youtube: gone: private; next retry when the source is asked again",
        "1 row: label has a slash",
    ):
        assert part in text
    without = describe_statuses([replace(STATUS, frontend=None)], None)
    assert without == [line for line in lines if "native" not in line]


def test_a_block_and_a_cache_are_described_once() -> None:
    reason = "Sign in to confirm you're not a bot"
    waiting = replace(
        STATUS.prefetches[0], state=PrefetchState.WAITING, kind="blocked", reason=reason, retry_at=time.time() + 720
    )
    failures = tuple(
        FailedFetch(f"-demo_video_{start:06d}_000010", "surfing water", "youtube", "blocked", reason, 1.0, None)
        for start in range(3)
    )
    blocked = replace(
        STATUS,
        prefetches=(waiting, waiting),
        fetch=replace(STATUS.fetch, last_failures=failures),
        sources={"youtube": SourceStatus(blocked_for=720, reason=reason, fetches_last_hour=8)},
    )
    other = replace(blocked, mountpoint="/mnt/other")
    lines = describe_statuses([blocked, other], StoreStatus.of_mount(blocked))
    text = "\n".join(lines)
    assert text.count(reason) == 1
    assert text.count("Cache ") == text.count("/cache") == 1
    assert (
        text.count("1, waiting: 6 of 10 clips, 3.0 MB; 2 fetched, 3 already cached; blocked: next try in 12 min;") == 4
    )
    assert (
        text.count("000001_000010 (surfing water), -demo_video_000002_000010 (surfing water): youtube is blocked") == 2
    )
    elsewhere = replace(other, cache=replace(other.cache, folder="/elsewhere"))
    assert "\n".join(describe_statuses([blocked, elsewhere], None)).count(reason) == 2, "each cache has its own block"


def test_failures_of_one_reason_are_one_line() -> None:
    gone = [FailedFetch(key, "surfing water", "youtube", "gone", f"{key[:11]} is gone", 1.0, None) for key in KEYS]
    other = replace(gone[0], reason="private")
    lines = describe_failures([*gone, other])
    assert len(lines) == 2
    assert lines[0].startswith(f"{KEYS[0]} (surfing water), {KEYS[1]} (surfing water): youtube: gone: ")


@pytest.mark.parametrize("number", ["Infinity", "NaN", "-Infinity", "1e300", f"{10**400}", f"{2**63}", "1e18", "-1e18"])
def test_numbers_of_a_hostile_mount_are_refused_or_described(number: str) -> None:
    """Another user's filesystem can report anything."""
    for name in ("retry_at", "seconds_left"):
        value = as_json()
        value["prefetches"][0] |= {name: json.loads(number), "state": "waiting" if name == "retry_at" else "running"}
        value["fetch"]["in_flight"][0]["seconds"] = value["fetch"]["last_failures"][0]["retry_at"] = json.loads(number)
        try:
            status = MountStatus.from_json(value)
        except InvalidStatusError as error:
            assert "is out of range" in str(error)
        else:
            assert abs(json.loads(number)) < 2**63
            assert describe_statuses([status], None)


def test_hostile_times_are_no_error() -> None:
    for mounted_at in ("nonsense", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00"):
        assert describe_statuses([replace(STATUS, mounted_at=mounted_at)], None)


def test_description_of_an_unreachable_mount_says_what_to_do() -> None:
    mount = UnreachableMount("/mnt/k", "its process has ended", "clear it: kinetics-fs umount /mnt/k")
    assert describe_mount(mount) == ["/mnt/k: its process has ended; clear it: kinetics-fs umount /mnt/k"]


def test_description_of_a_block_counts_down() -> None:
    blocked = SourceStatus(blocked_for=720, reason="HTTP 429", fetches_last_hour=0)
    assert "blocked, next try in 12 min: HTTP 429" in describe_source("youtube", blocked)
    once = SourceStatus(blocked_for=None, reason="", fetches_last_hour=1)
    assert describe_source("youtube", once) == "youtube: 1 clip requested in the last hour"
    assert "the next clip tests it" in describe_source("youtube", replace(blocked, blocked_for=0))


def test_description_of_the_budget() -> None:
    budget = BudgetStatus(allowed=True, fetches=2, max_fetches=10, bytes=0, max_bytes=None)
    assert describe_budget(budget) == "2 of 10 fetches started"
    assert describe_budget(replace(budget, max_fetches=1)) == "2 of 1 fetch started"
    assert describe_budget(replace(budget, max_fetches=None)) == ""
    assert describe_budget(replace(budget, allowed=False)) == "opens fetch nothing (--only cached)"


def test_description_of_the_next_retry() -> None:
    failure = FailedFetch("key", "", "youtube", "gone", "private", 0.0, retry_at=time.time() - 1)
    assert describe_failures([failure])[0].endswith("next retry at the next open")
    assert re.search(
        r"next retry after (20|[0-9]{2}:)", describe_failures([replace(failure, retry_at=time.time() + 60)])[0]
    )
