"""The mount's side of its socket."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from kinetics_fs.control.paths import prepare_folder, socket_path
from kinetics_fs.errors import KineticsError, MountError

_log = logging.getLogger(__name__)

_LONGEST_LINE = 64 * 1024
_MOST_LINES = 10_000_000
_MOST_AT_ONCE = 32
_PATIENCE = 30.0
"""Seconds that a client may take for what it has to say."""
_TIME_TO_ANSWER = 2.0
"""Seconds at the end of a mount for what is being done."""


class Request:
    """What a client asks for."""

    def __init__(self, words: dict[str, Any], file: BinaryIO, inform: Callable[[object], None]) -> None:
        self._words = words
        self._file = file
        self.inform = inform
        """Sends a word before the answer. Raises `OSError` when the client has left."""

    def get(self, name: str, kind: type[Any], default: Any = None) -> Any:
        """A field.

        Raises:
            KineticsError: it is not of that kind.
        """
        value = self._words.get(name, default)
        if value is not None and type(value) is not kind:
            raise KineticsError(f"{name!r} must be of type {kind.__name__}, not {type(value).__name__}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if it is not there.

        Raises:
            KineticsError: it is something else.
        """
        values = self.get(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise KineticsError(f"{name!r} must be a list of texts")
        return tuple(values)

    def lines(self) -> Iterator[str]:
        """The lines that follow the request.

        Raises:
            KineticsError: there are fewer than it said, or far too many.
        """
        count = self.get("lines", int, 0)
        if not 0 <= count <= _MOST_LINES:
            raise KineticsError(f"there can be 0 to {_MOST_LINES:,} lines, and not {count:,}")
        for _ in range(count):
            line = self._file.readline(_LONGEST_LINE)
            if not line.endswith(b"\n"):
                raise KineticsError("fewer lines came than were announced, or too long ones")
            yield line[:-1].decode(errors="replace")


Handler = Callable[[Request], object]
"""Does what a request asks for, in a thread of its own; what it returns is the answer, as JSON."""


class ControlServer:
    """Answers on the socket of a mount.

    Args:
        place: the mount point.
        handlers: what there is to do.

    Raises:
        MountError: there can be no socket.
    """

    def __init__(self, place: Path, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._room = threading.Semaphore(_MOST_AT_ONCE)
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        prepare_folder()
        self._path = socket_path(place)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)  # of a mount that was killed: two cannot be on one place
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise MountError(f"cannot make the mount's socket {self._path}: {error.strerror}") from error
        self._inode = self._path.stat().st_ino
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # else another mount's by now
                self._path.unlink()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        deadline = time.monotonic() + _TIME_TO_ANSWER
        with self._lock:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # nothing more is listened to, but what is being done is answered
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._room.acquire()
            thread = threading.Thread(target=self._talk, args=(connection,), name="control-request", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_PATIENCE)
            with connection, cast(BinaryIO, connection.makefile("rwb")) as file:

                def say(word: dict[str, object]) -> None:
                    file.write(json.dumps(word).encode() + b"\n")
                    file.flush()

                say(self._answer(file, lambda news: say({"so_far": news})))
                # What was not listened to is let in: closing upon it would take the answer back.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_TIME_TO_ANSWER)
                while file.read(_LONGEST_LINE):
                    pass
        except (OSError, ValueError):
            pass  # the client has left
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            self._room.release()

    def _answer(self, file: BinaryIO, inform: Callable[[object], None]) -> dict[str, object]:
        try:
            words = json.loads(file.readline(_LONGEST_LINE))
            handler = self._handlers.get(words["do"])
        except (ValueError, TypeError, LookupError, RecursionError):
            return {"error": 'a request is a JSON object in one line, with "do"'}
        if handler is None:
            return {
                "error": f"nothing is known about how to do {words['do']!r}; there are: {', '.join(self._handlers)}"
            }
        try:
            return {"ok": handler(Request(words, file, inform))}
        except KineticsError as error:
            return {"error": str(error)}
        except OSError:
            raise
        except Exception as error:
            _log.exception("unexpected error, request %r", words["do"])
            return {"error": f"unexpected {type(error).__name__}: {error}"}
