"""A confined process that reads pages, archives and videos for a worker: `python -m kinetics_fs.fetch.reader_process`.

`kinetics_fs.util.confined` describes the conversation, `kinetics_fs.fetch.reader` is its other side.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.media.checker_process import cut_and_verify, file_failure, file_operations
from kinetics_fs.media.checker_process import programs as media_programs
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.archive.access import ArchiveMember, DirectAccess
from kinetics_fs.sources.archive.base import ArchiveChanged, Version
from kinetics_fs.sources.archive.index import Record, write_index
from kinetics_fs.sources.archive.reader import LocalArchive
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.util import logs
from kinetics_fs.util.confined import Opened, Operation, serve
from kinetics_fs.util.logs import log_step

if TYPE_CHECKING:
    from kinetics_fs.sources.youtube.source import YouTubeSource

_log = logging.getLogger("kinetics_fs.fetch.reader_process")  # __name__ is __main__ here

_RUNTIMES = ("deno", "node", "bun", "qjs")
"""JavaScript runtimes that yt-dlp looks for on PATH."""
_INDEX = "index"


def make_operations(opened: Opened) -> dict[str, Operation]:
    """Return all operations, by name."""
    return file_operations(opened) | _VideoOperations(opened).by_name() | _archive_operations(opened)


class _VideoOperations:
    """The operations on pages of videos."""

    def __init__(self, opened: Opened) -> None:
        settings = opened.configuration["settings"]
        cache = str(opened.folders[0]) if opened.folders else ""
        self._settings = SourceSettings(**settings | {"ytdlp_cache": cache})
        self._folder = opened.folder
        self._parent = opened.parent
        self._source: YouTubeSource | None = None

    def by_name(self) -> dict[str, Operation]:
        return {"video": self._fetch, "check_video": lambda youtube_id: self._youtube().check(youtube_id)}

    def _youtube(self) -> YouTubeSource:
        if self._source is None:
            from kinetics_fs.sources.youtube.source import YouTubeSource  # yt-dlp is slow to load

            self._source = YouTubeSource(self._settings, self._read_cookies)
        return self._source

    def _read_cookies(self) -> str:
        return str(self._parent.call("cookies"))

    def _fetch(self, key: str) -> tuple[str, float]:
        clip = _clip(key)
        with log_step(_log, f"fetch {key}: process {os.getpid()}: youtube"):
            media = self._youtube().fetch(clip, self._folder)
        target = self._folder / clip.name
        with log_step(_log, f"fetch {key}: process {os.getpid()}: cut and verify"):
            settings = self._settings
            seconds = cut_and_verify(media, clip.duration, target, max_height=settings.max_height, exact=settings.exact)
        return clip.name, seconds


def _archive_operations(opened: Opened) -> dict[str, Operation]:
    folder, parent = opened.folder, opened.parent

    def version(address: str, tries: int, aws: dict[str, str | None] | None = None) -> tuple[int, str | None]:
        found = _access(aws).version(address, tries=tries)
        return found.size, found.etag

    def extract(
        *file: int,
        address: str,
        key: str,
        version: tuple[int, str | None],
        record: list[Any],
        gzipped: bool,
        aws: dict[str, str | None] | None = None,
    ) -> dict[str, Any]:
        clip = _clip(key)
        bit, skip, size, end, crc, window = record
        location = Record(bit, skip, size, end, crc, base64.b64decode(window))
        member = ArchiveMember(clip, address, Version(*version), location, gzipped)
        try:
            _access(aws, *file).extract(member, folder / clip.name)
        except ArchiveChanged:
            return {"changed": True}
        except ArchiveError as error:
            return {"damaged": str(error)}
        return {"result": clip.name}

    def stream(
        *file: int,
        address: str,
        name: str,
        version: tuple[int, str | None],
        aws: dict[str, str | None] | None = None,
    ) -> dict[str, Any]:
        def wanted(clip: Clip) -> bool:
            return bool(parent.call("wanted", clip.key))

        def on_clip(clip: Clip, path: Path) -> None:
            parent.call("clip", clip.key, path.name)
            path.unlink()

        try:
            read = _access(aws, *file).stream(name, address, Version(*version), folder, wanted, on_clip)
        except ArchiveChanged:
            return {"changed": True}
        except ArchiveError as error:
            return {"damaged": str(error)}
        with (folder / _INDEX).open("xb") as created:
            write_index(read.index, created)
        return {"result": [_INDEX, read.complete]}

    return {"version": version, "extract": extract, "stream": stream}


def _access(aws: dict[str, str | None] | None, *file: int) -> DirectAccess:
    """Return the access to an archive.

    Args:
        aws: the settings and credentials of S3, if the archive is there.
        file: its descriptor, if it is on a disk.
    """
    if aws is not None:
        from kinetics_fs.sources.archive import s3

        s3.use(aws)
    return DirectAccess(lambda address, **_: LocalArchive(Path(address), *file)) if file else DirectAccess()


def _clip(key: str) -> Clip:
    clip = parse_clip_name(f"{key}.mp4")
    assert clip is not None
    return clip


def _failure(operation: str, error: Exception) -> FetchError:
    if operation not in ("video", "check_video", "version", "extract", "stream"):
        return file_failure(operation, error)
    if isinstance(error, OSError):
        return FetchError(FailureKind.LOCAL, f"{error}", cause_errno=error.errno)
    # A defect in this program, or a site that changed. The failure gets one line, the log the whole traceback.
    _log.error("unexpected error", exc_info=error)
    return FetchError(FailureKind.TRANSIENT, f"unexpected {type(error).__name__}: {error}")


def _programs(configuration: dict[str, Any]) -> Iterable[str]:
    yield from media_programs(configuration)
    yield from filter(None, map(shutil.which, _RUNTIMES))
    ytdlp = configuration["settings"]["ytdlp"]
    runtimes = ytdlp.get("js_runtimes")
    for runtime in runtimes.values() if isinstance(runtimes, dict) else ():
        if isinstance(runtime, dict) and isinstance(runtime.get("path"), str):
            yield runtime["path"]


if __name__ == "__main__":
    logs.set_up(logging.WARNING)
    serve(make_operations, _failure, _programs, lambda: RECEIVED.total)
