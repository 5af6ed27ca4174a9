"""A process that reads video files for another one: `python -m kinetics_fs.media.checker_process`.

Standard input is a socket. The process sends an empty line when it is ready. A request is a line of JSON:
``{"operation": NAME, …}`` with the arguments of a function in `_OPERATIONS`, and with a descriptor beside its first
byte if the function takes a file. The answer is one line: ``{"result": …}``, or
``{"error": {"kind": …, "reason": …, "errno": …}}``, the fields of a `FetchError`. Its errno is ENOMEM if the process
has not enough memory for the file.

The process leads a session of its own, and ends with its ffmpeg when the socket closes.
"""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.media.convert import ensure_mp4
from kinetics_fs.media.cut import cut
from kinetics_fs.media.excerpt import find_excerpt
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import expected_span
from kinetics_fs.media.thumbnail import thumbnail
from kinetics_fs.media.verify import check_clip, check_container, verify_clip
from kinetics_fs.util import logs
from kinetics_fs.util.processes import NO_MEMORY, end_with_parent, limit_memory


def main() -> None:
    """Answer requests until the socket closes."""
    limit_memory()
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as channel:
        end_with_parent(sys.stdin.fileno())
        channel.sendall(b"\n")
        while (message := _receive(channel)) is not None:
            line, files = message
            answer = _answer(json.loads(line), files)
            channel.sendall(json.dumps(answer).encode() + b"\n")
            for file in files:
                os.close(file)


def _receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return the next request and its descriptors; None at the end."""
    line, files = b"", list[int]()
    while not line.endswith(b"\n"):
        chunk, received, _, _ = socket.recv_fds(channel, 65536, 1)
        if not chunk:
            return None
        line += chunk
        files += received
    return line, files


def _answer(request: dict[str, Any], files: list[int]) -> dict[str, Any]:
    try:
        return {"result": _OPERATIONS[request.pop("operation")](*files, **request)}
    except FetchError as error:
        failure = error
    except MemoryError:
        failure = FetchError(FailureKind.CORRUPT, NO_MEMORY, errno=errno.ENOMEM)
    except OSError as error:
        failure = FetchError(FailureKind.LOCAL, f"cannot read or write the file: {error.strerror}", errno=error.errno)
    except Exception as error:
        # Neither FFmpeg nor PyAV says which exceptions a file from outside may cause.
        failure = FetchError(FailureKind.CORRUPT, f"the file does not decode: {type(error).__name__}: {error}")
    return {"error": {"kind": failure.kind, "reason": failure.reason, "errno": failure.errno}}


def _check(path: str, level: str) -> float | None:
    return check_clip(Path(path), VerifyLevel(level))


def _measure(file: int) -> float:
    return check_container(Path(f"/dev/fd/{file}"))


def _decode(file: int) -> float:
    return verify_clip(Path(f"/dev/fd/{file}"), None)


def _convert(path: str) -> None:
    ensure_mp4(Path(path))


def _excerpt(path: str, start: int, end: int) -> tuple[float, float | None, bool]:
    media = find_excerpt(Path(path), start, end)
    return media.start, media.length, media.whole


def _cut(media: dict[str, Any], duration: float, target: str, max_height: int, exact: bool) -> float:
    video = Media(**media | {"path": Path(media["path"])})
    expected = expected_span(video, duration)
    cut(video, duration, Path(target), ffmpeg=find_ffmpeg(), max_height=max_height, exact=exact)
    return verify_clip(Path(target), expected)


def _thumbnail(file: int, width: int) -> str:
    with os.fdopen(os.dup(file), "rb") as video:
        return base64.b64encode(thumbnail(video, width)).decode()


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "check": _check,
    "measure": _measure,
    "decode": _decode,
    "convert": _convert,
    "excerpt": _excerpt,
    "cut": _cut,
    "thumbnail": _thumbnail,
}


if __name__ == "__main__":
    logs.set_up(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    main()
