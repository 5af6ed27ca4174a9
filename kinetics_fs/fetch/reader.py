"""The worker's side of its confined process, which reads pages, archives and videos.

`kinetics_fs.fetch.reader_process` is the other side.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.media.checker import Checker, clip_into, take
from kinetics_fs.sources import OnClip, SourceSettings
from kinetics_fs.sources.archive import s3
from kinetics_fs.sources.archive.access import ArchiveMember, ReadArchive
from kinetics_fs.sources.archive.base import ArchiveChanged, Version
from kinetics_fs.sources.archive.index import read_indexes
from kinetics_fs.sources.archive.reader import LocalArchive
from kinetics_fs.sources.cookies import CookieError, CookieFile
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.sources.settings import is_remote
from kinetics_fs.util.confined import ConfinedProcess, ProcessDied


class Reader(Checker):
    """A `Checker` that also fetches videos, and is an `ArchiveAccess`.

    Args:
        settings: settings of the sources.
        scratch: folder for the folders of the processes.
        inherited: descriptors that stay open in the processes.
    """

    def __init__(self, settings: SourceSettings, scratch: Path, inherited: tuple[int, ...] = ()) -> None:
        super().__init__(scratch)
        self._settings = settings
        self._inherited = inherited
        self._cookie_file = CookieFile(Path(settings.cookies)) if settings.cookies else None

    def _start(self) -> ConfinedProcess:
        # Their owner may keep cookies from everybody else, and indexes and folders are the worker's business.
        settings = asdict(self._settings) | {
            "cookies": "",
            "ytdlp_cache": "",
            "archive_index": "",
            "archive_lock": "",
            "folders": (),
            "catalog": "",
        }
        writable = []
        if self._settings.ytdlp_cache:
            folder = Path(self._settings.ytdlp_cache)
            folder.mkdir(mode=0o700, exist_ok=True)
            writable.append(folder)
        return ConfinedProcess(
            "kinetics_fs.fetch.reader_process",
            {"settings": settings},
            scratch=self._scratch,
            writable=writable,
            inherited=self._inherited,
            on_received=RECEIVED.add,
        )

    # Videos

    def fetch_video(self, clip: Clip, target: Path) -> float:
        """Fetch a clip from its video, cut it, verify it, and copy it to a new file.

        Returns:
            The seconds that its pictures cover.

        Raises:
            FetchError: as `YouTubeSource` raises it.
        """
        seconds: float = self._read("video", {"key": clip.key}, use=clip_into(target), calls={"cookies": self._cookies})
        return seconds

    def check_video(self, youtube_id: str) -> None:
        """Check that a video is available; see `YouTubeSource.check`."""
        self._read("check_video", {"youtube_id": youtube_id}, calls={"cookies": self._cookies})

    def _cookies(self, _: ConfinedProcess) -> str:
        """Return the content of the cookie file; empty if there is none."""
        try:
            return "" if self._cookie_file is None else self._cookie_file.read().text
        except CookieError as error:
            raise FetchError(FailureKind.CONFIG, str(error)) from error

    # Archives

    def version(self, address: str, *, tries: int) -> Version:
        """Return the present version of an archive; see `ArchiveAccess`."""
        if not is_remote(address):
            return LocalArchive(Path(address)).version()
        size, etag = self._read("version", _location(address) | {"tries": tries})
        return Version(int(size), None if etag is None else str(etag))

    def extract(self, member: ArchiveMember, target: Path) -> None:
        """Read a clip by its index record into a new file; see `ArchiveAccess`."""
        *numbers, window = member.record
        arguments = {
            "key": member.clip.key,
            "version": [member.version.size, member.version.etag],
            "record": [*numbers, base64.b64encode(window).decode()],
            "gzipped": member.gzipped,
        }
        self._read_archive("extract", member.address, arguments, lambda process, name: take(process, name, target))

    def stream(
        self, name: str, address: str, version: Version, folder: Path, wanted: Callable[[Clip], bool], on_clip: OnClip
    ) -> ReadArchive:
        """Read a whole archive; see `ArchiveAccess`."""

        def take_index(process: ConfinedProcess, answer: Any) -> ReadArchive:
            created, complete = answer
            path = folder / "index"
            take(process, created, path)
            with path.open("rb") as file:
                [index] = read_indexes(file)
            path.unlink()
            if (index.archive, index.size, index.etag) != (name, version.size, version.etag):
                raise ArchiveError("the process that reads the archive returned the index of another one")
            return ReadArchive(index, bool(complete))

        def take_clip(process: ConfinedProcess, key: str, created: str) -> None:
            clip = _clip(key)
            take(process, created, folder / clip.name)
            on_clip(clip, folder / clip.name)

        read: ReadArchive = self._read_archive(
            "stream",
            address,
            {"name": name, "version": [version.size, version.etag]},
            take_index,
            {"wanted": lambda _, key: wanted(_clip(key)), "clip": take_clip},
        )
        return read

    def _read_archive(
        self,
        operation: str,
        address: str,
        arguments: dict[str, Any],
        use: Callable[[ConfinedProcess, Any], Any],
        calls: dict[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Read from an archive, and raise what the process found wrong with it."""

        def result(process: ConfinedProcess, answer: dict[str, Any]) -> Any:
            if "changed" in answer:
                raise ArchiveChanged(address)
            if "damaged" in answer:
                raise ArchiveError(str(answer["damaged"]))
            return use(process, answer["result"])

        if is_remote(address):
            return self._read(operation, _location(address) | arguments, use=result, calls=calls)
        with LocalArchive(Path(address)).opened() as file:
            return self._read(operation, _location(address) | arguments, file, use=result, calls=calls)

    def _read(self, operation: str, arguments: dict[str, Any], file: int | None = None, **options: Any) -> Any:
        """Have the process read something that is no video file: that it dies proves nothing about a clip."""
        try:
            return self._run(operation, arguments, file, timeout=None, retry=False, **options)
        except ProcessDied as error:
            raise FetchError(FailureKind.TRANSIENT, error.reason, cause_errno=error.cause_errno) from error
        except FetchError as error:
            if error.kind is FailureKind.CONFIG and "aws" in arguments:
                s3.forget()  # a correction takes effect without a restart
            raise


def _clip(key: str) -> Clip:
    clip = parse_clip_name(f"{key}.mp4")
    if clip is None:
        raise ValueError(f"not a clip: {key!r}")
    return clip


def _location(address: str) -> dict[str, Any]:
    """Return the arguments that say where an archive is."""
    if not address.startswith("s3://"):
        return {"address": address}
    return {"address": address, "aws": s3.settings_as_json()}
