"""The server of the control protocol, which runs in the process of a mount."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, cast

from kinetics_fs.control.paths import prepare_runtime_dir, socket_path
from kinetics_fs.errors import KineticsError, MountError, printable

_log = logging.getLogger(__name__)

_MAX_LINE = 64 * 1024
"""Bytes of a request, and of each line after it."""

_MAX_LINES = 10_000_000
_MAX_REQUESTS = 32
"""Requests that are answered at the same time."""
_MAX_WAITING = 256
"""Requests besides that wait for something, such as the end of a job."""
_MAX_REFUSED = 64
"""Refused connections that stay open, so that their clients can read why."""
_MAX_INTEGER = 2**63 - 1
"""Largest integer that SQLite stores."""
_TIMEOUT = 30.0
"""Seconds that a client may take to send its request."""

_CLOSE_TIMEOUT = 2.0
"""Seconds that a request in progress may take at the end of the mount."""

_BUSY = "cannot answer: the mount is busy with the requests of other programs; try again, or end some of them"

_TYPE_NAMES = {str: "a text", int: "an integer", bool: "true or false", list: "a list"}


class ClientGone(Exception):
    """The client has disconnected, so that nothing more is sent to it."""


class Request:
    """A request of a client.

    Attributes:
        send_progress: sends a progress report to the client; raises `ClientGone` if the client has disconnected.
    """

    def __init__(self, parameters: dict[str, Any], file: BinaryIO, send_progress: Callable[[object], None]) -> None:
        self._parameters = parameters
        self._file = file
        self.send_progress = send_progress

    def has(self, name: str) -> bool:
        """Return whether the request has a parameter."""
        return name in self._parameters

    def get(self, name: str, kind: type[Any], default: Any = None) -> Any:
        """Return a parameter, or the default if the request does not have it.

        Raises:
            KineticsError: it is not of type `kind`.
        """
        value = self._parameters.get(name, default)
        if value is not None and type(value) is not kind:
            raise KineticsError(f"cannot use the parameter {name!r}: it must be {_TYPE_NAMES[kind]}, not {value!r:.40}")
        if type(value) is int and abs(value) > _MAX_INTEGER:
            raise KineticsError(f"cannot use the parameter {name!r}: {value!r:.40} has more than 64 bits")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a parameter that is a list of texts; an empty tuple if the request does not have it.

        Raises:
            KineticsError: it is something else.
        """
        values = self.get(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise KineticsError(f"cannot use the parameter {name!r}: it must be a list of texts")
        return tuple(values)

    def lines(self) -> Iterator[str]:
        """Yield the lines that follow the request.

        Raises:
            KineticsError: there are fewer lines than announced, too many, or one is too long.
        """
        count = self.get("lines", int, 0)
        if not 0 <= count <= _MAX_LINES:
            raise KineticsError(f"cannot read {count:,} lines: a request has 0 to {_MAX_LINES:,} lines")
        for number in range(count):
            line = _read_line(self._file)
            if not line.endswith(b"\n"):
                raise KineticsError(
                    f"cannot read line {number + 1:,} of {count:,} lines:"
                    f" it is missing or longer than {_MAX_LINE:,} bytes"
                )
            yield line[:-1].decode(errors="replace")


class RequestHandler(NamedTuple):
    """The implementation of a request.

    Attributes:
        answer: returns the result for `json.dumps`; runs in a thread of its own.
        parameters: the parameters that the request may have.
        waits: the answer may take any time, so that the request is not one of the few that are answered at a time.
    """

    answer: Callable[[Request], object]
    parameters: tuple[str, ...] = ()
    waits: bool = False


class _Slot:
    """The place of a request among those that are answered at the same time, which was acquired before."""

    def __init__(self, free: threading.Semaphore) -> None:
        self._free = free

    def move_to(self, free: threading.Semaphore) -> bool:
        """Take another place instead; return False if there is none."""
        if not free.acquire(blocking=False):
            return False
        self._free.release()
        self._free = free
        return True

    def release(self) -> None:
        self._free.release()


class ControlServer:
    """A server on the control socket of a mount, for the duration of the context.

    Args:
        mountpoint: the mount point.
        handlers: the handlers by the name of their request.

    Raises:
        MountError: the socket cannot be created.
    """

    def __init__(self, mountpoint: Path, handlers: Mapping[str, RequestHandler]) -> None:
        self._handlers = handlers
        self._free_requests = threading.Semaphore(_MAX_REQUESTS)
        self._free_waiting = threading.Semaphore(_MAX_WAITING)
        self._refused: deque[socket.socket] = deque()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        prepare_runtime_dir()
        self._path = socket_path(mountpoint)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A mount that was killed leaves its socket behind. Two live mounts cannot be on one path.
            self._path.unlink(missing_ok=True)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise MountError(
                f"cannot create the control socket {self._path}: {error.strerror};"
                " check the permissions and the free space of its directory"
            ) from error
        self._inode = self._path.stat().st_ino
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # a later mount on the same path may have replaced it
                self._path.unlink()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        with self._lock:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # read no more, but answer the requests in progress
            thread.join(max(0.0, deadline - time.monotonic()))
        for connection in self._refused:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if not self._free_requests.acquire(blocking=False):
                self._refuse(connection)
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), name="control-request", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _refuse(self, connection: socket.socket) -> None:
        """Tell a client that the mount is busy. Its connection is closed later: a close could lose the answer."""
        connection.setblocking(False)
        with suppress(OSError):
            connection.sendall(json.dumps({"error": _BUSY}).encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
        self._refused.append(connection)
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popleft().close()

    def _serve(self, connection: socket.socket) -> None:
        slot = _Slot(self._free_requests)
        try:
            connection.settimeout(_TIMEOUT)
            with connection, cast(BinaryIO, connection.makefile("rwb")) as file:

                def send(answer: bytes) -> None:
                    try:
                        file.write(answer + b"\n")
                        file.flush()
                    except OSError as error:
                        raise ClientGone from error

                send(self._answer(file, lambda progress: send(json.dumps({"progress": progress}).encode()), slot))
                # To close a socket with unread input resets the connection, and the client would lose the answer.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_CLOSE_TIMEOUT)
                while file.read(_MAX_LINE):
                    pass
        except (OSError, ValueError, ClientGone):
            pass  # the client has disconnected
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            slot.release()

    def _answer(self, file: BinaryIO, send_progress: Callable[[object], None], slot: _Slot) -> bytes:
        """Read a request and return its answer as JSON. Whatever goes wrong is an answer, too.

        Raises:
            ClientGone: the client has disconnected.
        """
        try:
            answer = {"result": self._result(file, send_progress, slot)}
            return json.dumps(answer).encode()
        except KineticsError as error:
            text = str(error)
        except ClientGone:
            raise
        except Exception as error:
            _log.exception("unexpected error in a request on the control socket")
            text = printable(f"unexpected {type(error).__name__}: {error}; the log of the mount has the details")
        return json.dumps({"error": text}).encode()

    def _result(self, file: BinaryIO, send_progress: Callable[[object], None], slot: _Slot) -> object:
        line = _read_line(file)
        try:
            parameters = json.loads(line)
            name = parameters["request"]
            handler = self._handlers.get(name)
        except (ValueError, TypeError, LookupError, RecursionError):
            raise KineticsError(
                'cannot read the request: it must be a JSON object in one line, with the key "request"'
            ) from None
        if handler is None:
            raise KineticsError(
                f"cannot answer {name!r:.40}: no such request; the requests are {', '.join(self._handlers)}"
            )
        # A misspelt parameter must not be ignored: a prefetch without its selection would fetch everything.
        for parameter in parameters.keys() - {"request", *handler.parameters}:
            known = (
                f"its parameters are {', '.join(handler.parameters)}" if handler.parameters else "it has no parameters"
            )
            raise KineticsError(f"cannot answer the request {name}: unknown parameter {parameter!r:.40}; {known}")
        if handler.waits and not slot.move_to(self._free_waiting):
            raise KineticsError(_BUSY)
        return handler.answer(Request(parameters, file, send_progress))


def _read_line(file: BinaryIO) -> bytes:
    try:
        return file.readline(_MAX_LINE)
    except OSError as error:
        raise ClientGone from error
