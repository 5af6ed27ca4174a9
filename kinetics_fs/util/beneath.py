"""Finding of files below a folder in which other users may create links, by descriptor.

A process that may read more than other users must not read files for them: in a folder that they can write to, they may
create a symbolic link to any path. A link is therefore followed if

* it leads to a file within the folder, or
* its owner is root or the user of this process, and so is the owner of the folder that has the link, or that owner also
  owns the file, or
* its owner is also the owner of the file.

The same rule, without the first line, holds for the links in the path of the folder itself. Each component is opened by
its descriptor, so no rename or new link can come between the check and the use. Links of /proc are read as text.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple, Self

_MAX_LINKS = 40
"""Links in one path, as path_resolution(7)."""

_PROTECTED_HARDLINKS = Path("/proc/sys/fs/protected_hardlinks")
"""Whether users can only create hard links to files that they may write to: proc_sys_fs(5)."""


class LinkRefused(PermissionError):
    """A link with which another user may try to read files that are private."""


class Found:
    """A file or folder, by a descriptor that does not open it.

    Attributes:
        fd: the descriptor (O_PATH).
        status: its status.
    """

    __slots__ = ("fd", "status")

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.status = status

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def path(self) -> Path:
        """A path that leads to exactly this file or folder in this process, while it is not closed."""
        return Path(f"/proc/self/fd/{self.fd}")

    def open(self) -> int:
        """Return a new descriptor to read the file or list the folder.

        Raises:
            OSError: it is not accessible, or it is neither a file nor a folder (EINVAL).
        """
        if not self.is_file and not self.is_folder:
            raise OSError(errno.EINVAL, "not a regular file")  # opening a device may have an effect
        return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_beneath(folder: str | Path, name: str | Path = "") -> Found:
    """Find a file or folder below a folder.

    Args:
        folder: the folder, as the user gave it.
        name: path of the file or folder, relative to `folder`; empty for the folder itself.

    Returns:
        The file or folder, which the caller must close. It is never a link.

    Raises:
        LinkRefused: a link on the way is not followed (EACCES).
        OSError: there is no such file, or it is not accessible.
    """
    walk = _Walk("/" if os.path.isabs(folder) else ".")  # noqa: PTH117  # a Path for each of 650,000 files is slow
    try:
        walk.go(os.fspath(folder), is_folder=True)
        walk.start_here()
        walk.go(os.fspath(name), is_folder=False)
        walk.check()
    except BaseException:
        os.close(walk.fd)
        raise
    return Found(walk.fd, walk.status)


class _Link(NamedTuple):
    """A link that was followed, and the folder that has it."""

    status: os.stat_result
    folder: os.stat_result


class _Walk:
    """A walk along a path, one component at a time.

    Attributes:
        fd: descriptor of the file or folder that was reached.
        status: its status.
    """

    def __init__(self, start: str) -> None:
        self.fd = os.open(start, os.O_PATH | os.O_DIRECTORY)
        self.status = os.fstat(self.fd)
        self._top: tuple[int, int] | None = None
        self._folders = [_identity(self.status)]
        self._folder = self.status
        self._links: list[_Link] = []
        self._followed = 0

    def start_here(self) -> None:
        """Make the folder that was reached the one that links may not leave."""
        self.check()
        self._top = _identity(self.status)
        self._folders = [self._top]
        self._links = []

    def go(self, path: str, *, is_folder: bool) -> None:
        """Walk along a path.

        Args:
            path: the path.
            is_folder: it must be a folder.
        """
        pending: list[str | _Link] = list(reversed(path.split("/")))
        while pending:
            name = pending.pop()
            if isinstance(name, _Link):  # the text of a link ends here
                if self._is_inside():
                    self._links.remove(name)
            elif name == "..":
                self._go_up()
            elif name not in ("", "."):
                more = is_folder or any(isinstance(other, str) for other in pending)
                if (text := self._step(name, is_folder=more)) is not None:
                    pending += [self._links[-1], *reversed(text.split("/"))]

    def check(self) -> None:
        """Check the links that led out of the folder.

        Raises:
            LinkRefused: one of them is not followed.
        """
        own, owner = {0, os.geteuid()}, self.status.st_uid
        for link in () if self._is_inside() else self._links:
            by, folder_of = link.status.st_uid, link.folder.st_uid
            if by != owner and by not in own:
                raise _refused(f"a link of uid {by} leads out of the folder to uid {owner}")
            if by in own and folder_of not in own | {owner}:
                raise _refused(f"a link in a folder of uid {folder_of} leads out of it to uid {owner}")
        if self._may_be_hard_link_of_others(own | {owner}):
            raise _refused(f"a private file of uid {owner} has several names, one of them by another user")

    def _may_be_hard_link_of_others(self, trusted: set[int]) -> bool:
        file, folder = self.status, self._folder
        if not stat.S_ISREG(file.st_mode) or file.st_nlink == 1 or file.st_mode & stat.S_IROTH:
            return False
        others_write = folder.st_uid not in trusted or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return bool(others_write) and not _hard_links_are_protected()

    def _is_inside(self) -> bool:
        return self._top in self._folders

    def _step(self, name: str, *, is_folder: bool) -> str | None:
        """Go to a name in the folder that was reached; return the text of the link that it is."""
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            # Only O_DIRECTORY makes the kernel mount what is to be mounted at a folder on demand.
            fd = os.open(name, flags | (os.O_DIRECTORY if is_folder else 0), dir_fd=self.fd)
        except NotADirectoryError:
            fd = os.open(name, flags, dir_fd=self.fd)
        status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode):
            self._folder = self.status
            self._move(fd, status)
            if stat.S_ISDIR(status.st_mode):
                self._folders.append(_identity(status))
            return None
        try:
            text = os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)
        self._followed += 1
        if self._followed > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        self._links.append(_Link(status, self.status))
        if text.startswith("/"):
            fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
            self._move(fd, os.fstat(fd))
            self._folders = [_identity(self.status)]
        return text

    def _go_up(self) -> None:
        fd = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=self.fd)
        self._move(fd, os.fstat(fd))
        self._folders.pop()
        if not self._folders:
            self._folders = [_identity(self.status)]
        elif self._folders[-1] != _identity(self.status):
            raise OSError(errno.ESTALE, "a folder was moved at this moment")

    def _move(self, fd: int, status: os.stat_result) -> None:
        os.close(self.fd)
        self.fd, self.status = fd, status


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _refused(cause: str) -> LinkRefused:
    return LinkRefused(errno.EACCES, f"{cause}, and is not used; put a copy of the file there")


def _hard_links_are_protected() -> bool:
    try:
        return _PROTECTED_HARDLINKS.read_text().strip() == "1"
    except OSError:
        return False
