"""Errors of unavailable clips, of changes, and of full disks."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import ENVIRONMENT, Mounted, reason, run_command
from tests.support.mounts import CLASS, incoming, reading, state
from tests.support.store import SmallDisk
from tests.support.store_fixtures import small_disk as small_disk

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"
OTHER = "validation/surfing water/_demo_vid3__000003_000013.mp4"
GONE_CLIP = f"validation/passing American football (in game)/{GONE}_000005_000015.mp4"


def fails_with(number: int, function: Callable[..., object], *arguments: object, **options: object) -> OSError:
    """Call a function that must fail with an errno; return the error."""
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
    return caught.value


@pytest.fixture(scope="module")
def still(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, frontend: tuple[str, ...]
) -> Iterator[tuple[Mounted, VideoSite]]:
    """One mount for all tests that cause no fetch."""
    folder = tmp_path_factory.mktemp("still")
    with (
        VideoSite(dataset.videos) as site,
        Mounted(
            folder / "mount",
            *frontend,
            *("--annotations", dataset.annotations),
            *("--video-url", site.url_template),
            *("--cache-dir", folder / "cache"),
            *("--min-free", "0"),
        ) as mounted,
    ):
        yield mounted, site
        assert site.requests == []


# Writing ----------------------------------------------------------------------------------------------------------


def open_for(flags: int) -> Callable[[Path], object]:
    return lambda root: os.open(root / SURFING, flags)


MUTATIONS: dict[str, Callable[[Path], object]] = {
    "open for writing": open_for(os.O_WRONLY),
    "open for reading and writing": open_for(os.O_RDWR),
    "open for appending": open_for(os.O_WRONLY | os.O_APPEND),
    "open and truncate": open_for(os.O_RDONLY | os.O_TRUNC),
    "open a control file for writing": lambda root: os.open(root / ".kinetics/status.json", os.O_WRONLY),
    "create": lambda root: os.open(root / "validation/surfing water/new", os.O_CREAT | os.O_WRONLY),
    "create in the root": lambda root: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
    "create a control file": lambda root: os.open(root / ".kinetics/new", os.O_CREAT | os.O_WRONLY),
    "create a temporary file": lambda root: os.open(root, os.O_TMPFILE | os.O_RDWR),
    "mkdir": lambda root: os.mkdir(root / "validation/new"),  # noqa: PTH102
    "mknod": lambda root: os.mknod(root / "new"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "unlink": lambda root: os.unlink(root / SURFING),  # noqa: PTH108
    "unlink a symlink": lambda root: os.unlink(root / "val"),  # noqa: PTH108
    "rmdir": lambda root: os.rmdir(root / "validation/surfing water"),  # noqa: PTH106
    "rename": lambda root: os.rename(root / SURFING, root / "new"),  # noqa: PTH104
    "replace": lambda root: os.replace(root / SURFING, root / OTHER),  # noqa: PTH105
    "rename a folder": lambda root: os.rename(root / "validation", root / "new"),  # noqa: PTH104
    "link": lambda root: os.link(root / SURFING, root / "new"),
    "symlink": lambda root: os.symlink("target", root / "new"),  # noqa: PTH211
    "chmod": lambda root: os.chmod(root / SURFING, 0o666),  # noqa: PTH101
    "chmod a folder": lambda root: os.chmod(root, 0o777),  # noqa: PTH101
    "chown": lambda root: os.chown(root / SURFING, 0, 0),
    "chown a symlink": lambda root: os.lchown(root / "val", 0, 0),
    "truncate": lambda root: os.truncate(root / SURFING, 0),
    "utimens": lambda root: os.utime(root / SURFING),
    "utimens a folder": lambda root: os.utime(root / "validation", (0, 0)),
    "setxattr": lambda root: os.setxattr(root / SURFING, "user.kinetics.state", b"cached"),
    "setxattr, a new one": lambda root: os.setxattr(root / SURFING, "user.new", b""),
    "setxattr on a folder": lambda root: os.setxattr(root / "validation", "user.new", b""),
    "removexattr": lambda root: os.removexattr(root / SURFING, "user.kinetics.state"),
    "socket": lambda root: bind(root / "new"),
}


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        # A short name: these attributes have space for about a hundred bytes.
        folder = os.open(path.parent, os.O_PATH)
        try:
            unix.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_change_is_refused(still: tuple[Mounted, VideoSite], name: str) -> None:
    mounted, site = still
    fails_with(errno.EROFS, MUTATIONS[name], mounted.root)
    assert site.requests == []


def test_every_change_is_refused_when_root_remounts_it_for_writing(mount: MountFactory, site: VideoSite) -> None:
    if os.geteuid() != 0:
        pytest.skip("remounting needs root")
    root = mount().root
    # With the newer system call, the kernel lets no option of FUSE be changed.
    older = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
    subprocess.run(["mount", "-i", "-o", "remount,rw", root], env=older, check=True)
    assert not os.statvfs(root).f_flag & os.ST_RDONLY
    # The kernel opens a file, which fetches it, before it truncates; and libfuse 2 does not know of temporary files.
    for name in MUTATIONS.keys() - {"open and truncate", "create a temporary file"}:
        with pytest.raises(OSError) as caught:
            MUTATIONS[name](root)
        assert (name, errno.errorcode[caught.value.errno or 0]) == (name, "EROFS")
    assert site.requests == []


def test_write_permission_is_denied(still: tuple[Mounted, VideoSite]) -> None:
    root = still[0].root
    for path in (root, root / "validation", root / SURFING, root / ".kinetics/status.json"):
        assert os.access(path, os.R_OK)
        assert not os.access(path, os.W_OK)
    assert not os.access(root / SURFING, os.X_OK)
    assert os.statvfs(root).f_flag & os.ST_RDONLY


# Names ------------------------------------------------------------------------------------------------------------

PARENTS = [b".", b".kinetics", b"validation", b"validation/surfing water", b"val/surfing water"]
UNLISTED = [
    b"new",
    b"VALIDATION",
    b"surfing water ",
    b"Surfing water",
    b"-demo_video_000011_000020.mp4",
    b"-demo_video_000010_000020.MP4",
    b"-demo_video_10_20.mp4",
    b"-demo_video_000020_000010.mp4",
    b"-demo_video_000010_000020.mp4.part",
    b"-demo_video_000010_000020.mp4\n",
    b"../-demo_video",
    b"\xff\xfe",
    b"caf\xe9",
    b"\xed\xa0\x80",
    "日本".encode(),
    b"%s%n",
    b"' OR 1=1 --",
    b"a" * 255,
    b"\xff" * 255,
]


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("name", UNLISTED)
def test_unlisted_names_are_not_there(still: tuple[Mounted, VideoSite], parent: bytes, name: bytes) -> None:
    path = os.fsencode(still[0].root) + b"/" + parent + b"/" + name
    fails_with(errno.ENOENT, os.stat, path)
    fails_with(errno.ENOENT, os.open, path, os.O_RDONLY)
    fails_with(errno.ENOENT, os.stat, path)  # a kernel may know by now


@pytest.mark.parametrize("parent", PARENTS)
def test_names_longer_than_statfs_allows_are_too_long(still: tuple[Mounted, VideoSite], parent: bytes) -> None:
    root = still[0].root
    longest = os.statvfs(root).f_namemax
    assert longest == 255
    folder = os.open(os.fsencode(root) + b"/" + parent, os.O_PATH)  # so that the path itself is short enough
    try:
        for length in (longest + 1, 300, 1024, 1025, 4000):
            for letter in (b"a", b"\xff"):
                fails_with(errno.ENAMETOOLONG, os.stat, letter * length, dir_fd=folder)
    finally:
        os.close(folder)


def test_directory_operations_on_files_fail_and_the_reverse(still: tuple[Mounted, VideoSite]) -> None:
    root = still[0].root
    for file in (SURFING, ".kinetics/status.json", ".kinetics/validation.csv"):
        fails_with(errno.ENOTDIR, os.stat, root / file / "x")
        fails_with(errno.ENOTDIR, os.stat, f"{root / file}/")
        fails_with(errno.ENOTDIR, os.listdir, root / file)
        fails_with(errno.ENOTDIR, os.open, root / file, os.O_RDONLY | os.O_DIRECTORY)
        fails_with(errno.EINVAL, os.readlink, root / file)
    for folder in (".", ".kinetics", "validation", "validation/surfing water", "val"):
        fd = os.open(root / folder, os.O_RDONLY)
        try:
            fails_with(errno.EISDIR, os.read, fd, 1)
        finally:
            os.close(fd)
    fails_with(errno.ELOOP, os.open, root / "val", os.O_RDONLY | os.O_NOFOLLOW)


@pytest.mark.parametrize(
    "name", ["user.kinetics.nothing", "user.kinetics.error", "user.other", "security.capability", "user.\udcff"]
)
def test_missing_xattr_returns_enodata(still: tuple[Mounted, VideoSite], name: str) -> None:
    for path in (SURFING, "validation", ".", ".kinetics/classes.txt"):
        fails_with(errno.ENODATA, os.getxattr, still[0].root / path, name)


# Fetches that fail ------------------------------------------------------------------------------------------------


def asked_again(mounted: Mounted, site: VideoSite, path: str, number: int) -> bool:
    """Open a clip that failed before; return whether the site got another request for it."""
    asked = len(site.requests)
    fails_with(number, (mounted.root / path).open, "rb")
    return len(site.requests) > asked


@pytest.mark.parametrize(
    ("status", "number", "kind"),
    [
        (404, errno.EIO, "gone"),
        (410, errno.EIO, "gone"),
        (429, errno.EAGAIN, "blocked"),
        (500, errno.EIO, "transient"),
        (503, errno.EIO, "transient"),
        (403, errno.EIO, "transient"),
    ],
)
def test_errno_of_each_answer_of_the_site(
    mount: MountFactory, site: VideoSite, status: int, number: int, kind: str
) -> None:
    mounted = mount()
    site.fail["-demo_video"] = status
    fails_with(number, (mounted.root / SURFING).open, "rb")
    assert reason(mounted.root / SURFING).startswith(f"{kind}: ")
    assert str(status) in reason(mounted.root / SURFING)
    # A block is no failure of the clip.
    assert state(mounted.root / SURFING) == ("absent" if kind == "blocked" else "failed")
    assert not asked_again(mounted, site, SURFING, number)


def test_failure_is_remembered_until_it_is_cleared(mount: MountFactory, site: VideoSite, cache: Path) -> None:
    mounted = mount()
    site.fail["-demo_video"] = 500
    fails_with(errno.EIO, (mounted.root / SURFING).open, "rb")
    fails_with(errno.EIO, (mounted.root / GONE_CLIP).open, "rb")
    with (mounted.root / ".kinetics/failures.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {path: row["kind"] for path, row in rows.items()} == {SURFING: "transient", GONE_CLIP: "gone"}
    assert rows[SURFING]["attempts"] == "1"
    assert rows[SURFING]["source"] == "youtube"
    assert mounted.status()["failures"] == {"transient": 1, "gone": 1}
    del site.fail["-demo_video"]
    assert not asked_again(mounted, site, SURFING, errno.EIO)

    # Also by another mount, and by one that begins later.
    assert not asked_again(mount(), site, SURFING, errno.EIO)

    cleared = run_command("failures", "clear", "--cache-dir", cache, "--", "-demo_video_000010_000020")
    assert cleared.returncode == 0, cleared.stderr
    assert (mounted.root / SURFING).read_bytes()
    assert state(mounted.root / SURFING) == "cached"
    assert not asked_again(mounted, site, GONE_CLIP, errno.EIO)


def test_failure_of_a_clip_does_not_affect_another(mount: MountFactory, site: VideoSite) -> None:
    mounted = mount()
    fails_with(errno.EIO, (mounted.root / GONE_CLIP).open, "rb")
    assert (mounted.root / OTHER).read_bytes()


def test_fetch_that_takes_too_long_times_out(mount: MountFactory, site: VideoSite, cache: Path) -> None:
    mounted = mount("--timeout", "2")
    site.delay["-demo_video"] = 90
    fails_with(errno.ETIMEDOUT, (mounted.root / SURFING).open, "rb")
    assert reason(mounted.root / SURFING).startswith("transient: ")
    assert not asked_again(mounted, site, SURFING, errno.ETIMEDOUT)
    assert incoming(cache) == []


def test_open_returns_eio_when_the_site_is_down(mount: MountFactory, dataset: Dataset) -> None:
    with VideoSite(dataset.videos) as closed:
        template = closed.url_template
    mounted = mount("--video-url", template)
    fails_with(errno.EIO, (mounted.root / SURFING).open, "rb")
    assert reason(mounted.root / SURFING).startswith("transient: ")


def test_open_returns_enospc_when_the_clip_exceeds_the_cache(mount: MountFactory, cache: Path) -> None:
    mounted = mount("--cache-size", "100K")
    fails_with(errno.ENOSPC, (mounted.root / SURFING).open, "rb")
    assert reason(mounted.root / SURFING).startswith("local: ")
    assert "--cache-size" in reason(mounted.root / SURFING)
    assert incoming(cache) == []
    assert mounted.status()["cache"]["bytes"] == 0


def test_local_failure_is_tried_again_at_the_next_open(mount: MountFactory, site: VideoSite) -> None:
    mounted = mount("--cache-size", "100K")
    fails_with(errno.ENOSPC, (mounted.root / SURFING).open, "rb")
    assert asked_again(mounted, site, SURFING, errno.ENOSPC)


@pytest.fixture
def full_cache(small_disk: SmallDisk) -> Path:
    """A cache directory on a disk with space for its databases but for no video."""
    return small_disk(1024**2) / "cache"


def test_open_returns_enospc_when_the_disk_is_full(mount: MountFactory, full_cache: Path) -> None:
    mounted = mount(cache=full_cache)
    fails_with(errno.ENOSPC, (mounted.root / SURFING).open, "rb")


def test_failed_fetch_frees_its_disk_space(mount: MountFactory, full_cache: Path) -> None:
    mounted = mount(cache=full_cache)
    for _ in range(2):
        # In a process of its own, for it must not wait for ever.
        with reading([mounted.root / SURFING]) as [reader]:
            assert reader.wait(timeout=30) == 1
        assert incoming(full_cache) == []
    assert mounted.status()["fetch"]["pending"] == 0
    assert mounted.status()["cache"]["reserved"] == 0


GARBAGE: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda good, bad: bad.write_bytes(b""),
    "random": lambda good, bad: bad.write_bytes(os.urandom(200_000)),
    "zeros": lambda good, bad: bad.write_bytes(bytes(200_000)),
    "web page": lambda good, bad: bad.write_text("<html><body>Not a video.</body></html>"),
    "cut short": lambda good, bad: bad.write_bytes(good.read_bytes()[: good.stat().st_size // 3]),
    "index alone": lambda good, bad: bad.write_bytes(good.read_bytes()[:2000]),
    "without a picture": lambda good, bad: subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-i", good, "-vn", "-c", "copy", "-f", "mp4", f"file:{bad}"], check=True
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_open_returns_eio_when_the_media_is_garbage(
    mount: MountFactory, dataset: Dataset, annotations: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    videos = tmp_path / "garbage"
    videos.mkdir()
    GARBAGE[name](dataset.videos / "-demo_video.mp4", videos / "-demo_video.mp4")
    shutil.copyfile(dataset.videos / "_demo_vid3_.mp4", videos / "_demo_vid3_.mp4")
    with VideoSite(videos) as site:
        mounted = mount("--annotations", annotations, "--video-url", site.url_template)
        fails_with(errno.EIO, (mounted.root / SURFING).open, "rb")
        assert not asked_again(mounted, site, SURFING, errno.EIO)
        assert state(mounted.root / SURFING) == "failed"
        assert incoming(cache) == []
        # The worker lives on.
        assert (mounted.root / "validation" / CLASS / Clip("_demo_vid3_", 3, 4).name).read_bytes()


def test_open_returns_eio_when_the_worker_cannot_start(
    mount: MountFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Modules that shadow those of yt-dlp: each process that reads pages dies when it imports them.
    (tmp_path / "yt_dlp").mkdir()
    (tmp_path / "yt_dlp/__init__.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    mounted = mount()
    fails_with(errno.EIO, (mounted.root / SURFING).open, "rb")
    assert "the process that reads the file died (status 3)" in reason(mounted.root / SURFING)
    assert os.listdir(mounted.root)  # noqa: PTH208


def test_failing_open_leaves_no_descriptor(mount: MountFactory, site: VideoSite) -> None:
    mounted = mount()
    (mounted.root / OTHER).read_bytes()
    fails_with(errno.EIO, (mounted.root / GONE_CLIP).open, "rb")

    def descriptors() -> int:
        return sum(1 for _ in Path(f"/proc/{mounted.pid}/fd").iterdir())

    before = descriptors()
    for _ in range(50):
        fails_with(errno.EIO, (mounted.root / GONE_CLIP).open, "rb")
        (mounted.root / OTHER).read_bytes()
    deadline = time.monotonic() + 20  # the release of a file comes after its close
    while descriptors() > before + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptors() <= before + 5
