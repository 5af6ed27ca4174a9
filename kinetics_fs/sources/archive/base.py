"""The interface of an archive: reading it, and telling its versions apart."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from kinetics_fs.errors import FailureKind, FetchError


@dataclass(frozen=True, slots=True)
class Version:
    """The identity of one version of an archive.

    An index, or a half-read archive, is valid for one version only.

    Args:
        size: size of the archive in bytes.
        etag: entity tag that the server gives it; None for a file on a disk, or if the server gives none.
    """

    size: int
    etag: str | None = None

    def matches(self, other: Version) -> bool:
        """Return whether both are the same version as far as is known. For a file on a disk only the size is known."""
        return self.size == other.size and (self.etag == other.etag or None in (self.etag, other.etag))


class ArchiveChanged(FetchError):
    """The archive is another version than the requested one."""

    def __init__(self, address: str) -> None:
        super().__init__(FailureKind.CONFIG, f"{address} has changed since it was indexed")


class Archive(Protocol):
    """An archive, or any other file, on a disk or a server.

    Its methods raise:
        FetchError: the file does not exist or cannot be read (CONFIG), or the server fails (TRANSIENT, BLOCKED).
        ArchiveChanged: the file is another version than the requested one.
    """

    address: str
    """Where the archive is, for messages: without passwords."""

    def version(self) -> Version:
        """Return the current version."""
        ...

    def read(self, begin: int, end: int, version: Version) -> Generator[bytes, None, None]:
        """Yield the bytes from `begin` up to `end` as they arrive. Without faults this is a single request."""
        ...

    def stream(self, begin: int, version: Version) -> Generator[bytes, None, None]:
        """Yield all bytes from `begin` on, as fast as the server allows."""
        ...
