"""A look at all that kinetics-fs needs, before it is missed: what is there, what is not right, and how to mend it.

Nothing is changed by looking. What one check runs into costs no other: each has a thread of its own, and what may never
answer (a dead mount, a server) is asked by a process that can be left behind, or with a time limit.

`findings` has what a check says; `system`, `fuse`, `cache` and `sources` have the checks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kinetics_fs.config import Settings
from kinetics_fs.doctor import cache, fuse, sources, system
from kinetics_fs.doctor.findings import Check, Finding, State, examine
from kinetics_fs.mount import find_mounts
from kinetics_fs.mount.probe import look_at
from kinetics_fs.sources.settings import ARCHIVE_INDEXES

__all__ = ["Finding", "State", "diagnose"]


def diagnose(settings: Settings, mountpoint: Path | None = None, *, offline: bool = False) -> Iterator[Finding]:
    """Everything that can be found out.

    Args:
        settings: of the store, of fetching, of archives and of a view.
        mountpoint: a mount, or a place for one; None for all mounts that are there.
        offline: ask nothing of any network.
    """
    return examine(_checks(settings, mountpoint, offline=offline))


def _checks(settings: Settings, mountpoint: Path | None, *, offline: bool) -> Iterator[tuple[str, Check]]:
    yield "python", system.python
    yield "ffmpeg", system.ffmpeg
    yield "open files", system.open_files
    yield from ((name, partial(check, settings)) for name, check in fuse.CHECKS.items())
    mounts = find_mounts()
    # As it is written first: a dead mount may not answer who resolves its name.
    places = list(mounts) if mountpoint is None else [Path(os.path.abspath(mountpoint))]  # noqa: PTH100  # see above
    for place in places:
        yield "mount", partial(fuse.mount, place, mounts)
    folder = look_at(settings.cache_dir)
    yield "cache folder", partial(cache.folder, settings, folder)
    if folder is not None:  # else whoever touches it waits for ever
        yield "cache disk", partial(cache.disk, folder)
        yield "cache space", partial(cache.space, settings, folder)
        yield "databases", partial(cache.databases, settings)
        yield "passthrough", partial(fuse.passthrough, settings, folder)
        yield "blocks", partial(sources.blocks, settings)
        yield "archive indexes", partial(sources.indexes, settings)
    yield from ((name, partial(check, settings)) for name, check in sources.CHECKS.items())
    if not offline:
        indexed = folder is not None and (settings.cache_dir / ARCHIVE_INDEXES).exists()
        yield "youtube", partial(sources.youtube, settings)
        yield "archives", partial(sources.archives, settings, indexed=indexed)
