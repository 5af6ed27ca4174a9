"""Where a clip can be had.

A source takes a clip and a private folder, and leaves a media file there that contains the clip, or raises
`kinetics_fs.errors.FetchError`. Sources run in worker processes (see `kinetics_fs.fetch`), never in the mount.
"""

from pathlib import Path

from kinetics_fs.sources.base import Media, NotHere, Source
from kinetics_fs.sources.settings import SourceSettings

__all__ = ["Media", "NotHere", "Source", "SourceSettings", "make_source"]


def make_source(name: str, settings: SourceSettings) -> Source:
    """The source of that name, one of `SourceSettings.order`."""
    # Imported here, for yt-dlp and others come with them: only worker processes may pay for that.
    if name == "archive":
        from kinetics_fs.sources.archive.source import ArchiveSource

        return ArchiveSource(settings.archive_url, Path(settings.archive_index))
    if name == "folder":
        from kinetics_fs.sources.folder import FolderSource

        catalog = Path(settings.catalog) if settings.catalog else None
        return FolderSource([Path(folder) for folder in settings.folders], catalog)
    from kinetics_fs.sources.youtube import YouTubeSource

    return YouTubeSource(settings)
