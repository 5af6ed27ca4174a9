"""Checks of what a mount takes, and of the mounts that are there."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shlex
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from kinetics_fs._version import __version__
from kinetics_fs.config import Settings
from kinetics_fs.doctor.findings import Finding, State
from kinetics_fs.errors import MountError
from kinetics_fs.mount.mountpoint import allows_other, filesystem_type, find_fusermount, find_mounts, is_stacked
from kinetics_fs.mount.probe import PATIENCE, PathProbe, look_at

_OLDEST_KERNEL = (5, 4)
_PASSES_THROUGH = (6, 9)
_CAP_SYS_ADMIN = 1 << 21
"""linux/capability.h"""
_ALL_USERS = 2**32 - 1
"""How many users the map of the first user namespace has (user_namespaces(7))."""

_ON_LINUX = sys.platform == "linux"


def device(settings: Settings) -> Iterator[Finding]:
    """/dev/fuse."""
    if not _ON_LINUX:
        return
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        fix = {
            errno.ENOENT: "Load the module (modprobe fuse), or give docker --device /dev/fuse.",
            errno.ENODEV: "Load the module (modprobe fuse).",
            errno.EPERM: "Give the container the device (docker: --device /dev/fuse).",
        }.get(error.errno or 0, "As root: chmod 666 /dev/fuse.")
        yield Finding("/dev/fuse", State.PROBLEM, f"it cannot be opened: {error.strerror}", fix)
    else:
        yield Finding("/dev/fuse", State.OK, "it can be opened")


def rights(settings: Settings) -> Iterator[Finding]:
    """Who mounts: root itself, or fusermount3 for a user."""
    if not _ON_LINUX:
        return
    process = _process_status()
    if int(process.get("CapEff", "0"), 16) & _CAP_SYS_ADMIN:
        yield Finding("right to mount", State.OK, "by ourselves, with CAP_SYS_ADMIN")
        return
    if os.geteuid() == 0:
        fix = "Give the container the right (docker: --cap-add SYS_ADMIN), or mount outside of it."
        yield Finding("right to mount", State.PROBLEM, "root, but without CAP_SYS_ADMIN", fix)
        return
    helper = find_fusermount()
    if helper is None:
        fix = "Install the package fuse3, or mount as root."
        yield Finding("right to mount", State.PROBLEM, "not root, and fusermount3 is not installed", fix)
    elif process.get("NoNewPrivs") == "1":
        fix = "Allow new privileges: NoNewPrivileges=no in a systemd unit, no such --security-opt with docker."
        yield Finding("right to mount", State.PROBLEM, f"{helper}, but this process may gain no privileges", fix)
    elif not Path(helper).stat().st_mode & stat.S_ISUID:
        fix = "Install the package fuse3 again, as root."
        yield Finding("right to mount", State.PROBLEM, f"{helper} is not setuid root", fix)
    else:
        yield Finding("right to mount", State.OK, f"by {helper}")


def kernel(settings: Settings) -> Iterator[Finding]:
    """Its version."""
    if not _ON_LINUX:
        return
    release = platform.release()
    if _version(release) < _OLDEST_KERNEL:
        yield Finding("kernel", State.PROBLEM, f"Linux {release}", "Use Linux 5.4 or newer.")
    else:
        yield Finding("kernel", State.OK, f"Linux {release}")


def passthrough(settings: Settings, looked: PathProbe) -> Iterator[Finding]:
    """Whether the kernel can read cached clips itself."""
    if not _ON_LINUX or settings.frontend == "fusepy":
        return
    obstacle = _no_passthrough(settings, platform.release())
    found = f"no: {obstacle}" if obstacle else "possible"
    if not obstacle and not looked.errno and is_stacked(Path(looked.path)):
        found += f", on {filesystem_type(Path(looked.path))} if that is on no other such filesystem"
    yield Finding("passthrough", State.OK, found)


def request_timeout(settings: Settings) -> Iterator[Finding]:
    """The time after which the kernel ends a mount that leaves it without an answer."""
    from kinetics_fs.mount.native.device import request_timeout

    limit = request_timeout()
    if limit and limit <= settings.timeout:
        found = f"this system ends a mount that takes {limit} s for an answer; a fetch may take {settings.timeout:g} s"
        fix = f"Give a --timeout below {limit}, or raise fs.fuse.max_request_timeout and default_request_timeout."
        yield Finding("request timeout", State.WARNING, found, fix)
    elif _ON_LINUX:
        yield Finding("request timeout", State.OK, f"{limit} s" if limit else "none")


def other_users(settings: Settings) -> Iterator[Finding]:
    """Whether others may use the mount."""
    if not _ON_LINUX or os.geteuid() == 0:
        return
    if allows_other():
        yield Finding("user_allow_other", State.OK, "set in /etc/fuse.conf")
    elif settings.allow_other:
        fix = "As root, add a line `user_allow_other` to /etc/fuse.conf, or leave out --allow-other."
        yield Finding("user_allow_other", State.PROBLEM, "not set in /etc/fuse.conf", fix)
    else:
        yield Finding("user_allow_other", State.OK, "not set, and not needed without --allow-other")


def libfuse(settings: Settings) -> Iterator[Finding]:
    """The library of the other front end, where that is used."""
    if settings.frontend != "fusepy" and (_ON_LINUX or settings.frontend == "kernel"):
        return
    try:
        from kinetics_fs.mount import fusepy  # noqa: F401  # looks for the library
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


def mount(place: Path, mounts: Collection[Path], patience: float = PATIENCE) -> Iterator[Finding]:
    """A mount, or a place for one.

    Args:
        place: absolute.
        mounts: where mounts are.
        patience: seconds to wait for an answer.
    """
    looked = look_at(place, patience)
    quoted = shlex.quote(str(place))
    if looked is None:
        fix = f"See its log; to end it: kinetics-fs umount --lazy {quoted}, and end its process."
        yield Finding("mount", State.PROBLEM, f"{place} does not answer", fix)
    elif place in mounts or (looked.exists and (Path(looked.path) in mounts or (looked.status and not _ON_LINUX))):
        if looked.errno in (errno.EACCES, errno.EPERM):
            yield Finding("mount", State.OK, f"{place} is another user's, who keeps it to himself")
        elif looked.errno or (status := _parse(looked.status)) is None:
            if place in mounts and place not in find_mounts():
                return  # it was unmounted meanwhile
            reason = os.strerror(looked.errno) if looked.errno else "its process does not say how it is"
            yield Finding(
                "mount", State.PROBLEM, f"{place} is dead: {reason}", f"Clear it: kinetics-fs umount {quoted}"
            )
        else:
            yield _living(place, status)
    else:
        yield _place(place, looked)


def _parse(text: str | None) -> dict[str, Any] | None:
    """What a mount says of itself, if it does."""
    try:
        status = json.loads(text or "")
    except ValueError:
        return None
    return status if isinstance(status, dict) else None


def _living(place: Path, status: dict[str, Any]) -> Finding:
    version = status.get("version")
    if version != __version__:
        fix = f"Unmount it and mount it again, to have version {__version__}."
        return Finding("mount", State.WARNING, f"{place} answers, but is of version {version}", fix)
    found = (
        f"{place} answers: Kinetics-{status['release']}, {status['clips']:,} clips, process {status['pid']},"
        f" {status['frontend']['name']}: {status['frontend']['mode']}"
    )
    return Finding("mount", State.OK, found)


def _place(place: Path, looked: PathProbe) -> Finding:
    if looked.errno:
        return Finding(
            "mount", State.PROBLEM, f"cannot mount on {place}: {os.strerror(looked.errno)}", "Take another place."
        )
    if looked.exists and not looked.empty:
        said = "it is not empty" if looked.empty is False else "it is not a folder that can be read"
        return Finding(
            "mount", State.PROBLEM, f"nothing is mounted on {place}, and {said}", "Mount on an empty folder."
        )
    if not looked.exists and Path(looked.path) != Path(os.path.realpath(place.parent)):
        fix = f"mkdir -p {shlex.quote(str(place))}"
        return Finding("mount", State.PROBLEM, f"there is no {place.parent}", fix)
    if not os.access(looked.path, os.W_OK | os.X_OK):
        return Finding("mount", State.PROBLEM, f"{place} cannot be written to", "Mount on a folder of your own.")
    return Finding("mount", State.OK, f"nothing is mounted on {place}, and it will do")


def _no_passthrough(settings: Settings, release: str) -> str:
    """Why the kernel will not read cached files itself; empty if nothing is known."""
    if not settings.passthrough:
        return "it is turned off"
    if _version(release) < _PASSES_THROUGH:
        return "it takes Linux 6.9; cached clips are read by way of the page cache"
    if os.geteuid() != 0 or not int(_process_status().get("CapEff", "0"), 16) & _CAP_SYS_ADMIN:
        return "it takes root; cached clips are read by way of the page cache"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(_ALL_USERS)]:
        return "it takes root outside of any user namespace; cached clips are read by way of the page cache"
    return ""


def _process_status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
