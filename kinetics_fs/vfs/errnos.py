"""From any error to the errno that a reader sees: one total function."""

from __future__ import annotations

import errno

from kinetics_fs.errors import FailureKind, FetchError, StoreError

_BY_KIND = {
    # A listed clip is never ENOENT: the name is there, its data are not.
    FailureKind.GONE: errno.EIO,
    FailureKind.CREDENTIALS: errno.EACCES,
    FailureKind.BLOCKED: errno.EAGAIN,
    FailureKind.TRANSIENT: errno.EIO,
    FailureKind.CONFIG: errno.EIO,
    FailureKind.LOCAL: errno.EIO,
    FailureKind.CORRUPT: errno.EIO,
}

_KEPT = {
    FailureKind.TRANSIENT: {errno.ETIMEDOUT, errno.EINTR},
    FailureKind.LOCAL: {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM},
}
"""Causes that `open` may report as they are, and that tell more than EIO."""


def errno_of(error: BaseException) -> int:
    """The errno for an error: its own where it has one that a reader understands, else EIO."""
    if isinstance(error, FetchError):
        if error.errno in _KEPT.get(error.kind, ()):
            return error.errno or errno.EIO
        return _BY_KIND[error.kind]
    if isinstance(error, OSError | StoreError) and error.errno in errno.errorcode:
        return error.errno or errno.EIO
    return errno.EIO
