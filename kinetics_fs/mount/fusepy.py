"""The portable front end: libfuse 2 through fusepy (Linux, macOS, BSD).

Threading: libfuse calls from threads of its own, one per waiting request, so that a waiting open delays no other
request. To Python each call comes from a new thread. A library that keeps state per thread, as diskcache does, would
create it again for each call; opens therefore go through a few permanent threads.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from ctypes import byref, c_char_p, c_void_p
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from kinetics_fs.control.status import FrontendStatus
from kinetics_fs.errors import KineticsError, MountError
from kinetics_fs.mount import trace
from kinetics_fs.mount.collector import OnReady
from kinetics_fs.mount.fusermount import SUBTYPE, cannot_mount, device_error, explain
from kinetics_fs.util.mount_table import filesystem_type
from kinetics_fs.vfs import MAX_FILES, MAX_NAME_BYTES, ROOT, Filesystem, Handle, errno_of

try:
    import fuse
except OSError as error:  # fusepy loads the library when it is imported
    raise MountError(
        "cannot mount with fusepy: libfuse 2 is not installed; install the package libfuse2 (libfuse2t64 on newer"
        " systems)"
    ) from error

_log = logging.getLogger(__name__)

_BYTES_AS_TEXT = "latin-1"
"""fusepy passes names as text and fails on bytes that its encoding lacks. This encoding has all bytes."""

_POLL_INTERVAL = 0.05
"""Seconds between two checks whether a waiting open was interrupted: libfuse 2 has no notification of that."""

_ENTRY_SECONDS = 86400
"""How long the kernel may cache a name if names never change."""

_CHANGING_ENTRY_SECONDS = 5
"""The same if names can appear or disappear: libfuse 2 cannot notify the kernel."""

_OPEN_THREADS = 4
_BLOCK_SIZE = 4096


def serve(
    filesystem: Filesystem,
    mountpoint: Path,
    *,
    allow_other: bool,
    source: str,
    on_ready: OnReady,
) -> None:
    """Mount the filesystem and serve it until it is unmounted, or SIGTERM, SIGINT or SIGHUP arrives.

    Args:
        filesystem: the filesystem to mount.
        mountpoint: a prepared mount point.
        allow_other: let other users access the mount.
        source: the source that lists of mounts show.
        on_ready: see `OnReady`.

    Raises:
        MountError: libfuse could not mount.
    """
    operations = _TracedOperations if trace.is_enabled() else _Operations
    with (
        TemporaryFile() as file,
        closing(_CapturedErrors(file)) as errors,
        ThreadPoolExecutor(_OPEN_THREADS, thread_name_prefix="open") as open_threads,
        ThreadPoolExecutor(_OPEN_THREADS, thread_name_prefix="stat") as stat_threads,
    ):

        def status() -> FrontendStatus:
            return FrontendStatus(name="fusepy", mode="page cache", max_open_files=filesystem.open_limit.capacity)

        def on_init() -> None:
            errors.close()
            on_ready(status)

        watcher = filesystem.watch_names(lambda _name: None)
        entry_seconds = _ENTRY_SECONDS if watcher is None else _CHANGING_ENTRY_SECONDS
        inaccessible = device_error() if sys.platform == "linux" else None
        try:
            _Fuse(
                operations(filesystem, mountpoint, open_threads, stat_threads, on_init),
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
                entry_timeout=entry_seconds,
                negative_timeout=entry_seconds,
                # The size of a clip becomes exact when it is opened, and libfuse 2 has one timeout for all files.
                attr_timeout=0,
                # Without the device, libfuse 2 tries fusermount only if this needs it.
                auto_unmount=inaccessible is not None,
            )
        except RuntimeError as error:
            refusal = explain(errors.last_line(), mountpoint, filesystem_type(mountpoint), inaccessible)
            raise cannot_mount(mountpoint, refusal, inaccessible) from error
        finally:
            if watcher is not None:
                watcher.stop()
                watcher.join()


class _CapturedErrors:
    """Captures standard error, the only place where libfuse reports errors, until it is closed.

    Args:
        file: an empty file, for what is captured.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._real: int | None = os.dup(2)
        os.dup2(file.fileno(), 2)

    def last_line(self) -> str:
        """Return the last line; an empty string if there is none."""
        self._file.seek(0)
        return "".join(self._file.read().decode(errors="replace").strip().splitlines()[-1:])

    def close(self) -> None:
        """Restore standard error, once: by the next call, the log may have been reopened on it."""
        if self._real is not None:
            os.dup2(self._real, 2)
            os.close(self._real)
            self._real = None


class _Fuse(fuse.FUSE):  # type: ignore[misc]  # fusepy has no annotations
    def readdir(self, path: bytes, buffer: Any, fill: Any, offset: int, info: Any) -> int:
        """List a directory as fusepy does, but with one structure for all entries: three times as fast."""
        entries = self.operations("readdir", path.decode(self.encoding), None)
        status = fuse.c_stat()
        reference = byref(status)
        for name, ino, mode in entries:
            status.st_ino, status.st_mode = ino, mode
            if fill(buffer, c_char_p(name), reference, 0):
                break
        return 0


class _Operations:
    """Answers the calls of libfuse. A method that is missing here is unimplemented for the kernel.

    `flush` is missing on purpose: the kernel then stops sending it at each close.

    Args:
        filesystem: the filesystem of the mount.
        mountpoint: the mount point.
        open_threads: permanent threads for opens.
        stat_threads: threads for `stat` on files of this mount, which wait for this mount.
        on_init: called when libfuse has mounted.
    """

    use_ns = True

    def __init__(
        self,
        filesystem: Filesystem,
        mountpoint: Path,
        open_threads: ThreadPoolExecutor,
        stat_threads: ThreadPoolExecutor,
        on_init: Callable[[], None],
    ) -> None:
        self._filesystem = filesystem
        self._mountpoint = os.fsencode(mountpoint)
        self._open_threads = open_threads
        self._stat_threads = stat_threads
        self._on_init = on_init
        self._uid, self._gid = os.getuid(), os.getgid()
        self._open_files: dict[int, _OpenFile] = {}
        self._next_fh = itertools.count(1)

    def __call__(self, operation: str, *arguments: Any) -> Any:
        try:
            return getattr(self, operation)(*arguments)
        except (OSError, KineticsError) as error:
            raise OSError(errno_of(error), operation) from error
        except Exception as error:
            _log.exception("unexpected error in the operation %s", operation)
            raise OSError(errno.EIO, operation) from error

    def init(self, _path: str) -> None:
        self._on_init()

    def getattr(self, path: str, _info: Any = None) -> dict[str, int]:
        attributes = self._filesystem.attributes(self._resolve_open(path))
        nanoseconds = attributes.mtime * 1_000_000_000
        return {
            "st_ino": attributes.ino,
            "st_mode": attributes.mode,
            "st_nlink": attributes.links,
            "st_uid": self._uid,
            "st_gid": self._gid,
            "st_size": attributes.size,
            "st_blocks": attributes.blocks,
            "st_blksize": _BLOCK_SIZE,
            "st_atime": nanoseconds,
            "st_mtime": nanoseconds,
            "st_ctime": nanoseconds,
        }

    def readdir(self, path: str, _handle: Any) -> list[tuple[bytes, int, int]]:
        directory = self._resolve(path)
        entries = [(os.fsencode(name), ino, int(kind)) for name, ino, kind in self._filesystem.entries(directory)]
        mode = 0o040000
        return [(b".", directory, mode), (b"..", self._filesystem.parent(directory), mode), *entries]

    def readlink(self, path: str) -> str:
        return self._filesystem.readlink(self._resolve(path))

    def statfs(self, _path: str) -> dict[str, int]:
        statistics = self._open_threads.submit(self._filesystem.statistics).result()
        blocks, free, available = statistics.blocks(_BLOCK_SIZE)
        return {
            "f_bsize": _BLOCK_SIZE,
            "f_frsize": _BLOCK_SIZE,
            "f_blocks": blocks,
            "f_bfree": free,
            "f_bavail": available,
            "f_files": MAX_FILES,
            "f_ffree": MAX_FILES - statistics.files,
            "f_favail": MAX_FILES - statistics.files,
            "f_namemax": MAX_NAME_BYTES,
        }

    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        return self._filesystem.xattr(self._resolve_open(path), name)

    def listxattr(self, path: str) -> list[str]:
        return self._filesystem.list_xattrs(self._resolve_open(path))

    def open(self, path: str, info: Any) -> int:
        if info.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        ino = self._resolve(path)
        uid, _, _ = fuse.fuse_get_context()
        self._filesystem.open_limit.acquire(uid)
        try:
            handle = _wait(self._open_threads.submit(self._filesystem.open, ino).result())
        except BaseException:
            self._filesystem.open_limit.release(uid)
            raise
        info.fh = next(self._next_fh)
        must_invalidate = handle.consume_invalidation()
        info.keep_cache = not (handle.live or must_invalidate)
        info.direct_io = handle.live
        self._open_files[info.fh] = _OpenFile(path, ino, handle, uid)
        if must_invalidate:
            self._update_kernel_size(path)
        return 0

    def _update_kernel_size(self, path: str) -> None:
        """Make the kernel ask for the size of a file that was just fetched, before it reads.

        libfuse 2 cannot invalidate what the kernel has cached, but a stat by this process updates it. Otherwise reads
        find the end by themselves, and two at the same time can leave zeros after it.
        """
        result = self._stat_threads.submit(os.stat, self._mountpoint + path.encode(_BYTES_AS_TEXT))
        while not result.done() and not _is_ending():  # a mount that ends no longer answers
            with suppress(OSError, TimeoutError):
                result.result(_POLL_INTERVAL)

    def read(self, _path: str | None, size: int, offset: int, info: Any) -> bytes:
        return self._open_files[info.fh].handle.read(offset, size)

    def release(self, _path: str | None, info: Any) -> None:
        closed = self._open_files.pop(info.fh)
        closed.handle.close()
        self._filesystem.open_limit.release(closed.uid)

    def _refuse(self, *_arguments: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    # The kernel itself refuses all of these unless root has remounted the filesystem for writing.
    create = mknod = mkdir = symlink = link = rename = unlink = rmdir = _refuse
    chmod = chown = truncate = utimens = setxattr = removexattr = _refuse

    def _resolve(self, path: str) -> int:
        ino = ROOT
        for name in os.fsdecode(path.encode(_BYTES_AS_TEXT)).split("/"):
            if name:
                ino = self._filesystem.lookup(ino, name)
        return ino

    def _resolve_open(self, path: str) -> int:
        """Return the inode number of a path, even of a file that is hidden by now but still open under this path."""
        try:
            return self._resolve(path)
        except FileNotFoundError:
            for opened in list(self._open_files.values()):
                if opened.path == path:
                    return opened.ino
            raise


class _TracedOperations(_Operations):
    """Operations that log one line each: see `kinetics_fs.mount.trace`."""

    def __call__(self, operation: str, *arguments: Any) -> Any:
        begin = time.perf_counter()
        outcome = "ok"
        try:
            result = super().__call__(operation, *arguments)
            if isinstance(result, bytes):
                outcome = f"{len(result)} bytes"
        except OSError as error:
            outcome = trace.errno_name(error)
            raise
        else:
            return result
        finally:
            path = os.fsdecode(str(arguments[0]).encode(_BYTES_AS_TEXT)) if arguments else ""
            trace.log_operation(operation.upper(), repr(path), outcome, time.perf_counter() - begin)


class _OpenFile(NamedTuple):
    """An open file, the path under which it was opened, and the user who opened it."""

    path: str
    ino: int
    handle: Handle
    uid: int


def _wait(opened: Future[Handle]) -> Handle:
    """Wait for an open, but no longer than the process that opens the file.

    Raises:
        OSError: EINTR if that process was interrupted, or the mount ends.
    """
    while not opened.done():
        try:
            return opened.result(_POLL_INTERVAL)
        except TimeoutError:
            if not opened.done() and (_is_interrupted() or _is_ending()) and opened.cancel():
                raise OSError(errno.EINTR, "interrupted") from None
    return opened.result()


def _is_interrupted() -> bool:
    return bool(fuse._libfuse.fuse_interrupted())


def _is_ending() -> bool:
    return bool(fuse._libfuse.fuse_exited(c_void_p(fuse._libfuse.fuse_get_context().contents.fuse)))
