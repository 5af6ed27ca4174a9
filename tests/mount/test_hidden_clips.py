"""`--hide-unavailable`: names disappear when their clips are gone, and reappear when the failure is forgotten."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs import Library
from kinetics_fs.catalog import Clip
from kinetics_fs.demo.site import VideoSite
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import ENVIRONMENT, Mounted, json_output, run_command
from tests.support.mounts import CLASS, clip_path, open_errno, short_clips, used_files, wait_until

GONE = Clip("-demo_video", 3, 4)
READY = Clip("demo-video2", 5, 6)
OF_ITS_VIDEO = {clip for clip in short_clips(1) if clip.youtube_id == GONE.youtube_id}


@pytest.fixture
def hiding(mount: MountFactory, site: VideoSite, annotations: Path) -> Mounted:
    """A mount that hides gone clips, with one video that is gone; the kernel has cached every name."""
    mounted = mount("--annotations", annotations, "--hide-unavailable")
    site.fail[GONE.youtube_id] = 404
    assert names(mounted) == sorted(clip.name for clip in short_clips(1))
    assert all(clip_path(mounted, clip).exists() for clip in short_clips(1))
    return mounted


def names(mounted: Mounted) -> list[str]:
    """List the directory with `ls -l`, which calls stat for each name; empty if a name disappears meanwhile."""
    done = subprocess.run(
        ["ls", "-lU", mounted.root / "validation" / CLASS], capture_output=True, text=True, check=False
    )
    if "No such file" in done.stderr:
        return []
    assert done.stderr == ""
    return [line.split()[-1] for line in done.stdout.splitlines()[1:]]


def all_but(clips: set[Clip]) -> list[str]:
    return sorted(clip.name for clip in set(short_clips(1)) - clips)


def csv_names(mounted: Mounted) -> set[str]:
    lines = (mounted.root / ".kinetics/validation.csv").read_text().splitlines()
    return {line.rpartition(" ")[0].rpartition("/")[2] for line in lines}


def test_name_disappears_when_its_clip_is_gone_and_reappears(hiding: Mounted, cache: Path) -> None:
    path, inode = clip_path(hiding, GONE), clip_path(hiding, GONE).stat().st_ino
    everything = csv_names(hiding)
    files = used_files(hiding.root)
    assert open_errno(path) == errno.EIO
    wait_until(lambda: not path.exists())
    wait_until(lambda: names(hiding) == all_but({GONE}))
    wait_until(lambda: open_errno(path) == errno.ENOENT)
    assert csv_names(hiding) == everything - {GONE.name}
    assert used_files(hiding.root) == files - 1
    status = run_command("status", hiding.root)
    assert "1 of them, known to be unavailable" in status.stdout
    assert GONE.name in (hiding.root / ".kinetics/failures.csv").read_text()
    assert clip_path(hiding, READY).read_bytes()

    assert run_command("failures", "clear", "--all", "--cache-dir", cache).returncode == 0
    wait_until(lambda: path.exists())
    wait_until(lambda: names(hiding) == all_but(set()))
    assert path.stat().st_ino == inode
    assert csv_names(hiding) == everything
    assert used_files(hiding.root) == files


def test_name_disappears_when_a_prefetch_finds_its_clip_gone(
    hiding: Mounted, site: VideoSite, cache: Path, annotations: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = ["--annotations", annotations, "--cache-dir", cache, "--min-free", "0"]
    site.delay.clear()
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("".join(f"validation/{CLASS}/{clip.name}\n" for clip in [*OF_ITS_VIDEO, READY]))
    done = run_command("prefetch", *arguments, "--list", wanted, "--video-url", site.url_template)
    assert done.returncode == 3, done.stderr
    wait_until(lambda: names(hiding) == all_but(OF_ITS_VIDEO))
    wait_until(lambda: not any(clip_path(hiding, clip).exists() for clip in OF_ITS_VIDEO))


def test_clip_that_is_fetched_later_stays_visible(hiding: Mounted, site: VideoSite, cache: Path) -> None:
    assert open_errno(clip_path(hiding, GONE)) == errno.EIO
    wait_until(lambda: not clip_path(hiding, GONE).exists())
    site.fail.clear()
    done = run_command("failures", "retry", "--all", "--cache-dir", cache, "--video-url", site.url_template)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: clip_path(hiding, GONE).exists())
    assert clip_path(hiding, GONE).read_bytes()


def test_other_failures_hide_nothing(hiding: Mounted, site: VideoSite) -> None:
    site.fail[GONE.youtube_id] = 500
    assert open_errno(clip_path(hiding, GONE)) == errno.EIO
    site.fail[READY.youtube_id] = 404
    assert open_errno(clip_path(hiding, READY)) == errno.EIO
    wait_until(lambda: not clip_path(hiding, READY).exists())
    assert names(hiding) == all_but({READY})


def test_without_the_option_the_name_stays(mount: MountFactory, site: VideoSite, annotations: Path) -> None:
    mounted = mount("--annotations", annotations)
    site.fail[GONE.youtube_id] = 404
    for _ in range(2):
        assert open_errno(clip_path(mounted, GONE)) == errno.EIO
    assert names(mounted) == all_but(set())


def test_process_keeps_a_hidden_clip_that_it_has_open(hiding: Mounted, site: VideoSite, cache: Path) -> None:
    """Open here, it was evicted, and found gone since."""
    code = (
        "import sys; from kinetics_fs.catalog import Clip; from kinetics_fs.store import Store\n"
        "from kinetics_fs.errors import FailureKind, FetchError; from pathlib import Path\n"
        "clip = Clip(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))\n"
        "with Store(Path(sys.argv[1])) as store:\n"
        "    store.remove(clip); store.failures.remember(clip, FetchError(FailureKind.GONE, 'removed'))\n"
    )
    path = clip_path(hiding, READY)
    content = path.read_bytes()
    with path.open("rb") as file:
        subprocess.run([sys.executable, "-c", code, cache, *map(str, READY)], env=ENVIRONMENT, check=True)
        wait_until(lambda: names(hiding) == all_but({READY}))
        assert os.fstat(file.fileno()).st_size == len(content)
        assert file.read() == content
    wait_until(lambda: not path.exists())


def test_ten_samples_are_ten_available_clips(
    mount: MountFactory, dataset: Dataset, site: VideoSite, cache: Path, annotations: Path, tmp_path: Path
) -> None:
    sample = ("--annotations", annotations, "--split", "val", "--class", CLASS, "--max-samples", "10", "--shuffle")
    chosen = ("--annotations", dataset.annotations, *sample, "--seed", "3")
    everywhere = ("--cache-dir", cache, "--min-free", "0")
    source = ("--source", "youtube", "--video-url", site.url_template)
    site.fail[GONE.youtube_id] = 404

    plain = run_command("prefetch", *chosen, *everywhere, *source, "--json")
    plain_result = json_output(plain)
    assert plain.returncode == 3 and plain_result["failed"] > 0
    assert run_command("failures", "clear", "--all", *everywhere[:2]).returncode == 0

    done = run_command("prefetch", *chosen, "--available", *everywhere, *source, "--json")
    result = json_output(done)
    assert (done.returncode, result["clips"], result["failed"]) == (0, 10, 0), done.stderr
    assert result["fetched"] == plain_result["failed"]
    assert result["already_cached"] == plain_result["fetched"]
    again = run_command("prefetch", *chosen, "--available", *everywhere, *source, "--json")
    assert (again.returncode, json_output(again)["already_cached"]) == (0, 10)

    exported = run_command("export", *chosen, "--available", "--cache-dir", cache, tmp_path / "out")
    assert exported.returncode == 0, exported.stderr
    clips = {path.name for path in (tmp_path / "out").rglob("*.mp4")}
    assert len(clips) == 10
    assert set(names(mount(*chosen[2:], "--available"))) == clips
    settings: dict[str, Any] = {"max_samples": 10, "shuffle": True, "seed": 3, "available": True, "classes": CLASS}
    lists = [str(dataset.annotations), str(annotations)]
    with Library(annotations=lists, split="val", cache_dir=cache, **settings) as library:
        assert {clip.name for clip in library.clips()} == clips
