"""Opening of archives by their address: on a disk, on a web server, or in an S3 bucket."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.sources.archive.base import Archive, ArchiveChanged, Version
from kinetics_fs.sources.archive.remote import PIECE, TRIES, RemoteArchive
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.util.beneath import Found, find_beneath


def open_archive(address: str, *, connections: int = 4, tries: int = TRIES) -> Archive:
    """Open an archive. Nothing is read yet.

    Args:
        address: `https://…`, `http://…`, `s3://bucket/key`, or a path. S3 settings and credentials are those of all AWS
            programs: `AWS_PROFILE`, `AWS_ENDPOINT_URL_S3` for a server other than Amazon's, and so on.
        connections: number of connections with which the whole archive is read.
        tries: number of tries in a row without progress after which a request fails.

    Raises:
        FetchError: credentials for S3 exist, but cannot be used (CONFIG).
    """
    if address.startswith("s3://"):
        from kinetics_fs.sources.archive.s3 import S3Archive  # imports requests, which is slow to load

        return S3Archive(address, connections=connections, tries=tries)
    if urlsplit(address).scheme in ("http", "https"):
        return RemoteArchive(address, connections=connections, tries=tries)
    return LocalArchive(Path(address))


def read_small(archive: Archive, limit: int) -> bytes:
    """Return the content of a small file.

    Raises:
        FetchError: the file cannot be read, or is larger than `limit` bytes (CONFIG).
    """
    version = archive.version()
    if version.size > limit:
        raise FetchError(
            FailureKind.CONFIG, f"cannot read {archive.address}: {version.size:,} bytes exceed the limit of {limit:,}"
        )
    return b"".join(archive.read(0, version.size, version))


class LocalArchive:
    """A file on a disk.

    Args:
        path: the file.
        descriptor: the same file, open; None to open the path when it is read.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.address = str(path)
        self._path = path
        self._descriptor = descriptor

    def version(self) -> Version:
        try:
            with self._find() as file:
                return Version(file.status.st_size)
        except OSError as error:
            raise self._failure(error) from error

    def read(self, begin: int, end: int, version: Version) -> Generator[bytes, None, None]:
        try:
            with self.opened() as descriptor, open(os.dup(descriptor), "rb", buffering=0) as file:  # noqa: PTH123
                if os.fstat(file.fileno()).st_size != version.size:
                    raise ArchiveChanged(self.address)
                file.seek(begin)
                while begin < end:
                    piece = file.read(min(PIECE, end - begin))
                    if not piece:
                        raise ArchiveChanged(self.address)
                    begin += len(piece)
                    RECEIVED.add(len(piece))
                    yield piece
        except FetchError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def stream(self, begin: int, version: Version) -> Generator[bytes, None, None]:
        return self.read(begin, version.size, version)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Yield a descriptor of the file."""
        if self._descriptor is not None:
            yield self._descriptor
            return
        try:
            with self._find() as found:
                file = found.open()
        except OSError as error:
            raise self._failure(error) from error
        try:
            yield file
        finally:
            os.close(file)

    def _find(self) -> Found:
        return find_beneath(self._path.parent, self._path.name)

    def _failure(self, error: OSError) -> FetchError:
        return FetchError(
            FailureKind.CONFIG,
            f"cannot read {self.address}: {error.strerror}; check --archive-url",
            cause_errno=error.errno,
        )
