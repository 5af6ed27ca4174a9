"""Checks of the cache directory, its disk and its databases."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from rich import filesize

from kinetics_fs.config import Settings
from kinetics_fs.doctor.findings import Finding, State, sentence
from kinetics_fs.errors import StoreError
from kinetics_fs.mount.probe import PathProbe
from kinetics_fs.store.check import quick_check, summarize_cache
from kinetics_fs.store.clip_files import IF_DAMAGED as TABLE_DAMAGED
from kinetics_fs.store.database import IF_DAMAGED as STATE_DAMAGED
from kinetics_fs.store.layout import CacheLayout, is_cache, is_own_or_empty
from kinetics_fs.util.disk import FEATURES, UNWRITABLE, DiskFault, examine, fault_of, missing_feature
from kinetics_fs.util.mount_table import NETWORK_TYPES, filesystem_type

_ANOTHER = "Choose another folder with --cache-dir."
_READABLE = "; cached clips can be read, and no others can be fetched"
_TIMEOUT = 10.0
"""Time limit in seconds for the check of a database; a large one is checked as far as that allows."""
_CLIP_SIZE = 2 * 10**6
"""Typical size of a clip in bytes."""
_FEW_INODES = 10_000

_IN_MEMORY = {"tmpfs", "ramfs"}


def folder(settings: Settings, probe: PathProbe | None) -> Iterator[Finding]:
    """Check that the cache directory exists or can be created, is writable and belongs to this user."""
    path, name = settings.cache_dir, "cache directory"
    if probe is None:
        fix = "Restart the server of that filesystem, or choose another folder with --cache-dir."
        yield Finding(name, State.PROBLEM, f"{path} does not answer", fix)
    elif probe.errno:
        yield Finding(name, State.PROBLEM, f"cannot use {path}: {os.strerror(probe.errno)}", _ANOTHER)
    elif not probe.exists and not Path(probe.path).is_dir():
        yield Finding(name, State.PROBLEM, f"cannot create {path}: {probe.path} is not a folder", _ANOTHER)
    elif not probe.exists:
        fault = examine(Path(probe.path))
        if fault is None or fault.cause in FEATURES:
            yield Finding(name, State.OK, f"{path} does not exist yet; it can be created")
        else:
            fix = _or_another(fault.cure)
            yield Finding(name, State.PROBLEM, f"cannot create {path}: {fault.cause}", fix)
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
    except OSError as error:
        fault: DiskFault | None = fault_of(error, path)
    else:
        fault = examine(path)
    if fault is not None and fault.cause not in FEATURES:  # those are reported by the check of the disk
        is_readable = fault.errno in UNWRITABLE and is_cache(path)
        found = f"cannot write to {path}: {fault.cause}{_READABLE if is_readable else ''}"
        return Finding(name, State.PROBLEM, found, _or_another(fault.cure))
    if mode != 0o700:
        fix = f"Run chmod 700 {shlex.quote(str(path))}; the next command that uses the cache does the same."
        return Finding(name, State.WARNING, f"{path} is accessible to other users (mode {mode:04o})", fix)
    return Finding(name, State.OK, f"{path}, accessible only to you")


def _or_another(cure: str) -> str:
    return sentence(f"{cure}, or choose another folder with --cache-dir")


def disk(probe: PathProbe) -> Iterator[Finding]:
    """Check the type of the filesystem that holds the cache, and that it has what SQLite needs."""
    kind, lacking = filesystem_type(Path(probe.path)), None
    with contextlib.suppress(OSError):  # it cannot be written, which the check of the folder reports
        lacking = missing_feature(Path(probe.path))
    if lacking is not None:
        fix = _or_another(lacking.cure)
        yield Finding("cache disk", State.PROBLEM, f"{kind or 'unknown filesystem type'}: {lacking.cause}", fix)
    elif kind in NETWORK_TYPES:
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
    for path, if_damaged in {
        layout.state_database: STATE_DAMAGED,
        layout.clip_table: TABLE_DAMAGED,
        layout.archive_indexes: "remove {}*, then build or import the indexes again (kinetics-fs index)",
    }.items():
        place = layout.root if path == layout.clip_table else path
        try:
            fault = quick_check(path, _TIMEOUT, if_damaged=if_damaged.format(shlex.quote(str(place))))
        except FileNotFoundError:
            continue
        if fault is None:
            intact.append(str(path.relative_to(layout.root)))
        else:
            yield Finding("databases", State.PROBLEM, fault.cause, sentence(fault.cure))
    if intact:
        yield Finding("databases", State.OK, f"intact: {', '.join(intact)}")
