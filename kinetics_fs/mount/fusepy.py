"""The portable front end: libfuse 2 through fusepy (Linux, macOS, BSD).

Threads: libfuse calls from threads of its own, one per waiting request, so that a waiting open holds up nobody.
To Python each call comes from a new thread; what keeps something per thread (diskcache does) would make it anew
each time, so that opens go through a few lasting threads.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from ctypes import byref, c_char_p, c_void_p
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from kinetics_fs.control.status import FrontendStatus
from kinetics_fs.errors import KineticsError, MountError
from kinetics_fs.mount.mountpoint import SUBTYPE
from kinetics_fs.vfs import MAX_NAME_BYTES, ROOT, Filesystem, Handle, errno_of

try:
    import fuse
except OSError as error:  # fusepy looks for the library when it is imported
    raise MountError(
        "libfuse 2 is not installed: install the package libfuse2 (libfuse2t64 on newer systems)"
    ) from error

_log = logging.getLogger(__name__)

_BYTES_AS_TEXT = "latin-1"
"""fusepy wants text, and fails on names that are not in its encoding. In this one any bytes are."""

_POLL = 0.05
"""Seconds between two looks whether a waiting reader was interrupted: libfuse 2 has no other way to tell."""

_A_DAY = 86400
_SOON = 5
"""Seconds that the kernel believes in a name where names come and go: libfuse 2 cannot tell it."""

_OPEN_THREADS = 4
_BLOCK = 4096


def serve(
    tree: Filesystem,
    mountpoint: Path,
    *,
    allow_other: bool,
    source: str,
    ready: Callable[[Callable[[], FrontendStatus]], None],
) -> None:
    """Mounts the tree and serves it until it is unmounted, or SIGTERM, SIGINT or SIGHUP comes.

    Args:
        tree: what to show.
        mountpoint: a prepared place.
        allow_other: let other users in.
        source: what lists of mounts show as such.
        ready: called once, when the mount can be used, with the function that returns the status of the front end.

    Raises:
        MountError: libfuse could not mount.
    """
    with (
        TemporaryFile() as said,
        ThreadPoolExecutor(_OPEN_THREADS, thread_name_prefix="open") as threads,
        ThreadPoolExecutor(_OPEN_THREADS, thread_name_prefix="ask") as askers,
    ):
        # libfuse says what is wrong on standard error, and nowhere else.
        real_stderr = os.dup(2)
        os.dup2(said.fileno(), 2)

        def live() -> None:
            os.dup2(real_stderr, 2)
            ready(lambda: FrontendStatus(name="fusepy", mode="page cache"))

        watch = tree.watch_names(lambda _name: None)
        names_hold = _A_DAY if watch is None else _SOON
        try:
            _Fuse(
                _Operations(tree, mountpoint, threads, askers, live),
                os.fsencode(mountpoint).decode(_BYTES_AS_TEXT),
                encoding=_BYTES_AS_TEXT,
                raw_fi=True,
                foreground=True,
                ro=True,
                nosuid=True,
                nodev=True,
                default_permissions=True,
                allow_other=allow_other,
                fsname=source,
                subtype=SUBTYPE,
                use_ino=True,
                entry_timeout=names_hold,
                negative_timeout=names_hold,
                # A size becomes exact when its clip is opened, and one timeout is for all.
                attr_timeout=0,
            )
        except RuntimeError as error:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise MountError(f"cannot mount on {mountpoint}: {lines[-1] if lines else 'libfuse failed'}") from error
        finally:
            if watch is not None:
                watch.stop()
                watch.join()
            os.dup2(real_stderr, 2)
            os.close(real_stderr)


class _Fuse(fuse.FUSE):  # type: ignore[misc]  # fusepy has no annotations
    def readdir(self, path: bytes, buffer: Any, fill: Any, offset: int, info: Any) -> int:
        """As fusepy's, but with one structure for all entries: three times as fast."""
        entries = self.operations("readdir", path.decode(self.encoding), None)
        status = fuse.c_stat()
        reference = byref(status)
        for name, ino, mode in entries:
            status.st_ino, status.st_mode = ino, mode
            if fill(buffer, c_char_p(name), reference, 0):
                break
        return 0


class _Operations:
    """libfuse's calls, answered from the tree. A call that is missing here is not implemented to the kernel.

    `flush` is missing on purpose: the kernel then stops sending one with each close.
    """

    use_ns = True

    def __init__(
        self,
        tree: Filesystem,
        place: Path,
        threads: ThreadPoolExecutor,
        askers: ThreadPoolExecutor,
        live: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._place = os.fsencode(place)
        self._threads = threads
        self._askers = askers
        self._live = live
        self._uid, self._gid = os.getuid(), os.getgid()
        self._open: dict[int, _Open] = {}
        self._numbers = itertools.count(1)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        try:
            return getattr(self, operation)(*arguments)
        except (OSError, KineticsError) as error:
            raise OSError(errno_of(error), operation) from error
        except Exception as error:
            _log.exception("unexpected error in %s", operation)
            raise OSError(errno.EIO, operation) from error

    def init(self, _path: str) -> None:
        self._live()

    def getattr(self, path: str, _info: Any = None) -> dict[str, int]:
        attributes = self._tree.attributes(self._resolve_open(path))
        time = attributes.mtime * 1_000_000_000
        return {
            "st_ino": attributes.ino,
            "st_mode": attributes.mode,
            "st_nlink": attributes.links,
            "st_uid": self._uid,
            "st_gid": self._gid,
            "st_size": attributes.size,
            "st_blocks": attributes.blocks,
            "st_blksize": _BLOCK,
            "st_atime": time,
            "st_mtime": time,
            "st_ctime": time,
        }

    def readdir(self, path: str, _handle: Any) -> list[tuple[bytes, int, int]]:
        ino = self._resolve(path)
        entries = [(os.fsencode(name), number, int(kind)) for name, number, kind in self._tree.entries(ino)]
        mode = 0o040000
        return [(b".", ino, mode), (b"..", self._tree.parent(ino), mode), *entries]

    def readlink(self, path: str) -> str:
        return self._tree.readlink(self._resolve(path))

    def statfs(self, _path: str) -> dict[str, int]:
        statistics = self._threads.submit(self._tree.statistics).result()
        return {
            "f_bsize": _BLOCK,
            "f_frsize": _BLOCK,
            "f_blocks": -(-statistics.bytes_used // _BLOCK),
            "f_files": statistics.files,
            "f_namemax": MAX_NAME_BYTES,
        }

    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        return self._tree.xattr(self._resolve_open(path), name)

    def listxattr(self, path: str) -> list[str]:
        return self._tree.list_xattrs(self._resolve_open(path))

    def open(self, path: str, info: Any) -> int:
        if info.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        ino = self._resolve(path)
        handle = _wait(self._threads.submit(self._tree.open, ino).result())
        info.fh = next(self._numbers)
        news = handle.consume_invalidation()
        info.keep_cache = not (handle.live or news)
        info.direct_io = handle.live
        self._open[info.fh] = _Open(path, ino, handle)
        if news:
            self._tell_size(path)
        return 0

    def _tell_size(self, path: str) -> None:
        """Makes the kernel ask for the size of a file that has just come, before it reads.

        libfuse 2 cannot take back what the kernel knows; but a stat of our own brings it up to date. Without it, reads
        would find the end by themselves, and two at the same time can leave zeros behind it.
        """
        asked = self._askers.submit(os.stat, self._place + path.encode(_BYTES_AS_TEXT))
        while not asked.done() and not _ending():  # in a mount that ends nobody would answer
            with suppress(OSError, TimeoutError):
                asked.result(_POLL)

    def read(self, _path: str | None, size: int, offset: int, info: Any) -> bytes:
        return self._open[info.fh].handle.read(offset, size)

    def release(self, _path: str | None, info: Any) -> None:
        self._open.pop(info.fh).handle.close()

    def _refuse(self, *_arguments: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    # The kernel refuses all of this itself unless root has remounted us for writing.
    create = mknod = mkdir = symlink = link = rename = unlink = rmdir = _refuse
    chmod = chown = truncate = utimens = setxattr = removexattr = _refuse

    def _resolve(self, path: str) -> int:
        ino = ROOT
        for name in os.fsdecode(path.encode(_BYTES_AS_TEXT)).split("/"):
            if name:
                ino = self._tree.lookup(ino, name)
        return ino

    def _resolve_open(self, path: str) -> int:
        """The same, also of a file that is left out by now, but open: its readers keep it, and ask by its name."""
        try:
            return self._resolve(path)
        except FileNotFoundError:
            for opened in list(self._open.values()):
                if opened.path == path:
                    return opened.ino
            raise


class _Open(NamedTuple):
    """An open file, and the name by which it was opened."""

    path: str
    ino: int
    handle: Handle


def _wait(opened: Future[Handle]) -> Handle:
    """Waits for an open, but not longer than its reader does.

    Raises:
        OSError: EINTR if the reader was interrupted or the mount ends.
    """
    while not opened.done():
        try:
            return opened.result(_POLL)
        except TimeoutError:
            if not opened.done() and (_interrupted() or _ending()) and opened.cancel():
                raise OSError(errno.EINTR, "interrupted") from None
    return opened.result()


def _interrupted() -> bool:
    return bool(fuse._libfuse.fuse_interrupted())


def _ending() -> bool:
    return bool(fuse._libfuse.fuse_exited(c_void_p(fuse._libfuse.fuse_get_context().contents.fuse)))
