"""The FUSE operations: one method per opcode.

Each method gets the header and the body of a request and returns the payload of the reply. It returns None if there is
no reply, or not yet: the open of a clip that is not in the cache is parked until its fetch ends. All methods run in
the thread of the loop; only `notify_name` is called by another one.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Protocol

from kinetics_fs.mount.native import device
from kinetics_fs.mount.native import protocol as p
from kinetics_fs.mount.native.passthrough import Passthrough
from kinetics_fs.mount.native.readdir import ATTR_SECONDS, BLOCK_SIZE, ENTRY_SECONDS, DirectoryPages
from kinetics_fs.vfs import MAX_FILES, MAX_NAME_BYTES, Attributes, ClipHandle, Filesystem, Handle, Name, errno_of

_log = logging.getLogger(__name__)

OpcodeHandler = Callable[[p.InHeader, memoryview], bytes | None]
"""A function that answers a request, given its header and its body."""

_WANTED_FLAGS = (
    p.InitFlag.ASYNC_READ
    | p.InitFlag.BIG_WRITES
    | p.InitFlag.AUTO_INVAL_DATA
    | p.InitFlag.DO_READDIRPLUS
    | p.InitFlag.PARALLEL_DIROPS
    | p.InitFlag.MAX_PAGES
    | p.InitFlag.CACHE_SYMLINKS
    | p.InitFlag.NO_OPENDIR_SUPPORT
    | p.InitFlag.INIT_EXT
)

_NO_SUCH_NAME = p.ENTRY_OUT.pack(0, 0, ENTRY_SECONDS, 0, 0, 0) + bytes(p.ATTR.size)
"""Inode 0: no such name, and the kernel may cache that until it is notified."""


class Loop(Protocol):
    """The loop that the operations belong to."""

    def write(self, *pieces: bytes) -> bool:
        """Send a reply or a notification; return False if the kernel does not take it."""
        ...

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop call a function soon; safe from any thread."""
        ...

    def stop(self) -> None:
        """End the loop."""
        ...


class Operations:
    """Answers the requests of one connection.

    Args:
        filesystem: the filesystem of the mount.
        loop: sends the replies.
        passthrough: the files that the kernel reads itself.

    Attributes:
        handlers: the method of each opcode.
        on_init: called when the kernel has accepted the reply to INIT.
    """

    def __init__(self, filesystem: Filesystem, loop: Loop, passthrough: Passthrough) -> None:
        self._filesystem = filesystem
        self._loop = loop
        self._passthrough = passthrough
        self._uid, self._gid = os.getuid(), os.getgid()
        self._pages = DirectoryPages(filesystem, self._uid, self._gid)
        self._handles: dict[int, Handle] = {}
        self._users: dict[int, int] = {}
        self._limit = filesystem.open_limit
        self._next_fh = count(1)
        self._parked: dict[int, Future[Handle]] = {}
        self._interrupted = False
        self.on_init: Callable[[], None] = lambda: None
        self.handlers: dict[int, OpcodeHandler] = {
            p.Opcode.INIT: self._init,
            p.Opcode.LOOKUP: self._lookup,
            p.Opcode.FORGET: self._forget,
            p.Opcode.BATCH_FORGET: self._forget,
            p.Opcode.GETATTR: self._getattr,
            p.Opcode.STATX: self._statx,
            p.Opcode.READLINK: self._readlink,
            p.Opcode.ACCESS: self._access,
            p.Opcode.STATFS: self._statfs,
            p.Opcode.GETXATTR: self._getxattr,
            p.Opcode.LISTXATTR: self._listxattr,
            p.Opcode.READDIR: self._pages.readdir,
            p.Opcode.READDIRPLUS: self._pages.readdirplus,
            p.Opcode.OPEN: self._open,
            p.Opcode.READ: self._read,
            p.Opcode.LSEEK: self._lseek,
            p.Opcode.RELEASE: self._release,
            p.Opcode.INTERRUPT: self._interrupt,
            p.Opcode.DESTROY: self._destroy,
        }

    @property
    def open_files(self) -> int:
        """Number of open handles."""
        return len(self._handles)

    @property
    def waiting_opens(self) -> int:
        """Number of parked opens."""
        return len(self._parked)

    def interrupt_all(self) -> None:
        """Answer all parked opens with EINTR; from now on no open waits."""
        self._interrupted = True
        for unique, opened in list(self._parked.items()):
            self._give_up(unique, opened)

    def close(self) -> None:
        """Interrupt all opens and close all handles."""
        self.interrupt_all()
        for opened in self._parked.values():
            # Completed too late to be cancelled, and no reply will use it.
            if opened.exception() is None:
                opened.result().close()
        for fh in list(self._handles):
            self._close_handle(fh)

    def notify_name(self, name: Name) -> None:
        """Make the kernel look up a name that appeared or disappeared, and list its directory again.

        Called by the thread of the watcher, never by the loop: see `notify_inval_entry`. The directory is invalidated
        second, when all listings in progress have ended, so that the kernel keeps no older listing. A listing that
        continues then asks for the rest of the directory, which works because positions never change.
        """
        self._loop.write(p.notify_inval_entry(name.directory, os.fsencode(name.name)))
        self._loop.write(p.notify_inval_content(name.directory))

    # The beginning and the end

    def _init(self, header: p.InHeader, body: memoryview) -> bytes | None:
        kernel, offered = p.parse_init(body)
        if kernel.major > p.VERSION:
            # The kernel then sends INIT again with this version.
            return p.INIT_OUT.pack(p.VERSION, p.MINOR, *[0] * 10)
        if kernel.major < p.VERSION or kernel.minor < p.OLDEST_MINOR:
            _log.error(
                "cannot serve this kernel: it speaks FUSE %d.%d; use Linux 5.4 or newer", kernel.major, kernel.minor
            )
            self._loop.stop()
            raise OSError(errno.EPROTO, "kernel too old")
        flags = _WANTED_FLAGS & offered
        self._passthrough.negotiate(offered)
        if self._passthrough.enabled:
            flags |= p.InitFlag.PASSTHROUGH
        payload = p.INIT_OUT.pack(
            p.VERSION,
            min(kernel.minor, p.MINOR),
            max(kernel.max_readahead, device.MAX_READ),
            flags & 0xFFFFFFFF,
            64,  # max_background: readahead requests in progress
            48,  # congestion_threshold
            BLOCK_SIZE,  # max_write: unused, the mount is read-only
            1,  # time_gran
            device.MAX_READ // 4096,
            0,  # map_alignment
            flags >> 32,
            self._passthrough.max_stack_depth,
        )
        if self._loop.write(p.reply_header(header.unique, len(payload)), payload):
            self.on_init()
        return None

    def _destroy(self, _header: p.InHeader, _body: memoryview) -> bytes:
        return b""

    def _forget(self, _header: p.InHeader, _body: memoryview) -> None:
        """FORGET, BATCH_FORGET: no state is kept per inode; the catalog knows them all."""

    # Names and attributes

    def _lookup(self, header: p.InHeader, body: memoryview) -> bytes:
        name = p.parse_name(body)
        try:
            ino = self._filesystem.lookup(header.nodeid, os.fsdecode(name))
        except FileNotFoundError:
            return _NO_SUCH_NAME
        attributes = self._filesystem.attributes(ino)
        return p.ENTRY_OUT.pack(ino, 0, ENTRY_SECONDS, ATTR_SECONDS[attributes.attr_cache], 0, 0) + p.ATTR.pack(
            *self._attr(attributes)
        )

    def _getattr(self, header: p.InHeader, body: memoryview) -> bytes:
        request = p.GETATTR_IN.unpack(body)
        attributes = self._attributes(header.nodeid, request.fh if request.getattr_flags & p.GETATTR_FH else None)
        return p.ATTR_OUT.pack(ATTR_SECONDS[attributes.attr_cache], 0) + p.ATTR.pack(*self._attr(attributes))

    def _statx(self, header: p.InHeader, body: memoryview) -> bytes:
        request = p.STATX_IN.unpack(body)
        attributes = self._attributes(header.nodeid, request.fh if request.getattr_flags & p.GETATTR_FH else None)
        time = attributes.mtime
        return p.STATX_OUT.pack(
            ATTR_SECONDS[attributes.attr_cache],
            0,
            p.STATX_BASIC | p.STATX_BTIME,
            BLOCK_SIZE,
            0,
            attributes.links,
            self._uid,
            self._gid,
            attributes.mode,
            attributes.ino,
            attributes.size,
            attributes.blocks,
            0,
            time,
            time,
            time,
            time,
        )

    def _attributes(self, ino: int, fh: int | None) -> Attributes:
        attributes = self._filesystem.attributes(ino)
        handle = self._handles.get(fh) if fh is not None else None
        # A virtual file that changes keeps for its reader the size that it had when it was opened.
        return attributes._replace(size=handle.size) if handle is not None and handle.live else attributes

    def _attr(self, attributes: Attributes) -> tuple[int, ...]:
        time = attributes.mtime
        return (
            attributes.ino,
            attributes.size,
            attributes.blocks,
            *(time, time, time, 0, 0, 0),
            attributes.mode,
            attributes.links,
            self._uid,
            self._gid,
            0,
            BLOCK_SIZE,
            0,
        )

    def _readlink(self, header: p.InHeader, _body: memoryview) -> bytes:
        return os.fsencode(self._filesystem.readlink(header.nodeid))

    def _access(self, _header: p.InHeader, _body: memoryview) -> bytes:
        return b""  # with default_permissions the kernel has checked already

    def _statfs(self, _header: p.InHeader, _body: memoryview) -> bytes:
        statistics = self._filesystem.statistics()
        files = MAX_FILES, MAX_FILES - statistics.files
        return p.STATFS_OUT.pack(*statistics.blocks(BLOCK_SIZE), *files, BLOCK_SIZE, MAX_NAME_BYTES, BLOCK_SIZE)

    def _getxattr(self, header: p.InHeader, body: memoryview) -> bytes:
        request = p.GETXATTR_IN.unpack(body)
        name = os.fsdecode(p.parse_name(body[p.GETXATTR_IN.size :]))
        return _sized(self._filesystem.xattr(header.nodeid, name), request.size)

    def _listxattr(self, header: p.InHeader, body: memoryview) -> bytes:
        request = p.GETXATTR_IN.unpack(body)
        names = b"".join(os.fsencode(name) + b"\0" for name in self._filesystem.list_xattrs(header.nodeid))
        return _sized(names, request.size)

    # Files

    def _open(self, header: p.InHeader, body: memoryview) -> bytes | None:
        if p.OPEN_IN.unpack(body).flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        unique, ino, uid = header.unique, header.nodeid, header.uid
        self._limit.acquire(uid)
        try:
            opened = self._filesystem.begin_open(ino)
            if not isinstance(opened, Future):
                return self._reply_to_open(ino, opened, uid)
            if opened.done():
                return self._reply_to_open(ino, opened.result(), uid)
            if self._interrupted and opened.cancel():
                # Not EINTR, on which many programs would try again.
                raise OSError(errno.ENOTCONN, "the mount ends")
        except BaseException:
            self._limit.release(uid)
            raise
        self._parked[unique] = opened
        opened.add_done_callback(lambda _opened: self._loop.call(lambda: self._finish_open(unique, ino, uid)))
        return None

    def _finish_open(self, unique: int, ino: int, uid: int) -> int | None:
        """Answer a parked open.

        Returns:
            The errno of the answer, 0 for success; None if the open was given up before.
        """
        opened = self._parked.pop(unique, None)
        if opened is None:
            self._limit.release(uid)
            return None
        try:
            payload = self._reply_to_open(ino, opened.result(), uid)
        except Exception as error:
            self._limit.release(uid)
            code = errno_of(error)
            self._loop.write(p.error_reply(unique, code))
            return code
        if not self._loop.write(p.reply_header(unique, len(payload)), payload):
            # The process was killed at this moment; the kernel sends no RELEASE.
            self._close_handle(p.OPEN_OUT.unpack(memoryview(payload)).fh)
        return 0

    def _reply_to_open(self, ino: int, handle: Handle, uid: int) -> bytes:
        """Assign a file handle number, and decide how the kernel reads the file."""
        try:
            flags, backing_id = self._read_mode(ino, handle)
        except BaseException:
            handle.close()
            raise
        fh = next(self._next_fh)
        self._handles[fh] = handle
        self._users[fh] = uid
        return p.OPEN_OUT.pack(fh, flags, backing_id)

    def _read_mode(self, ino: int, handle: Handle) -> tuple[int, int]:
        """Return the flags of an open and a backing id; the same mode for all handles of one file."""
        if handle.live:
            return p.OpenFlag.DIRECT_IO, 0
        must_invalidate = handle.consume_invalidation()
        if must_invalidate:
            # The kernel, or a listing in progress, may know the size from before this content was fetched.
            self._pages.invalidate()
            self._loop.write(p.notify_inval_attributes(ino))
        backing = self._passthrough.acquire(handle.file) if isinstance(handle, ClipHandle) else None
        if backing is not None:
            return p.OpenFlag.PASSTHROUGH, backing.backing_id
        if must_invalidate and handle.size:
            # sendfile and splice trust the size that the kernel knows. Storing the last page updates it.
            last = (handle.size - 1) // BLOCK_SIZE * BLOCK_SIZE
            with suppress(OSError):
                self._loop.write(p.notify_store(ino, last, handle.read(last, BLOCK_SIZE)))
        return 0 if must_invalidate else p.OpenFlag.KEEP_CACHE, 0

    def _read(self, _header: p.InHeader, body: memoryview) -> bytes:
        request = p.READ_IN.unpack(body)
        return self._handle(request.fh).read(request.offset, min(request.size, device.MAX_READ))

    def _lseek(self, _header: p.InHeader, body: memoryview) -> bytes:
        """LSEEK with SEEK_DATA or SEEK_HOLE; the kernel handles all others itself. No file has holes."""
        request = p.LSEEK_IN.unpack(body)
        size = self._handle(request.fh).size
        if request.offset >= size:
            raise OSError(errno.ENXIO, "beyond the end")
        return p.LSEEK_OUT.pack(size if request.whence == os.SEEK_HOLE else request.offset)

    def _release(self, _header: p.InHeader, body: memoryview) -> bytes:
        self._close_handle(p.RELEASE_IN.unpack(body).fh)
        return b""

    def _handle(self, fh: int) -> Handle:
        handle = self._handles.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, "no such open file")
        return handle

    def _close_handle(self, fh: int) -> None:
        handle = self._handle(fh)
        del self._handles[fh]
        self._limit.release(self._users.pop(fh))
        if isinstance(handle, ClipHandle):
            self._passthrough.release(handle.file)
        handle.close()

    # Interrupts

    def _interrupt(self, _header: p.InHeader, body: memoryview) -> None:
        unique = p.INTERRUPT_IN.unpack(body).unique
        opened = self._parked.get(unique)
        if opened is not None:
            self._give_up(unique, opened)

    def _give_up(self, unique: int, opened: Future[Handle]) -> None:
        if opened.cancel():
            self._parked.pop(unique, None)
            self._loop.write(p.error_reply(unique, errno.EINTR))


def _sized(value: bytes, space: int) -> bytes:
    """Return the reply to a request for an extended attribute: the value, or its size if `space` is 0."""
    if space == 0:
        return p.GETXATTR_OUT.pack(len(value))
    if len(value) > space:
        raise OSError(errno.ERANGE, "the value is longer than the buffer")
    return value
