"""Names that appear and disappear, with the real kernel, which caches names for a day unless it is notified."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.mount import find_mounts
from kinetics_fs.store import Store
from tests.conftest import MountFactory
from tests.support import mounts
from tests.support.command_line import ENVIRONMENT, Mounted, has_ended
from tests.support.example_filesystem import CLIPS, FULL
from tests.support.mounts import used_files, wait_until
from tests.support.native_mounts import HERE, NEEDS_FUSE, path_of

pytestmark = NEEDS_FUSE

NAMES = sorted(clip.name for clip in CLIPS)
IN_ORDER = sorted(set(CLIPS) - set(HERE), key=lambda clip: clip.name)
"""The clips that are not cached, and can therefore be gone, in the order of the listing."""

_HAMMER = """
import os, sys
folder, names = sys.argv[1], sys.argv[2:]
while True:
    os.listdir(folder)
    for entry in os.scandir(folder):
        try:
            entry.stat()
        except FileNotFoundError:
            pass
    for name in names:
        os.path.exists(f"{folder}/{name}")
        os.path.exists(f"{folder}/{name}.not")
"""


def mark_gone(cache: Path, clips: Collection[Clip]) -> None:
    with Store(cache) as store:
        mounts.mark_gone(store, clips)


def revive(cache: Path) -> None:
    with Store(cache) as store:
        store.failures.forget()


def listed(mounted: Mounted) -> list[str]:
    return os.listdir(mounted.root / "train" / FULL)  # noqa: PTH208


def names_without(clips: Collection[Clip]) -> list[str]:
    return sorted(set(NAMES) - {clip.name for clip in clips})


@pytest.fixture
def hiding(mount: MountFactory) -> Mounted:
    """A mount that leaves out what is gone, of which everything was looked at: the kernel knows every name."""
    mounted = mount("--hide-unavailable")
    assert listed(mounted) == NAMES
    assert all(path_of(mounted, clip).exists() for clip in CLIPS)
    return mounted


def test_names_disappear_and_reappear_in_lookups_and_listings(hiding: Mounted, scratch: Path) -> None:
    gone = IN_ORDER[5:50]
    before = {name: (hiding.root / "train" / FULL / name).stat().st_ino for name in NAMES}
    mark_gone(scratch / "cache", gone)
    wait_until(lambda: not path_of(hiding, gone[-1]).exists())
    wait_until(lambda: listed(hiding) == names_without(gone))
    wait_until(lambda: not any(path_of(hiding, clip).exists() for clip in gone))
    long = subprocess.run(["ls", "-l", hiding.root / "train" / FULL], capture_output=True, text=True, check=True)
    assert (long.stderr, long.stdout.count(".mp4")) == ("", len(CLIPS) - len(gone))
    assert used_files(hiding.root) == hiding.status()["clips"] - hiding.status()["hidden"]
    for name in names_without(gone):
        assert (hiding.root / "train" / FULL / name).stat().st_ino == before[name]
    revive(scratch / "cache")
    wait_until(lambda: path_of(hiding, gone[-1]).exists())
    wait_until(lambda: listed(hiding) == NAMES)
    wait_until(lambda: all(path_of(hiding, clip).exists() for clip in gone))
    assert {name: (hiding.root / "train" / FULL / name).stat().st_ino for name in NAMES} == before


def some_names(directory: int) -> list[str]:
    """Return about thirty names: 2 KiB of an open directory."""
    buffer = ctypes.create_string_buffer(2048)
    size = ctypes.CDLL(None, use_errno=True).getdents64(directory, buffer, len(buffer))
    assert size >= 0, os.strerror(ctypes.get_errno())
    names, offset = [], 0
    while offset < size:  # struct linux_dirent64: ino, off, reclen, type, name
        length: int = struct.unpack_from("=H", buffer, offset + 16)[0]
        names.append(os.fsdecode(buffer.raw[offset + 19 : offset + length].split(b"\0")[0]))
        offset += length
    return names


@pytest.mark.parametrize("others", [0, 3])
def test_open_directory_stream_neither_skips_nor_repeats(hiding: Mounted, scratch: Path, others: int) -> None:
    """Not even where the name that it has just shown is left out, and others list everything meanwhile."""
    directory = os.open(hiding.root / "train" / FULL, os.O_RDONLY)
    try:
        seen = [name for _ in range(4) for name in some_names(directory)]
        gone = [clip for clip in IN_ORDER if seen[-10] <= clip.name <= seen[-1]]
        assert seen[-1] in {clip.name for clip in gone}
        mark_gone(scratch / "cache", gone)
        wait_until(lambda: hiding.status()["hidden"] == len(gone))
        wait_until(lambda: not any(path_of(hiding, clip).exists() for clip in gone))
        for _ in range(others):
            assert listed(hiding) == names_without(gone)
        while names := some_names(directory):
            seen += names
    finally:
        os.close(directory)
    assert seen == [".", "..", *NAMES]


def test_name_cached_as_absent_reappears(mount: MountFactory, scratch: Path) -> None:
    """The kernel remembers, too, what there is not."""
    clip = IN_ORDER[0]
    with Store(scratch / "cache"):
        pass
    mark_gone(scratch / "cache", [clip])
    mounted = mount("--hide-unavailable")
    assert [path_of(mounted, clip).exists() for _ in range(2)] == [False, False]
    revive(scratch / "cache")
    wait_until(lambda: path_of(mounted, clip).exists())


def test_readers_keep_what_they_have_open(hiding: Mounted, scratch: Path) -> None:
    clip = HERE[0]
    path = path_of(hiding, clip)
    content = path.read_bytes()
    with path.open("rb") as file:
        with Store(scratch / "cache") as store:
            store.remove(clip)
        mark_gone(scratch / "cache", [clip])
        wait_until(lambda: not path.exists())
        assert clip.name not in listed(hiding)
        assert os.fstat(file.fileno()).st_size == len(content)
        assert file.read() == content


@contextmanager
def hammering(mounted: Mounted, names: Collection[str], times: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes that list a directory and look names up in it without end."""
    folder = mounted.root / "train" / FULL
    hammers = [
        subprocess.Popen(
            [sys.executable, "-c", _HAMMER, folder, *names],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(times)
    ]
    try:
        yield hammers
    finally:
        for hammer in hammers:
            hammer.kill()
        for hammer in hammers:
            hammer.wait(timeout=30)


@pytest.mark.serial
def test_names_come_and_go_while_others_hammer_the_same_directory(hiding: Mounted, scratch: Path) -> None:
    """To tell the kernel of a name waits for what is under way in its directory, and that for the loop."""
    clips = IN_ORDER[::2]
    with hammering(hiding, [clip.name for clip in clips[:50]], 4) as hammers:
        for _ in range(4):
            mark_gone(scratch / "cache", clips)
            wait_until(lambda: listed(hiding) == names_without(clips), within=30)
            wait_until(lambda: not any(path_of(hiding, clip).exists() for clip in clips), within=30)
            revive(scratch / "cache")
            wait_until(lambda: listed(hiding) == NAMES, within=30)
            wait_until(lambda: all(path_of(hiding, clip).exists() for clip in clips), within=30)
        assert [hammer.poll() for hammer in hammers] == [None] * 4
    assert "error" not in hiding.log.read_text().lower()


@pytest.mark.parametrize("end", ["signal", "umount --lazy"])
@pytest.mark.serial
def test_mount_ends_while_it_notifies_the_kernel(hiding: Mounted, scratch: Path, end: str) -> None:
    pid, ending = hiding.pid, threading.Event()

    def come_and_go() -> None:
        while not ending.is_set():
            mark_gone(scratch / "cache", IN_ORDER)
            revive(scratch / "cache")

    changes = threading.Thread(target=come_and_go)
    changes.start()
    try:
        with hammering(hiding, [clip.name for clip in IN_ORDER[:50]], 4):
            wait_until(lambda: hiding.status()["hidden"] > 0)
            if end == "signal":
                os.kill(pid, signal.SIGTERM)
            else:
                subprocess.run(["umount", "-l", hiding.root], check=True)
            wait_until(lambda: hiding.root not in find_mounts())
    finally:
        ending.set()
        changes.join()
    assert has_ended(pid, within=30)
    log = hiding.log.read_text()
    assert "Traceback" not in log
    assert "refused" not in log
