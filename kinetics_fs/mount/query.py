"""The client side of mounts: find them, ask for their status, and end them, without waiting for one that hangs.

A mount is asked through its socket (`kinetics_fs.control`). Its files are touched only if no socket answers, and then
by a separate process that can be left behind (`kinetics_fs.mount.probe`).
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_fs.control import Connection, NoAnswerError, connect
from kinetics_fs.control.status import InvalidStatusError, MountStatus, UnreachableMount
from kinetics_fs.errors import MountError
from kinetics_fs.mount.mountpoint import find_mounts, mount_owners, unmount
from kinetics_fs.mount.probe import probe_path
from kinetics_fs.util.text import parse_json, user_name

if TYPE_CHECKING:
    from kinetics_fs.store.coverage import Coverage

_STATUS_TIMEOUT = 5.0
"""Seconds that a mount may take to report its status."""

_COVERAGE_TIMEOUT = 300.0
"""Seconds that a mount may take to go through all of its clips."""

_EXIT_TIMEOUT = 30.0
"""Seconds that the process of a mount may take to end after the unmount, because it closes its cache properly."""

_FLUSH_TIMEOUT = 30.0
"""Seconds by which it may take longer because it uploads clips to a shared store; see `Fetcher.close`."""

_HUNG_EXIT_TIMEOUT = 1.0
"""The same for a process that does not answer."""

_PARALLEL_QUERIES = 16


def resolve_mountpoint(mountpoint: Path) -> Path:
    """Return the absolute path of a mount point, without symbolic links, as the kernel lists it.

    Raises:
        MountError: the path does not answer.
    """
    # Compare the path as written first: to resolve symbolic links below a hung mount would hang as well.
    path = Path(os.path.abspath(mountpoint))  # noqa: PTH100  # `Path.resolve` follows links
    if path in find_mounts():
        return path
    probe = probe_path(path)
    if probe is None:
        raise MountError(
            f"cannot find the mount on {mountpoint}: the path does not answer, so what is mounted there hangs;"
            " see kinetics-fs status"
        )
    return Path(probe.path) if probe.exists else path


def find_mount(mountpoint: Path) -> Path:
    """Return the path of a mount of kinetics-fs as `resolve_mountpoint` does.

    Raises:
        MountError: nothing of kinetics-fs is mounted there (checked on Linux only), or the path does not answer.
    """
    path = resolve_mountpoint(mountpoint)
    if sys.platform == "linux" and path not in find_mounts():
        raise MountError(
            f"cannot find a mount on {path}: it is not a mount of kinetics-fs; kinetics-fs status lists the mounts"
        )
    return path


def query_statuses() -> list[MountStatus | UnreachableMount]:
    """Return the status of every mount, asked in parallel: first the mounts of this user, then those of others."""
    owners = mount_owners()
    mountpoints = sorted(find_mounts(), key=lambda path: owners.get(path) != os.geteuid())
    with ThreadPoolExecutor(_PARALLEL_QUERIES) as threads:
        statuses = list(threads.map(query_status, mountpoints))
    # A mount that was unmounted in the meantime did not answer either, but there is nothing to report about it.
    mounted = find_mounts()
    return [
        status
        for path, status in zip(mountpoints, statuses, strict=True)
        if isinstance(status, MountStatus) or path in mounted
    ]


def query_status(mountpoint: Path) -> MountStatus | UnreachableMount:
    """Return the status of one mount.

    Args:
        mountpoint: path from `find_mount`.
    """
    owner = mount_owners().get(mountpoint)
    user = "" if owner is None else user_name(owner)
    # The kernel's word, not that of the mount: another user's filesystem can report anything.
    return replace(_query_status(mountpoint, user), mountpoint=str(mountpoint), user=user)


def _query_status(mountpoint: Path, user: str) -> MountStatus | UnreachableMount:
    pid: int | None = None
    answer: object = None
    refusal = ""
    connection = connect(mountpoint, _STATUS_TIMEOUT)
    if connection is not None:
        with connection:
            pid = connection.pid
            # A mount that is busy, or of a version that does not know the request, tells more in its file.
            try:
                answer = connection.request("status")
            except NoAnswerError:
                pass
            except MountError as error:
                refusal = str(error)
    if answer is None:
        # The mount is another user's or busy, its process has ended or hangs, or it runs another version.
        probe = probe_path(mountpoint)
        if probe is None and not refusal:
            return _hung_mount(mountpoint, pid if pid is not None and _is_alive(pid) else None)
        if probe is not None and probe.errno in (errno.EACCES, errno.EPERM):
            return UnreachableMount(
                str(mountpoint),
                f"mounted by {f'the user {user}' if user else 'another user'} without --allow-other",
                "run this command as that user",
            )
        with suppress(ValueError):
            answer = parse_json((probe and probe.status) or "")
        if answer is None:
            reason = "it does not report its status"
            if probe is not None and probe.errno == errno.ENOTCONN:
                reason = "its process has ended"
            elif refusal:
                reason = f"{reason}: {refusal}"
            return UnreachableMount(str(mountpoint), reason, f"clear it: {_umount_command(mountpoint)}", pid=pid)
    try:
        return MountStatus.from_json(answer)
    except InvalidStatusError as error:
        version = answer.get("version", "of unknown version") if isinstance(answer, dict) else "of unknown version"
        return UnreachableMount(
            str(mountpoint),
            f"it runs kinetics-fs {version}, and this version cannot read its status ({error.problem})",
            f"unmount it and mount it again: {_umount_command(mountpoint)}",
            pid=pid,
        )


def connect_to_mount(mountpoint: Path, timeout: float | None = None) -> Connection:
    """Open a connection for one request to the mount on a path.

    Args:
        mountpoint: path of the mount, or a link to it.
        timeout: time to wait for an answer, in seconds; None for the default of `connect`.

    Raises:
        MountError: there is no mount, it is another user's, it is dead, or it hangs.
    """
    path = find_mount(mountpoint)
    status = query_status(path)  # a mount that hangs is noticed sooner than by the request itself
    if isinstance(status, UnreachableMount):
        raise MountError(f"cannot connect to the mount on {path}: {status.reason}; {status.advice}")
    connection = connect(path) if timeout is None else connect(path, timeout)
    if connection is None:
        raise MountError(
            f"cannot connect to the mount on {path}: only the user who mounted it and root may;"
            " run this command as one of them"
        )
    return connection


def query_coverage(mountpoint: Path) -> Coverage:
    """Return how much of a mount is cached. This may take seconds, because the mount goes through all of its clips.

    Raises:
        MountError: as `connect_to_mount`, or the mount runs another version of kinetics-fs.
    """
    from kinetics_fs.store.coverage import Coverage

    with connect_to_mount(mountpoint, _COVERAGE_TIMEOUT) as connection:
        answer = connection.request("coverage")
    try:
        return Coverage.from_json(answer)
    except (LookupError, TypeError, ValueError) as error:
        raise MountError(
            f"cannot read the coverage of the mount on {mountpoint}: it runs another version of kinetics-fs; unmount it"
            " and mount it again"
        ) from error


def unmount_and_wait(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount, and wait until the process of the mount has ended.

    Args:
        mountpoint: path from `find_mount`.
        lazy: unmount also if files are open or the process hangs; do not wait for a process that still has open files.

    Raises:
        MountError: the mount is in use or hangs, or its process did not end.
    """
    status = query_status(mountpoint)
    is_hung = False
    if isinstance(status, UnreachableMount):
        is_hung = status.hung
        if is_hung and not lazy:  # the unmount itself would hang
            raise MountError(f"cannot unmount {mountpoint}: {status.reason}; {status.advice}")
    process = _open_process(status.pid)
    try:
        unmount(mountpoint, lazy=lazy)
        if process is None:
            return
        if is_hung and not _ends_within(process, _HUNG_EXIT_TIMEOUT):
            raise MountError(
                f"cannot end the mount on {mountpoint}: it is unmounted, but its process does not answer;"
                f" kill -KILL {status.pid} ends it"
            )
        uploads = isinstance(status, MountStatus) and status.shared is not None
        timeout = _EXIT_TIMEOUT + (_FLUSH_TIMEOUT if uploads else 0.0)
        if not lazy and not _ends_within(process, timeout):
            raise MountError(
                f"cannot end the mount on {mountpoint}: it is unmounted, but its process {status.pid} has not ended"
                f" after {timeout:.0f} s; a container that started meanwhile may use the mount, so stop it"
            )
    finally:
        if process is not None:
            os.close(process)


def drain_uploads(mountpoint: Path, on_progress: Callable[[int], None]) -> None:
    """Have a mount upload all clips that wait for their upload to the shared store.

    Args:
        mountpoint: path from `find_mount`.
        on_progress: receives the number of clips that are left, about once a second.

    Raises:
        MountError: as `connect_to_mount`, or nothing can be uploaded at the moment.
    """
    with connect_to_mount(mountpoint) as connection:
        connection.request("drain", on_progress=lambda progress: on_progress(int(progress["queued"])))


def clear_dead_mount(mountpoint: Path) -> None:
    """Unmount if the process of the mount has ended; otherwise do nothing.

    Args:
        mountpoint: path from `resolve_mountpoint`.

    Raises:
        MountError: the unmount failed.
    """
    if mountpoint in find_mounts() and _is_dead(mountpoint):
        unmount(mountpoint, lazy=True)


def _hung_mount(mountpoint: Path, pid: int | None) -> UnreachableMount:
    process, kill = ("its process", "end its process") if pid is None else (f"its process {pid}", f"kill -KILL {pid}")
    return UnreachableMount(
        str(mountpoint),
        f"{process} does not answer",
        f"to end it: kinetics-fs umount --lazy {shlex.quote(str(mountpoint))}, then {kill}",
        hung=True,
        pid=pid,
    )


def _umount_command(mountpoint: Path) -> str:
    return f"kinetics-fs umount {shlex.quote(str(mountpoint))}"


def _is_dead(mountpoint: Path) -> bool:
    try:
        os.statvfs(mountpoint)  # the kernel never answers this from its caches
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open_process(pid: int | None) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None if it has ended, or not on Linux."""
    if pid is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _ends_within(process: int, seconds: float) -> bool:
    return bool(select.select([process], [], [], seconds)[0])
