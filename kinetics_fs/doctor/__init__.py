"""Checks of everything that kinetics-fs depends on: the machine, the cache, the sources and the mounts.

Checks change nothing, except that one writes an object to the shared store and deletes it. Each runs in a thread of its
own, so that a failure or a delay in one does not affect the others. A path or server that may never answer (a dead
mount, for example) is probed by a separate process that can be abandoned, or with a timeout.

`findings` defines the result of a check and runs the checks; `system`, `fuse`, `cache`, `sources` and `shared` contain
them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kinetics_fs.config import Settings
from kinetics_fs.doctor import cache, fuse, shared, sources, system
from kinetics_fs.doctor.findings import Check, Finding, State, examine
from kinetics_fs.mount import find_mounts
from kinetics_fs.mount.probe import probe_path
from kinetics_fs.store import CacheLayout

__all__ = ["Finding", "State", "diagnose"]


def diagnose(settings: Settings, mountpoint: Path | None = None, *, offline: bool = False) -> Iterator[Finding]:
    """Run all checks and yield their findings.

    Args:
        settings: the settings that a mount would use: groups cache, shared, sources, network, archive and mount.
        mountpoint: the mount, or intended mount point, to check; None for all mounts of this machine.
        offline: skip the checks that use the network.
    """
    return examine(_checks(settings, mountpoint, offline=offline))


def _checks(settings: Settings, mountpoint: Path | None, *, offline: bool) -> Iterator[tuple[str, Check]]:
    yield "python", system.python
    yield "ffmpeg", system.ffmpeg
    yield "open files", system.open_files
    yield "sandbox", system.sandbox
    yield from ((name, partial(check, settings)) for name, check in fuse.CHECKS.items())
    mounts = find_mounts()
    # abspath and not resolve: resolving a path below a dead mount can block for ever.
    mountpoints = list(mounts) if mountpoint is None else [Path(os.path.abspath(mountpoint))]  # noqa: PTH100
    for path in mountpoints:
        yield "mount", partial(fuse.mount, path, mounts)
    folder = probe_path(settings.cache_dir)
    yield "cache directory", partial(cache.folder, settings, folder)
    if folder is not None:  # None: the folder does not answer, and any access to it would block
        yield "cache disk", partial(cache.disk, folder)
        yield "cache space", partial(cache.space, settings, folder)
        yield "databases", partial(cache.databases, settings)
        yield "passthrough", partial(fuse.passthrough, settings, folder)
        yield "blocks", partial(sources.blocks, settings)
        yield "uploads", partial(shared.uploads, settings)
        yield "archive indexes", partial(sources.indexes, settings)
    yield from ((name, partial(check, settings)) for name, check in sources.CHECKS.items())
    if not offline:
        indexed = folder is not None and CacheLayout(settings.cache_dir).archive_indexes.exists()
        yield "shared store", partial(shared.store, settings)
        yield "youtube", partial(sources.youtube, settings)
        yield "archives", partial(sources.archives, settings, indexed=indexed)
