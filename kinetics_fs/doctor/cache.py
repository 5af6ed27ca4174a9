"""Checks of the cache directory, its disk and its databases."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich import filesize

from kinetics_fs.config import Settings
from kinetics_fs.doctor.findings import Finding, State
from kinetics_fs.errors import StoreError
from kinetics_fs.mount.mountpoint import filesystem_type
from kinetics_fs.mount.probe import PathProbe
from kinetics_fs.store.check import quick_check, summarize_cache
from kinetics_fs.store.layout import CacheLayout, is_own_or_empty

_ANOTHER = "Choose another folder with --cache-dir."
_TIMEOUT = 10.0
"""Time limit in seconds for the check of a database; a large one is checked as far as that allows."""
_CLIP_SIZE = 2 * 10**6
"""Typical size of a clip in bytes."""
_FEW_INODES = 10_000

_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ncpfs"),
    *(f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "gcsfuse", "glusterfs", "ceph", "ceph-fuse", "juicefs")),
}
"""Filesystem types whose data is on another machine."""

_IN_MEMORY = {"tmpfs", "ramfs"}


def folder(settings: Settings, probe: PathProbe | None) -> Iterator[Finding]:
    """Check that the cache directory exists or can be created, is writable and belongs to this user."""
    path, name = settings.cache_dir, "cache directory"
    if probe is None:
        fix = "Restart the server of that filesystem, or choose another folder with --cache-dir."
        yield Finding(name, State.PROBLEM, f"{path} does not answer", fix)
    elif probe.errno:
        yield Finding(name, State.PROBLEM, f"cannot use {path}: {os.strerror(probe.errno)}", _ANOTHER)
    elif not probe.exists:
        if os.access(probe.path, os.W_OK | os.X_OK):
            yield Finding(name, State.OK, f"{path} does not exist yet; it can be created")
        else:
            yield Finding(name, State.PROBLEM, f"cannot create {path}: no write access to {probe.path}", _ANOTHER)
    else:
        yield _existing(name, path)


def _existing(name: str, path: Path) -> Finding:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        return Finding(name, State.PROBLEM, f"{path} is not a folder", _ANOTHER)
    if status.st_uid != os.geteuid():
        return Finding(name, State.PROBLEM, f"{path} belongs to another user (uid {status.st_uid})", _ANOTHER)
    try:
        if not is_own_or_empty(path):
            return Finding(
                name, State.PROBLEM, f"{path} contains other files", "Choose an empty or new folder with --cache-dir."
            )
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Finding(name, State.PROBLEM, f"cannot write to {path}: {error.strerror}", _ANOTHER)
    if mode != 0o700:
        fix = f"Run chmod 700 {shlex.quote(str(path))}; the next command that uses the cache does the same."
        return Finding(name, State.WARNING, f"{path} is accessible to other users (mode {mode:04o})", fix)
    return Finding(name, State.OK, f"{path}, accessible only to you")


def disk(probe: PathProbe) -> Iterator[Finding]:
    """Check the type of the filesystem that holds the cache."""
    kind = filesystem_type(Path(probe.path))
    if kind in _NETWORK:
        fix = "Put the cache on a local disk (--cache-dir): a network filesystem can damage SQLite databases."
        yield Finding("cache disk", State.WARNING, f"{kind}, a network filesystem", fix)
    elif kind in _IN_MEMORY:
        fix = "Choose a --cache-dir on a disk if clips must survive a restart."
        yield Finding("cache disk", State.WARNING, f"{kind}, in memory", fix)
    else:
        yield Finding("cache disk", State.OK, kind or "unknown filesystem type")


def space(settings: Settings, probe: PathProbe) -> Iterator[Finding]:
    """Check the free space, for the next clip and for the size that the cache may reach."""
    cached, limit = 0, None
    with contextlib.suppress(StoreError):  # reported by the check of the databases
        if (summary := summarize_cache(settings.cache_dir)) is not None:
            cached, limit = summary.bytes, summary.limit
    if settings.cache_size is not None:
        limit = None if settings.cache_size == "none" else settings.cache_size
    name = "cache space"
    free, left = filesize.decimal(probe.free), max(0, probe.free - settings.min_free)
    found = f"{free} free, --min-free {filesize.decimal(settings.min_free)}, {filesize.decimal(cached)} of clips"
    if left + cached < _CLIP_SIZE:
        fix = "Free space on the disk, choose another --cache-dir, or lower --min-free."
        yield Finding(name, State.PROBLEM, f"{found}: no space for a clip", fix)
    elif limit is not None and limit < cached:
        fix = "Give --shrink with the next command to evict clips, or set a larger --cache-size."
        yield Finding(name, State.PROBLEM, f"{found}: more than --cache-size {filesize.decimal(limit)}", fix)
    elif limit is not None and limit < _CLIP_SIZE:
        yield Finding(
            name, State.PROBLEM, f"--cache-size {limit:,} is smaller than a clip", "Set a larger --cache-size."
        )
    elif limit is not None and limit > cached + left:
        fix = f"Set --cache-size to at most {filesize.decimal(cached + left)}, or free space on the disk."
        yield Finding(name, State.WARNING, f"{found}: --cache-size {filesize.decimal(limit)} cannot be reached", fix)
    elif left < _CLIP_SIZE:
        fix = "Free space on the disk to keep clips longer: every new clip evicts an old one."
        yield Finding(name, State.WARNING, f"{found}: the disk is full", fix)
    elif probe.inodes is not None and probe.inodes < _FEW_INODES:
        fix = "Remove small files from the disk, or choose another --cache-dir."
        yield Finding(name, State.WARNING, f"{found}; only {probe.inodes:,} free inodes", fix)
    else:
        limited = f"--cache-size {filesize.decimal(limit)}" if limit is not None else "no --cache-size"
        yield Finding(name, State.OK, f"{found}, {limited}")


def databases(settings: Settings) -> Iterator[Finding]:
    """Check that the databases of the cache are intact."""
    intact = []
    layout = CacheLayout(settings.cache_dir)
    for path, fix in {
        layout.state_database: "Unmount everything and remove {}*; it is rebuilt from the clips.",
        layout.clip_table: "Unmount everything and move the cache directory away: the list of its clips is lost.",
        layout.archive_indexes: "Remove {}*, then build or import the indexes again (kinetics-fs index).",
    }.items():
        name = str(path.relative_to(layout.root))
        try:
            fault = quick_check(path, _TIMEOUT)
        except FileNotFoundError:
            continue
        intact.append(name)
        if fault:
            yield Finding("databases", State.PROBLEM, f"{path} is damaged: {fault}", fix.format(shlex.quote(str(path))))
            intact.remove(name)
    if intact:
        yield Finding("databases", State.OK, f"intact: {', '.join(intact)}")
