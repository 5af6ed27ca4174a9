"""Child processes that do not outlive their parent, however the parent ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading


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
