"""From any error to the errno that a program sees: one total function."""

from __future__ import annotations

import errno

from kinetics_fs.errors import FailureKind, FetchError, StoreError

_BY_KIND = {
    # Never ENOENT for a listed clip: the name exists, its data do not.
    FailureKind.GONE: errno.EIO,
    FailureKind.CREDENTIALS: errno.EACCES,
    FailureKind.BLOCKED: errno.EAGAIN,
    FailureKind.TRANSIENT: errno.EIO,
    FailureKind.CONFIG: errno.EIO,
    FailureKind.LOCAL: errno.EIO,
    FailureKind.CORRUPT: errno.EIO,
}

_PASSED_ON = {
    FailureKind.TRANSIENT: {errno.ETIMEDOUT, errno.EINTR},
    FailureKind.LOCAL: {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM},
}
"""Causes that `open` may report unchanged because they say more than EIO."""


def errno_of(error: BaseException) -> int:
    """Return the errno for an error: its own if a program can act on it, else EIO."""
    if isinstance(error, FetchError):
        if error.errno in _PASSED_ON.get(error.kind, ()):
            return error.errno or errno.EIO
        return _BY_KIND[error.kind]
    if isinstance(error, StoreError):
        return errno_of(FetchError(FailureKind.LOCAL, "", errno=error.errno))
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return error.errno or errno.EIO
    return errno.EIO
