"""The commands' side of a mount's socket."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kinetics_fs.control.paths import socket_path
from kinetics_fs.errors import MountError

_LONGEST_ANSWER = 64 * 1024 * 1024
_PATIENCE = 30.0


class Connection:
    """A connection to a mount, for one request. Use as a context."""

    def __init__(self, place: Path, connected: socket.socket, patience: float) -> None:
        self._patience = patience
        self._place = place
        self._socket = connected
        self._file = connected.makefile("rwb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    @property
    def pid(self) -> int | None:
        """The mount's process; None where the system does not tell (Linux alone does)."""
        if not hasattr(socket, "SO_PEERCRED"):
            return None
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def ask(
        self,
        do: str,
        *,
        lines: Iterable[str] = (),
        informed: Callable[[Any], None] | None = None,
        **words: object,
    ) -> Any:
        """Makes a request.

        Args:
            do: what to do.
            lines: to follow it.
            informed: told each word that comes before the answer; may then be long in coming.
            words: whatever else it needs.

        Returns:
            The answer.

        Raises:
            MountError: the mount refuses, for the reason that the text says, or has ended.
        """
        self._socket.settimeout(None if informed else self._patience)
        following = [line.encode() + b"\n" for line in lines]
        try:
            self._file.write(json.dumps({"do": do, "lines": len(following), **words}).encode() + b"\n")
            self._file.writelines(following)
            self._file.flush()
            while True:
                answer = json.loads(self._file.readline(_LONGEST_ANSWER) or b"null")
                if answer is None:
                    raise MountError(f"the mount on {self._place} has ended")
                if "so_far" not in answer:
                    break
                if informed is not None:
                    informed(answer["so_far"])
        except (OSError, ValueError) as error:
            raise MountError(f"the mount on {self._place} does not answer: {error}") from error
        if "error" in answer:
            raise MountError(str(answer["error"]))
        return answer["ok"]


def connect(place: Path, patience: float = _PATIENCE) -> Connection | None:
    """Connects to the mount on a place; None if none answers there, or not to us.

    Args:
        place: absolute path of the mount point, without symbolic links.
        patience: seconds that the mount may take for an answer.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(patience)
    try:
        connected.connect(str(socket_path(place)))
    except OSError:
        connected.close()
        return None
    return Connection(place, connected, patience)
