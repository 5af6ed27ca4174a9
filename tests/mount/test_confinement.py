"""The processes of a mount that parse what comes from outside have none of its rights."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from kinetics_fs.store import CacheLayout
from kinetics_fs.util.sandbox import other_uid
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import Mounted, run_command
from tests.support.mounts import command_line, descendants


def a_clip(mounted: Mounted) -> Path:
    return min(mounted.root.glob("*/*/-demo_video_*.mp4"))


def readers(pid: int) -> list[int]:
    """Return the confined processes of a mount."""
    return [child for child in descendants(pid) if "reader_process" in command_line(child)]


def effective(pid: int) -> tuple[int, int]:
    """Return the uid and the effective capabilities of a process."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["Uid"].split()[1]), int(fields["CapEff"], 16)


def test_a_fetched_clip_comes_from_a_process_without_rights(mount: MountFactory, tmp_path: Path) -> None:
    mounted = mount()
    content = a_clip(mounted).read_bytes()
    [reader] = readers(mounted.pid)
    assert effective(reader) == (other_uid() if other_uid() is not None else os.geteuid(), 0)
    shown = json.loads(run_command("status", "--json", mounted.root).stdout)["mounts"][0]["fetch"]["sandbox"]
    assert "no capabilities, Landlock" in shown
    assert "sandbox" in run_command("status", mounted.root).stdout

    layout = CacheLayout(tmp_path / "cache")
    [clip] = layout.clips.glob("*/*.mp4")
    assert clip.read_bytes() == content
    assert (clip.stat().st_uid, stat.S_IMODE(clip.stat().st_mode)) == (os.geteuid(), 0o400)
    assert not any(path.is_file() for path in layout.scratch.rglob("*"))
    assert stat.S_IMODE(layout.root.stat().st_mode) == 0o700


def test_private_files_of_a_folder_are_served(mount: MountFactory, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    mounted = mount("--folder", folder, "--source", "folder")
    whole = a_clip(mounted)
    excerpt = min(mounted.root.glob("*/*/demo-video2_*.mp4"))
    for path, source in ((folder / whole.name, "-demo_video.mp4"), (folder / "demo-video2.mp4", "demo-video2.mp4")):
        path.write_bytes((dataset.videos / source).read_bytes())
        path.chmod(0o600)
    assert whole.read_bytes() == (folder / whole.name).read_bytes()
    assert excerpt.read_bytes()[4:8] == b"ftyp"
    assert [effective(reader)[1] for reader in readers(mounted.pid)]
    assert not any(effective(reader)[1] for reader in readers(mounted.pid))


def test_the_cookies_of_a_private_file_are_used(mount: MountFactory, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t9999999999\tSID\tx\n")
    cookies.chmod(0o600)
    mounted = mount("--cookies", cookies)
    assert a_clip(mounted).read_bytes()[4:8] == b"ftyp"


def test_the_folders_of_a_killed_mount_are_removed_by_the_next(mount: MountFactory, tmp_path: Path) -> None:
    mounted = mount()
    a_clip(mounted).read_bytes()
    layout = CacheLayout(tmp_path / "cache")
    assert list(layout.scratch.iterdir())
    os.kill(mounted.pid, 9)
    run_command("status", "--cache-dir", layout.root)
    assert list(layout.scratch.iterdir()) == []
