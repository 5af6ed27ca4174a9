"""Going into the background: the parent returns when the mount is live, or has failed and said why."""

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
    """Forks a daemon that runs `serve`, and waits until it says that it is ready.

    To be called before there are threads or open databases: neither survives a fork.

    Args:
        serve: runs to the end of the daemon's life; calls its argument once when it is ready.
        log: file that takes the daemon's standard output and error.

    Returns:
        The daemon's process id.

    Raises:
        MountError: the daemon ended before it was ready; the text is what it said.
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
        said = pipe.read()
    if said == _READY:
        return pid
    os.waitpid(pid, 0)
    raise MountError(said.decode(errors="replace") or f"the mount process ended before it was ready: see {log}")


def _become_daemon(serve: Callable[[Callable[[], None]], None], log: Path, writer: int) -> None:
    """The child's side; never returns."""
    status = 1
    waiting = True  # is the parent, for a word

    def tell(word: bytes) -> None:
        nonlocal waiting
        if waiting:
            os.write(writer, word)
            os.close(writer)
            waiting = False

    def ready() -> None:
        # Not before it is mounted: an automount lets only the process group through that it called to mount.
        os.setsid()
        tell(_READY)

    try:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for fd in (null, output):
            if fd > 2:  # or a log that is rotated would stay open, too
                os.close(fd)
        serve(ready)
        status = 0
    except KineticsError as error:
        _log.error("%s", error)
        tell(str(error).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: what the parent registered to run at exit is the parent's.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
