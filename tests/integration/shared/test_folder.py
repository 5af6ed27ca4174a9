"""The folder backend: the habits of NFS, crashes, hostile entries, and a server that hangs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.errors import FailureKind
from kinetics_fs.media.verify import verify_clip
from kinetics_fs.shared import folder as folder_module
from kinetics_fs.shared.backend import MAX_FILE, AccessRefused, Conflict, ObjectDamaged, StoreUnreachable
from kinetics_fs.shared.folder import FolderBackend
from tests.support.nfs import NfsCalls

RECORD = "leases/a/b.json"
FILE = "clips/v1/source/3f/a.mp4"


@pytest.fixture
def backend(tmp_path: Path) -> FolderBackend:
    return FolderBackend(tmp_path)


def body(backend: FolderBackend, key: str) -> bytes | None:
    found = backend.get(key, max_size=10)
    return found and found.body


def test_objects_are_plain_files(backend: FolderBackend, tmp_path: Path) -> None:
    backend.create(RECORD, b"{}")
    assert (tmp_path / RECORD).read_bytes() == b"{}"
    assert [path.name for path in (tmp_path / "leases/a").iterdir()] == ["b.json"]


def test_a_video_with_its_metadata_still_plays(backend: FolderBackend, tmp_path: Path, dataset: Any) -> None:
    video = next(dataset.videos.glob("*.mp4"))
    backend.create(FILE, video.read_bytes(), {"sha256": "0" * 64})
    assert (tmp_path / FILE).stat().st_size == video.stat().st_size + 1024
    assert verify_clip(tmp_path / FILE, None) == verify_clip(video, None)


def test_a_link_that_says_it_failed_has_succeeded(
    backend: FolderBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = NfsCalls()
    monkeypatch.setattr(folder_module, "os", calls)
    version = backend.create(RECORD, b"1")
    backend.replace(RECORD, b"2", version)
    assert calls.lies == 2
    with pytest.raises(Conflict):
        backend.create(RECORD, b"3")


def test_what_another_machine_wrote_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = NfsCalls()
    monkeypatch.setattr(folder_module, "os", calls)
    here, elsewhere = FolderBackend(tmp_path), FolderBackend(tmp_path)
    for key in (RECORD, FILE):
        assert here.get(key, max_size=10) is None
        with calls.elsewhere():
            version = elsewhere.create(key, b"1", {} if key == FILE else None)
        assert body(here, key) == b"1"
    assert here.stat(RECORD) is not None
    with calls.elsewhere():
        found = elsewhere.get(RECORD, max_size=10)
        assert found is not None
        version = elsewhere.replace(RECORD, b"2", found.info.version)
    assert body(here, RECORD) == b"2"
    here.replace(RECORD, b"3", version)


def test_a_stale_absence_does_not_hide_an_object_from_stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = NfsCalls()
    monkeypatch.setattr(folder_module, "os", calls)
    here, elsewhere = FolderBackend(tmp_path), FolderBackend(tmp_path)
    here.create("clips/v1/source/3f/other.mp4", b"", {})
    assert here.get(FILE, max_size=10) is None
    calls.is_stubborn = True
    with calls.elsewhere():
        elsewhere.create(FILE, b"1", {})

    assert here.get(FILE, max_size=10) is None  # the client of NFS remembers
    assert here.stat(FILE) is not None
    assert body(here, FILE) == b"1"
    with pytest.raises(Conflict):
        here.create(FILE, b"2", {})


KILLED_WRITER = """
import os, signal, sys, threading
from pathlib import Path
from kinetics_fs.shared import folder
class Calls:
    def __getattr__(self, name):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(os, name)
backend = folder.FolderBackend(Path(sys.argv[1]))
version = backend.create("leases/a/b.json", b"1")
folder.os = Calls()
try:
    backend.replace("leases/a/b.json", b"2", version)
    backend.create("clips/v1/source/3f/a.mp4", b"clip", {})
finally:
    os._exit(1)
"""


@pytest.mark.parametrize("call", ["write", "fsync", "link", "unlink"])
def test_a_writer_that_is_killed_leaves_whole_objects(backend: FolderBackend, tmp_path: Path, call: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, tmp_path, call], check=False)
    assert killed.returncode == -9

    found = backend.get(RECORD, max_size=10)
    assert found is not None and found.body in (b"1", b"2")
    assert [entry.key for entry in backend.scan("leases")] == [RECORD]
    backend.replace(RECORD, b"3", found.info.version)
    assert backend.get(FILE, max_size=10) is None
    backend.create(FILE, b"clip", {})


def test_what_a_killed_writer_left_is_removed_after_a_day(backend: FolderBackend, tmp_path: Path) -> None:
    backend.create(RECORD, b"1")
    old, new = tmp_path / "leases/a/.1.tmp", tmp_path / "leases/a/.2.tmp"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, time.time() - 90_000))
    list(backend.scan("leases"))
    assert (old.exists(), new.exists()) == (False, True)


def test_numbers_of_a_deleted_record_do_not_count_for_its_successor(backend: FolderBackend, tmp_path: Path) -> None:
    version = backend.create(RECORD, b"1")
    backend.replace(RECORD, b"2", version)
    numbers = next(path for path in (tmp_path / "leases/a").iterdir() if path.is_dir())
    (tmp_path / RECORD).unlink()  # and its writer is killed
    assert backend.get(RECORD, max_size=10) is None
    backend.create(RECORD, b"new")
    assert body(backend, RECORD) == b"new"
    assert numbers.exists()


def test_a_late_writer_loses_although_its_number_is_free_again(
    backend: FolderBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others replace the record so often, between its look and its link, that old numbers are removed."""
    version = backend.create(RECORD, b"1")

    class Calls:
        is_late = False

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def link(self, *arguments: Any, **options: Any) -> None:
            if self.is_late:
                self.is_late = False
                current = version
                for number in range(2, 60):
                    current = backend._replace_record(RECORD, b"%d" % number, current)
            os.link(*arguments, **options)

    calls = Calls()
    monkeypatch.setattr(folder_module, "os", calls)
    calls.is_late = True
    with pytest.raises(Conflict):
        backend.replace(RECORD, b"late", version)
    assert body(backend, RECORD) == b"59"


# Hostile entries


@pytest.mark.parametrize("key", [RECORD, FILE])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder", "socket"])
def test_an_entry_that_is_no_file_is_damaged_and_never_followed(
    backend: FolderBackend, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, key: str, kind: str
) -> None:
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_bytes(b"secret")
    path = tmp_path / key
    path.parent.mkdir(parents=True)
    match kind:
        case "symlink":
            path.symlink_to(secret)
        case "dangling":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)

    with pytest.raises(ObjectDamaged, match="it is no file"):
        backend.get(key, max_size=1000)
    with pytest.raises(Conflict):
        backend.create(key, b"1", {} if key == FILE else None)
    assert secret.read_bytes() == b"secret"
    assert [entry.key for entry in backend.scan("leases" if key == RECORD else "clips")] == []


def test_a_folder_that_is_a_symlink_is_not_followed(
    backend: FolderBackend, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (tmp_path / "clips").symlink_to(outside)
    with pytest.raises(ObjectDamaged):
        backend.create(FILE, b"1", {})
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["numbers", "names"])
def test_strange_names_are_ignored(backend: FolderBackend, tmp_path: Path, name: str) -> None:
    version = backend.create(RECORD, b"1")
    version = backend.replace(RECORD, b"2", version)
    folder = tmp_path / "leases/a"
    if name == "numbers":
        folder = next(path for path in folder.iterdir() if path.is_dir())
        strange = ["x", "-1", "9" * 400, "\u0663", "1e9", "07x"]
        strange[2] = "9" * 200
    else:
        strange = ["a b.json", "\u00e4.json", "new\nline.json", "x" * 220 + ".json"]
    for one in strange:
        (folder / one).write_bytes(b"strange")
    (folder / os.fsdecode(b"\xff\xfe.json")).write_bytes(b"strange")

    assert body(backend, RECORD) == b"2"
    assert [entry.key for entry in backend.scan("leases")] == [RECORD]
    backend.replace(RECORD, b"3", version)


@pytest.mark.parametrize("tail", [b"", b"x" * 1024, b"\x00\x00\x04\x00uuid" + b"\x00" * 1016])
def test_a_file_without_its_metadata_is_damaged(backend: FolderBackend, tmp_path: Path, tail: bytes) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_bytes(tail)
    with pytest.raises(ObjectDamaged, match="does not end with its metadata") as caught:
        backend.get(FILE, max_size=10_000)
    assert caught.value.version is not None
    backend.replace(FILE, b"clip", caught.value.version, {})
    assert body(backend, FILE) == b"clip"


def test_a_huge_file_is_not_read(backend: FolderBackend, tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    with (tmp_path / FILE).open("wb") as file:
        file.truncate(2**40)
    began = time.monotonic()
    with pytest.raises(ObjectDamaged, match="1,099,511,627,776 bytes"):
        backend.get(FILE, max_size=10_000)
    assert time.monotonic() - began < 5


# Faults of the filesystem


@pytest.mark.parametrize(
    ("number", "error", "kind"),
    [
        (errno.EACCES, AccessRefused, FailureKind.CREDENTIALS),
        (errno.EROFS, AccessRefused, FailureKind.CREDENTIALS),
        (errno.EDQUOT, AccessRefused, FailureKind.LOCAL),
        (errno.ENOSPC, AccessRefused, FailureKind.LOCAL),
        (errno.ESTALE, StoreUnreachable, None),
        (errno.EIO, StoreUnreachable, None),
        (errno.ETIMEDOUT, StoreUnreachable, None),
    ],
)
def test_faults_have_their_type(
    backend: FolderBackend, monkeypatch: pytest.MonkeyPatch, number: int, error: type, kind: FailureKind | None
) -> None:
    class Calls:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, fd: int) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder_module, "os", Calls())
    with pytest.raises(error, match="cannot write") as caught:
        backend.create(RECORD, b"1")
    assert getattr(caught.value, "kind", None) is kind
    monkeypatch.undo()
    assert backend.get(RECORD, max_size=10) is None


def test_a_full_disk_leaves_nothing(tmpfs_of_1_mib: Path) -> None:
    backend = FolderBackend(tmpfs_of_1_mib)
    with pytest.raises(AccessRefused, match="No space left") as caught:
        backend.create(FILE, b"x" * 2**21, {})
    assert caught.value.kind is FailureKind.LOCAL
    assert backend.get(FILE, max_size=10) is None
    backend.create(FILE, b"x", {})


def is_reachable(backend: FolderBackend) -> bool:
    try:
        backend.get(RECORD, max_size=10)
    except StoreUnreachable:
        return False
    return True


def test_a_server_that_hangs_does_not_hang_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FolderBackend(tmp_path, timeout=0.2)
    answers = threading.Event()

    class Calls:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fstat(self, fd: int) -> os.stat_result:
            answers.wait()
            return os.fstat(fd)

    monkeypatch.setattr(folder_module, "os", Calls())
    with pytest.raises(StoreUnreachable, match="takes longer than"):
        backend.get(RECORD, max_size=10)
    with ThreadPoolExecutor(15) as pool:
        assert set(pool.map(lambda _: is_reachable(backend), range(15))) == {False}
    with pytest.raises(StoreUnreachable, match="16 earlier calls hang"):
        backend.get(RECORD, max_size=10)

    answers.set()
    assert any(is_reachable(backend) for _ in range(100))


def test_a_folder_that_is_missing_or_no_longer_mounted_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match="does not exist"):
        FolderBackend(tmp_path / "missing").get(RECORD, max_size=10)
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnreachable, match="it is no folder"):
        FolderBackend(tmp_path / "file").get(RECORD, max_size=10)

    root = tmp_path / "root"
    root.mkdir()
    backend = FolderBackend(root)
    backend.create(RECORD, b"1")
    root.rename(tmp_path / "unmounted")
    root.mkdir()
    with pytest.raises(StoreUnreachable, match="no longer mounted"):
        backend.get(RECORD, max_size=10)
    with pytest.raises(StoreUnreachable, match="no longer mounted"):
        backend.create(FILE, b"1", {})
    assert list(root.iterdir()) == []


def test_reading_a_small_object_reserves_little_memory(backend: FolderBackend) -> None:
    backend.create(FILE, b"clip" * 1000, {})
    tracemalloc.start()
    try:
        assert backend.get(FILE, max_size=MAX_FILE) is not None
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()
