"""The annotation lists in a file, which may be a list itself, or a gzip, tar or tar.gz with lists.

The first bytes decide, and never the extension: a `.tar.gz` of this dataset was once a plain tar. Nothing is unpacked
to disk, so the path of a member is harmless. Every size is limited, so a small archive cannot become an endless list.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from zlib import error as ZlibError

from kinetics_fs.errors import CatalogError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_BYTES = 1 << 30
"""Maximum size of a file after decompression. The largest real one has about 0.2 GB."""
MAX_GROWTH = 32
"""Bytes that each byte of a gzip file may unpack to, beyond `FREE_GROWTH`. Ids of videos hardly compress: real lists
stay below 20."""
FREE_GROWTH = 1 << 26
"""Bytes that any gzip file may unpack to."""
MAX_MEMBERS = 1000
"""Maximum number of members of an archive. Real ones have about ten."""
MAX_READ = 1 << 20
"""Maximum size of one read: a forged tar header could otherwise request all memory."""

_HEAD = 1 << 16
_LIST_SUFFIXES = (".csv", ".json", ".txt", ".tsv", ".list", ".lst")


def escaped(text: str) -> str:
    """Return the first 200 characters of `text` with escapes for control characters and lone surrogates."""
    return repr(text[:200])[1:-1]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Translate the errors of a missing or damaged file into `CatalogError`."""
    try:
        yield
    except OSError as error:
        raise CatalogError(f"cannot read {escaped(str(path))}: {error.strerror or error}") from error
    except (EOFError, ZlibError) as error:
        raise CatalogError(f"cannot read {escaped(str(path))}: it is damaged or incomplete ({error})") from error
    except tarfile.TarError as error:
        raise CatalogError(f"cannot read {escaped(str(path))}: it is a damaged archive ({error})") from error


def annotation_lists(path: Path, is_list: Callable[[bytes], bool]) -> Iterator[tuple[str, str, io.BufferedReader]]:
    """Yield every annotation list in a file: its name for messages, its name in the archive ("" outside), its bytes.

    A stream is valid until the next one is requested. Use this inside `readable(path)`.

    Args:
        path: the file.
        is_list: decides by the first bytes of a text in an archive whether it is a list.

    Raises:
        CatalogError: the file has no list, or exceeds a limit of this module.
    """
    with _opened(path) as (name, content, is_tar):
        if is_tar:
            yield from _lists_in_tar(name, content, is_list)
        else:
            yield name, "", io.BufferedReader(content, MAX_READ)


def head_of_list(path: Path) -> bytes:
    """Return the first 64 KiB of a list; b"" for an archive. Use this inside `readable(path)`, too."""
    with _opened(path) as (_, content, is_tar):
        return b"" if is_tar else content.read(_HEAD)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, _Bounded, bool]]:
    """Yield the name of a file for messages, its content, and whether that is an archive."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise CatalogError(f"cannot read {escaped(str(path))}: it is not a file")
    name = escaped(path.name)
    with path.open("rb") as file:
        gzipped = file.peek(2)[:2] == b"\x1f\x8b"
        content = _Bounded(gzip.GzipFile(fileobj=file) if gzipped else file, name, file.tell if gzipped else None)
        is_tar = _is_tar_header(content.read(tarfile.BLOCKSIZE))
        content.seek(0)
        yield name, content, is_tar


def _is_tar_header(block: bytes) -> bool:
    """Decide by the checksum: old archives lack the magic number, and a row of a CSV may contain it by chance."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _lists_in_tar(
    name: str, content: _Bounded, is_list: Callable[[bytes], bool]
) -> Iterator[tuple[str, str, io.BufferedReader]]:
    with tarfile.open(fileobj=content, mode="r:") as archive:
        try:
            members = list(islice(archive, MAX_MEMBERS + 1))
        except (ValueError, RecursionError) as error:  # raised by tarfile for forged headers
            raise CatalogError(f"cannot read {name}: it is a damaged archive ({error})") from error
        if len(members) > MAX_MEMBERS:
            raise CatalogError(
                f"cannot read {name}: it has more than {MAX_MEMBERS:,} members, so it is no archive of annotations"
            )
        # tarfile treats a damaged header as the end of the archive and stops there, before the checksum of gzip.
        content.seek(archive.offset)
        while rest := content.read(MAX_READ):
            if rest.strip(b"\0"):
                raise CatalogError(f"cannot read {name}: it is a damaged archive (data after its last member)")

        lists = {
            PurePosixPath(member.name): member
            for member in members
            if member.isreg() and not member.issparse() and _is_list(PurePosixPath(member.name).name)
        }
        any_list = False
        for path, member in lists.items():
            # The keys of the JSON are videos, so it lacks the second clip of a video. The CSV beside it has both.
            if path.suffix.lower() == ".json" and path.with_suffix(".csv") in lists:
                continue
            stream = archive.extractfile(member)
            assert isinstance(stream, io.BufferedReader)
            if path.suffix.lower() not in (".csv", ".json") and not is_list(stream.peek(1)):
                continue  # a README
            any_list = True
            yield f"{name}:{escaped(path.name)}", path.name, stream
        if not any_list:
            raise CatalogError(
                f"cannot read {name}: it is an archive without annotations (.csv, .json, .txt, .tsv or .list)"
            )


def _is_list(name: str) -> bool:
    return name.lower().endswith(_LIST_SUFFIXES) and not name.startswith("._")  # ._*: metadata that macOS adds to a tar


class _Bounded(io.RawIOBase):
    """A stream that raises `CatalogError` if a read or a seek would exceed `MAX_BYTES`, or the growth of a gzip file.

    Args:
        source: the bytes.
        name: name of the file for messages.
        consumed: returns the number of bytes that the source was unpacked from; None if it is not compressed.
    """

    def __init__(self, source: io.BufferedIOBase, name: str, consumed: Callable[[], int] | None) -> None:
        super().__init__()
        self._source = source
        self._name = name
        self._consumed = consumed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._source.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # To seek forwards in gzip is to decompress everything in between, so the target is checked first.
        self._check(offset if whence == io.SEEK_SET else self.tell() + offset)
        return self._source.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise CatalogError(f"cannot read {self._name}: it is a damaged archive (a header of {size:,} bytes)")
        data = self._source.read(size)
        self._check(self.tell())
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self.read(min(len(view), MAX_READ))
        view[: len(data)] = data
        return len(data)

    def _check(self, position: int) -> None:
        if self._consumed is not None and position > FREE_GROWTH + MAX_GROWTH * self._consumed():
            raise CatalogError(f"cannot read {self._name}: it unpacks to far more than its size, so it is no list")
        if position > MAX_BYTES:
            raise CatalogError(
                f"cannot read {self._name}: it holds more than {MAX_BYTES:,} bytes, so it is no list of annotations"
            )
