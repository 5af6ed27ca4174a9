"""Every way of reading returns the exact bytes of a clip whose size was unknown before.

Each way has its own clip, which was never opened. It is read once without a preceding stat, and once after one, from
which a kernel or a tool may have cached the estimated size.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.media import make_video
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.store import Store
from tests.mount.conftest import FRONTENDS
from tests.support.annotations import Labelled, write_annotations
from tests.support.command_line import Mounted
from tests.support.mounts import CLASS, cached_file, short_clips, write_clips

Way = Callable[[Path, Path], object]
"""Reads the first path; may write into the folder that is the second."""

Truth = Callable[[Path], object]
"""The result that a way of reading must return, computed from the file in the cache."""

WAYS: dict[str, tuple[Way, Truth]] = {}

SOME = 1000
"""Bytes, where a part of the file is read: not a multiple of anything that matters."""


def way(truth: Truth) -> Callable[[Way], Way]:
    def register(function: Way) -> Way:
        WAYS[function.__name__.removeprefix("read_by_")] = function, truth
        return function

    return register


def output(*command: str | Path) -> bytes:
    """Return the output of a command, which must succeed without messages."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout


def size(path: Path) -> int:
    return path.stat().st_size


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


whole = Path.read_bytes


# Tools ------------------------------------------------------------------------------------------------------------


@way(whole)
def read_by_cat(path: Path, scratch: Path) -> object:
    return output("cat", path)


@way(whole)
def read_by_redirection(path: Path, scratch: Path) -> object:
    with path.open("rb") as file:
        return subprocess.run(["cat"], stdin=file, capture_output=True, check=True).stdout


@way(digest)
def read_by_md5sum(path: Path, scratch: Path) -> object:
    return output("md5sum", path).split()[0].decode()


def read_by_dd(path: Path, *operands: str) -> bytes:
    return output("dd", f"if={path}", "status=none", *operands)


@way(whole)
def read_by_dd_in_small_blocks(path: Path, scratch: Path) -> object:
    return read_by_dd(path, "bs=512")


@way(whole)
def read_by_dd_in_odd_blocks(path: Path, scratch: Path) -> object:
    return read_by_dd(path, "bs=7777")


@way(whole)
def read_by_dd_in_one_block(path: Path, scratch: Path) -> object:
    return read_by_dd(path, "bs=4M", "count=1")


@way(lambda path: whole(path)[SOME * 50 :])
def read_by_dd_with_skip(path: Path, scratch: Path) -> object:
    return read_by_dd(path, f"bs={SOME}", "skip=50")


@way(whole)
def read_by_dd_with_direct_io(path: Path, scratch: Path) -> object:
    return read_by_dd(path, "iflag=direct", "bs=64k")


def copied(path: Path, scratch: Path, *command: str) -> bytes:
    assert output(*command, path, scratch / "copy") == b""
    return whole(scratch / "copy")


@way(whole)
def read_by_cp(path: Path, scratch: Path) -> object:
    return copied(path, scratch, "cp")


@way(whole)
def read_by_cp_sparse(path: Path, scratch: Path) -> object:
    return copied(path, scratch, "cp", "--sparse=always")


@way(whole)
def read_by_rsync(path: Path, scratch: Path) -> object:
    return copied(path, scratch, "rsync", "--times")


@way(whole)
def read_by_rsync_checksum(path: Path, scratch: Path) -> object:
    return copied(path, scratch, "rsync", "--checksum", "--inplace")


def from_tar(path: Path, scratch: Path, *options: str) -> object:
    archive = scratch / "archive.tar"
    output("tar", *options, "-cf", archive, "-C", path.parent, "--", f"./{path.name}")
    with tarfile.open(archive) as tar:
        [member] = tar.getmembers()
        file = tar.extractfile(member)
        assert file is not None
        return file.read()


@way(whole)
def read_by_tar(path: Path, scratch: Path) -> object:
    return from_tar(path, scratch)


@way(whole)
def read_by_tar_sparse(path: Path, scratch: Path) -> object:
    return from_tar(path, scratch, "-S")


@way(lambda path: (whole(path), size(path)))
def read_by_tarfile(path: Path, scratch: Path) -> object:
    with tarfile.open(scratch / "archive.tar", "w") as tar, path.open("rb") as file:
        tar.addfile(tar.gettarinfo(arcname="clip", fileobj=file), file)
    with tarfile.open(scratch / "archive.tar") as tar:
        member = tar.extractfile("clip")
        assert member is not None
        return member.read(), tar.getmember("clip").size


@way(size)
def read_by_wc(path: Path, scratch: Path) -> object:
    return int(output("wc", "-c", path).split()[0])


@way(lambda path: whole(path)[-SOME:])
def read_by_tail(path: Path, scratch: Path) -> object:
    return output("tail", "-c", str(SOME), path)


@way(lambda path: whole(path)[:SOME])
def read_by_head(path: Path, scratch: Path) -> object:
    return output("head", "-c", str(SOME), path)


@way(lambda path: whole(path)[:-SOME])
def read_by_head_without_end(path: Path, scratch: Path) -> object:
    return output("head", "-c", f"-{SOME}", path)


@way(size)
def read_by_stat_of_descriptor(path: Path, scratch: Path) -> object:
    with path.open("rb") as file:
        return int(subprocess.run(["stat", "-L", "-c", "%s", "-"], stdin=file, capture_output=True, check=True).stdout)


# System calls -----------------------------------------------------------------------------------------------------


@way(whole)
def read_by_open_read(path: Path, scratch: Path) -> object:
    with path.open("rb") as file:
        return file.read()


@way(whole)
def read_by_unbuffered_read(path: Path, scratch: Path) -> object:
    with path.open("rb", buffering=0) as file:
        return file.readall()


@way(lambda path: [size(path)] * 3)
def read_by_fstat(path: Path, scratch: Path) -> object:
    with path.open("rb") as file:
        return [os.fstat(file.fileno()).st_size, path.stat().st_size, os.fstat(file.fileno()).st_size]


@way(lambda path: [size(path), -(-size(path) // 512)])
def read_by_fstat_blocks(path: Path, scratch: Path) -> object:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return [status.st_size, status.st_blocks]


@way(size)
def read_by_seek_to_end(path: Path, scratch: Path) -> object:
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


@way(size)
def read_by_lseek_to_end(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        return os.lseek(fd, 0, os.SEEK_END)


@way(lambda path: whole(path)[-SOME:])
def read_by_lseek_before_end(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        os.lseek(fd, -SOME, os.SEEK_END)
        return os.read(fd, 2 * SOME)


@way(lambda path: [0, size(path)])
def read_by_lseek_data_and_hole(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        return [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)]


@way(size)
def read_by_lseek_hole(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        return os.lseek(fd, SOME, os.SEEK_HOLE)


@way(whole)
def read_by_size_first(path: Path, scratch: Path) -> object:
    # The size may be too large, never too small, and the read ends where the clip does.
    length = path.stat().st_size
    with path.open("rb") as file:
        return file.read(length)


@way(whole)
def read_by_size_first_in_one_call(path: Path, scratch: Path) -> object:
    length = path.stat().st_size
    with opened(path) as fd:
        return os.read(fd, length)


@way(lambda path: [whole(path)[offset : offset + length] for offset, length in odd_places()])
def read_by_pread(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        return [os.pread(fd, length, offset) for offset, length in odd_places()]


def odd_places() -> list[tuple[int, int]]:
    """Offsets and lengths, some of them at page and request boundaries, or across and beyond the end."""
    generator = random.Random(600)
    ranges = [(0, 1), (1, 4095), (4095, 2), (4096, 4096), (131071, 2), (131072, 131072), (10**6, 10), (10**12, 1)]
    return ranges + [(generator.randrange(300_000), generator.randrange(1, 70_000)) for _ in range(40)]


@way(lambda path: [b"", b"", b""])
def read_by_pread_beyond_end(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        return [os.pread(fd, 100, 1024**2 - 50), os.pread(fd, 4096, 2 * 1024**2), os.pread(fd, 1, 2**62)]


@way(whole)
def read_by_preadv(path: Path, scratch: Path) -> object:
    buffers = [bytearray(SOME) for _ in range(1000)]
    with opened(path) as fd:
        count = os.preadv(fd, buffers, 0)
    return b"".join(buffers)[:count]


@way(whole)
def read_by_advised_read(path: Path, scratch: Path) -> object:
    with opened(path) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return read_all(fd)


@way(whole)
def read_by_direct_io(path: Path, scratch: Path) -> object:
    with opened(path, os.O_DIRECT) as fd, mmap.mmap(-1, 1 << 20) as page_aligned:
        count = os.preadv(fd, [page_aligned], 0)
        return page_aligned[:count]


@way(whole)
def read_by_mmap(path: Path, scratch: Path) -> object:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped[:]


@way(whole)
def read_by_private_mmap(path: Path, scratch: Path) -> object:
    with opened(path) as fd, mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
        return mapped[:]


@way(whole)
def read_by_mmap_backwards(path: Path, scratch: Path) -> object:
    with opened(path) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
        return bytes(mapped[offset] for offset in range(len(mapped) - 1, -1, -1))[::-1]


@way(whole)
def read_by_numpy_memmap(path: Path, scratch: Path) -> object:
    return np.memmap(path, np.uint8, "r").tobytes()


@way(whole)
def read_by_copyfile(path: Path, scratch: Path) -> object:
    shutil.copyfile(path, scratch / "copy")
    return whole(scratch / "copy")


@way(whole)
def read_by_copy2(path: Path, scratch: Path) -> object:
    shutil.copy2(path, scratch / "copy")
    return whole(scratch / "copy")


@way(whole)
def read_by_sendfile(path: Path, scratch: Path) -> object:
    with opened(path) as fd, (scratch / "copy").open("wb") as copy:
        while os.sendfile(copy.fileno(), fd, None, 1 << 30):
            pass
    return whole(scratch / "copy")


@way(whole)
def read_by_sendfile_to_socket(path: Path, scratch: Path) -> object:
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def receive() -> None:
        while chunk := theirs.recv(1 << 16):
            received.append(chunk)

    receiver = threading.Thread(target=receive)
    receiver.start()
    with ours, theirs:
        with path.open("rb") as file:
            ours.sendfile(file)
        ours.shutdown(socket.SHUT_WR)
        receiver.join()
    return b"".join(received)


@way(whole)
def read_by_splice(path: Path, scratch: Path) -> object:
    reader, writer = os.pipe()
    content = b""
    with opened(path) as fd:
        try:
            while count := os.splice(fd, writer, 1 << 16):
                while count:
                    content += (chunk := os.read(reader, count))
                    count -= len(chunk)
        finally:
            os.close(reader)
            os.close(writer)
    return content


@way(whole)
def read_by_copy_file_range(path: Path, scratch: Path) -> object:
    with opened(path) as fd, (scratch / "copy").open("wb", buffering=0) as copy:
        try:
            while os.copy_file_range(fd, copy.fileno(), 1 << 30):
                pass
        except OSError as error:
            # Linux refuses it between filesystems of two types (copy_file_range(2)); the program then copies by itself.
            assert error.errno == errno.EXDEV
            copy.write(read_all(fd))
    return whole(scratch / "copy")


@way(whole)
def read_by_second_opener(path: Path, scratch: Path) -> object:
    # Both wait for the same fetch; the file was open already when the second one gets it.
    with path.open("rb") as first, path.open("rb") as second:
        first.read(1)
        return second.read()


# Video readers ----------------------------------------------------------------------------------------------------


def probed(path: Path) -> bytes:
    entries = "format=size,duration,bit_rate:stream=codec_name,nb_frames,duration"
    return output("ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "-of", "json", path)


@way(probed)
def read_by_ffprobe(path: Path, scratch: Path) -> object:
    return probed(path)


def decoded(path: Path) -> bytes:
    return output("ffmpeg", "-nostdin", "-v", "error", "-xerror", "-i", f"file:{path}", "-f", "framemd5", "-")


@way(decoded)
def read_by_ffmpeg(path: Path, scratch: Path) -> object:
    return decoded(path)


def frames(path: Path) -> tuple[int, list[tuple[int | None, str]]]:
    with av.open(f"file:{path}") as container:
        found = [
            (frame.pts, hashlib.md5(bytes(frame.planes[0])).hexdigest())
            for frame in container.decode(container.streams.video[0])
        ]
        return container.size, found


@way(frames)
def read_by_pyav(path: Path, scratch: Path) -> object:
    return frames(path)


def last_frame(path: Path) -> int | None:
    with av.open(f"file:{path}") as container:
        container.seek(1_000_000)
        return [frame.pts for frame in container.decode(video=0)][-1]


@way(last_frame)
def read_by_pyav_seek(path: Path, scratch: Path) -> object:
    return last_frame(path)


def frames_of_stream(path: Path) -> int:
    with path.open("rb") as file, av.open(file, "r") as container:
        return sum(1 for _ in container.decode(video=0))


@way(frames_of_stream)
def read_by_pyav_file_object(path: Path, scratch: Path) -> object:
    return frames_of_stream(path)


def captured(path: Path, start: int = 0) -> tuple[float, list[str]]:
    """How many frames OpenCV takes the clip to have, and a digest of each that it decodes from `start` on."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        assert capture.isOpened()
        assert capture.set(cv2.CAP_PROP_POS_FRAMES, start)
        found = []
        while (picture := capture.read()[1]) is not None:
            found.append(hashlib.md5(picture.tobytes()).hexdigest())
        assert found
        return capture.get(cv2.CAP_PROP_FRAME_COUNT), found
    finally:
        capture.release()


@way(captured)
def read_by_opencv(path: Path, scratch: Path) -> object:
    return captured(path)


@way(lambda path: captured(path, start=40))
def read_by_opencv_seek(path: Path, scratch: Path) -> object:
    return captured(path, start=40)


# ------------------------------------------------------------------------------------------------------------------


class opened:
    """A bare file descriptor: nothing but `open` is asked of the kernel."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self._fd = os.open(path, os.O_RDONLY | flags)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def read_all(fd: int) -> bytes:
    content = b""
    while chunk := os.read(fd, 1 << 16):
        content += chunk
    return content


@dataclass
class Battery:
    """A mount of never-opened clips."""

    mounted: Mounted
    cache: Path
    _fresh: Iterator[Clip]

    def fresh(self) -> tuple[Clip, Path]:
        """Return a clip that no process has opened, looked up or listed so far."""
        clip = next(self._fresh)
        return clip, self.mounted.root / "validation" / CLASS / clip.name


@pytest.fixture(scope="session", params=["native", "pages", "fusepy"])
def frontend(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The front ends, and the one of Linux also without passthrough: it is about every byte here."""
    return {**FRONTENDS, "pages": ("--frontend", "native", "--no-passthrough")}[request.param]


@pytest.fixture(scope="module")
def battery(tmp_path_factory: pytest.TempPathFactory, frontend: tuple[str, ...]) -> Iterator[Battery]:
    folder = tmp_path_factory.mktemp("readers")
    # Two seconds have more bytes than one request of a kernel; there are not enough of them for all.
    clips = short_clips(2) + short_clips(3)
    annotations = write_annotations(folder / "clips.csv", [Labelled(CLASS, clip, "validate") for clip in clips])
    with Mounted(
        folder / "mount",
        *frontend,
        *("--annotations", annotations),
        *("--folder", write_clips(folder / "clips", clips), "--source", "folder"),
        *("--cache-dir", folder / "cache"),
        *("--min-free", "0"),
        *("--workers", "2"),
    ) as mounted:
        yield Battery(mounted, folder / "cache", iter(clips))


@pytest.mark.parametrize("after", ["cold", "stat"])
@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_reading_returns_the_exact_clip(battery: Battery, name: str, after: str, tmp_path: Path) -> None:
    read, truth = WAYS[name]
    clip, path = battery.fresh()
    if after == "stat":
        path.stat()
    result = read(path, tmp_path)
    assert result == truth(cached_file(battery.cache, clip))


LOOKS: dict[str, Callable[[Path], int]] = {
    "stat": lambda path: path.stat().st_size,
    "ls -l": lambda path: int(output("ls", "-l", path).split()[4]),
    "du": lambda path: int(output("du", "--block-size=1", path).split()[0]),
    "du --apparent-size": lambda path: int(output("du", "-b", path).split()[0]),
    "find -size": lambda path: 2**30 if output("find", path, "-size", "+0") else 0,
    "find -printf": lambda path: int(output("find", path, "-printf", "%s")),
    "scandir": lambda path: next(e.stat().st_size for e in os.scandir(path.parent) if e.name == path.name),
    "rsync -n": lambda path: 2**30 if output("rsync", "-n", "-i", path, "/tmp/") else 0,
}


def fetches(battery: Battery) -> dict[str, Any]:
    """Return what the mount says of its fetches, without the rates, which change while nothing is fetched."""
    return {name: value for name, value in battery.mounted.status()["fetch"].items() if name != "rates"}


@pytest.mark.parametrize("name", LOOKS)
def test_size_before_the_first_open_is_no_less_than_the_real_one(battery: Battery, name: str) -> None:
    clip, path = battery.fresh()
    before = fetches(battery)
    assert LOOKS[name](path) > 0
    shown = LOOKS[name](path)
    assert fetches(battery) == before
    path.read_bytes()
    assert shown >= cached_file(battery.cache, clip).stat().st_size


def test_size_is_exact_once_read_and_time_and_inode_never_change(battery: Battery) -> None:
    clip, path = battery.fresh()
    before = path.stat()
    content = path.read_bytes()
    after = path.stat()
    assert after.st_size == len(content) == cached_file(battery.cache, clip).stat().st_size
    assert after.st_blocks == -(-len(content) // 512)
    same = "st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_mtime_ns", "st_ctime_ns"
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]


def test_reader_beyond_the_end_does_no_harm_to_one_before_it(battery: Battery) -> None:
    """Two answers that end the file, at different offsets, reach the kernel at once: the nearer end must hold."""
    for _ in range(8):
        clip, path = battery.fresh()
        with opened(path) as fd:
            offsets = range(2 * 1024**2 - 131072, 300_000, -131072)
            other = threading.Thread(target=lambda fd=fd, offsets=offsets: [os.pread(fd, 4096, at) for at in offsets])
            other.start()
            content = b""
            while chunk := os.read(fd, 7777):
                content += chunk
            other.join()
        assert content == cached_file(battery.cache, clip).read_bytes()


def test_open_reader_keeps_its_bytes_when_the_clip_is_evicted(battery: Battery) -> None:
    clip, path = battery.fresh()
    with path.open("rb", buffering=0) as file:
        beginning = file.read(SOME)
        truth = cached_file(battery.cache, clip).read_bytes()
        with Store(battery.cache) as store:
            store.remove(clip)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert beginning + file.readall() == truth
        assert path.stat().st_size == len(truth)


@pytest.mark.parametrize("change", [-50_000, 50_000], ids=["smaller", "larger"])
def test_open_reader_keeps_its_bytes_when_other_bytes_are_fetched(battery: Battery, change: int) -> None:
    """As it does if another process fetches it again, from a site that cuts it another way."""
    clip, path = battery.fresh()
    with path.open("rb", buffering=0) as file:
        beginning = file.read(SOME)
        truth = cached_file(battery.cache, clip).read_bytes()
        with Store(battery.cache) as store:
            store.remove(clip)
            claim = store.claim(clip)
            assert claim is not None
            with claim:
                other = claim.folder / clip.name
                other.write_bytes(b"x" * (len(truth) + change))
                claim.publish(other, "test")
        output("stat", "--cached=never", path)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert beginning + file.readall() == truth
        # A kernel has one size and one set of pages for all who have it open.
        assert path.read_bytes() == truth
    assert path.read_bytes() == b"x" * (len(truth) + change)


class ChangingClip(NamedTuple):
    """A clip in a mount. Its fetch after `change()` delivers other bytes, and more of them."""

    path: Path
    cache: Path
    clip: Clip
    change: Callable[[], None]

    def cached_bytes(self) -> bytes:
        return cached_file(self.cache, self.clip).read_bytes()


@pytest.fixture
def changing(tmp_path: Path, frontend: tuple[str, ...]) -> Iterator[ChangingClip]:
    clip = Clip("demo_video4", 4, 6)
    annotations = write_annotations(tmp_path / "clips.csv", [Labelled(CLASS, clip, "train")])
    folder = write_clips(tmp_path / "clips", [clip])

    def change() -> None:
        make_video(folder / clip.name, seconds=2, ffmpeg=find_ffmpeg(), width=1280, height=720)
        with Store(tmp_path / "cache") as store:
            store.remove(clip)

    with Mounted(
        tmp_path / "mount",
        *frontend,
        *("--annotations", annotations),
        *("--folder", folder, "--source", "folder"),
        *("--cache-dir", tmp_path / "cache"),
        *("--min-free", "0"),
    ) as mounted:
        yield ChangingClip(mounted.root / "train" / CLASS / clip.name, tmp_path / "cache", clip, change)


def test_refetched_clip_that_is_larger_is_read_completely(changing: ChangingClip) -> None:
    path = changing.path
    first = path.read_bytes()
    changing.change()
    assert path.stat().st_size == len(first)
    second = path.read_bytes()
    assert len(second) > len(first)
    assert second == changing.cached_bytes()


def test_refetched_clip_has_none_of_its_old_bytes(changing: ChangingClip) -> None:
    changing.path.read_bytes()
    changing.change()
    with opened(changing.path) as fd:  # nothing asks for the size, by which a kernel would notice
        beginning = os.pread(fd, 4096, 0)
    assert beginning == changing.cached_bytes()[:4096]


def test_sendfile_of_a_refetched_clip_that_is_larger(changing: ChangingClip, tmp_path: Path) -> None:
    changing.path.read_bytes()
    changing.change()
    assert read_by_sendfile(changing.path, tmp_path) == changing.cached_bytes()
