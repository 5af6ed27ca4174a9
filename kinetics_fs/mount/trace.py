"""Tracing of FUSE operations (`--debug`): one log line for each, with its result and its duration.

A front end asks `is_enabled` once, when it starts, and then uses a dispatch that traces or one that does not.
"""

from __future__ import annotations

import errno
import logging

from kinetics_fs.vfs import errno_of

_log = logging.getLogger(__name__)


def is_enabled() -> bool:
    """Return True if operations are to be traced."""
    return _log.isEnabledFor(logging.DEBUG)


def log_operation(operation: str, target: str, result: str, seconds: float) -> None:
    """Log an operation.

    Args:
        operation: name of the opcode, for example `LOOKUP`.
        target: the inode number or the path that it is about, and the name if there is one.
        result: `ok`, a number of bytes, `waits`, or the name of an errno.
        seconds: duration.
    """
    _log.debug("fuse %s %s: %s, %.0f us", operation, target, result, seconds * 1e6)


def errno_name(error: BaseException) -> str:
    """Return the name of the errno that an operation fails with, for example `ENOENT`."""
    return errno.errorcode[errno_of(error)]
