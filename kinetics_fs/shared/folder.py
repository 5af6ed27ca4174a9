"""A shared store in a folder of a shared filesystem, such as NFS or Lustre.

It uses only what such filesystems keep between machines: names appear whole by link(2), which one of several machines
wins, and disappear by unlink(2). It uses neither flock(2), which succeeds for everybody on some mounts, nor SQLite.

::

    clips/v1/source/3f/KEY.mp4       a file: its content, then its metadata in a box of 1 KiB that players ignore
    gone/v1/3f/KEY.json              a record as it was created
    gone/v1/3f/.KEY.json.TAG/2       the same record after its first replacement; TAG is a digest of the file above
    gone/v1/3f/.3c9e….tmp            an object that a process is writing

The permissions of all that processes create follow those of the root, whatever their umask: users that may write to
the root may write everywhere, and with its set-group-ID bit everything belongs to its group.

A process replaces a record by linking the number after the last one, which link(2) allows to one process. The name of
the folder has the digest, so that numbers of a deleted record never count for one that is created under the same name
later.

Three habits of NFS that the code allows for: a link(2) that is repeated after a lost answer says EEXIST although it
succeeded (the link count of the file tells); a name that was absent may seem absent for some time (each call opens the
folders again, and `stat` lists them); and a call may hang as long as the server is away (each runs in a thread that is
abandoned after a timeout).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from kinetics_fs.errors import FailureKind
from kinetics_fs.shared.backend import (
    MAX_METADATA,
    AccessRefused,
    Conflict,
    ListedObject,
    ObjectDamaged,
    ObjectInfo,
    StoredObject,
    StoreMissing,
    StoreUnreachable,
    Version,
    check_key,
    is_key,
    is_record,
    max_size_of,
)
from kinetics_fs.util.deadline import within
from kinetics_fs.util.parallel import map_in_order

_Result = TypeVar("_Result")

_TIMEOUT = 20.0
"""Seconds that a call may take, plus a second for each MiB of a file."""
_MAX_CALLS = 16
"""Calls at the same time, including those that were abandoned."""
_DELETED_AT_A_TIME = 8
"""Objects that are deleted at the same time: most of it is waiting for the server."""
_KEPT_NUMBERS = 32
"""Replaced contents of a record that stay. A process that paused for longer between reading a record and replacing it
finds a larger number than its own, and learns that it lost."""
_MAX_NAMES = 1_000_000
"""Names in one folder."""
_MADE_WITH_DISKS = {"lost+found"}
"""Names that a new filesystem has."""
_STALE_TEMPORARY = 86400.0
"""Seconds after which the file of a write that was never finished may be removed."""

_BOX = b"\x00\x00\x04\x00uuid" + bytes.fromhex("6b696e65746963732d66732d6d657461")
"""Begin of a box of 1 KiB of a type of its own (ISO/IEC 14496-12, section 4.2)."""
_BOX_SIZE = 1024

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FILE = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG}


class FolderBackend:
    """A folder as a store. See `kinetics_fs.shared.backend.Backend`.

    Args:
        root: the folder, which must exist.
        timeout: seconds that a call may take, plus a second for each MiB of a file.
    """

    is_listed_cheaply = False

    def __init__(self, root: Path, *, timeout: float = _TIMEOUT) -> None:
        self.address = str(root)
        self._timeout = timeout
        self._calls = threading.BoundedSemaphore(_MAX_CALLS)
        self._inode: int | None = None
        self._mode = 0o777
        """The permissions of the root."""

    def create_root(self) -> None:
        """Create the folder if it does not exist. Its parent must exist: it may be where a filesystem is mounted.

        Raises:
            SharedStoreError: it cannot be created.
        """
        try:
            within(self._timeout, lambda: Path(self.address).mkdir(exist_ok=True))
        except FileNotFoundError:
            raise StoreUnreachable(
                f"cannot create {self.address}: its parent folder does not exist; create it or mount its filesystem"
            ) from None
        except FileExistsError:
            pass  # something that is no folder, which the first access reports
        except OSError as error:
            raise self._translated(error, "create", None) from error

    # The interface

    def get(self, key: str, *, max_size: int) -> StoredObject | None:
        """See `Backend.get`."""
        return self._call("read", key, lambda: self._get(key, max_size))

    def stat(self, key: str) -> ObjectInfo | None:
        """See `Backend.stat`."""
        return self._call("read", key, lambda: self._stat(key))

    def create(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> Version:
        """See `Backend.create`."""
        return self._call("write", key, lambda: self._create(key, body, metadata or {}))

    def replace(self, key: str, body: bytes, version: Version, metadata: Mapping[str, str] | None = None) -> Version:
        """See `Backend.replace`. A file is replaced whatever happens to it meanwhile; both contents are sound."""
        if is_record(key):
            return self._call("write", key, lambda: self._replace_record(key, body, version))
        return self._call("write", key, lambda: self._replace_file(key, body, version, metadata or {}))

    def delete(self, *keys: str) -> None:
        """See `Backend.delete`."""

        def delete(key: str) -> None:
            self._call("delete", key, lambda: self._delete(key))

        for _ in map_in_order(delete, keys, max(1, min(len(keys), _DELETED_AT_A_TIME))):
            pass

    def top_names(self) -> set[str]:
        """See `Backend.top_names`. Hidden files do not count: filesystems and desktops make them."""

        def run() -> set[str]:
            fd = self._open_root()
            try:
                return {name for name in _names(fd) if not name.startswith(".") and name not in _MADE_WITH_DISKS}
            finally:
                os.close(fd)

        return self._call("list", None, run)

    def scan(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        """See `Backend.scan`. Each folder is a page."""
        check_key(prefix)
        entries = self._call("list", prefix, lambda: self._entries(prefix))
        for name, is_folder, size, modified in entries:
            key = f"{prefix}/{name}"
            if is_folder:
                # Only folders that may contain keys after `after`.
                if f"{key}/" > after or after.startswith(f"{key}/"):
                    yield from self.scan(key, after=after)
            elif key > after:
                yield ListedObject(key, size, modified)

    # Calls

    def _call(self, verb: str, key: str | None, function: Callable[[], _Result]) -> _Result:
        """Run a function in a thread, and stop waiting for it at the deadline.

        Args:
            verb: for messages.
            key: the object; None for the root.
            function: accesses the folder.
        """
        timeout = self._timeout + (max_size_of(check_key(key)) / 1024**2 if key is not None else 0)
        if not self._calls.acquire(timeout=self._timeout):
            raise StoreUnreachable(f"cannot {verb} {self._path(key)}: {_MAX_CALLS} earlier calls hang")

        def run() -> _Result:
            try:
                return function()
            finally:
                self._calls.release()

        try:
            return within(timeout, run)
        except OSError as error:
            raise self._translated(error, verb, key) from error

    def _path(self, key: str | None) -> str:
        return self.address if key is None else f"{self.address}/{key}"

    def _translated(self, error: OSError, verb: str, key: str | None) -> Exception:
        where, cause = f"cannot {verb} {self._path(key)}", error.strerror or str(error)
        if error.errno in _REFUSED:
            return AccessRefused(f"{where}: {cause}; check the permissions of the folder")
        if error.errno in _FULL:
            return AccessRefused(f"{where}: {cause}; free space or raise the quota", FailureKind.LOCAL)
        if error.errno in _NO_FILE:
            return ObjectDamaged(f"{where}: it is no file ({cause}); remove it")
        return StoreUnreachable(f"{where}: {cause}")

    @contextlib.contextmanager
    def _folder(self, key: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Yield a descriptor of the folder of an object, opened just now, and the object's name in it.

        Symbolic links below the root are not followed.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        *folders, name = key.split("/")
        fd = self._open_root()
        try:
            for folder in folders:
                child = _open_folder(fd, folder, create=self._mode if create else None)
                os.close(fd)
                fd = child
            yield fd, name
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        try:
            fd = os.open(self.address, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreMissing(
                f"cannot use {self.address} as the shared store: it does not exist; mount its filesystem, or create the"
                " store with kinetics-fs shared init"
            ) from None
        except NotADirectoryError:
            raise StoreMissing(
                f"cannot use {self.address} as the shared store: it is no folder; give the path of a folder"
            ) from None
        status = os.fstat(fd)
        self._mode = stat.S_IMODE(status.st_mode) & 0o777
        if self._inode is None:
            self._inode = status.st_ino
        if status.st_ino != self._inode:
            # Otherwise every clip would be missing, and new ones would go to the local disk.
            os.close(fd)
            raise StoreUnreachable(f"cannot use {self.address} as the shared store: it is no longer mounted")
        return fd

    # Reading

    def _get(self, key: str, max_size: int) -> StoredObject | None:
        try:
            with self._folder(key) as (folder, name):
                if is_record(key):
                    record = self._read_record(folder, name, key, max_size)
                    return record and StoredObject(record.body, record.info())
                return self._read_file(folder, name, key, max_size)
        except FileNotFoundError:
            return None

    def _read_file(self, folder: int, name: str, key: str, max_size: int) -> StoredObject | None:
        content = _read(folder, name, max_size + _BOX_SIZE)
        if content is None:
            return None
        if isinstance(content, os.stat_result):
            raise ObjectDamaged(
                f"cannot read {self.address}/{key}: it has {content.st_size:,} bytes, more than {max_size:,}",
                _file_version(content),
            )
        status, body = content
        version = _file_version(status)
        metadata = _parse_box(body[-_BOX_SIZE:])
        if metadata is None:
            raise ObjectDamaged(f"cannot read {self.address}/{key}: it does not end with its metadata", version)
        body = body[:-_BOX_SIZE]
        return StoredObject(body, ObjectInfo(len(body), status.st_mtime, version, metadata))

    def _read_record(self, folder: int, name: str, key: str, max_size: int) -> _Record | None:
        first = self._read_content(folder, name, key, max_size)
        if first is None:
            return None
        tag = _digest(first.body)
        numbers = _numbers(folder, _numbers_folder(name, tag))
        while numbers:
            with contextlib.suppress(FileNotFoundError):
                inner = _open_folder(folder, _numbers_folder(name, tag))
                try:
                    latest = self._read_content(inner, str(numbers[-1]), key, max_size)
                finally:
                    os.close(inner)
                if latest is not None:
                    return latest._replace(tag=tag, number=numbers[-1])
            # Removed after a newer number appeared, or with the whole record.
            numbers = _numbers(folder, _numbers_folder(name, tag))
        return first._replace(tag=tag)

    def _read_content(self, folder: int, name: str, key: str, max_size: int) -> _Record | None:
        content = _read(folder, name, max_size)
        if content is None:
            return None
        if isinstance(content, os.stat_result):
            raise ObjectDamaged(
                f"cannot read {self.address}/{key}: it has {content.st_size:,} bytes, more than {max_size:,}"
            )
        return _Record(content[1], content[0].st_mtime)

    def _stat(self, key: str) -> ObjectInfo | None:
        try:
            with self._folder(key) as (folder, name):
                # A listing sees a name that a client of NFS remembers as absent.
                if name not in _names(folder):
                    return None
        except FileNotFoundError:
            return None
        found = self._get(key, max_size_of(key))
        return found and found.info._replace(metadata={})

    def _entries(self, prefix: str) -> list[tuple[str, bool, int, float]]:
        """Return the names in a folder in the order of keys, each with whether it is a folder, its size and time."""
        found: list[tuple[str, bool, int, float]] = []
        try:
            with self._folder(f"{prefix}/-") as (folder, _), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        self._remove_if_stale(folder, entry)
                        continue
                    if not is_key(f"{prefix}/{entry.name}"):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        found.append((entry.name, True, 0, 0.0))
                    elif entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            found.append((entry.name, False, status.st_size, status.st_mtime))
                    if len(found) > _MAX_NAMES:
                        raise ObjectDamaged(
                            f"cannot list {self.address}/{prefix}: it has more than {_MAX_NAMES:,} names"
                        )
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda one: f"{one[0]}/" if one[1] else one[0])

    def _remove_if_stale(self, folder: int, entry: os.DirEntry[str]) -> None:
        """Remove the file of a write whose process died. The clocks of the machines may differ by minutes, not days."""
        if not entry.name.endswith(".tmp"):
            return
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - _STALE_TEMPORARY:
                os.unlink(entry.name, dir_fd=folder)

    # Writing

    def _create(self, key: str, body: bytes, metadata: Mapping[str, str]) -> Version:
        content = body if is_record(key) else body + _make_box(metadata)
        for _ in range(3):
            with (
                contextlib.suppress(FileNotFoundError),  # another process deleted the folder
                self._folder(key, create=True) as (folder, name),
                _temporary(folder, content, self._mode) as (temporary, status),
            ):
                _link(folder, temporary, folder, name)
                os.fsync(folder)
                return Version(_digest(body), "1") if is_record(key) else _file_version(status)
        raise StoreUnreachable(f"cannot write {self.address}/{key}: its folder disappears again and again")

    def _replace_file(self, key: str, body: bytes, version: Version, metadata: Mapping[str, str]) -> Version:
        try:
            with self._folder(key) as (folder, name):
                if _file_version(os.stat(name, dir_fd=folder, follow_symlinks=False)) != version:
                    raise Conflict
                with _temporary(folder, body + _make_box(metadata), self._mode) as (temporary, status):
                    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)
                    return _file_version(status)
        except FileNotFoundError:
            raise Conflict from None

    def _replace_record(self, key: str, body: bytes, version: Version) -> Version:
        try:
            with self._folder(key) as (folder, name):
                current = self._read_record(folder, name, key, max_size_of(key))
                if current is None or current.version != version:
                    raise Conflict
                number = current.number + 1
                numbers = _open_folder(folder, _numbers_folder(name, current.tag), create=self._mode)
                try:
                    with _temporary(folder, body, self._mode) as (temporary, _):
                        _link(folder, temporary, numbers, str(number))
                    os.fsync(numbers)
                    found = _numbers(folder, _numbers_folder(name, current.tag))
                    if found[-1:] != [number]:
                        # The number was free again after others had replaced the record many times.
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(str(number), dir_fd=numbers)
                        raise Conflict
                    for old in found[:-_KEPT_NUMBERS]:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(str(old), dir_fd=numbers)
                finally:
                    os.close(numbers)
                # If the record was deleted meanwhile, and perhaps created again, the new number does not count.
                first = self._read_content(folder, name, key, max_size_of(key))
                if first is None or _digest(first.body) != current.tag:
                    raise Conflict
                return Version(current.tag, str(number))
        except FileNotFoundError:
            raise Conflict from None

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._folder(key) as (folder, name):
            first = self._read_content(folder, name, key, max_size_of(key)) if is_record(key) else None
            os.unlink(name, dir_fd=folder)
            os.fsync(folder)
            if first is not None:
                _remove_numbers(folder, _numbers_folder(name, _digest(first.body)))


class _Record(NamedTuple):
    """The current content of a record, and its place among all contents that it had."""

    body: bytes
    modified: float
    tag: str = ""
    number: int = 1

    @property
    def version(self) -> Version:
        return Version(self.tag, str(self.number))

    def info(self) -> ObjectInfo:
        return ObjectInfo(len(self.body), self.modified, self.version, {})


def _open_folder(parent: int, name: str, *, create: int | None = None) -> int:
    """Open a folder; first create it with these permissions, unless they are None."""
    is_new = False
    if create is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            os.fsync(parent)
            is_new = True
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    if is_new and create is not None:
        _permit(fd, create)
    return fd


def _permit(fd: int, permissions: int) -> None:
    """Give a new file or folder its permissions, and keep the set-group-ID bit that it has from its folder."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o777 != permissions:
        with contextlib.suppress(OSError):  # some filesystems have no permissions
            os.fchmod(fd, mode & ~0o777 | permissions)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _read(folder: int, name: str, max_size: int) -> tuple[os.stat_result, bytes] | os.stat_result | None:
    """Return a file's status and content; the status alone if it is too large; None if it does not exist.

    Raises:
        OSError: it cannot be read, or is no regular file (ENXIO, as for a FIFO or a socket without a reader).
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENXIO, "not a regular file")
        if status.st_size > max_size:
            return status
        # One byte more than it has, to meet its end; not `max_size`, for which Python would reserve memory each time.
        parts, left = [], status.st_size + 1
        while left and (chunk := os.read(fd, left)):
            parts.append(chunk)
            left -= len(chunk)
        return status, b"".join(parts)
    finally:
        os.close(fd)


def _numbers(folder: int, name: str) -> list[int]:
    """Return the numbers of a record's contents after the first, in ascending order; none if it was not replaced."""
    try:
        fd = _open_folder(folder, name)
    except FileNotFoundError:
        return []
    try:
        return sorted(int(one) for one in _names(fd) if one.isdecimal() and one.isascii() and len(one) < 16)
    finally:
        os.close(fd)


def _remove_numbers(folder: int, name: str) -> None:
    # If another process adds a number at this moment, the folder stays. It belongs to no record any more.
    with contextlib.suppress(OSError):
        fd = _open_folder(folder, name)
        try:
            for one in _names(fd):
                os.unlink(one, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=folder)


@contextlib.contextmanager
def _temporary(folder: int, content: bytes, permissions: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name and the status of a new file with this content, which is on the disk. The name is then removed.

    Args:
        folder: the folder to create it in.
        content: its content.
        permissions: those of the root.
    """
    name = f".{secrets.token_hex(12)}.tmp"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
            _permit(fd, permissions & 0o666)
            os.fsync(fd)
            status = os.fstat(fd)
        finally:
            os.close(fd)
        yield name, status
    finally:
        with contextlib.suppress(OSError):  # never hide the error of the block; renamed or left for `_remove_if_stale`
            os.unlink(name, dir_fd=folder)


def _link(folder: int, name: str, target_folder: int, target: str) -> None:
    """Give a file a second name, unless that is taken.

    Raises:
        Conflict: it is taken.
    """
    try:
        os.link(name, target, src_dir_fd=folder, dst_dir_fd=target_folder, follow_symlinks=False)
    except FileExistsError:
        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_nlink < 2:
            raise Conflict from None


def _numbers_folder(name: str, tag: str) -> str:
    return f".{name}.{tag}"


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:24]


def _file_version(status: os.stat_result) -> Version:
    return Version(f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}")


def _make_box(metadata: Mapping[str, str]) -> bytes:
    text = json.dumps(dict(metadata)).encode()
    if len(text) > MAX_METADATA:
        raise ValueError(f"the metadata has more than {MAX_METADATA} bytes")
    return _BOX + text.ljust(_BOX_SIZE - len(_BOX))


def _parse_box(box: bytes) -> dict[str, str] | None:
    if len(box) != _BOX_SIZE or not box.startswith(_BOX):
        return None
    try:
        metadata = json.loads(box[len(_BOX) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    return metadata
