"""The client of the control protocol."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kinetics_fs.control.paths import is_private, socket_path
from kinetics_fs.errors import MountError
from kinetics_fs.util.text import parse_json

_MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer."""

_TIMEOUT = 30.0


class NoAnswerError(MountError):
    """A mount did not answer a request in time, or its process ended meanwhile."""


class Connection:
    """A connection to a mount for one request. Use it as a context.

    Args:
        mountpoint: the mount point, for messages.
        connected: the connected socket.
        timeout: seconds that the mount may take for its answer.
    """

    def __init__(self, mountpoint: Path, connected: socket.socket, timeout: float) -> None:
        self._mountpoint = mountpoint
        self._socket = connected
        self._timeout = timeout
        self._file = connected.makefile("rwb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    @property
    def pid(self) -> int | None:
        """Process id of the mount; None except on Linux."""
        if not hasattr(socket, "SO_PEERCRED"):
            return None
        return _peer_credentials(self._socket)[0]

    def request(
        self,
        name: str,
        *,
        lines: Iterable[str] | None = None,
        on_progress: Callable[[Any], None] | None = None,
        **parameters: object,
    ) -> Any:
        """Send a request and wait for its answer.

        Args:
            name: name of the request.
            lines: text lines to send after it; None for a request without lines.
            on_progress: called with each progress report before the answer; the answer may then take any time.
            parameters: the parameters of the request.

        Returns:
            The result.

        Raises:
            NoAnswerError: the mount does not answer, or its process has ended.
            MountError: the mount refused the request.
        """
        self._socket.settimeout(None if on_progress else self._timeout)
        text = [line.encode() + b"\n" for line in lines or ()]
        self._send({"request": name, **parameters, **({} if lines is None else {"lines": len(text)})}, text)
        while "progress" in (answer := self._receive()):
            if on_progress is not None:
                on_progress(answer["progress"])
        if "error" in answer:
            raise MountError(str(answer["error"]))
        if "result" not in answer:
            raise MountError(
                f"cannot read the answer of the mount on {self._mountpoint}: it runs another version of kinetics-fs;"
                " unmount it and mount it again"
            )
        return answer["result"]

    def _send(self, message: dict[str, object], lines: list[bytes]) -> None:
        try:
            self._file.write(json.dumps(message).encode() + b"\n")
            self._file.writelines(lines)
            self._file.flush()
        except OSError as error:
            raise self._no_answer(error) from error

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._file.readline(_MAX_ANSWER)
            answer = parse_json(line or b"null")
        except (OSError, ValueError) as error:
            raise self._no_answer(error) from error
        if not line:
            raise self._no_answer("it has ended")
        return answer if isinstance(answer, dict) else {}

    def _no_answer(self, cause: object) -> NoAnswerError:
        return NoAnswerError(
            f"cannot get an answer from the mount on {self._mountpoint}: {cause}; see kinetics-fs status and its log"
        )


def connect(mountpoint: Path, timeout: float = _TIMEOUT) -> Connection | None:
    """Connect to the mount on a path; return None if no mount of this user listens there.

    A socket that another user could have put there is not trusted.

    Args:
        mountpoint: absolute path of the mount point, without symbolic links.
        timeout: seconds that the mount may take for its answer.
    """
    path = socket_path(mountpoint)
    if not is_private(path.parent):
        return None
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(timeout)
    try:
        connected.connect(str(path))
    except OSError:
        connected.close()
        return None
    if hasattr(socket, "SO_PEERCRED") and _peer_credentials(connected)[1] != os.geteuid():
        connected.close()
        return None
    return Connection(mountpoint, connected, timeout)


def _peer_credentials(connected: socket.socket) -> tuple[int, int]:
    """Return the process id and the user id of the peer, as of its `listen` (Linux only)."""
    # struct ucred of unix(7): pid, uid, gid.
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid
