"""Every exception that kinetics-fs raises on purpose.

::

    KineticsError              its message tells the user what failed, why, and what to do
    ├── SettingError           a setting has an invalid value
    ├── CatalogError           annotations cannot be read, or a selection matches nothing
    │   └── UnknownClipError   a name is not in the selection; also a FileNotFoundError
    ├── StoreError             the cache directory cannot be used
    ├── SharedStoreError       the shared store cannot be used
    ├── MountError             a path cannot be mounted or unmounted
    ├── ArchiveError           an archive, or an index of archives, is invalid
    └── FetchError             a clip is unavailable; carries its `FailureKind`; also an OSError

A message has the form `cannot <verb> <object>: <cause>; <what to do>`, with the path, id, limit or address. A
FetchError or an ArchiveError states the cause alone: it follows the name of a clip or an archive in logs and tables.

Any other exception that reaches the user is a defect: the command line shows its traceback, the mount answers EIO and
logs it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

_LOGIN = re.compile(r"(?<=://)\S*@")
_QUERY = re.compile(r"""(?<=://)([^\s?]*\?)(\S*?)(?=[:;,.)'"]*(?:\s|$))""")
_VALUE = re.compile(r"(?<==)[^&;=]+")
_BREAKS = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")


class KineticsError(Exception):
    """An expected failure. The message can be shown to the user as it is.

    Text from outside cannot break its line, and it has no passwords.

    Args:
        text: the message.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(masked(text)))


class SettingError(KineticsError):
    """A setting has an invalid value, or excludes another setting."""


class CatalogError(KineticsError):
    """Annotations cannot be downloaded, parsed or compiled, or a selection matches nothing."""


class UnknownClipError(CatalogError, FileNotFoundError):
    """A name is not that of a clip of the selection."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno = errno.ENOENT

    def __str__(self) -> str:
        return str(self.args[0])


class StoreError(KineticsError):
    """The cache directory cannot be created, locked, read or written, or must not be trusted.

    Args:
        text: the message.
        errno: `ENOSPC` if the disk is full, else None.
    """

    def __init__(self, text: str, *, errno: int | None = None) -> None:
        super().__init__(text)
        self.errno = errno


class SharedStoreError(KineticsError):
    """The shared store is unreachable, refuses a request, or has an object that is damaged."""


class MountError(KineticsError):
    """A path cannot be mounted or unmounted, or is not a mount."""


class ArchiveError(KineticsError):
    """An archive of clips, or an index of archives, is damaged, incomplete or of an unknown format."""


class FailureKind(StrEnum):
    """Why a clip is unavailable. Decides the errno, whether the failure is remembered, and for how long."""

    GONE = "gone"
    """The clip was removed or does not exist. It will not be available soon."""
    CREDENTIALS = "credentials"
    """The clip exists, but not for this account or region: private, age gate, members only, blocked country."""
    BLOCKED = "blocked"
    """The source refuses this address for now (rate limit, bot check). Proves nothing about the clip."""
    TRANSIENT = "transient"
    """A network error, a server error or a timeout."""
    CONFIG = "config"
    """This installation lacks something: no ffmpeg, no JavaScript runtime, invalid cookies."""
    LOCAL = "local"
    """This machine lacks something: the disk is full, permission denied."""
    CORRUPT = "corrupt"
    """The source delivered media that is not the clip."""


_ERRNOS = {
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


class FetchError(KineticsError, OSError):
    """A clip is unavailable. Programs that read files handle it as they handle a failed `open`.

    Attributes:
        errno: what `open` in a mount reports for this failure; see docs/semantics.md.

    Args:
        kind: class of the failure.
        reason: one line, fit for a log or an extended attribute.
        source: name of the source that failed (`youtube`); empty if no source was asked.
        cause_errno: errno of the operating system (`ENOSPC`, `ETIMEDOUT`); None if there was none.
        retry_after: delay in seconds that the source requested; None if it requested none.
    """

    errno: int

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        source: str = "",
        cause_errno: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = self.strerror = str(self)
        self.source = source
        self.cause_errno = cause_errno
        passed_on = cause_errno if cause_errno in _PASSED_ON.get(kind, ()) else None
        self.errno = passed_on or _ERRNOS[kind]
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in ("args", "errno", "strerror")}
        return type(self).__new__, (type(self),), {**vars(self), **fields}

    def as_json(self) -> dict[str, Any]:
        """Return the fields as values for JSON."""
        return {
            "kind": self.kind,
            "reason": self.reason,
            "source": self.source,
            "errno": self.cause_errno,
            "retry_after": self.retry_after,
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> FetchError:
        """Return the failure of its `as_json`, which another process has sent.

        Raises:
            KeyError: a field is missing.
            TypeError, ValueError: a field is invalid.
        """
        number, retry_after = fields["errno"], fields["retry_after"]
        return FetchError(
            FailureKind(fields["kind"]),
            str(fields["reason"]),
            source=str(fields["source"]),
            cause_errno=None if number is None else int(number),
            retry_after=None if retry_after is None else float(retry_after),
        )


def masked(text: str) -> str:
    """Return a text without the user names, passwords and signatures in its URLs: `https://…@host/path?v=id&sig=…`."""
    if "://" not in text:
        return text
    return _QUERY.sub(lambda match: match[1] + _masked_query(match[2]), _LOGIN.sub("…@", text))


def _masked_query(query: str) -> str:
    """Return a query whose values are left out, but for the id of a video."""
    return "&".join(part if part.startswith("v=") else _VALUE.sub("…", part) for part in query.split("&"))


def printable(text: str) -> str:
    """Return a text on one line, with escapes for all that a terminal may interpret."""
    return escaped(_BREAKS.sub(" ", text.strip()))


def escaped(line: str) -> str:
    """Return a line with escapes for all that a terminal may interpret."""
    if line.isprintable():
        return line
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in line
    )


def root_cause(error: BaseException) -> str:
    """Return the message of the innermost exception, for libraries that wrap it several times.

    Follows the attribute `reason` of the first argument (urllib3), then `__cause__`, then `__context__`.
    """
    while True:
        inner = getattr(error.args[0], "reason", None) if error.args else None
        inner = inner or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            return getattr(error, "strerror", None) or str(error) or type(error).__name__
        error = inner
