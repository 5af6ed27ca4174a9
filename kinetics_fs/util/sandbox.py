"""The sandbox of processes that parse what comes from outside: another uid, no capabilities, Landlock and seccomp.

Each part is used where the kernel and the rights of the process allow it. `Confinement` says which parts are in force.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import pwd
import re
import stat
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

USER = "kinetics-fs-worker"
"""User whose uid the processes of a root mount take, if the system has it (systemd's sysusers.d can create it)."""
_UNASSIGNED_UID = 60963
"""Uid that they take otherwise. No distribution assigns uids of this range (systemd.io/UIDS-GIDS)."""

_READABLE = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/proc", "/sys/devices/system", "/run/systemd/resolve",
    "/nix/store", "/gnu/store",
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services",
    "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/alternatives", "/etc/ld.so.cache",
    "/etc/passwd", "/etc/group", "/etc/localtime", "/etc/mime.types",
    "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
)  # fmt: skip
"""Paths that Python, ffmpeg, JavaScript runtimes and name resolution read. Missing ones are left out."""
_WRITABLE = ("/dev/null",)
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Environment variables that name certificates."""

_LISTING_TIMEOUT = 5.0
"""Seconds that the dynamic linker may take to list libraries."""

_libc = ctypes.CDLL(None, use_errno=True)

# linux/prctl.h, linux/capability.h
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522

# linux/mount.h, linux/sched.h
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 1, 1 << 2, 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_CLONE_NEWNS = 0x00020000
_NEW_ROOT = "/dev"
"""Where the new root folder is mounted until it is one: a folder that exists everywhere."""

# linux/landlock.h; the system calls have the same numbers on all machines
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
"""Rights to files that a version of Landlock knows. Version 5 added the last one."""
_RIGHTS_TO_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1

# linux/seccomp.h, linux/bpf_common.h, linux/audit.h
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_ERRNO = 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000
"""The `CLONE_NEW…` flags of linux/sched.h, without `CLONE_NEWTIME`, which `clone` does not take."""


@dataclass(frozen=True, slots=True)
class _Machine:
    """The numbers of a machine: its audit architecture, and those of system calls.

    Attributes:
        seccomp: the call that installs a filter.
        pivot_root: the call that changes the root folder.
        clone: its first argument has the flags.
        denied: calls that fail with EPERM: access to other processes, namespaces and mounts, keys, and parts of the
            kernel in which many faults were found.
        absent: calls that fail with ENOSYS, so that programs fall back to others: `clone3`, whose flags a filter cannot
            read, and io_uring.
    """

    audit: int
    seccomp: int
    pivot_root: int
    clone: int
    denied: tuple[int, ...]
    absent: tuple[int, ...] = (425, 426, 427, 435)


_NEW_MOUNT_CALLS = (428, 429, 430, 431, 432, 433, 442)
_PIDFD_GETFD = 438
_MACHINES = {
    # ptrace process_vm_readv process_vm_writev kcmp setns unshare mount umount2 pivot_root chroot open_by_handle_at bpf
    # perf_event_open userfaultfd add_key request_key keyctl
    "x86_64": _Machine(
        0xC000003E, 317, 155, 56,
        (101, 310, 311, 312, 308, 272, 165, 166, 155, 161, 304, 321, 298, 323, 248, 249, 250,
         *_NEW_MOUNT_CALLS, _PIDFD_GETFD),
    ),
    "aarch64": _Machine(
        0xC00000B7, 277, 41, 220,
        (117, 270, 271, 272, 268, 97, 40, 39, 41, 51, 265, 280, 241, 282, 217, 218, 219,
         *_NEW_MOUNT_CALLS, _PIDFD_GETFD),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Confinement:
    """Which parts of the sandbox are in force in a process.

    Attributes:
        uid: the uid of the process, if it is not that of its parent; None if it is.
        no_capabilities: the process has no capabilities and cannot gain any.
        landlock: version of Landlock that limits access to files; 0 if none does.
        seccomp: a filter limits the system calls.
        missing: why other parts are not in force, a phrase for each.
    """

    uid: int | None = None
    no_capabilities: bool = False
    landlock: int = 0
    seccomp: bool = False
    missing: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return the confinement from its `as_json`.

        Raises:
            TypeError: a field is unknown or missing.
        """
        return cls(**{**fields, "missing": tuple(fields["missing"])})

    def __str__(self) -> str:
        """Return one line for people."""
        parts = [
            f"uid {self.uid}" if self.uid is not None else "",
            "no capabilities" if self.no_capabilities else "",
            f"Landlock {self.landlock}" if self.landlock else "",
            "seccomp" if self.seccomp else "",
        ]
        force = ", ".join(filter(None, parts)) or "none"
        return f"{force}; without {'; '.join(self.missing)}" if self.missing else force


def other_uid() -> int | None:
    """Return the uid for processes that parse what comes from outside; None if this process cannot give them one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(USER).pw_uid
    return _UNASSIGNED_UID


def confine(writable: Sequence[int], programs: Iterable[str] = ()) -> Confinement:
    """Confine this process, and the processes that it starts, for good. Only one thread may run.

    From then on the process can read programs and libraries, and whatever descriptors it has or receives; it can write
    to folders of its own uid below `writable`.

    Args:
        writable: descriptors of folders.
        programs: paths of programs that the process will run.
    """
    if sys.platform != "linux":
        return Confinement(missing=("a sandbox: this system has no Landlock",))
    missing = list[str]()
    programs = list(programs)
    needed = [*_python_folders(), *(str(Path(program).resolve()) for program in programs)]
    needed += (library for program in programs for library in libraries_of(program))
    needed += (os.environ[name] for name in _CERTIFICATES if os.environ.get(name))
    uid = _change_uid(needed, missing)
    no_capabilities = _drop_capabilities(needed, missing)
    no_privileges = _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    landlock = seccomp = 0
    if no_privileges:
        landlock = _restrict_files([*_READABLE, *needed], writable)
        seccomp = _filter_calls()
    if not landlock:
        missing.append("Landlock: the kernel does not have it (Linux 5.13 with lsm=landlock)")
    if not seccomp:
        missing.append("seccomp: the kernel or the machine does not have it")
    return Confinement(uid, no_privileges and no_capabilities, landlock, bool(seccomp), tuple(missing))


def _python_folders() -> Iterator[str]:
    """Yield the folders from which this Python loads modules, but for the root folder: it contains everything."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(), *filter(None, sys.path)}
    yield from (folder for folder in folders if os.path.realpath(folder) != "/")
    yield str(Path(__file__).resolve().parents[1])


def libraries_of(program: str) -> list[str]:
    """Return the libraries that the dynamic linker loads for a program that is not where systems keep programs."""
    if os.path.realpath(program).startswith(tuple(f"{path}/" for path in _READABLE)):
        return []
    try:
        listed = subprocess.run(
            [program],
            env={**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"},  # ld.so(8): it lists them and runs nothing
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_LISTING_TIMEOUT,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r" => (/.+) \(0x[0-9a-f]+\)$", listed, re.MULTILINE)


def _change_uid(needed: Sequence[str], missing: list[str]) -> int | None:
    """Take the `other_uid`; return None and add the reason to `missing` if that is not possible."""
    uid = other_uid()
    if uid is None:
        return None
    try:
        os.setgroups([])
        hidden = _first_hidden(needed, uid)
        if hidden is not None and _change_root([*_READABLE, *needed]):
            hidden = _first_hidden(needed, uid)
        if hidden is not None:
            missing.append(f"another uid: other users cannot read {hidden}; install kinetics-fs where they can")
            return None
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        return uid
    except OSError as error:  # a user namespace without such a uid, or no CAP_SETUID
        missing.append(f"another uid: {error.strerror} (uid {uid})")
        return None


def _first_hidden(paths: Iterable[str], uid: int) -> str | None:
    """Return the first path that exists and that another uid cannot read; None if it can read them all."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        return next((path for path in paths if _is_hidden(path)), None)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _is_hidden(path: str) -> bool:
    """Return whether a path exists that this process cannot read."""
    try:
        Path(path).stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, os.R_OK, effective_ids=True)


def _change_root(paths: Iterable[str]) -> bool:
    """Give this process a root folder of its own in which everybody can reach some paths, and nothing else exists.

    A Python below /root is hidden from all other users.

    Returns:
        Whether that was possible: it needs CAP_SYS_ADMIN.
    """
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.unshare(_CLONE_NEWNS))
        try:
            _mount(None, "/", _MS_REC | _MS_PRIVATE)
            # Opened before anything is mounted over them.
            opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in _outermost(paths)}
            _mount("tmpfs", _NEW_ROOT, _MS_NOSUID | _MS_NODEV, "tmpfs")
            for path, fd in opened.items():
                target = Path(f"{_NEW_ROOT}{path}")
                target.parent.mkdir(parents=True, exist_ok=True)
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    target.mkdir(exist_ok=True)
                else:
                    target.touch()
                # Without the mounts below it: they could not be unmounted as long as this process lives.
                _mount(f"/proc/self/fd/{fd}", str(target), _MS_BIND)
                os.close(fd)
            for path in paths:
                _link_like(Path(path))
            os.chdir(_NEW_ROOT)
            _call(_libc.syscall(_MACHINES[platform.machine()].pivot_root, b".", b"."))
            _call(_libc.umount2(b".", _MNT_DETACH))
            os.chdir("/")
        except (OSError, KeyError):
            _call(_libc.setns(before, _CLONE_NEWNS))
            raise
        return True
    except (OSError, KeyError):
        return False
    finally:
        os.close(before)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that exist, without symbolic links in them, and without those below another one."""
    real = sorted({os.path.realpath(path) for path in paths if os.path.exists(path)})  # noqa: PTH110  # no permission
    outermost = list[str]()
    for path in real:
        if not any(path.startswith(f"{other.rstrip('/')}/") for other in outermost):
            outermost.append(path)
    return outermost


def _link_like(path: Path) -> None:
    """Create the symbolic links in a path in the new root."""
    for part in (*reversed(path.parents), path):
        copy = Path(f"{_NEW_ROOT}{part}")
        if part.is_symlink() and not os.path.lexists(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(part.readlink())


def _mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _call(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), b"mode=755" if kind else None))


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _drop_capabilities(needed: Sequence[str], missing: list[str]) -> bool:
    """Drop all capabilities, unless this process can read its modules only with them. Return whether it has none."""
    header, held = struct.pack("=Ii", _CAPABILITY_VERSION, 0), ctypes.create_string_buffer(24)
    _call(_libc.capget(header, held))
    effective, permitted, inheritable, *high = struct.unpack("=6I", held)
    _call(_libc.capset(header, struct.pack("=6I", 0, permitted, inheritable, 0, *high[1:])))
    hidden = next((path for path in needed if _is_hidden(path)), None)
    if hidden is not None:
        _call(_libc.capset(header, struct.pack("=6I", effective, permitted, inheritable, *high)))
        missing.append(f"the loss of capabilities: {hidden} cannot be read without them")
        return False
    _call(_libc.capset(header, bytes(24)))
    return True


def _restrict_files(readable: Iterable[str], writable: Iterable[int]) -> int:
    """Restrict access to files with Landlock. Return its version; 0 if it is not available."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return 0
    handled = _ALL_RIGHTS.get(version, (1 << 16) - 1)
    attributes = struct.pack("=QQQ", handled, 0, _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= 6 else 0)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes) if version >= 6 else 8, 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            with contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    rights = _EXECUTE | _READ_FILE | _READ_DIR | (_WRITE_FILE if path in _WRITABLE else 0)
                    _allow(ruleset, fd, rights)
                finally:
                    os.close(fd)
        for folder in writable:
            _allow(ruleset, folder, handled & ~_EXECUTE & ~_IOCTL_DEVICE)
        return int(version) if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, fd: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _RIGHTS_TO_FILES
    rule = struct.pack("=Qi", rights, fd)
    if _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0):
        raise OSError(ctypes.get_errno(), "cannot add a rule of Landlock")


def _filter_calls() -> bool:
    """Install a filter of system calls. Return whether it is in force."""
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 2**32:
        return False
    program = _program(machine)
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    return bool(_libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, 0, filter_) == 0)


def _program(machine: _Machine) -> list[tuple[int, int, int, int]]:
    """Return the instructions of the filter: code, jump if true, jump if false, operand (seccomp(2))."""
    deny = (_RETURN, 0, 0, _SECCOMP_RET_ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _SECCOMP_RET_ALLOW)
    program = [
        (_LOAD, 0, 0, 4),  # the architecture: a 32-bit program would use other numbers
        (_JUMP_EQUAL, 1, 0, machine.audit),
        deny,
        (_LOAD, 0, 0, 0),  # the number of the call
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        deny,
    ]
    for number in machine.denied:
        program += [(_JUMP_EQUAL, 0, 1, number), deny]
    for number in machine.absent:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _SECCOMP_RET_ERRNO | errno.ENOSYS)]
    return [
        *program,
        (_JUMP_EQUAL, 0, 3, machine.clone),
        (_LOAD, 0, 0, 16),  # the flags: the low half of the first argument on these little-endian machines
        (_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        deny,
        allow,
    ]
