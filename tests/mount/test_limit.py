"""The limit of the cache on a running mount: it obeys at once what another process gives."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kinetics_fs.store import Store
from tests.conftest import MountFactory
from tests.support.command_line import Mounted, reason, run_command
from tests.support.mounts import clip_path, short_clips, state

CLIPS = sorted(short_clips(1))


def limit_of(mounted: Mounted) -> int | None:
    limit = mounted.status()["cache"]["limit"]
    assert limit is None or isinstance(limit, int)
    return limit


def test_a_running_mount_follows_the_limit_of_the_cache(mount: MountFactory, annotations: Path, cache: Path) -> None:
    mounted = mount("--annotations", annotations)
    sizes = [len(clip_path(mounted, clip).read_bytes()) for clip in CLIPS[:3]]
    assert limit_of(mounted) is None

    limit = sizes[1] + sizes[2]
    set_limit = "status", "--cache-dir", cache, "--cache-size", f"{limit}B"
    refused = run_command(*set_limit)
    assert refused.returncode == 0  # status stores no clips
    assert "so that 1 clip (" in refused.stderr
    done = run_command(*set_limit, "--shrink")
    assert done.returncode == 0, done.stderr

    assert [state(clip_path(mounted, clip)) for clip in CLIPS[:3]] == ["absent", "cached", "cached"]
    assert limit_of(mounted) == limit
    space = os.statvfs(mounted.root)
    assert (space.f_blocks - 1) * space.f_frsize < limit
    assert f"kinetics_fs_cache_limit_bytes {float(limit)}" in (mounted.root / ".kinetics/metrics").read_text()
    clip_path(mounted, CLIPS[3]).read_bytes()
    with Store(cache) as store:
        assert 0 < store.usage().bytes <= limit
        before = {clip for clip, _ in store.cached_clips()}
    assert f"the limit of the cache {cache} was changed from no limit to" in mounted.log.read_text()

    assert run_command(*set_limit[:-1], "none").returncode == 0
    for clip in CLIPS[:3]:
        clip_path(mounted, clip).read_bytes()
    with Store(cache) as store:
        assert {clip for clip, _ in store.cached_clips()} == before | set(CLIPS[:4])


def test_an_open_of_a_clip_that_cannot_fit_evicts_nothing(mount: MountFactory, annotations: Path, cache: Path) -> None:
    mounted = mount("--annotations", annotations)
    cached = CLIPS[:3]
    size = sum(len(clip_path(mounted, clip).read_bytes()) for clip in cached)
    assert run_command("pin", "add", "--annotations", annotations, "--cache-dir", cache, "--all").returncode == 0
    assert run_command("status", "--cache-dir", cache, "--cache-size", f"{size + 1}B").returncode == 0

    with pytest.raises(OSError) as caught:
        clip_path(mounted, CLIPS[3]).read_bytes()
    assert caught.value.errno == errno.ENOSPC
    assert "--cache-size" in reason(clip_path(mounted, CLIPS[3]))
    assert [state(clip_path(mounted, clip)) for clip in cached] == ["cached"] * 3


def test_a_mount_with_a_limit_gives_it_to_the_cache(mount: MountFactory, annotations: Path, cache: Path) -> None:
    mounted = mount("--annotations", annotations, "--cache-size", "50MB")
    assert limit_of(mounted) == 50 * 10**6
    with Store(cache) as store:
        assert store.usage().limit == 50 * 10**6
