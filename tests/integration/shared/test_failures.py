"""`kinetics-fs failures` with a shared store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.shared import SharedBudget, SharedStore, create_store, node_id
from kinetics_fs.store import Failure, Store
from tests.support.command_line import run_command
from tests.support.demo_clips import ROWS, as_csv

CLIP, OTHER = Clip("-demo_video", 10, 12), Clip("_demo_vid3_", 3, 5)

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    store, _ = create_store(str(tmp_path / "store"))
    now = time.time()
    for clip in (CLIP, OTHER):
        store.put_gone(Failure(clip.key, FailureKind.GONE, "Video unavailable", "youtube", None, now, now, 1, 0.0))
    return store


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `kinetics-fs` with the store and a cache of its own."""
    settings = {"KINETICS_FS_CACHE_DIR": str(tmp_path / "cache"), "KINETICS_FS_SHARED": str(tmp_path / "store")}
    return lambda *arguments: run_command(*arguments, **settings)


def test_retry_of_a_clip_that_another_machine_found_gone(
    store: SharedStore, run: Run, site: VideoSite, tmp_path: Path
) -> None:
    annotations = tmp_path / "annotations.csv"
    annotations.write_text(as_csv(ROWS[:2]))
    sources = "--video-url", site.url_template
    assert run("prefetch", "--annotations", annotations, *sources).returncode == 3
    listed = run("failures", "list").stdout
    assert listed.count("imported youtube") == 2
    retried = run("failures", "retry", *sources, "--", CLIP.key)
    assert retried.returncode == 0, retried.stderr
    assert list(store.gone_clips()) == [OTHER]
    with Store(tmp_path / "cache") as cache:
        assert cache.is_cached(CLIP) and not cache.is_cached(OTHER)


def test_retry_fetches_a_named_clip_of_which_only_the_shared_store_has_a_failure(
    store: SharedStore, run: Run, site: VideoSite, tmp_path: Path
) -> None:
    retried = run("failures", "retry", "--video-url", site.url_template, "--", CLIP.name)
    assert retried.returncode == 0, retried.stderr
    with Store(tmp_path / "cache") as cache:
        assert cache.is_cached(CLIP)
    assert list(store.gone_clips()) == [OTHER]


def test_clear_reaches_the_shared_store(store: SharedStore, run: Run) -> None:
    named = run("failures", "clear", "--", CLIP.key, "nothing_____000000_000010")
    assert named.returncode == 0 and "1 failure of the shared store forgotten" in named.stdout, named.stderr
    assert list(store.gone_clips()) == [OTHER]
    assert "0 failures of the shared store" in run("failures", "clear", "--kind", "transient").stdout
    assert list(store.gone_clips()) == [OTHER]
    done = run("failures", "clear", "--kind", "gone", "--kind", "transient")
    assert "1 failure of the shared store forgotten" in done.stdout
    assert list(store.gone_clips()) == []


def test_clear_of_many_clips_lists_the_store_once(store: SharedStore, run: Run) -> None:
    others = [Clip(f"{number:011}", 0, 10).key for number in range(1100)]
    assert "1 failure of the shared store" in run("failures", "clear", "--", CLIP.key, *others).stdout
    assert list(store.gone_clips()) == [OTHER]


def test_clear_lets_all_machines_of_the_rate_group_use_a_blocked_source(store: SharedStore, run: Run) -> None:
    def budget(group: str) -> SharedBudget:
        return SharedBudget(store.records, store.backend, store.clock, "youtube", group, node_id())

    for group in ("default", "other"):
        blocked = budget(group)
        permit = blocked.acquire(limit=None, urgent=True)
        blocked.record(permit, FetchError(FailureKind.BLOCKED, "Sign in to confirm you are not a bot"))
    assert re.search("blocked for another [0-9]+ s: Sign in", run("shared", "status").stdout)
    done = run("failures", "clear", "--kind", "blocked", "--rate-group", "default")
    assert "1 blocked source may be used again by the machines of the rate group default" in done.stdout
    budget("default").acquire(limit=None, urgent=True)
    with pytest.raises(FetchError, match="Sign in"):
        budget("other").acquire(limit=None, urgent=True)
    assert "No source is blocked." in run("failures", "clear", "--kind", "blocked").stdout


def test_clear_says_that_the_store_cannot_be_used(tmp_path: Path, run: Run) -> None:
    with Store(tmp_path / "cache") as cache:
        cache.failures.remember(CLIP, FetchError(FailureKind.GONE, "Video unavailable", source="youtube"))
    done = run("failures", "clear", "--all")
    assert done.returncode == 1 and "cannot use" in done.stderr
    with Store(tmp_path / "cache") as cache:
        assert cache.failures.get(CLIP) is None


def test_retry_goes_on_alone_while_the_store_is_away(run: Run, site: VideoSite, tmp_path: Path) -> None:
    with Store(tmp_path / "cache") as cache:
        cache.failures.remember(CLIP, FetchError(FailureKind.TRANSIENT, "no answer", source="youtube"))
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    arguments = "--shared", "s3://bucket/store", "--cache-dir", tmp_path / "cache", "--video-url", site.url_template
    done = run_command("failures", "retry", *arguments, "--", CLIP.key, **away)
    assert done.returncode == 0, done.stderr
    assert "the failures of the shared store stay" in done.stderr
    with Store(tmp_path / "cache") as cache:
        assert cache.is_cached(CLIP)
