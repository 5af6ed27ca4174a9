"""The native front end: one loop in one thread, which never waits for anything but the kernel.

Threading: the loop reads a request, answers it and forgets it. The open of a clip that is not in the cache is parked
(`operations`): a thousand of them cost a thousand small objects. Futures end in threads of the fetcher; these only add
a call to a queue and wake the loop, so that all state belongs to the loop. If names can appear or disappear
(`Filesystem.watch_names`), a second thread writes notifications to the descriptor: some of them block until the loop
has answered another request. The loop therefore continues until that thread has ended.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from kinetics_fs.control.status import FrontendStatus
from kinetics_fs.errors import KineticsError, MountError
from kinetics_fs.mount import trace
from kinetics_fs.mount.collector import OnReady
from kinetics_fs.mount.mountpoint import find_mounts, unmount
from kinetics_fs.mount.native import device
from kinetics_fs.mount.native import protocol as p
from kinetics_fs.mount.native.operations import Operations
from kinetics_fs.mount.native.passthrough import Passthrough, required_stack_depth
from kinetics_fs.mount.native.traced import TracedOperations
from kinetics_fs.vfs import Filesystem, HiddenWatcher, errno_of

_log = logging.getLogger(__name__)

_STOP_POLL_INTERVAL = 0.02
"""Seconds between two checks, once the loop is to end, whether the watcher has ended."""


def serve(
    filesystem: Filesystem,
    mountpoint: Path,
    *,
    allow_other: bool,
    source: str,
    passthrough: Path | None,
    on_ready: OnReady,
) -> None:
    """Mount the filesystem and serve it until it is unmounted or SIGTERM, SIGINT or SIGHUP arrives.

    Call it in the main thread: it handles the signals.

    Args:
        filesystem: the filesystem to mount.
        mountpoint: a prepared mount point.
        allow_other: let other users access the mount.
        source: the source that lists of mounts show.
        passthrough: the folder of the cached files, for the kernel to read itself if it can; None to turn that off.
        on_ready: see `OnReady`.

    Raises:
        MountError: mounting failed.
    """
    max_stack_depth = required_stack_depth(passthrough)
    fd = device.mount(mountpoint, allow_other=allow_other, source=source)
    try:
        server = Server(filesystem, fd, max_stack_depth=max_stack_depth)
        with _unmount_on_signals(server, mountpoint):
            server.run(lambda: _begin(server, mountpoint, on_ready))
    finally:
        os.close(fd)


def _begin(server: Server, mountpoint: Path, on_ready: OnReady) -> None:
    if limit := device.request_timeout():
        _log.warning(
            "this kernel aborts a mount that leaves a request unanswered for %d s (fs.fuse.*_request_timeout);"
            " set --timeout below that",
            limit,
        )
    device_number = find_mounts().get(mountpoint)
    if device_number is not None and not server.passthrough.enabled:
        device.raise_read_ahead(device_number)
    on_ready(server.status)


@contextmanager
def _unmount_on_signals(server: Server, mountpoint: Path) -> Iterator[None]:
    """Let signals end the mount cleanly: waiting opens are answered, and the mount point is released."""
    device_number = find_mounts().get(mountpoint)

    def end() -> None:
        server.operations.interrupt_all()
        if find_mounts().get(mountpoint) != device_number:
            # Unmounted lazily already; another filesystem may be mounted there by now.
            server.stop()
            return
        try:
            unmount(mountpoint, lazy=True)
        except MountError as error:
            _log.error("%s", error)
            server.stop()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        server.call(end)  # between two requests, not in the middle of one

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    previous_fd = signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)


class Server:
    """The loop that answers the requests on one descriptor.

    Args:
        filesystem: the filesystem of the mount.
        fd: a mounted FUSE descriptor; tests use a socket of packets.
        max_stack_depth: how many filesystems the kernel may stack for passthrough: see `required_stack_depth`.
    """

    def __init__(self, filesystem: Filesystem, fd: int, *, max_stack_depth: int) -> None:
        self._filesystem = filesystem
        self._fd = fd
        self.passthrough = Passthrough(fd, max_stack_depth)
        operations = TracedOperations if trace.is_enabled() else Operations
        self.operations = operations(filesystem, self, self.passthrough)
        self._handlers = self.operations.handlers
        self._running = True
        self._calls: deque[Callable[[], object]] = deque()
        # A pipe, because signals write to it too: one that arrives between two waits, or in another thread, must end
        # the wait.
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for end in (self._woken, self._wake):
            # Not closed before the last future that may write to it: its number could be another file by then.
            weakref.finalize(self, os.close, end)

    def run(self, on_init: Callable[[], None]) -> None:
        """Answer requests until the filesystem is unmounted or `stop` is called.

        Args:
            on_init: called when the kernel has accepted the connection.
        """
        self.operations.on_init = on_init
        os.set_blocking(self._fd, False)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        buffer = bytearray(device.MAX_READ + 4096)
        view, buffers = memoryview(buffer), [buffer]
        watcher = self._filesystem.watch_names(self.operations.notify_name)
        try:
            while self._running or _is_stopping(watcher):
                timeout = None if self._running else _STOP_POLL_INTERVAL * 1000
                if any(fd == self._woken for fd, _events in poll.poll(timeout)):
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
                    if error.errno not in (errno.ENOENT, errno.EINTR):  # the request was withdrawn while it was read
                        raise
                else:
                    self.answer(view[:size])
        finally:
            if watcher is not None:
                watcher.stop()
                watcher.join()
            self.operations.close()
            self._running = False

    @property
    def wake_fd(self) -> int:
        """A descriptor that ends the wait of the loop when a byte is written to it."""
        return self._wake

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop call a function soon; safe from any thread and from a signal handler."""
        self._calls.append(function)
        self._wake_up()

    def stop(self) -> None:
        """End the loop; safe from a signal handler."""
        self._running = False
        self._wake_up()

    def status(self) -> FrontendStatus:
        """Return how the kernel reads cached clips, and the number of open files and parked opens."""
        return FrontendStatus(
            name="native",
            mode=self.passthrough.mode,
            open_files=self.operations.open_files,
            waiting_opens=self.operations.waiting_opens,
            max_open_files=self._filesystem.open_limit.capacity,
        )

    def answer(self, message: memoryview) -> None:
        """Answer one request."""
        try:
            header = p.IN_HEADER.unpack(message)
        except p.Malformed as error:
            _log.error("ignored a request without a header: %s", error)
            return
        handler = self._handlers.get(header.opcode)
        try:
            if handler is None:
                payload, code = None, errno.EROFS if header.opcode in p.CHANGES else errno.ENOSYS
            else:
                payload, code = handler(header, message[p.IN_HEADER.size :]), 0
        except (OSError, KineticsError) as error:
            payload, code = None, errno_of(error)
        except p.Malformed as error:
            _log.error("cannot parse a request of opcode %d: %s", header.opcode, error)
            payload, code = None, errno.EIO
        except Exception:
            _log.exception("unexpected error in a request of opcode %d", header.opcode)
            payload, code = None, errno.EIO
        if header.opcode in p.NO_REPLY:
            return
        if code:
            self.write(p.error_reply(header.unique, code))
        elif payload is not None:
            self.write(p.reply_header(header.unique, len(payload)), payload)

    def write(self, *pieces: bytes) -> bool:
        """Send a reply or a notification; return False if the kernel does not take it."""
        try:
            os.writev(self._fd, pieces)
        except OSError as error:
            # The process that asked was killed, or the mount has ended: no one waits for this reply.
            if error.errno not in (*p.REFUSED, errno.ENODEV, errno.ENOTCONN):
                _log.error("cannot write a reply to the kernel: %s", error)
            return False
        return True

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):  # full of wake-ups that the loop has not seen yet
            os.write(self._wake, b"\0")

    def _clear_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)


def _is_stopping(watcher: HiddenWatcher | None) -> bool:
    """Ask a watcher to stop; return True while it has not ended."""
    if watcher is None:
        return False
    watcher.stop()
    return watcher.is_alive()
