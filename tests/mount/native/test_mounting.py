"""The front end with the real kernel."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.mount import find_mounts
from kinetics_fs.mount.native.device import request_timeout
from kinetics_fs.store import Store
from tests.conftest import MountFactory
from tests.support.command_line import (
    ENVIRONMENT,
    Mounted,
    fuse_device_open_to_all,
    has_ended,
    kinetics_fs,
    run_command,
)
from tests.support.example_filesystem import CLIPS, FULL, content, put, write_rows
from tests.support.mounts import open_errno, open_paths, reading, state, used_files, wait_until
from tests.support.native_mounts import ABSENT, HERE, NEEDS_FUSE, fill, path_of

pytestmark = NEEDS_FUSE

NOBODY = 65534

MODES = {"passthrough": (), "page cache": ("--no-passthrough",)}


def kernel_has_passthrough() -> bool:
    major, minor = (int(number) for number in os.uname().release.split(".")[:2])
    return (major, minor) >= (6, 9)


def mode(mounted: Mounted) -> str:
    frontend = mounted.status()["frontend"]
    assert frontend["name"] == "native"
    return str(frontend["mode"])


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def is_waiting(path: Path) -> bool:
    return state(path) == "fetching"


@contextmanager
def waiting(mounted: Mounted, clips: list[Clip]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start readers of clips whose fetch never ends; all of them wait."""
    with reading([path_of(mounted, clip) for clip in clips]) as readers:
        wait_until(lambda: mounted.status()["frontend"]["waiting_opens"] == len(clips))
        yield readers


# How it is mounted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODES)
def test_findmnt_and_status_describe_the_mount(mount: MountFactory, name: str) -> None:
    mounted = mount(*MODES[name])
    said = subprocess.run(
        ["findmnt", "-no", "FSTYPE,SOURCE,OPTIONS", mounted.root], capture_output=True, text=True, check=True
    )
    kind, source, options = said.stdout.split()
    assert (kind, source) == ("fuse.kinetics-fs", "kinetics")
    assert {"ro", "nosuid", "nodev", "noatime", "default_permissions", "allow_other"} <= set(options.split(","))
    assert path_of(mounted, HERE[0]).read_bytes() == content(HERE[0])
    if name == "page cache":
        assert mode(mounted) == "page cache (passthrough is turned off)"
    elif kernel_has_passthrough():
        assert mode(mounted) == "passthrough"
    else:
        assert mode(mounted) == "page cache (passthrough needs Linux 6.9)"


@pytest.fixture
def open_device() -> Iterator[None]:
    with fuse_device_open_to_all():
        yield


def test_unprivileged_mount(open_device: None, silence: str) -> None:
    """By fusermount3, which mounts for nobody."""
    # Nobody may read what is needed to run this program at all, wherever it is installed, and no more.
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]

    def run(*command: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*become, *command],
            env={**ENVIRONMENT, "HOME": str(folder), "XDG_CACHE_HOME": str(folder), "XDG_STATE_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    with tempfile.TemporaryDirectory(prefix="kinetics-fs-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        for needed in ([sys.executable, "-c", "import kinetics_fs"], ["fusermount3", "-V"]):
            if (tried := run(*needed)).returncode:
                pytest.skip(f"UNPRIVILEGED MOUNTS ARE NOT TESTED: {needed[0]} as nobody: {tried.stderr.decode()}")
        rows, root = write_rows(folder), folder / "mount"
        fill(folder / "cache")
        for below in [folder / "cache", *(folder / "cache").rglob("*")]:
            os.chown(below, NOBODY, NOBODY)
        program: list[str | Path] = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull]
        options: list[str | Path] = ["--frontend", "native", "--annotations", rows, "--cache-dir", folder / "cache"]
        options += ["--min-free", "0", "--video-url", silence, "--log-file", folder / "log"]
        try:
            done = run(*program, "mount", *options, root)
            assert done.returncode == 0, done.stderr
            said = subprocess.run(
                ["findmnt", "-no", "FSTYPE,OPTIONS", root], capture_output=True, text=True, check=True
            )
            kind, given = said.stdout.split()
            assert kind == "fuse.kinetics-fs"
            assert {"ro", f"user_id={NOBODY}", "default_permissions"} <= set(given.split(","))
            status = json.loads(run("cat", root / ".kinetics/status.json").stdout)
            if kernel_has_passthrough():
                assert status["frontend"]["mode"] == "page cache (passthrough needs root)"
            for _ in range(2):
                assert run("cat", root / "train" / FULL / HERE[0].name).stdout == content(HERE[0])
            assert run("ls", root / "train" / FULL).stdout.count(b".mp4") == len(CLIPS)
            with pytest.raises(PermissionError):
                list(root.iterdir())  # not even root may look
            done = run(*program, "umount", root)
            assert done.returncode == 0, done.stderr
            assert root not in find_mounts()
            assert has_ended(status["pid"], within=20)
        finally:
            if root in find_mounts():
                subprocess.run(["umount", "-l", root], check=False)


def test_mount_in_a_namespace_of_its_own(scratch: Path, silence: str) -> None:
    fill(scratch / "cache")
    script = (
        'set -e; "$@" "$ROOT"; cat "$ROOT/train/$CLASS/$CLIP" > "$OUT"; findmnt -no FSTYPE "$ROOT";'
        '"$PYTHON" -m kinetics_fs umount "$ROOT"; ! findmnt "$ROOT"'
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "kinetics_fs",
        "--config",
        os.devnull,
        "mount",
        "--log-file",
        scratch / "log",
    ]
    command += ["--frontend", "native", "--annotations", write_rows(scratch), "--cache-dir", scratch / "cache"]
    command += ["--min-free", "0", "--video-url", silence]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command],
        env={
            **ENVIRONMENT,
            "ROOT": str(scratch / "mount"),
            "CLASS": FULL,
            "CLIP": HERE[0].name,
            "OUT": str(scratch / "out"),
            "PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fuse.kinetics-fs" in done.stdout
    assert (scratch / "out").read_bytes() == content(HERE[0])


@pytest.mark.parametrize("name", MODES)
def test_cache_on_an_overlay(mount: MountFactory, scratch: Path, name: str) -> None:
    mounted = mount(*MODES[name], cache=on_an_overlay(scratch))
    for _ in range(2):
        for clip in HERE:
            assert path_of(mounted, clip).read_bytes() == content(clip)
    assert "passthrough failed" not in mounted.log.read_text()


def test_cache_on_an_overlay_passes_through(mount: MountFactory, scratch: Path) -> None:
    """As in a container: its disk is one overlay deep, which a stack of two allows."""
    if not kernel_has_passthrough():
        pytest.skip("passthrough needs Linux 6.9")
    mounted = mount(cache=on_an_overlay(scratch))
    assert path_of(mounted, HERE[0]).read_bytes() == content(HERE[0])
    assert mode(mounted) == "passthrough"


def on_an_overlay(scratch: Path) -> Path:
    """Mount an overlay and fill a cache directory on it."""
    for name in ("lower", "upper", "work", "overlay"):
        (scratch / name).mkdir()
    fill(scratch / "lower/cache")
    options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, scratch / "overlay"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"NO OVERLAY TO TEST ON: {done.stderr.strip()}")
    return scratch / "overlay/cache"


@pytest.mark.parametrize("name", MODES)
def test_overlay_on_the_mount(mount: MountFactory, scratch: Path, tmp_path: Path, name: str) -> None:
    """How to write beside the clips. The kernel stacks two at most, so passthrough must leave one."""
    mounted = mount(*MODES[name], cache=tmp_path / "cache")
    for folder in ("upper", "work", "writable"):
        (scratch / folder).mkdir()
    options = f"lowerdir={mounted.root},upperdir={scratch}/upper,workdir={scratch}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, scratch / "writable"], check=True)
    try:
        for clip in HERE:
            path = scratch / "writable" / path_of(mounted, clip).relative_to(mounted.root)
            assert path.read_bytes() == content(clip)
        (scratch / "writable/index.json").write_text("{}")
    finally:
        subprocess.run(["umount", scratch / "writable"], check=True)


@pytest.mark.parametrize(
    ("default", "most", "seconds"),
    [("0", "0", 0), ("60", "0", 60), ("0", "90", 90), ("60", "90", 60), ("90", "60", 60)],
)
def test_request_timeout(tmp_path: Path, default: str, most: str, seconds: int) -> None:
    assert request_timeout(tmp_path) == 0
    (tmp_path / "default_request_timeout").write_text(default + "\n")
    (tmp_path / "max_request_timeout").write_text(most + "\n")

    assert request_timeout(tmp_path) == seconds


@pytest.mark.parametrize("name", MODES)
def test_cache_on_a_disk(mount: MountFactory, tmp_path: Path, name: str) -> None:
    """The others are in memory."""
    mounted = mount(*MODES[name], cache=tmp_path / "cache")
    for clip in HERE:
        assert path_of(mounted, clip).read_bytes() == content(clip)


def test_mount_below_a_symbolic_link(mount: MountFactory, scratch: Path) -> None:
    (scratch / "real").mkdir()
    (scratch / "link").symlink_to(scratch / "real")
    mounted = mount(root=scratch / "link/mount")
    assert path_of(mounted, HERE[0]).read_bytes() == content(HERE[0])
    again = kinetics_fs("mount", "--annotations", scratch / "rows.csv", mounted.root)
    assert "is mounted already" in again.stderr
    done = run_command("umount", mounted.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert has_ended(mounted.pid, within=20)


# How it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODES)
def test_umount_by_other_programs_ends_the_mount(mount: MountFactory, name: str) -> None:
    mounted = mount(*MODES[name])
    path_of(mounted, HERE[0]).read_bytes()
    subprocess.run(["umount", mounted.root], check=True)
    assert has_ended(mounted.pid, within=20)
    assert "Traceback" not in mounted.log.read_text()


def test_signal_ends_a_mount_that_was_never_used(scratch: Path, silence: str) -> None:
    """The process that serves a mount must not stat the mount point to unmount it: it would wait for itself."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "mount", "--foreground"),
            *("--frontend", "native", "--annotations", write_rows(scratch), "--cache-dir", scratch / "cache"),
            *("--min-free", "0", "--video-url", silence, scratch / "mount"),
        ],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stderr is not None
            assert select.select([process.stderr], [], [], 30)[0]
            assert b"on " in process.stderr.readline()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert scratch / "mount" not in find_mounts()


def test_signal_that_does_not_interrupt_the_wait(mount: MountFactory) -> None:
    """As one does that comes in the moment before it: Python notes it, and the loop waits for the next request."""
    mounted = mount()
    tasks = Path(f"/proc/{mounted.pid}/task")
    [thread, *_] = [int(task.name) for task in tasks.iterdir() if task.name != str(mounted.pid)]
    wait_until(lambda: "poll" in (tasks / str(mounted.pid) / "wchan").read_text())
    time.sleep(0.2)
    assert ctypes.CDLL(None).tgkill(mounted.pid, thread, signal.SIGTERM) == 0
    assert has_ended(mounted.pid, within=20)
    assert mounted.root not in find_mounts()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_opens_wait(mount: MountFactory, number: signal.Signals) -> None:
    mounted = mount()
    with waiting(mounted, ABSENT[:20]) as readers:
        os.kill(mounted.pid, number)
        for reader in readers:
            assert os.strerror(errno.EINTR).encode() in reader.communicate(timeout=20)[1]
    assert has_ended(mounted.pid, within=20)
    assert mounted.root not in find_mounts()
    assert "Traceback" not in mounted.log.read_text()


LOADER = """
import os, sys
if sys.argv[1]:
    os.chdir(sys.argv[1])
for name in sys.argv[2:]:
    try:
        os.close(os.open(name, os.O_RDONLY))
    except OSError:
        continue
"""
"""If a clip is unavailable, it takes the next one. As Python does, it retries after EINTR."""


@pytest.mark.parametrize("inside", [False, True], ids=["by whole paths", "from inside"])
def test_signal_ends_the_mount_while_readers_retry(mount: MountFactory, inside: bool) -> None:
    """Opens that come while it ends must not wait any more: a fetch may take minutes."""
    mounted = mount()
    folder = mounted.root / "train" / FULL
    names = [clip.name if inside else folder / clip.name for clip in ABSENT[:100]]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", LOADER, folder if inside else "", *names[number::4]])
            )
            for number in range(4)
        ]
        for reader in readers:
            stack.callback(reader.kill)
        wait_until(lambda: mounted.status()["frontend"]["waiting_opens"] == 4)
        os.kill(mounted.pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(reader.poll() is None for reader in readers):
            time.sleep(0.05)
        stuck = [reader.pid for reader in readers if reader.poll() is None]
        assert stuck == [], "they wait for fetches that take for ever"
    assert has_ended(mounted.pid, within=20)
    assert mounted.root not in find_mounts()


@pytest.mark.parametrize("first", ["signal", "lazy umount"])
def test_signal_unmounts_nothing_else(mount: MountFactory, first: str) -> None:
    """A mount that waits for its last reader no longer owns its mountpoint."""
    mounted = mount()
    with path_of(mounted, HERE[0]).open("rb") as file:
        if first == "signal":
            os.kill(mounted.pid, signal.SIGTERM)
        else:
            subprocess.run(["umount", "-l", mounted.root], check=True)
        wait_until(lambda: mounted.root not in find_mounts())
        subprocess.run(["mount", "-t", "tmpfs", "successor", mounted.root], check=True)
        try:
            os.kill(mounted.pid, signal.SIGTERM)
            has_ended(mounted.pid, within=1)
            assert mounted.root.is_mount()
        finally:
            while mounted.root.is_mount():
                subprocess.run(["umount", "-l", mounted.root], check=True)
        with suppress(OSError):
            file.read(1)
    assert has_ended(mounted.pid, within=20)


@pytest.mark.parametrize("name", MODES)
def test_kill_under_load_and_mount_again(mount: MountFactory, name: str) -> None:
    mounted = mount(*MODES[name])
    ending = threading.Event()

    def load() -> None:
        while not ending.is_set():
            for clip in HERE:
                with suppress(OSError):
                    assert path_of(mounted, clip).read_bytes() == content(clip)
            with suppress(OSError):
                list((mounted.root / "train" / FULL).iterdir())

    threads = [threading.Thread(target=load) for _ in range(4)]
    with waiting(mounted, ABSENT[:10]) as readers:
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.3)
            os.kill(mounted.pid, signal.SIGKILL)
            assert has_ended(mounted.pid, within=20)
            for reader in readers:
                assert reader.wait(20) == 1
        finally:
            ending.set()
            for thread in threads:
                thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(OSError) as caught:
        os.statvfs(mounted.root)
    assert caught.value.errno == errno.ENOTCONN
    again = mount(*MODES[name], root=mounted.root)
    assert again.pid != mounted.pid
    for clip in HERE:
        assert path_of(again, clip).read_bytes() == content(clip)


# Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODES)
def test_reader_of_an_evicted_clip_keeps_its_bytes(mount: MountFactory, scratch: Path, name: str) -> None:
    mounted = mount(*MODES[name])
    clip = HERE[0]
    first, second = content(clip), content(clip, 7_777, version=2)
    with path_of(mounted, clip).open("rb", buffering=0) as old, Store(scratch / "cache") as store:
        assert old.read(100) == first[:100]
        store.remove(clip)
        assert old.read(100) == first[100:200]
        put(store, clip, second)
        with path_of(mounted, clip).open("rb", buffering=0) as beside:
            assert os.fstat(beside.fileno()).st_size == len(first)
            assert os.pread(beside.fileno(), 65536, 0) == os.pread(old.fileno(), 65536, 0) == first
        # The other path of the clip is another inode, and shows the new content.
        assert path_of(mounted, clip, "validation").read_bytes() == second
        # However the kernel comes to ask again, the open file stays as long as it is.
        os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        subprocess.run(["stat", "--cached=never", path_of(mounted, clip)], check=True, stdout=subprocess.DEVNULL)
        assert os.pread(old.fileno(), 65536, 0) == first
        assert os.fstat(old.fileno()).st_size == len(first)
    wait_until(lambda: mounted.status()["frontend"]["open_files"] == 0)
    with path_of(mounted, clip).open("rb", buffering=0) as new:
        assert os.pread(new.fileno(), 65536, 0) == second
        assert os.fstat(new.fileno()).st_size == len(second)


@pytest.mark.parametrize("name", MODES)
def test_twenty_opens_at_the_same_time(mount: MountFactory, name: str) -> None:
    mounted = mount(*MODES[name])
    before = descriptors_of(mounted.pid)
    failures: list[BaseException] = []

    def read_again_and_again() -> None:
        try:
            for _ in range(20):
                files = [os.open(path_of(mounted, HERE[0]), os.O_RDONLY) for _ in range(3)]
                for file in files:
                    assert os.pread(file, 65536, 0) == content(HERE[0])
                    os.close(file)
        except BaseException as error:
            failures.append(error)

    files = [os.open(path_of(mounted, HERE[0]), os.O_RDONLY) for _ in range(20)]
    assert descriptors_of(mounted.pid) <= before + 3, "one descriptor for all of them"
    threads = [threading.Thread(target=read_again_and_again) for _ in range(8)]
    for thread in threads:
        thread.start()
    for file in files:
        assert os.read(file, 65536) == content(HERE[0])
        os.close(file)
    for thread in threads:
        thread.join(30)
    assert failures == []
    if name == "passthrough" and kernel_has_passthrough():
        assert mode(mounted) == "passthrough"


@pytest.mark.parametrize("name", MODES)
def test_five_hundred_opens_leave_no_descriptor(mount: MountFactory, name: str) -> None:
    mounted = mount(*MODES[name])
    for clip in HERE:
        path_of(mounted, clip).read_bytes()
    mounted.status()
    before = descriptors_of(mounted.pid)
    for number in range(500):
        path_of(mounted, HERE[number % len(HERE)]).read_bytes()
    with waiting(mounted, ABSENT[:30]):
        pass
    wait_until(lambda: mounted.status()["frontend"]["waiting_opens"] == 0)
    wait_until(lambda: descriptors_of(mounted.pid) <= before + 60, within=20)  # workers, connections
    for _ in range(3):
        for clip in HERE:
            path_of(mounted, clip).read_bytes()
    wait_until(lambda: mounted.status()["frontend"]["open_files"] == 0)
    links = open_paths(mounted.pid)
    assert [link for link in links if ".mp4" in link] == []


def test_more_open_clips_than_descriptors_of_a_shell(mount: MountFactory) -> None:
    """Shells allow 1024 descriptors, and more on request: a loader with many workers needs them."""
    mounted = mount(wrapper=["prlimit", f"--nofile={len(HERE)}:"])
    with ExitStack() as files:
        for clip in HERE:
            file = files.enter_context(path_of(mounted, clip).open("rb"))
            assert file.read() == content(clip)
        assert len(list((mounted.root / "train").iterdir())) == 2
        assert mounted.status()["frontend"]["open_files"] == len(HERE)


FEW_FILES = ["prlimit", "--nofile=100:100"]
"""Lets a mount have 50 open files; a single user may have half of them."""


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("arguments", [*MODES.values(), ("--frontend", "fusepy")])
def test_no_user_can_use_up_the_open_files(mount: MountFactory, arguments: tuple[str, ...]) -> None:
    mounted = mount(*arguments, wrapper=FEW_FILES)
    assert mounted.status()["frontend"]["max_open_files"] == 50
    with ExitStack() as files:
        folder = os.open(path_of(mounted, HERE[0]).parent, os.O_PATH)
        files.callback(os.close, folder)

        def open_clips(uid: int) -> list[int]:
            """Open clips until the mount refuses."""
            opened: list[int] = []
            with as_user(uid), pytest.raises(OSError, match="Too many open files"):
                for clip in HERE:
                    opened.append(os.open(clip.name, os.O_RDONLY, dir_fd=folder))
                    files.callback(os.close, opened[-1])
            return opened

        first, second, third = (open_clips(uid) for uid in (NOBODY, 61001, 0))
        assert [len(first), len(second), len(third)] == [25, 13, 6]
        assert [os.read(file, 65536) for file in third] == [content(clip) for clip in HERE[:6]]
        assert f"uid {NOBODY} has 25 files of this mount open" in mounted.log.read_text()

    def can_open_many() -> bool:
        with ExitStack() as files, suppress(OSError):
            for clip in HERE[:24]:
                files.enter_context(path_of(mounted, clip).open("rb"))
            return True
        return False

    wait_until(can_open_many)


def test_waiting_opens_count_as_open_files(mount: MountFactory) -> None:
    mounted = mount(wrapper=FEW_FILES)
    with (
        waiting(mounted, ABSENT[:24]),
        path_of(mounted, HERE[0]).open("rb"),
        pytest.raises(OSError, match="Too many open files"),
    ):
        path_of(mounted, HERE[1]).read_bytes()
    wait_until(lambda: open_errno(path_of(mounted, HERE[1])) is None)


# Waiting ----------------------------------------------------------------------------------------------------------


def test_two_hundred_waiting_opens_do_not_delay_other_requests(mount: MountFactory) -> None:
    mounted = mount()
    with waiting(mounted, ABSENT[:200]) as readers:
        assert path_of(mounted, HERE[0]).read_bytes() == content(HERE[0])
        assert sum(len(names) for _, _, names in os.walk(mounted.root)) > len(CLIPS)
        assert all(path_of(mounted, clip).stat().st_size for clip in CLIPS)
        assert is_waiting(path_of(mounted, ABSENT[0]))
        assert used_files(mounted.root) > len(CLIPS)
        assert [reader.poll() for reader in readers] == [None] * 200
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(20)
    wait_until(lambda: mounted.status()["frontend"]["waiting_opens"] == 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_reader_ends_at_once(mount: MountFactory, number: signal.Signals) -> None:
    mounted = mount()
    with waiting(mounted, ABSENT[:2]) as [first, second]:
        first.send_signal(number)
        assert first.wait(20) == -number
        assert second.poll() is None
        wait_until(lambda: mounted.status()["frontend"]["waiting_opens"] == 1)
