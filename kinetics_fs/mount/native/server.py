"""Answers the kernel: one loop, one thread, which never waits for anything but the kernel itself.

A request is read, answered, and forgotten. The exception is the open of a clip that is not here: its request is
parked, a future brings the file, and the loop goes on; a thousand of them cost a thousand small objects. Futures end
in threads of the fetcher, which only put them in a queue and wake the loop: all state here is the loop's own.

Where names come and go (`Filesystem.watch_names`) there is a second thread, which writes to the descriptor, too: the
notifications that may wait for an answer of the loop. The loop goes on until that thread is through.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from kinetics_fs.errors import KineticsError, MountError
from kinetics_fs.mount.mountpoint import find_mounts, is_stacked, unmount
from kinetics_fs.mount.native import device
from kinetics_fs.mount.native import protocol as p
from kinetics_fs.vfs import (
    MAX_NAME_BYTES,
    AttrCache,
    Attributes,
    ClipHandle,
    DirEntry,
    Filesystem,
    Handle,
    HiddenClips,
    HiddenWatcher,
    Name,
    NodeType,
    SharedFile,
    errno_of,
    mode_of,
)

_log = logging.getLogger(__name__)

_A_DAY = 86400
"""Seconds for which the kernel need not look up a name again: the tree does not change, or the kernel is told."""

_LOOK_FOR_END = 0.02
"""Seconds between two looks, when all is to end, whether the watch is through."""

_VALID = {AttrCache.NONE: 0, AttrCache.UNTIL_OPEN: 60, AttrCache.FOREVER: _A_DAY}
"""Seconds for which it need not ask for attributes again. A minute for a clip that is not here is enough for a sweep
over all of them, and no risk to readers: the open that brings the clip takes back what the kernel knows of it."""

_CHUNK_ENTRIES = 512
_CHUNK_SECONDS = 1.0
_CHUNKS = 16
"""Listings that go on at the same time, for each of which a chunk of records is kept."""

_BLOCK = 4096
_WANTED = (
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


def serve(
    tree: Filesystem,
    place: Path,
    *,
    allow_other: bool,
    source: str,
    passthrough: Path | None,
    ready: Callable[[], None],
) -> None:
    """Mounts the tree and serves it until it is unmounted, or SIGTERM, SIGINT or SIGHUP comes.

    To be called in the main thread, for it takes the signals.

    Args:
        tree: what to show.
        place: a prepared mount point.
        allow_other: let other users in.
        source: what lists of mounts show as such.
        passthrough: the folder of the cached files, which the kernel is to read itself if it can; None if it is not.
        ready: called once, when the mount can be used.

    Raises:
        MountError: it could not be mounted.
    """
    depth = 0 if passthrough is None else 2 if is_stacked(passthrough) else 1
    fd = device.mount(place, allow_other=allow_other, source=source)
    try:
        server = Server(tree, fd, passthrough=depth)
        tree.set_frontend_status(server.state)
        with _ending_by_signal(server, place):
            server.run(lambda: _begin(server, place, ready))
    finally:
        os.close(fd)


def _begin(server: Server, place: Path, ready: Callable[[], None]) -> None:
    if limit := device.request_timeout():
        _log.warning(
            "this system ends a mount that leaves a request unanswered for %d s (fs.fuse.*_request_timeout):"
            " give a --timeout below that",
            limit,
        )
    number = find_mounts().get(place)
    if number is not None and not server.passthrough_enabled:
        device.raise_read_ahead(number)
    ready()


@contextmanager
def _ending_by_signal(server: Server, place: Path) -> Iterator[None]:
    """Lets signals end the mount, cleanly: opens that wait are answered, and the place is given back."""
    number_of_mount = find_mounts().get(place)

    def end() -> None:
        server.interrupt_all()
        if find_mounts().get(place) != number_of_mount:
            # Taken out of the tree already, and perhaps somebody else's by now.
            server.stop()
            return
        try:
            unmount(place, lazy=True)
        except MountError as error:
            _log.error("%s", error)
            server.stop()

    def ask(_number: int, _frame: FrameType | None) -> None:
        server.call(end)  # between two requests, and not in the middle of one

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    wakeup = signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


class Server:
    """The conversation on one descriptor.

    Args:
        tree: what is shown.
        fd: a mounted FUSE descriptor; a socket of packets will do for tests.
        passthrough: how many filesystems may be stacked for letting the kernel read cached files itself: 1, or 2 if
            they are on such a stack already; 0 keeps it from that.
    """

    def __init__(self, tree: Filesystem, fd: int, *, passthrough: int) -> None:
        self._tree = tree
        self._fd = fd
        self._depth = passthrough
        self.passthrough_enabled = False
        self.mode = "not begun"
        self._uid, self._gid = os.getuid(), os.getgid()
        self._running = True
        self._handles: dict[int, Handle] = {}
        self._numbers = count(1)
        self._backings: dict[SharedFile, PassthroughFile] = {}
        self._chunks: dict[int, DirPage] = {}
        self._parked: dict[int, Future[Handle]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._ending = False
        # A pipe, for signals write to it, too: one that comes between two waits, or to another thread, must end them.
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for end in (self._woken, self._wake):
            # Not before the last future that may write to it: the number could be another file's by then.
            weakref.finalize(self, os.close, end)
        self._begun: Callable[[], None] = lambda: None
        self._answers: dict[int, Callable[[p.InHeader, memoryview], bytes | None]] = {
            p.Opcode.INIT: self._init,
            p.Opcode.LOOKUP: self._lookup,
            p.Opcode.FORGET: self._nothing,
            p.Opcode.BATCH_FORGET: self._nothing,
            p.Opcode.GETATTR: self._getattr,
            p.Opcode.STATX: self._statx,
            p.Opcode.READLINK: self._readlink,
            p.Opcode.ACCESS: lambda _header, _body: b"",  # the kernel itself judges permissions
            p.Opcode.STATFS: self._statfs,
            p.Opcode.GETXATTR: self._getxattr,
            p.Opcode.LISTXATTR: self._listxattr,
            p.Opcode.READDIR: self._readdir,
            p.Opcode.READDIRPLUS: self._readdirplus,
            p.Opcode.OPEN: self._open,
            p.Opcode.READ: self._read,
            p.Opcode.LSEEK: self._lseek,
            p.Opcode.RELEASE: self._release,
            p.Opcode.INTERRUPT: self._interrupt,
            p.Opcode.DESTROY: self._destroy,
        }

    # The loop

    def run(self, begun: Callable[[], None]) -> None:
        """Answers until the filesystem is unmounted or `stop` is called.

        Args:
            begun: called when the kernel has said how it wants to talk.
        """
        self._begun = begun
        os.set_blocking(self._fd, False)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        buffer = bytearray(device.LARGEST_READ + 4096)
        view, buffers = memoryview(buffer), [buffer]
        watch = self._tree.watch_names(self._tell_name)
        try:
            while self._running or _is_at_it(watch):
                patience = None if self._running else _LOOK_FOR_END * 1000
                if any(fd == self._woken for fd, _events in poll.poll(patience)):
                    self._clear_wake()
                    while self._calls:
                        self._calls.popleft()()
                try:
                    size = os.readv(self._fd, buffers)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        break  # unmounted
                    if error.errno not in (errno.ENOENT, errno.EINTR):  # a request was taken back while it was read
                        raise
                else:
                    self.answer(view[:size])
        finally:
            if watch is not None:
                watch.stop()
                watch.join()
            self._close()

    @property
    def wake_fd(self) -> int:
        """A byte written here makes the loop look up from its wait."""
        return self._wake

    def call(self, function: Callable[[], None]) -> None:
        """Has the loop call a function, soon; may be called from any thread, and from a signal handler."""
        self._calls.append(function)
        self._wake_up()

    def stop(self) -> None:
        """Makes the loop end; may be called from a signal handler."""
        self._running = False
        self._wake_up()

    def interrupt_all(self) -> None:
        """Answers all opens that wait with EINTR; from now on none waits any more."""
        self._ending = True
        for unique, opened in list(self._parked.items()):
            self._give_up(unique, opened)

    def state(self) -> dict[str, object]:
        """For `status.json`: how this conversation goes."""
        return {
            "name": "native",
            "mode": self.mode,
            "open_files": len(self._handles),
            "waiting_opens": len(self._parked),
        }

    def answer(self, message: memoryview) -> None:
        """Answers one request."""
        try:
            header = p.IN_HEADER.unpack(message)
        except p.Malformed as error:
            _log.error("a request without a header: %s", error)
            return
        answer = self._answers.get(header.opcode)
        try:
            if answer is None:
                payload, number = None, errno.EROFS if header.opcode in p.CHANGES else errno.ENOSYS
            else:
                payload, number = answer(header, message[p.IN_HEADER.size :]), 0
        except (OSError, KineticsError) as error:
            payload, number = None, errno_of(error)
        except p.Malformed as error:
            _log.error("malformed request, opcode %d: %s", header.opcode, error)
            payload, number = None, errno.EIO
        except Exception:
            _log.exception("unexpected error, opcode %d", header.opcode)
            payload, number = None, errno.EIO
        if header.opcode in p.NO_REPLY:
            return
        if number:
            self._write(p.error_reply(header.unique, number))
        elif payload is not None:
            self._write(p.reply_header(header.unique, len(payload)), payload)

    def _write(self, *pieces: bytes) -> bool:
        """Sends a reply or a notification; whether it was taken."""
        try:
            os.writev(self._fd, pieces)
        except OSError as error:
            # The caller was killed meanwhile, or the mount is gone: nobody waits for this any more.
            if error.errno not in (*p.REFUSED, errno.ENODEV, errno.ENOTCONN):
                _log.error("the kernel refused a reply: %s", error)
            return False
        return True

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):  # full of wakes that it has not seen yet
            os.write(self._wake, b"\0")

    def _clear_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _close(self) -> None:
        self.interrupt_all()
        for opened in self._parked.values():
            # It came too late to be cancelled, and nobody will answer with it.
            if opened.exception() is None:
                opened.result().close()
        for number in list(self._handles):
            self._close_handle(number)
        self._running = False

    # The beginning and the end

    def _init(self, header: p.InHeader, body: memoryview) -> bytes | None:
        kernel, offered = p.parse_init(body)
        if kernel.major > p.VERSION:
            # The protocol's way: say what we speak, and be asked again.
            return p.INIT_OUT.pack(p.VERSION, p.MINOR, *[0] * 10)
        if kernel.major < p.VERSION or kernel.minor < p.OLDEST_MINOR:
            _log.error("this kernel speaks FUSE %d.%d, which is too old", kernel.major, kernel.minor)
            self.stop()
            raise OSError(errno.EPROTO, "kernel too old")
        wanted = _WANTED & offered
        self._decide_mode(offered)
        if self.passthrough_enabled:
            wanted |= p.InitFlag.PASSTHROUGH
        payload = p.INIT_OUT.pack(
            p.VERSION,
            min(kernel.minor, p.MINOR),
            max(kernel.max_readahead, device.LARGEST_READ),
            wanted & 0xFFFFFFFF,
            64,  # max_background: reads ahead that may be under way
            48,  # congestion_threshold
            _BLOCK,  # max_write: nothing is ever written
            1,  # time_gran
            device.LARGEST_READ // 4096,
            0,  # map_alignment
            wanted >> 32,
            self._depth if self.passthrough_enabled else 0,  # max_stack_depth: no more, for others may stack on us
        )
        if self._write(p.reply_header(header.unique, len(payload)), payload):
            self._begun()
        return None

    def _decide_mode(self, offered: p.InitFlag) -> None:
        if not self._depth:
            self.mode = "page cache (passthrough is turned off)"
        elif not offered & p.InitFlag.PASSTHROUGH:
            self.mode = "page cache (passthrough needs Linux 6.9)"
        elif os.geteuid() != 0:
            self.mode = "page cache (passthrough needs root)"
        else:
            self.passthrough_enabled = True
            self.mode = "passthrough"

    def _destroy(self, _header: p.InHeader, _body: memoryview) -> bytes:
        return b""

    def _nothing(self, _header: p.InHeader, _body: memoryview) -> None:
        """FORGET: nothing is remembered per inode, for the catalog knows them all."""

    # Names and attributes

    def _lookup(self, header: p.InHeader, body: memoryview) -> bytes:
        name = p.parse_name(body)
        try:
            ino = self._tree.lookup(header.nodeid, os.fsdecode(name))
        except FileNotFoundError:
            # Inode 0: there is no such name, and, unless the kernel is told, there will not be one.
            return p.ENTRY_OUT.pack(0, 0, _A_DAY, 0, 0, 0) + bytes(p.ATTR.size)
        attributes = self._tree.attributes(ino)
        return p.ENTRY_OUT.pack(ino, 0, _A_DAY, _VALID[attributes.attr_cache], 0, 0) + p.ATTR.pack(
            *self._attr(attributes)
        )

    def _getattr(self, header: p.InHeader, body: memoryview) -> bytes:
        asked = p.GETATTR_IN.unpack(body)
        attributes = self._attributes(header.nodeid, asked.fh if asked.getattr_flags & p.GETATTR_FH else None)
        return p.ATTR_OUT.pack(_VALID[attributes.attr_cache], 0) + p.ATTR.pack(*self._attr(attributes))

    def _statx(self, header: p.InHeader, body: memoryview) -> bytes:
        asked = p.STATX_IN.unpack(body)
        attributes = self._attributes(header.nodeid, asked.fh if asked.getattr_flags & p.GETATTR_FH else None)
        time = attributes.mtime
        return p.STATX_OUT.pack(
            _VALID[attributes.attr_cache],
            0,
            p.STATX_BASIC | p.STATX_BTIME,
            _BLOCK,
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
        attributes = self._tree.attributes(ino)
        handle = self._handles.get(fh) if fh is not None else None
        # A virtual file that changes is for its reader as long as it was when it was opened.
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
            _BLOCK,
            0,
        )

    def _readlink(self, header: p.InHeader, _body: memoryview) -> bytes:
        return os.fsencode(self._tree.readlink(header.nodeid))

    def _statfs(self, _header: p.InHeader, _body: memoryview) -> bytes:
        statistics = self._tree.statistics()
        return p.STATFS_OUT.pack(
            -(-statistics.bytes_used // _BLOCK), 0, 0, statistics.files, 0, _BLOCK, MAX_NAME_BYTES, _BLOCK
        )

    def _getxattr(self, header: p.InHeader, body: memoryview) -> bytes:
        asked = p.GETXATTR_IN.unpack(body)
        name = os.fsdecode(p.parse_name(body[p.GETXATTR_IN.size :]))
        return _sized(self._tree.xattr(header.nodeid, name), asked.size)

    def _listxattr(self, header: p.InHeader, body: memoryview) -> bytes:
        asked = p.GETXATTR_IN.unpack(body)
        names = b"".join(os.fsencode(name) + b"\0" for name in self._tree.list_xattrs(header.nodeid))
        return _sized(names, asked.size)

    # Directories

    def _readdir(self, header: p.InHeader, body: memoryview) -> bytes:
        asked = p.READ_IN.unpack(body)
        records: list[bytes] = []
        room = asked.size
        for after, (text, ino, kind) in self._entries(header.nodeid, asked.offset, asked.size // p.DIRENT.size):
            name = os.fsencode(text)
            record = _dirent(len(name))
            room -= record.size
            if room < 0:
                break
            records.append(record.pack(ino, after, len(name), kind >> 12, name))
        return b"".join(records)

    def _entries(self, ino: int, offset: int, at_once: int) -> Iterator[tuple[int, DirEntry]]:
        """What READDIR lists from a place on, and the place after each."""
        yield from enumerate(self._dots(ino)[offset:], offset + 1)
        place = max(0, offset - 2)
        while page := self._tree.entries_with_attributes(ino, place, at_once):
            for after, entry in enumerate(page, place + 3):
                if entry is not None:
                    yield after, DirEntry(entry[0], entry[1].ino, entry[1].type)
            place += len(page)

    def _readdirplus(self, header: p.InHeader, body: memoryview) -> bytes:
        asked = p.READ_IN.unpack(body)
        room = asked.size
        records: list[bytes] = []
        for place, (text, ino, kind) in enumerate(self._dots(header.nodeid)[asked.offset :], asked.offset + 1):
            name = os.fsencode(text)
            # Node 0: the kernel is not to remember anything by this name.
            record = _direntplus(len(name)).pack(*[0] * 22, ino, place, len(name), kind >> 12, name)
            room -= len(record)
            if room < 0:
                return b"".join(records)
            records.append(record)
        place = max(0, asked.offset - 2)
        while chunk := self._chunk(header.nodeid, place):
            for record in chunk:
                room -= len(record)
                if room < 0:
                    return b"".join(records)
                records.append(record)
            place += len(chunk)
        return b"".join(records)

    def _chunk(self, ino: int, place: int) -> list[bytes]:
        """READDIRPLUS's records of a directory from a place on.

        Kernels ask for some twenty at a time, in order: many more are made at once, and kept while they are asked for.
        A name that is left out keeps its place, with an empty record.
        """
        hidden = self._tree.hidden
        kept = self._chunks.get(ino)
        if (
            kept is not None
            and kept.begin <= place < kept.begin + len(kept.records)
            and time.monotonic() < kept.until
            and kept.hidden is hidden
        ):
            return kept.records[place - kept.begin :]
        records = self._records(ino, place)
        if len(self._chunks) >= _CHUNKS:
            del self._chunks[next(iter(self._chunks))]
        self._chunks.pop(ino, None)
        self._chunks[ino] = DirPage(place, records, time.monotonic() + _CHUNK_SECONDS, hidden)
        return records

    def _records(self, ino: int, place: int) -> list[bytes]:
        uid, gid = self._uid, self._gid
        records: list[bytes] = []
        page = self._tree.entries_with_attributes(ino, place, _CHUNK_ENTRIES)
        for after, entry in enumerate(page, place + 3):
            if entry is None:
                records.append(b"")
                continue
            text, (node, kind, size, links, seconds, attr_cache) = entry
            name = text.encode(errors="surrogateescape")
            # EntryOut, Attr and Dirent, written out, for this is the hot path of every listing.
            record = _direntplus(len(name)).pack(
                node, 0, _A_DAY, _VALID[attr_cache], 0, 0,
                node, size, -(-size // 512), seconds, seconds, seconds, 0, 0, 0,
                mode_of(kind), links, uid, gid, 0, _BLOCK, 0,
                node, after, len(name), kind >> 12, name,
            )  # fmt: skip
            records.append(record)
        return records

    def _dots(self, ino: int) -> list[DirEntry]:
        return [DirEntry(".", ino, NodeType.DIRECTORY), DirEntry("..", self._tree.parent(ino), NodeType.DIRECTORY)]

    def _tell_name(self, name: Name) -> None:
        """Makes the kernel look up a name that came or went, and list its directory anew.

        Called by the tree's watch, never by the loop: see `forget_name`. The listing comes second, when all that were
        under way are through, so that none that is older is kept. One that goes on finds its place: where the kernel
        does not have it any more, it asks us, and with us places stay.
        """
        self._write(p.forget_name(name.directory, os.fsencode(name.name)))
        self._write(p.forget_content(name.directory))

    # Files

    def _open(self, header: p.InHeader, body: memoryview) -> bytes | None:
        if p.OPEN_IN.unpack(body).flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        unique, ino = header.unique, header.nodeid
        handle = self._tree.open_now(ino)
        if handle is not None:
            return self._opened(ino, handle)
        opened = self._tree.open(ino)
        if opened.done():
            return self._opened(ino, opened.result())
        if self._ending and opened.cancel():
            # Not EINTR, on which many would try again.
            raise OSError(errno.ENOTCONN, "ending")
        self._parked[unique] = opened

        opened.add_done_callback(lambda _opened: self.call(lambda: self._finish_open(unique, ino)))
        return None

    def _finish_open(self, unique: int, ino: int) -> None:
        """Answers a parked open."""
        opened = self._parked.pop(unique, None)
        if opened is None:
            return  # given up before
        try:
            payload = self._opened(ino, opened.result())
        except Exception as error:
            self._write(p.error_reply(unique, errno_of(error)))
            return
        if not self._write(p.reply_header(unique, len(payload)), payload):
            # Its reader died in this moment, and no RELEASE will come.
            self._close_handle(p.OPEN_OUT.unpack(memoryview(payload)).fh)

    def _opened(self, ino: int, handle: Handle) -> bytes:
        """Gives a handle its number, and tells the kernel how to read it."""
        try:
            flags, backing_id = self._way_to_read(ino, handle)
        except BaseException:
            handle.close()
            raise
        number = next(self._numbers)
        self._handles[number] = handle
        return p.OPEN_OUT.pack(number, flags, backing_id)

    def _way_to_read(self, ino: int, handle: Handle) -> tuple[int, int]:
        """The flags of an open, and a backing id: for one file always the same way."""
        if handle.live:
            return p.OpenFlag.DIRECT_IO, 0
        news = handle.consume_invalidation()
        if news:
            # The kernel may know another size, from before this content was here; so may a listing that goes on.
            self._chunks.clear()
            self._write(p.forget_attributes(ino))
        backing = self._back(handle.file) if isinstance(handle, ClipHandle) else None
        if backing is not None:
            return p.OpenFlag.PASSTHROUGH, backing.number
        if news and handle.size:
            # sendfile and splice believe the size that the kernel knows, and do not ask: its last page tells it.
            last = (handle.size - 1) // _BLOCK * _BLOCK
            with suppress(OSError):
                self._write(p.store_pages(ino, last, handle.read(last, _BLOCK)))
        return 0 if news else p.OpenFlag.KEEP_CACHE, 0

    def _back(self, file: SharedFile) -> PassthroughFile | None:
        """The registration of a file for passthrough; none if that is off, or its filesystem will not do."""
        backing = self._backings.get(file)
        if backing is None:
            if not self.passthrough_enabled:
                return None
            try:
                backing = self._backings[file] = PassthroughFile(device.open_backing(self._fd, file.fd))
            except OSError as error:
                self.passthrough_enabled = False
                self.mode = f"page cache (passthrough failed: {error.strerror})"
                _log.warning("no passthrough: %s", error.strerror)
                return None
        backing.users += 1
        return backing

    def _read(self, _header: p.InHeader, body: memoryview) -> bytes:
        asked = p.READ_IN.unpack(body)
        return self._handle(asked.fh).read(asked.offset, min(asked.size, device.LARGEST_READ))

    def _lseek(self, _header: p.InHeader, body: memoryview) -> bytes:
        """SEEK_DATA and SEEK_HOLE; the kernel knows the others itself. No file here has holes."""
        asked = p.LSEEK_IN.unpack(body)
        size = self._handle(asked.fh).size
        if asked.offset >= size:
            raise OSError(errno.ENXIO, "beyond the end")
        return p.LSEEK_OUT.pack(size if asked.whence == os.SEEK_HOLE else asked.offset)

    def _release(self, _header: p.InHeader, body: memoryview) -> bytes:
        self._close_handle(p.RELEASE_IN.unpack(body).fh)
        return b""

    def _handle(self, number: int) -> Handle:
        handle = self._handles.get(number)
        if handle is None:
            raise OSError(errno.EBADF, "no such open file")
        return handle

    def _close_handle(self, number: int) -> None:
        handle = self._handle(number)
        del self._handles[number]
        if isinstance(handle, ClipHandle) and (backing := self._backings.get(handle.file)):
            backing.users -= 1
            if not backing.users:
                del self._backings[handle.file]
                with suppress(OSError):  # the connection may be gone, and the registration with it
                    device.close_backing(self._fd, backing.number)
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
            self._write(p.error_reply(unique, errno.EINTR))


class DirPage(NamedTuple):
    """Records of a directory, made ahead."""

    begin: int
    records: list[bytes]
    until: float
    """When they are too old, by the monotonic clock: sizes may have become known meanwhile."""
    hidden: HiddenClips
    """What was left out when they were made."""


@dataclass(slots=True)
class PassthroughFile:
    """A file's registration for passthrough, and how many handles use it."""

    number: int
    users: int = 0


def _is_at_it(watch: HiddenWatcher | None) -> bool:
    """Whether a watch, which is asked to end, has not yet."""
    if watch is None:
        return False
    watch.stop()
    return watch.is_alive()


def _sized(value: bytes, room: int) -> bytes:
    """The answer to a request for an attribute: the value, or its size if no room was given for it."""
    if room == 0:
        return p.GETXATTR_OUT.pack(len(value))
    if len(value) > room:
        raise OSError(errno.ERANGE, "no room for the value")
    return value


_dirent = cache(p.dirent_packer)
_direntplus = cache(p.direntplus_packer)
