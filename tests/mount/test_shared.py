"""Mounts of two machines that share a store."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import Mounted, kinetics_fs, run_command
from tests.support.mounts import wait_until
from tests.support.servers import moto

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"
VIDEO = "-demo_video"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A shared store in a folder."""
    folder = tmp_path / "shared"
    assert run_command("shared", "init", folder).returncode == 0
    return folder


@pytest.fixture
def frontend() -> tuple[str, ...]:
    """The use of a shared store does not depend on the front end."""
    return ("--frontend", "native")


def use_of(mounted: Mounted) -> dict[str, Any]:
    """Return how a mount uses the store."""
    value = mounted.status()["shared"]
    assert isinstance(value, dict)
    return value


def test_a_clip_is_fetched_once_for_two_mounts(
    mount: MountFactory, shared: Path, site: VideoSite, tmp_path: Path
) -> None:
    site.delay[VIDEO] = 0.5
    first = mount("--shared", shared, cache=tmp_path / "first")
    second = mount("--shared", shared, cache=tmp_path / "second")
    contents: dict[Path, bytes] = {}

    def read(root: Path) -> None:
        contents[root] = (root / SURFING).read_bytes()

    readers = [threading.Thread(target=read, args=(mounted.root,)) for mounted in (first, second)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert site.video_fetches(VIDEO) == 1
    assert contents[first.root] == contents[second.root]
    uses = [use_of(mounted) for mounted in (first, second)]
    assert sorted((use["hits"], use["misses"]) for use in uses) == [(0, 1), (1, 0)]

    text = run_command("status", first.root).stdout
    assert f"{shared}: " in text and "uploads: 0 waiting" in text and "rate group default" in text
    metrics = (first.root / ".kinetics/metrics").read_text()
    assert "kinetics_fs_shared_up 1.0" in metrics and "kinetics_fs_shared_reads_total" in metrics


def test_umount_uploads_what_waits(mount: MountFactory, shared: Path, tmp_path: Path) -> None:
    first = mount("--shared", shared, cache=tmp_path / "first")
    (first.root / SURFING).read_bytes()
    assert run_command("umount", "--drain", first.root).returncode == 0
    assert list(shared.glob("clips/v1/*/*/-demo_video_000010_000020.mp4"))
    assert (
        not list(shared.glob("leases/clip/**/*.json"))
        or json.loads(next(shared.glob("leases/clip/**/*.json")).read_text())["done"]
    )


def test_a_killed_mount_uploads_after_its_restart(mount: MountFactory, shared: Path, tmp_path: Path) -> None:
    cache = tmp_path / "first"
    first = mount("--shared", shared, cache=cache)
    away = shared.rename(tmp_path / "away")
    (first.root / SURFING).read_bytes()
    use = use_of(first)
    assert use["error"] and use["uploads"]["queued"] == 1
    assert "works alone" in run_command("status", first.root).stdout
    drained = run_command("umount", "--drain", first.root)
    assert drained.returncode == 1 and "cannot upload 1 clip" in drained.stderr
    # Between two tries: an entry that a dead process has taken is given to another one after some minutes only.
    wait_until(lambda: use_of(first)["uploads"]["retry_in"] > 0.5)
    os.kill(first.pid, signal.SIGKILL)
    first.end()

    away.rename(shared)
    second = mount("--shared", shared, cache=cache)
    wait_until(lambda: use_of(second)["uploads"]["uploaded"] == 1)
    assert use_of(second)["uploads"]["queued"] == 0


def test_a_mount_returns_to_a_store_that_was_away(
    mount: MountFactory, shared: Path, site: VideoSite, tmp_path: Path
) -> None:
    first = mount("--shared", shared, cache=tmp_path / "first")
    away = shared.rename(tmp_path / "away")
    (first.root / SURFING).read_bytes()
    away.rename(shared)
    wait_until(lambda: use_of(first)["uploads"]["uploaded"] == 1)
    second = mount("--shared", shared, cache=tmp_path / "second")
    (second.root / SURFING).read_bytes()
    assert site.video_fetches(VIDEO) == 1


def test_an_open_that_waits_for_another_machine_can_be_interrupted(
    mount: MountFactory, shared: Path, site: VideoSite, tmp_path: Path
) -> None:
    site.media_delay[VIDEO] = 60
    first = mount("--shared", shared, cache=tmp_path / "first")
    second = mount("--shared", shared, cache=tmp_path / "second")
    pids = []
    for mounted in (first, second):
        pids.append(os.spawnlp(os.P_NOWAIT, "cat", "cat", mounted.root / SURFING))
        wait_until(lambda: site.video_fetches(VIDEO) == 1)
    wait_until(lambda: use_of(second)["waits"] == 1)
    before = time.monotonic()
    for pid in reversed(pids):
        os.kill(pid, signal.SIGTERM)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert time.monotonic() - before < 10


def test_an_address_without_a_store_is_one_sentence(
    dataset: Dataset, site: VideoSite, tmp_path: Path, mountpoint: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for address, status in ((empty, 1), (tmp_path / "nothing", 1), ("ftp://host/folder", 2)):
        done = kinetics_fs(
            *("mount", "--annotations", dataset.annotations, "--cache-dir", tmp_path / "cache", "--min-free", "0"),
            *("--shared", address, mountpoint),
        )
        assert done.returncode == status and "Traceback" not in done.stderr
        assert str(address) in done.stderr.splitlines()[-1]
        assert status == 2 or len(done.stderr.splitlines()) == 1


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A shared store in a bucket, and the environment that finds it."""
    (tmp_path / "moto").mkdir()
    with moto(tmp_path / "moto") as server:
        server.s3.create_bucket(Bucket="kinetics")
        keys = {**server.admin.environment(), "AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}
        done = run_command("shared", "init", "s3://kinetics/prefix", **keys)
        assert done.returncode == 0, done.stderr
        yield "s3://kinetics/prefix", keys


def _is_listed(mounted: Mounted) -> bool:
    return bool(use_of(mounted)["listed"] == 1)


def test_a_bucket_serves_a_mount_in_the_background_and_its_stat(
    dataset: Dataset, site: VideoSite, tmp_path: Path, bucket: tuple[str, dict[str, str]]
) -> None:
    address, keys = bucket
    common = ("--annotations", dataset.annotations, "--video-url", site.url_template, "--min-free", "0")
    wrapper = ("env", *(f"{name}={value}" for name, value in keys.items()))
    sizes: list[int] = []
    for name in ("first", "second"):
        arguments = (*common, "--cache-dir", tmp_path / name, "--shared", address)
        with Mounted(tmp_path / f"mount of {name}", *arguments, wrapper=wrapper) as mounted:
            path = mounted.root / SURFING
            if name == "second":  # one listing in the background, and no request for a stat
                wait_until(partial(_is_listed, mounted))
                assert path.stat().st_size == sizes[0]
                assert use_of(mounted)["hits"] == 0
            sizes.append(len(path.read_bytes()))
            assert run_command("umount", "--drain", mounted.root).returncode == 0
    assert sizes[0] == sizes[1]
    assert site.video_fetches(VIDEO) == 1
    assert CacheLayout(tmp_path / "second").uploads.exists()
