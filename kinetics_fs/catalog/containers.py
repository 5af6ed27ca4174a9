"""The annotation lists inside a file: the file itself, or what gzip and tar have wrapped around them.

What a file is shows in its first bytes; its extension is never asked, because a `.tar.gz` of this dataset has been a
plain tar before. Nothing is unpacked to disk, so the path of a member does no harm, and every size is bounded, so a
small archive cannot become an endless list.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from zlib import error as ZlibError

from kinetics_fs.errors import CatalogError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_BYTES = 1 << 30
"""The most that one file may hold once decompressed. The largest real one holds about 0.2 GB."""
MAX_MEMBERS = 1000
"""The most members of one archive. The real ones have about ten."""
MAX_READ = 1 << 20
"""The most that is read at once: a tar header could otherwise ask for all memory."""

_LIST_SUFFIXES = (".csv", ".json", ".txt")


def shown(text: str) -> str:
    """`text` cut to 200 characters and with everything escaped that a log, a terminal or SQLite would not like."""
    return repr(text[:200])[1:-1]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever a damaged or missing file raises into a `CatalogError` of one sentence."""
    try:
        yield
    except OSError as error:
        raise CatalogError(f"{shown(str(path))} cannot be read: {error.strerror or error}") from error
    except (EOFError, ZlibError) as error:
        raise CatalogError(f"{shown(str(path))} is damaged or cut short: {error}") from error
    except tarfile.TarError as error:
        raise CatalogError(f"{shown(str(path))} is a damaged archive: {error}") from error


def annotation_lists(path: Path) -> Iterator[tuple[str, io.BufferedReader]]:
    """Every annotation list in `path`: the name it has in messages, and its bytes.

    A stream is good until the next one is asked for. To be used inside `readable(path)`.

    Raises:
        CatalogError: there is no list in it, or it is beyond a limit of this module.
    """
    name = shown(path.name)
    if not path.is_file():
        raise CatalogError(f"{shown(str(path))} is not a file")
    with path.open("rb") as file:
        gzipped = file.peek(2)[:2] == b"\x1f\x8b"
        content = _Bounded(gzip.GzipFile(fileobj=file) if gzipped else file, name)
        is_tar = _is_tar_header(content.read(tarfile.BLOCKSIZE))
        content.seek(0)
        if is_tar:
            yield from _lists_in_tar(name, content)
        else:
            yield name, io.BufferedReader(content, MAX_READ)


def _is_tar_header(block: bytes) -> bool:
    """By its checksum: old archives lack the magic word, and a row of a CSV may hold it by chance."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _lists_in_tar(name: str, content: _Bounded) -> Iterator[tuple[str, io.BufferedReader]]:
    with tarfile.open(fileobj=content, mode="r:") as archive:
        try:
            members = list(islice(archive, MAX_MEMBERS + 1))
        except (ValueError, RecursionError) as error:  # what tarfile lets through for headers made in bad faith
            raise CatalogError(f"{name} is a damaged archive: {error}") from error
        if len(members) > MAX_MEMBERS:
            raise CatalogError(f"{name} has more than {MAX_MEMBERS:,} members: not an archive of annotations")
        # tarfile takes a damaged header for the end of the archive, and stops there: before the checksum of gzip.
        content.seek(archive.offset)
        while rest := content.read(MAX_READ):
            if rest.strip(b"\0"):
                raise CatalogError(f"{name} is a damaged archive: what follows its last member is not empty")

        lists = {
            PurePosixPath(member.name): member
            for member in members
            if member.isreg() and not member.issparse() and _is_list(PurePosixPath(member.name).name)
        }
        any_list = False
        for path, member in lists.items():
            # The JSON is keyed by video and so has lost the second clip of a video; the CSV beside it has both.
            if path.suffix.lower() == ".json" and path.with_suffix(".csv") in lists:
                continue
            stream = archive.extractfile(member)
            assert isinstance(stream, io.BufferedReader)
            if path.suffix.lower() == ".txt" and b"youtube_id" not in stream.peek(1).lower():
                continue  # a read-me
            any_list = True
            yield f"{name}:{shown(path.name)}", stream
        if not any_list:
            raise CatalogError(f"{name} is an archive without annotations (.csv, .json or .txt)")


def _is_list(name: str) -> bool:
    return name.lower().endswith(_LIST_SUFFIXES) and not name.startswith("._")  # ._*: what macOS adds to a tar


class _Bounded(io.RawIOBase):
    """A stream that ends in a `CatalogError` where it would pass `MAX_BYTES`, by reading or by seeking."""

    def __init__(self, source: io.BufferedIOBase, name: str) -> None:
        super().__init__()
        self._source = source
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._source.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # Forwards in gzip means to decompress all that lies between, so the target is judged first.
        self._check(offset if whence == io.SEEK_SET else self.tell() + offset)
        return self._source.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise CatalogError(f"{self._name} is a damaged archive: it has a header of {size:,} bytes")
        data = self._source.read(size)
        self._check(self.tell())
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self.read(min(len(view), MAX_READ))
        view[: len(data)] = data
        return len(data)

    def _check(self, position: int) -> None:
        if position > MAX_BYTES:
            raise CatalogError(f"{self._name} holds more than {MAX_BYTES:,} bytes: not a list of annotations")
