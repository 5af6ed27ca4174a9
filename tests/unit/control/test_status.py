"""The typed status and its JSON."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from kinetics_fs.control.describe import describe_budget, describe_failed_fetch, describe_mount, describe_source
from kinetics_fs.control.status import (
    BudgetStatus,
    FailedFetch,
    InvalidStatusError,
    MountStatus,
    OpenCounts,
    SourceStatus,
    UnreachableMount,
)
from tests.support.status import STATUS


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
    lines = describe_mount(STATUS)
    assert lines[0] == "/mnt/kinetics: Kinetics-600, 1,000 clips"
    text = "\n".join(lines)
    for part in (
        "3 of them, known to be unavailable",
        "42 since 2026-01-01T00:00:00+00:00",
        "native, passthrough",
        "3 from the cache, 1 not cached (hit rate 75.0%); 1 waiting",
        "1 pending, 7 done, 1 failed",
        "youtube: 8 clips requested in the last hour",
        "2 clips pinned, 1 of them cached, 50 bytes",
        "1, running: 5 of 10 cached, 1 unavailable; train; all classes",
        "private; next retry when its source is asked again",
        "1 row: label has a slash",
    ):
        assert part in text
    assert describe_mount(replace(STATUS, frontend=None)) == [line for line in lines if "native" not in line]


def test_description_of_an_unreachable_mount_says_what_to_do() -> None:
    mount = UnreachableMount("/mnt/k", "its process has ended", "clear it: kinetics-fs umount /mnt/k")
    assert describe_mount(mount) == ["/mnt/k: its process has ended; clear it: kinetics-fs umount /mnt/k"]


def test_description_of_a_block_counts_down() -> None:
    blocked = SourceStatus(blocked_for=61, reason="HTTP 429", fetches_last_hour=0)
    assert "blocked, not used for another 1 min 1 s: HTTP 429" in describe_source("youtube", blocked)
    once = SourceStatus(blocked_for=None, reason="", fetches_last_hour=1)
    assert describe_source("youtube", once) == "youtube: 1 clip requested in the last hour"
    assert "until the next clip is tried" in describe_source("youtube", replace(blocked, blocked_for=0))


def test_description_of_the_budget() -> None:
    budget = BudgetStatus(allowed=True, fetches=2, max_fetches=10, bytes=0, max_bytes=None)
    assert describe_budget(budget) == "2 of 10 fetches started"
    assert describe_budget(replace(budget, max_fetches=1)) == "2 of 1 fetch started"
    assert describe_budget(replace(budget, max_fetches=None)) == ""
    assert describe_budget(replace(budget, allowed=False)) == "opens fetch nothing (--only cached)"


def test_description_of_the_next_retry() -> None:
    failure = FailedFetch("key", "youtube", "gone", "private", 0.0, retry_at=time.time() - 1)
    assert describe_failed_fetch(failure).endswith("next retry at the next open")
    assert "next retry after 2" in describe_failed_fetch(replace(failure, retry_at=time.time() + 3600))
