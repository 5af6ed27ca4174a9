"""Child processes that do not outlive their parent, however the parent ends, and that have limited memory."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import threading

MAX_MEMORY = 2 * 10**9
"""Bytes of memory for a process that parses media or pages from outside. Good ones need a tenth of that."""
NO_MEMORY = f"it needs more than {MAX_MEMORY // 10**9} GB of memory"


def limit_memory() -> None:
    """Limit the memory of this process, and of each process that it starts, to `MAX_MEMORY` for good.

    The limit is on data, not on addresses: JavaScript runtimes reserve addresses by the terabyte.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent dies; return at once.

    If this process leads a session, all processes of the session end with it: an ffmpeg would go on.

    Args:
        parent: descriptor of the read end of a pipe whose only write end the parent holds. The kernel closes the write
            end when the parent dies, even by SIGKILL.
    """
    threading.Thread(target=_wait_and_end, args=(parent,), name="parent-watch", daemon=True).start()


def _wait_and_end(parent: int) -> None:
    hangup = select.poll()
    hangup.register(parent, 0)  # POLLHUP is always reported; bytes to read are of no interest
    while not hangup.poll():
        pass
    if os.getsid(0) == os.getpid():
        kill_session(os.getpid())
    os._exit(1)


def kill_session(leader: int) -> None:
    """Kill a process that was started as the leader of a session, and the children that it started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
