"""Checks of FUSE on this machine, and of mounts and mount points."""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from kinetics_fs._version import __version__
from kinetics_fs.config import Settings
from kinetics_fs.control.status import MountStatus
from kinetics_fs.doctor.findings import Finding, State, sentence
from kinetics_fs.errors import MountError
from kinetics_fs.mount import apparmor
from kinetics_fs.mount.fusermount import (
    allows_other,
    apparmor_refusal,
    device_error,
    device_remedy,
    find_fusermount,
    find_proxy,
    may_mount,
    missing_right,
)
from kinetics_fs.mount.mountpoint import find_mounts, is_stacked
from kinetics_fs.mount.probe import TIMEOUT, PathProbe, probe_path
from kinetics_fs.util.mount_table import filesystem_type
from kinetics_fs.util.text import count, parse_json

_OLDEST_KERNEL = (5, 4)
_PASSES_THROUGH = (6, 9)
_ALL_USERS = 2**32 - 1
"""Number of users that the map of the initial user namespace covers (user_namespaces(7))."""

_ON_LINUX = sys.platform == "linux"


def device(settings: Settings) -> Iterator[Finding]:
    """Check that /dev/fuse can be opened."""
    if not _ON_LINUX:
        return
    error = device_error()
    if error is None:
        yield Finding("/dev/fuse", State.OK, "can be opened")
        return
    found, fix = f"cannot open /dev/fuse: {error.strerror}", sentence(device_remedy(error.errno))
    helper = find_proxy()
    if helper is None:
        yield Finding("/dev/fuse", State.PROBLEM, found, fix)
    else:
        found += f"; mounting works only if {helper} is a proxy that opens it elsewhere"
        yield Finding("/dev/fuse", State.WARNING, found, fix)


def rights(settings: Settings) -> Iterator[Finding]:
    """Check the right to mount: CAP_SYS_ADMIN, or fusermount3 for other users."""
    if not _ON_LINUX:
        return
    if may_mount():
        yield Finding("right to mount", State.OK, "directly, with CAP_SYS_ADMIN")
    elif proxy := find_proxy():
        yield Finding("right to mount", State.OK, f"with {proxy}, if it is a proxy")
    elif (refusal := missing_right()) is not None:
        fix = f"{sentence(refusal.remedy)} Without a mount: prefetch, fill, export, and the Library of Python."
        yield Finding("right to mount", State.PROBLEM, refusal.cause, fix)
    else:
        yield Finding("right to mount", State.OK, f"with {find_fusermount()}")


def kernel(settings: Settings) -> Iterator[Finding]:
    """Check the version of the kernel."""
    if not _ON_LINUX:
        return
    release = platform.release()
    if _version(release) < _OLDEST_KERNEL:
        yield Finding("kernel", State.PROBLEM, f"Linux {release}", "Use Linux 5.4 or newer.")
    else:
        yield Finding("kernel", State.OK, f"Linux {release}")


def passthrough(settings: Settings, probe: PathProbe) -> Iterator[Finding]:
    """Report whether the kernel can read cached clips without the mount (FUSE passthrough)."""
    if not _ON_LINUX or settings.frontend == "fusepy":
        return
    obstacle = _no_passthrough(settings, platform.release())
    found = f"no: {obstacle}" if obstacle else "possible"
    if not obstacle and not probe.errno and is_stacked(Path(probe.path)):
        found += f", unless the {filesystem_type(Path(probe.path))} below the cache is itself on a stacked filesystem"
    yield Finding("passthrough", State.OK, found)


def request_timeout(settings: Settings) -> Iterator[Finding]:
    """Check the time limit after which the kernel aborts a mount that has not answered a request."""
    from kinetics_fs.mount.native.device import request_timeout

    limit = request_timeout()
    if limit and limit <= settings.timeout:
        found = f"the kernel aborts a mount that takes {limit} s to answer; a fetch can take {settings.timeout:g} s"
        fix = f"Set --timeout below {limit}, or raise fs.fuse.max_request_timeout and default_request_timeout (sysctl)."
        yield Finding("request timeout", State.WARNING, found, fix)
    elif _ON_LINUX:
        yield Finding("request timeout", State.OK, f"{limit} s" if limit else "none")


def other_users(settings: Settings) -> Iterator[Finding]:
    """Check whether other users can be given access to a mount."""
    if not _ON_LINUX or os.geteuid() == 0:
        return
    if allows_other():
        yield Finding("user_allow_other", State.OK, "set in /etc/fuse.conf")
    elif settings.allow_other:
        fix = "As root, add the line `user_allow_other` to /etc/fuse.conf, or omit --allow-other."
        yield Finding("user_allow_other", State.PROBLEM, "not set in /etc/fuse.conf", fix)
    else:
        yield Finding("user_allow_other", State.OK, "not set; only --allow-other needs it")


def libfuse(settings: Settings) -> Iterator[Finding]:
    """Check that libfuse 2 can be loaded, if the front end `fusepy` is used."""
    if settings.frontend != "fusepy" and (_ON_LINUX or settings.frontend == "native"):
        return
    try:
        from kinetics_fs.mount import fusepy  # noqa: F401  # importing it loads the library
    except MountError as error:
        package = "Install macFUSE." if sys.platform == "darwin" else "Install the package libfuse2 or libfuse2t64."
        yield Finding("libfuse 2", State.PROBLEM, str(error).partition(":")[0], package)
    else:
        yield Finding("libfuse 2", State.OK, "found")


CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "/dev/fuse": device,
    "right to mount": rights,
    "kernel": kernel,
    "request timeout": request_timeout,
    "user_allow_other": other_users,
    "libfuse 2": libfuse,
}


def mount(path: Path, mounts: Collection[Path], timeout: float = TIMEOUT) -> Iterator[Finding]:
    """Check a mount, or a path to mount at.

    Args:
        path: absolute path of the mount point.
        mounts: the mount points of this machine.
        timeout: time in seconds to wait for an answer.
    """
    probe = probe_path(path, timeout)
    quoted = shlex.quote(str(path))
    if probe is None:
        fix = f"Read its log. To end it: kinetics-fs umount --lazy {quoted}, then kill its process."
        yield Finding("mount", State.PROBLEM, f"{path} does not answer", fix)
    elif path in mounts or (probe.exists and (Path(probe.path) in mounts or (probe.status and not _ON_LINUX))):
        if probe.errno in (errno.EACCES, errno.EPERM):
            yield Finding("mount", State.OK, f"{path}: mounted by another user without --allow-other")
        elif probe.errno or (value := _parse(probe.status)) is None:
            if path in mounts and path not in find_mounts():
                return  # unmounted in the meantime
            reason = os.strerror(probe.errno) if probe.errno else "cannot read .kinetics/status.json"
            yield Finding(
                "mount", State.PROBLEM, f"{path} is dead: {reason}", f"Remove it: kinetics-fs umount {quoted}"
            )
        else:
            yield from _running(path, value)
    else:
        yield _mountpoint(path, probe)


def _parse(text: str | None) -> dict[str, Any] | None:
    """Return the JSON of the status that a mount reports; None if it is not a JSON object."""
    try:
        value = parse_json(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _running(path: Path, value: dict[str, Any]) -> Iterator[Finding]:
    version = value.get("version")
    if version != __version__:
        fix = f"Unmount it and mount it again to use version {__version__}."
        yield Finding("mount", State.WARNING, f"{path} answers, but runs version {version}", fix)
        return
    try:
        status = MountStatus.from_json(value)
    except MountError as error:
        yield Finding("mount", State.PROBLEM, f"{path} answers, but: {error}", "Unmount it and mount it again.")
        return
    frontend = f", {status.frontend.name}: {status.frontend.mode}" if status.frontend else ""
    found = f"{path} answers: Kinetics-{status.release}, {count(status.clips, 'clip')}, process {status.pid}{frontend}"
    if status.cache.error:
        problem, _, cure = status.cache.error.rpartition("; ")
        yield Finding("mount", State.PROBLEM, f"{path} answers, but: {problem}", sentence(cure))
    else:
        yield Finding("mount", State.OK, found)
    if status.shared is not None:
        uploads = status.shared.uploads
        yield from _outage(path, "works without the shared store", status.shared.error)
        yield from _outage(path, "uploads nothing to the shared store", uploads.paused if uploads is not None else "")


def _outage(path: Path, effect: str, error: str) -> Iterator[Finding]:
    """Report that a mount cannot use its shared store, unless the error is empty."""
    if error:
        cause, _, cure = error.rpartition("; ")
        fix = sentence(cure) if cause else "Check the shared store: kinetics-fs doctor --shared URL."
        yield Finding("mount", State.WARNING, f"{path} {effect} for now: {cause or error}", fix)


def _mountpoint(path: Path, probe: PathProbe) -> Finding:
    if probe.errno:
        return Finding(
            "mount", State.PROBLEM, f"cannot mount on {path}: {os.strerror(probe.errno)}", "Choose another path."
        )
    if probe.exists and not probe.empty:
        reason = "it is not empty" if probe.empty is False else "it is not a readable folder"
        return Finding(
            "mount", State.PROBLEM, f"nothing is mounted on {path}, and {reason}", "Mount on an empty folder."
        )
    if not probe.exists and Path(probe.path) != Path(os.path.realpath(path.parent)):
        fix = f"mkdir -p {shlex.quote(str(path))}"
        return Finding("mount", State.PROBLEM, f"{path.parent} does not exist", fix)
    if not os.access(probe.path, os.W_OK | os.X_OK):
        return Finding("mount", State.PROBLEM, f"cannot write to {path}", "Mount on a folder that you own.")
    real = Path(os.path.realpath(path))
    if _ON_LINUX and not may_mount() and apparmor.refuses(real):
        refusal = apparmor_refusal(real)
        found = f"nothing is mounted on {path}, and {refusal.cause}"
        return Finding("mount", State.PROBLEM, found, sentence(refusal.remedy))
    return Finding("mount", State.OK, f"nothing is mounted on {path}; it can be used")


def _no_passthrough(settings: Settings, release: str) -> str:
    """Return why passthrough is not possible; an empty string if no obstacle is known."""
    if not settings.passthrough:
        return "turned off by --no-passthrough"
    if _version(release) < _PASSES_THROUGH:
        return "it needs Linux 6.9; cached clips are read through the page cache"
    if os.geteuid() != 0 or not may_mount():
        return "it needs root; cached clips are read through the page cache"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(_ALL_USERS)]:
        return "it needs root in the initial user namespace; cached clips are read through the page cache"
    return ""


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
