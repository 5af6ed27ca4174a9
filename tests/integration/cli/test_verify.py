"""`kinetics-fs verify`: it finds damaged clips, and repairs them beside a mount."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip, parse_clip_name
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import MountFactory
from tests.support.command_line import ENVIRONMENT, run_command
from tests.support.mounts import cached_file

Arguments = tuple[str | Path, ...]
KEYS = ("-demo_video_000010_000012", "_demo_vid3__000003_000005")


def flip(path: Path) -> None:
    """Another byte in the middle; as long as before."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def digests(cache: Path) -> dict[str, str]:
    """Name → hash of all that is among the clips."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in CacheLayout(cache).clips.glob("*/*")
        if path.is_file()
    }


@pytest.fixture
def full(fetched: Path, cache: Path) -> Path:
    """A copy of it."""
    shutil.copytree(fetched, cache)
    return cache


@pytest.fixture
def verify(full: Path, site: VideoSite) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs `kinetics-fs verify --json` on it; its exit code, and what it says."""

    def run(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        everywhere = "--cache-dir", full, "--min-free", "0", "--video-url", site.url_template
        done = run_command("verify", "--json", *everywhere, *arguments)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


Verify = Callable[..., tuple[int, dict[str, Any]]]


def test_good_clips_pass_without_annotations(verify: Verify, full: Path) -> None:
    # This includes decoding, and works without annotations, which this test has none of.
    status, said = verify("--decode")

    assert status == 0
    size = sum(path.stat().st_size for path in (full / "clips").glob("*/*.mp4"))
    assert (said["clips"], said["good"], said["bytes"]) == (3, 3, size)
    assert (said["bad"], said["unknown_files"], said["repair"]) == ([], [], None)
    shown = run_command("verify", "--cache-dir", full).stdout
    assert shown.startswith("3 clips, ")
    assert shown.endswith(": 3 good\n")


def test_verify_reports_bad_clips_and_repair_fetches_them_again(verify: Verify, full: Path, site: VideoSite) -> None:
    before = digests(full)
    flip(cached_file(full, KEYS[0]))
    cached_file(full, KEYS[1]).unlink()
    stray = cached_file(full, KEYS[0]).with_name("stray")
    stray.write_text("")
    spoilt, asked = digests(full), len(site.requests)

    status, said = verify()

    assert status == 3
    assert {(bad["clip"], bad["condition"]) for bad in said["bad"]} == {(KEYS[0], "damaged"), (KEYS[1], "lost")}
    assert (said["good"], said["unknown_files"]) == (1, [str(stray)])
    assert (digests(full), len(site.requests)) == (spoilt, asked)
    shown = run_command("verify", "--cache-dir", full)
    assert shown.returncode == 3
    for word in (KEYS[0], "SHA-256", KEYS[1], "no file", str(stray), "1 good, 1 damaged, 1 lost", "--repair"):
        assert word in shown.stdout

    status, said = verify("--repair")

    assert status == 0
    assert said["repair"] == {"removed": 2, "unknown_files_removed": 0, "fetched": 2, "failures": {}}
    assert verify()[0] == 0
    stray.unlink()
    assert sorted(digests(full).values()) == sorted(before.values())


def test_verify_checks_only_the_selection(verify: Verify, full: Path, chosen: Arguments, annotations: Path) -> None:
    with annotations.open("a") as file:
        file.write("paddling,-demo_video,10,12,validate\n")  # in two classes, but one clip
    flip(cached_file(full, KEYS[0]))

    status, said = verify(*chosen, "--class", "massaging person's head")
    assert (status, said["clips"], said["bad"]) == (0, 1, [])
    with Store(full) as store:
        store.remove(Clip("demo-video2", 0, 2))
    # Clips that were never cached, or were removed, are not verified.
    status, said = verify(*chosen)
    assert (status, said["clips"], said["good"], said["damaged"]) == (3, 2, 1, 1)


def test_a_damaged_clip_that_is_gone_everywhere_is_removed(verify: Verify, full: Path, site: VideoSite) -> None:
    for key in KEYS:
        flip(cached_file(full, key))
    site.fail[KEYS[0][:11]] = 404

    status, said = verify("--repair")

    assert status == 3
    assert said["repair"] == {"removed": 2, "unknown_files_removed": 0, "fetched": 1, "failures": {"gone": 1}}
    # The damaged clip is removed all the same.
    assert list((full / "clips").glob(f"*/{KEYS[0]}*")) == []


def test_repair_removes_nothing_if_no_source_can_be_used(full: Path) -> None:
    flip(cached_file(full, KEYS[0]))
    for path in full.glob("archives.sqlite*"):
        path.unlink()

    done = run_command("verify", "--repair", "--source", "archive", "--cache-dir", full)

    assert done.returncode == 2
    assert "--source" in done.stderr
    assert cached_file(full, KEYS[0]).exists()


def test_only_decode_finds_stored_bytes_that_are_not_media(verify: Verify, full: Path) -> None:
    with Store(full) as store:
        clip = parse_clip_name(f"{KEYS[0]}.mp4")
        assert clip is not None
        claim = store.claim(clip)
        assert claim is not None
        with claim:
            path = claim.folder / "clip.mp4"
            path.write_bytes(b"no media at all" * 1000)
            claim.publish(path, "test", cut=True)

    assert verify()[0] == 0
    status, said = verify("--decode")
    assert (status, said["good"], said["damaged"]) == (3, 2, 1)
    assert "decode" in said["bad"][0]["reason"]


@pytest.mark.parametrize("passthrough", ["--passthrough", "--no-passthrough"])
def test_a_mount_serves_the_repaired_clip(
    mount: MountFactory, verify: Verify, full: Path, annotations: Path, passthrough: str
) -> None:
    right = {key: cached_file(full, key).read_bytes() for key in KEYS}
    for key in KEYS:
        flip(cached_file(full, key))
    mounted = mount(passthrough, "--annotations", annotations, cache=full)
    paths = {key: mounted.root / f"validation/surfing water/{key}.mp4" for key in KEYS}
    # The disk lies, and nobody has noticed yet; the kernel keeps what it read.
    spoilt = {key: path.read_bytes() for key, path in paths.items()}
    assert all(spoilt[key] != right[key] for key in KEYS)
    with paths[KEYS[0]].open("rb") as reader:
        assert reader.read(1000) == right[KEYS[0]][:1000]

        status, said = verify("--repair")

        assert (status, said["repair"]["fetched"]) == (0, 2)
        reader.seek(0)
        assert reader.read() == spoilt[KEYS[0]]
    assert {key: path.read_bytes() for key, path in paths.items()} == right
    assert verify()[0] == 0


def test_an_interrupted_verification_exits_with_130(full: Path) -> None:
    cached_file(full, KEYS[0]).unlink()
    command = [
        sys.executable,
        "-m",
        "kinetics_fs",
        "--config",
        os.devnull,
        "verify",
        "--json",
        "--cache-dir",
        str(full),
    ]
    with closing(sqlite3.connect(full / "state.sqlite", timeout=60, isolation_level=None)) as database:
        for _ in range(5):
            with subprocess.Popen(
                command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                try:
                    while process.poll() is None and not list((full / "locks").iterdir()):
                        time.sleep(0.001)
                    # A clip that looks lost is checked again under the lock of the database, which this test holds.
                    database.execute("BEGIN IMMEDIATE")
                    time.sleep(0.5)
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.1)
                    database.execute("ROLLBACK")
                    said, complaints = process.communicate(timeout=60)
                finally:
                    process.kill()
            assert "Traceback" not in complaints
            if process.returncode == 130:
                break

    assert process.returncode == 130
    assert json.loads(said)["interrupted"]
