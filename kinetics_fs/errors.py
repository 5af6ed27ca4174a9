"""Every error that kinetics-fs raises on purpose.

::

    KineticsError              one sentence for a person: what, where, what to do
    ├── SettingError           a setting has a value that makes no sense
    ├── CatalogError           annotations cannot be read, or a selection names what does not exist
    ├── StoreError             the cache folder cannot be used
    ├── MountError             the mount cannot be made or removed
    ├── ArchiveError           an archive, or an index of archives, is not what it should be
    └── FetchError             a clip could not be had; carries its `FailureKind`

Anything else that reaches a person is a defect: the command line lets it show its traceback, the mount
answers EIO and logs it.
"""

from __future__ import annotations

from enum import StrEnum


class KineticsError(Exception):
    """An expected failure. Its text is one sentence, fit to be shown as it is."""


class SettingError(KineticsError):
    """A setting has a value that makes no sense, or does not go with another."""


class CatalogError(KineticsError):
    """Annotations cannot be fetched, parsed or compiled, or a selection matches nothing."""


class StoreError(KineticsError):
    """The cache folder cannot be used: made, locked, trusted, read or written.

    Args:
        text: the sentence.
        errno: `ENOSPC` where the disk is full.
    """

    def __init__(self, text: str, *, errno: int | None = None) -> None:
        super().__init__(text)
        self.errno = errno


class MountError(KineticsError):
    """A mount point cannot be mounted, unmounted or found."""


class ArchiveError(KineticsError):
    """An archive of clips, or an index of archives, is damaged, cut short or of another kind."""


class FailureKind(StrEnum):
    """Why a clip could not be had: decides the errno, what is remembered, and for how long."""

    GONE = "gone"
    """Removed, private, or nowhere to be found: will not come back soon."""
    CREDENTIALS = "credentials"
    """There, but not for us: age gate, members only, region."""
    BLOCKED = "blocked"
    """The origin refuses this address for now (rate limit, bot check). Says nothing about the clip."""
    TRANSIENT = "transient"
    """Network trouble, a server fault, a timeout."""
    CONFIG = "config"
    """This installation cannot do it: no ffmpeg, no JavaScript runtime, bad cookies."""
    LOCAL = "local"
    """This machine cannot do it: disk full, permission denied."""
    CORRUPT = "corrupt"
    """Media came, but they are not the clip."""


class FetchError(KineticsError):
    """A clip could not be had.

    Args:
        kind: the class of failure.
        reason: one line, fit for a log or an extended attribute.
        source: name of the source that failed (`youtube`), or an empty string if none was asked.
        errno: the errno of the operating system where one is known (`ENOSPC`, `ETIMEDOUT`), else None.
        retry_after: seconds that the origin asked us to wait, where it did.
    """

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        source: str = "",
        errno: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.source = source
        self.errno = errno
        self.retry_after = retry_after


def root_cause(error: BaseException) -> str:
    """What went wrong in the end: libraries wrap it in three layers of their own."""
    while True:
        inner = getattr(error.args[0], "reason", None) if error.args else None
        inner = inner or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            return getattr(error, "strerror", None) or str(error) or type(error).__name__
        error = inner
