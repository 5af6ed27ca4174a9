"""The interface of an archive: reading it, and telling its versions apart."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from kinetics_fs.errors import ArchiveError, FailureKind, FetchError


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


class IncompleteArchive(ArchiveError):
    """A part of the archive is missing. It proves nothing about the clips that it lacks."""


RECORD = 10_240
"""Bytes of the record that programs fill with zeros at the end of a tar, unless told otherwise."""
_MAX_RECORD = 1024 * 1024
"""Bytes of the largest record that is accepted. Records other than `RECORD` have a power of two as their size."""


def is_padding(zeros: int, end: int) -> bool:
    """Return whether a run of zeros can fill the last record of an archive.

    A download that was allocated in advance and then broken off, or that has holes, has other runs of zeros.

    Args:
        zeros: length of the run in bytes.
        end: offset of its end in the archive, in bytes.
    """
    if zeros <= RECORD:
        return True
    record = 1 << zeros.bit_length()
    return record <= _MAX_RECORD and end % record == 0


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
