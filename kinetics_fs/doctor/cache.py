"""Checks of the cache folder, its disk and its databases."""

from __future__ import annotations

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
from kinetics_fs.sources.settings import ARCHIVE_INDEXES
from kinetics_fs.store.health import quick_check, summarize_cache
from kinetics_fs.store.layout import may_become_ours

_ANOTHER = "Give another folder with --cache-dir."
_PATIENCE = 10.0
"""Seconds for the check of a database: of a large one it sees what it can in that time."""
_A_CLIP = 2 * 10**6
_FEW_INODES = 10_000

_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ncpfs"),
    *(f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "gcsfuse", "glusterfs", "ceph", "ceph-fuse", "juicefs")),
}
"""Types of filesystems of which the other end is another machine."""

_IN_MEMORY = {"tmpfs", "ramfs"}


def folder(settings: Settings, looked: PathProbe | None) -> Iterator[Finding]:
    """Whether it can be made and written, and whose it is."""
    path, name = settings.cache_dir, "cache folder"
    if looked is None:
        fix = "Get the server of that filesystem going again, or give another --cache-dir."
        yield Finding(name, State.PROBLEM, f"{path} does not answer", fix)
    elif looked.errno:
        yield Finding(name, State.PROBLEM, f"{path} cannot be used: {os.strerror(looked.errno)}", _ANOTHER)
    elif not looked.exists:
        if os.access(looked.path, os.W_OK | os.X_OK):
            yield Finding(name, State.OK, f"{path} is not there yet, and can be made")
        else:
            yield Finding(name, State.PROBLEM, f"{path} is not there, and cannot be made in {looked.path}", _ANOTHER)
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
        if not may_become_ours(path):
            return Finding(name, State.PROBLEM, f"{path} holds other files", "Give an empty or new --cache-dir.")
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Finding(name, State.PROBLEM, f"{path} cannot be written: {error.strerror}", _ANOTHER)
    if mode != 0o700:
        fix = f"chmod 700 {shlex.quote(str(path))}; the next command that uses it does so, too."
        return Finding(name, State.WARNING, f"{path} is open to others (mode {mode:04o})", fix)
    return Finding(name, State.OK, f"{path}, yours alone")


def disk(looked: PathProbe) -> Iterator[Finding]:
    """The type of its filesystem."""
    kind = filesystem_type(Path(looked.path))
    if kind in _NETWORK:
        fix = "Put the cache on a disk of this machine: SQLite's databases may be damaged on a network's (--cache-dir)."
        yield Finding("cache disk", State.WARNING, f"{kind}, on a network", fix)
    elif kind in _IN_MEMORY:
        fix = "Give a --cache-dir on a disk, if clips are to outlive a restart."
        yield Finding("cache disk", State.WARNING, f"{kind}: it is in memory", fix)
    else:
        yield Finding("cache disk", State.OK, kind or "of unknown type")


def space(settings: Settings, looked: PathProbe) -> Iterator[Finding]:
    """Whether there is room, for now and for what the cache may grow to."""
    try:
        held = (summarize_cache(settings.cache_dir) or (0, 0))[1]
    except StoreError:  # told by the check of the databases
        held = 0
    name, limit = "cache space", settings.cache_size
    free, left = filesize.decimal(looked.free), max(0, looked.free - settings.min_free)
    found = f"{free} free, {filesize.decimal(settings.min_free)} to be left, {filesize.decimal(held)} of clips"
    if left + held < _A_CLIP:
        fix = "Make room on the disk, give another --cache-dir, or leave less free (--min-free)."
        yield Finding(name, State.PROBLEM, f"{found}: no clip has room", fix)
    elif limit is not None and limit < _A_CLIP:
        yield Finding(
            name, State.PROBLEM, f"--cache-size {limit:,} has room for no clip", "Give a larger --cache-size."
        )
    elif limit is not None and limit > held + left:
        fix = f"Give a --cache-size of {filesize.decimal(held + left)} at most, or make room on the disk."
        yield Finding(name, State.WARNING, f"{found}: --cache-size {filesize.decimal(limit)} cannot be reached", fix)
    elif left < _A_CLIP:
        fix = "Make room on the disk, if clips are to stay longer: each new one costs an old one."
        yield Finding(name, State.WARNING, f"{found}: the disk is full", fix)
    elif looked.inodes is not None and looked.inodes < _FEW_INODES:
        fix = "Remove small files from the disk, or give another --cache-dir."
        yield Finding(name, State.WARNING, f"{found}, but room for only {looked.inodes:,} more files", fix)
    else:
        limited = f"--cache-size {filesize.decimal(limit)}" if limit is not None else "no --cache-size"
        yield Finding(name, State.OK, f"{found}, {limited}")


def databases(settings: Settings) -> Iterator[Finding]:
    """Whether they are intact."""
    there = []
    for name, fix in {
        "ledger.sqlite": "End all mounts, and remove {}*: it is made again from the clips.",
        "clips/cache.db": "End all mounts, and move the cache folder away: nobody knows any more which clips it has.",
        ARCHIVE_INDEXES: "Remove {}*, and make the indexes again or import them (kinetics-fs index).",
    }.items():
        path = settings.cache_dir / name
        try:
            fault = quick_check(path, _PATIENCE)
        except FileNotFoundError:
            continue
        there.append(name)
        if fault:
            yield Finding("databases", State.PROBLEM, f"{path} is damaged: {fault}", fix.format(shlex.quote(str(path))))
            there.remove(name)
    if there:
        yield Finding("databases", State.OK, f"intact: {', '.join(there)}")
