"""Where a clip can be had.

A source takes a clip and a private folder, and leaves a media file there that contains the clip, or raises
`kinetics_fs.errors.FetchError`. Sources run in worker processes (see `kinetics_fs.fetch`), never in the mount.
"""

from pathlib import Path

from kinetics_fs.sources.base import InProgressElsewhere, NotInSource, OnClip, Source
from kinetics_fs.sources.settings import SourceSettings

__all__ = ["InProgressElsewhere", "NotInSource", "OnClip", "Source", "SourceSettings", "make_source"]


def make_source(name: str, settings: SourceSettings, on_clip: OnClip) -> Source:
    """The source of that name, one of `SourceSettings.order`."""
    # Imported here, for yt-dlp and others come with them: only worker processes may pay for that.
    catalog = Path(settings.catalog) if settings.catalog else None
    if name in ("archive", "whole-archive"):
        from kinetics_fs.sources.archive.source import ArchiveSource, WholeArchiveSource
        from kinetics_fs.sources.archive.stream import ArchiveStreamer

        index_db = Path(settings.archive_index)
        most = None if name == "whole-archive" else settings.archive_stream_limit
        whole = ArchiveStreamer(settings.archive_url, index_db, catalog, most, on_clip)
        return ArchiveSource(settings.archive_url, index_db, whole) if name == "archive" else WholeArchiveSource(whole)
    if name == "folder":
        from kinetics_fs.sources.folder import FolderSource

        return FolderSource([Path(folder) for folder in settings.folders], catalog)
    from kinetics_fs.sources.youtube.source import YouTubeSource

    return YouTubeSource(settings)
