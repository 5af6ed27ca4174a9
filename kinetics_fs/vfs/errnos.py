"""From any error to the errno that a program sees: one total function."""

from __future__ import annotations

import errno

from kinetics_fs.errors import FailureKind, FetchError, StoreError


def errno_of(error: BaseException) -> int:
    """Return the errno for an error: its own if a program can act on it, else EIO."""
    if isinstance(error, StoreError):
        return FetchError(FailureKind.LOCAL, "", cause_errno=error.errno).errno
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return error.errno or errno.EIO
    return errno.EIO
