"""`mount.kinetics-fs`, with the arguments that mount(8) passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.mount import find_mounts
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset
from tests.support.command_line import ENVIRONMENT

HELPER = "from kinetics_fs.cli.mount_helper import main; main()"


def helper(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HELPER, *arguments],
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("spec", "options", "status", "words"),
    [
        ("600", "rw,sploit=train", 1, ("sploit=train", "kinetics-fs mount")),
        ("600", "uid=1000", 1, ("uid=1000",)),
        ("800", "ro", 1, ("800", "700-2020", "kinetics-fs")),
        ("600", "cache-dir", 1, ("cache-dir=",)),
        ("600", "hide-unavailable=yes", 1, ("hide-unavailable", "no value")),
        ("600", "remount,ro", 1, ("umount",)),
        ("600", "workers=many", 1, ("workers",)),
        ("600", "config=/none", 32, ("/none",)),
        ("600", "annotations=/none.csv", 32, ("/none.csv",)),
    ],
)
def test_what_it_does_not_understand(
    tmp_path: Path, spec: str, options: str, status: int, words: tuple[str, ...]
) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    done = helper(spec, mountpoint, "-o", options, KINETICS_FS_CACHE_DIR=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.splitlines()[-1]
    assert not find_mounts().get(mountpoint)


def test_what_is_mounts_own_is_passed_over(tmp_path: Path) -> None:
    everything = (
        "ro,rw,defaults,noauto,auto,nofail,_netdev,user,users,owner,nosuid,suid,nodev,dev,noexec,exec,noatime,relatime,"
        "x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir,comment=mine,sync,async,allow_other,uhelper=hal"
    )
    assert helper("kinetics-700-2020", tmp_path, "-fnv", "-t", "fuse.kinetics-fs", "-o", everything).returncode == 0
    assert helper("600", tmp_path, "-s", "-f", "-o", "sploit=train").returncode == 0
    assert helper("600", tmp_path, "-f", "-o", "sploit=train").returncode == 1


IN_A_NAMESPACE = """
import json, subprocess, sys
from pathlib import Path

programs, mountpoint, clip, options = sys.argv[1:]
sbin = Path("/sbin").resolve()
subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={programs}:{sbin}", "overlay", sbin], check=True)
said = []
for kind in ("kinetics-fs", "fuse.kinetics-fs"):
    mount = ["mount", "-t", kind, "-o", options, "kinetics-600", mountpoint]
    mounted = subprocess.run(mount, stderr=subprocess.PIPE, text=True)
    said.append((mounted.returncode, mounted.stderr, len((Path(mountpoint) / clip).read_bytes())))
    findmnt = ["findmnt", "-n", "-o", "SOURCE,FSTYPE", "-M", mountpoint]
    said.append(subprocess.run(findmnt, capture_output=True, text=True).stdout.split())
    subprocess.run(["umount", mountpoint], check=True)
failed = subprocess.run(["mount", "-t", kind, "-o", "sploit", "600", mountpoint], stderr=subprocess.PIPE, text=True)
said.append((failed.returncode, "sploit" in failed.stderr))
print(json.dumps(said))
"""


def test_mount_calls_it(dataset: Dataset, site: VideoSite, tmp_path: Path) -> None:
    """In a namespace in which the helper is where mount(8) looks for it."""
    if os.geteuid() != 0:
        pytest.skip("mount(8) calls helpers as root")
    programs, mountpoint, cache = tmp_path / "programs", tmp_path / "mountpoint", tmp_path / "cache"
    programs.mkdir()
    mountpoint.mkdir()
    for name in ("mount.kinetics-fs", "mount.fuse.kinetics-fs"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{HELPER}" "$@"\n')
        (programs / name).chmod(0o755)
    options = (
        f"nofail,_netdev,class=surfing water;massaging person's head,split=validation,cache_dir={cache},min-free=0,"
        f"annotations={dataset.annotations},video-url={site.url_template},log-file={tmp_path}/log"
    )
    clip = "validation/surfing water/-demo_video_000010_000020.mp4"
    done = subprocess.run(
        ["unshare", "--mount", "--", sys.executable, "-c", IN_A_NAMESPACE, programs, mountpoint, clip, options],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "KINETICS_FS_CONFIG": os.devnull,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "overlay" in done.stderr and "CalledProcessError" in done.stderr:
        pytest.skip(f"no overlay can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    size = next(CacheLayout(cache).clips.glob("*/*.mp4")).stat().st_size
    as_mounted = ["kinetics-600", "fuse.kinetics-fs"]
    [*mounts, failed] = json.loads(done.stdout.splitlines()[-1])
    assert mounts == [[0, "", size], as_mounted, [0, "", size], as_mounted]
    assert failed == [1, True]


def test_without_a_home_the_system_has_its_folders(tmp_path: Path) -> None:
    code = (
        "from kinetics_fs import config as s\n"
        "print(s.default_cache_dir(), s.default_log_dir(), s.default_config_file())"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    if os.geteuid() == 0:
        expected = "/var/cache/kinetics-fs /var/log/kinetics-fs /etc/kinetics-fs/config.toml"
        assert done.stdout.strip() == expected
    done = subprocess.run(run, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert all(word.startswith(str(tmp_path)) for word in done.stdout.split())
