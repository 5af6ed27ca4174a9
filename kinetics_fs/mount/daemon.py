"""Going into the background: the parent process returns when the mount is ready, or reports why it failed."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from kinetics_fs.errors import KineticsError, MountError

_log = logging.getLogger(__name__)

_READY = b"ready"


def run_in_background(serve: Callable[[Callable[[], None]], None], log: Path) -> int:
    """Fork a daemon that runs `serve`, and wait until it is ready.

    Call it before there are threads or open databases: neither survives a fork.

    Args:
        serve: runs until the end of the daemon; calls its argument once when it is ready.
        log: file for the standard output and error of the daemon.

    Returns:
        The process id of the daemon.

    Raises:
        MountError: the daemon ended before it was ready; the text is its error message.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become_daemon(serve, log, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read()
    if message == _READY:
        return pid
    os.waitpid(pid, 0)
    raise MountError(
        message.decode(errors="replace") or f"cannot mount: the process ended before the mount was ready; see {log}"
    )


def _become_daemon(serve: Callable[[Callable[[], None]], None], log: Path, writer: int) -> None:
    """Run the child's side; never return."""
    status = 1
    parent_waits = True

    def tell_parent(message: bytes) -> None:
        nonlocal parent_waits
        if parent_waits:
            os.write(writer, message)
            os.close(writer)
            parent_waits = False

    def ready() -> None:
        # Not before it is mounted: autofs lets only the process group through that it started to mount.
        os.setsid()
        tell_parent(_READY)

    try:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for fd in (null, output):
            if fd > 2:  # a log that is rotated would otherwise stay open
                os.close(fd)
        serve(ready)
        status = 0
    except KineticsError as error:
        _log.error("%s", error)
        tell_parent(str(error).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the exit handlers belong to the parent.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
