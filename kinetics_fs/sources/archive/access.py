"""Access to the content of archives: the parsing of bytes from servers and from other people's disks.

The sources call it through the protocol `ArchiveAccess`. `DirectAccess` does the work in its own process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FetchError
from kinetics_fs.media import VerifyLevel
from kinetics_fs.sources.archive.base import Archive, Version
from kinetics_fs.sources.archive.extract import extract
from kinetics_fs.sources.archive.index import ArchiveIndex, Record
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Scan
from kinetics_fs.sources.archive.tar import Begin, End
from kinetics_fs.sources.base import OnClip


def stream_clips(
    archive: Archive,
    version: Version,
    scan: Scan,
    path_of: Callable[[Clip, int], Path | None],
    check: Callable[[Path], object],
    *,
    begin: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Generator[tuple[Clip, Path | None], None, None]:
    """Read an archive to its end and write its clips to files.

    Args:
        archive: the archive to read.
        version: version of the archive to read.
        scan: scan to feed; it builds the index.
        path_of: returns the file to create for a clip of a size in bytes; None skips the clip.
        check: raises a `FetchError` if a file is not a sound clip. Called for clips that are in the archive twice.
        begin: offset in the archive from which to read, in bytes, as the scan requires.
        progress: called with the offset up to which the archive was read.

    If a clip is in the archive twice with different content, the last copy that passes verification is indexed, or the
    first if none does. Each copy is passed to `path_of` and yielded.

    Yields:
        Each clip when all its bytes have passed, with its complete file, or None if it was skipped. The scan can make a
        checkpoint at this moment.

    Raises:
        FetchError: the archive cannot be read.
        ArchiveError: the archive is damaged.
        OSError: a file cannot be written.
    """
    path: Path | None = None
    file: IO[bytes] | None = None
    done = begin
    try:
        with closing(archive.stream(begin, version)) as pieces:
            for data in pieces:
                for event in scan.feed(data):
                    if isinstance(event, Begin):
                        path = path_of(event.clip, event.size)
                        if path is not None:
                            file = path.open("xb")
                        elif scan.is_repeated and event.clip in scan.records:
                            file = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115  # closed below
                        else:
                            file = None
                    elif not isinstance(event, End):
                        if file is not None:
                            file.write(event)
                    else:
                        if file is not None:
                            file.flush()
                            if scan.has_two_records and _is_sound(Path(file.name), check):
                                scan.replace_record()
                            file.close()
                        yield event.clip, path
                done += len(data)
                progress(done)
        scan.finish()
    finally:
        if file is not None:
            file.close()


def _is_sound(path: Path, check: Callable[[Path], object]) -> bool:
    try:
        check(path)
    except FetchError:
        return False
    return True


class ArchiveMember(NamedTuple):
    """The location of a clip in an archive that has an address."""

    clip: Clip
    address: str
    version: Version
    record: Record
    gzipped: bool


@dataclass(frozen=True)
class ReadArchive:
    """What reading a whole archive has shown.

    Attributes:
        index: the index; at least the clips that have only an unusable member.
        complete: the index has all clips of the archive.
    """

    index: ArchiveIndex
    complete: bool


class ArchiveAccess(Protocol):
    """Reading of archives.

    Its methods raise:
        FetchError: the archive cannot be read.
        ArchiveChanged: it is another version than the given one.
        ArchiveError: it is damaged, or does not have what its index says.
    """

    def version(self, address: str, *, tries: int) -> Version:
        """Return the present version of an archive."""
        ...

    def extract(self, member: ArchiveMember, target: Path) -> None:
        """Read a clip by its index record into a new file."""
        ...

    def stream(
        self, name: str, address: str, version: Version, folder: Path, wanted: Callable[[Clip], bool], on_clip: OnClip
    ) -> ReadArchive:
        """Read a whole archive.

        Args:
            name: name of the archive.
            address: its address.
            version: the version to read.
            folder: folder for the files of the clips.
            wanted: returns whether a clip is to be written to a file.
            on_clip: receives each such clip. It raises nothing.
        """
        ...


class DirectAccess:
    """Access to archives in this process.

    Args:
        open_archive: opens an archive by its address.
    """

    def __init__(self, open_archive: Callable[..., Archive] = open_archive) -> None:
        self._open = open_archive

    def version(self, address: str, *, tries: int) -> Version:
        return self._open(address, tries=tries).version()

    def extract(self, member: ArchiveMember, target: Path) -> None:
        record = member.record
        with target.open("xb") as file:
            pieces = self._open(member.address).read(record.begin, record.end, member.version)
            for piece in extract(member.clip, record, pieces, gzipped=member.gzipped):
                file.write(piece)

    def stream(
        self, name: str, address: str, version: Version, folder: Path, wanted: Callable[[Clip], bool], on_clip: OnClip
    ) -> ReadArchive:
        from kinetics_fs.media.verify import check_clip  # takes 0.1 s to load

        def path_of(clip: Clip, _: int) -> Path | None:
            return folder / clip.name if wanted(clip) else None

        scan = Scan(index=finds_block_boundaries())
        check = partial(check_clip, level=VerifyLevel.CONTAINER)
        with closing(stream_clips(self._open(address), version, scan, path_of, check)) as clips:
            for clip, path in clips:
                if path is not None:
                    on_clip(clip, path)
        # An index without some of the clips would prove that the archive lacks them.
        return ReadArchive(scan.index(name, version), complete=finds_block_boundaries() and not scan.not_indexed)
