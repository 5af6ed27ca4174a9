"""The habits of NFS clients, on a local filesystem. This is no NFS: it was not tested on one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


class NfsCalls:
    """Has the functions of `os`, and behaves as on an NFS mount; replaces `os` in `kinetics_fs.shared.folder`.

    * link(2) creates the name and says EEXIST, as if the first answer was lost and the request repeated.
    * A name that was absent stays absent until its folder is opened again (until it is listed, if `is_stubborn`).

    Attributes:
        is_stubborn: opening a folder does not refresh it.
        lies: how often link(2) said EEXIST although it had succeeded.
    """

    def __init__(self) -> None:
        self.is_stubborn = False
        self.lies = 0
        self._is_elsewhere = False
        self._absent: set[tuple[int, str]] = set()
        """Inodes of folders, and names in them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Let the calls in the block be those of another machine."""
        self._is_elsewhere = True
        try:
            yield
        finally:
            self._is_elsewhere = False

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if self._is_elsewhere or dir_fd is None:
            return os.open(path, flags, mode, dir_fd=dir_fd)
        entry = os.fstat(dir_fd).st_ino, path
        if flags & os.O_CREAT:
            self._absent.discard(entry)
        elif entry in self._absent:
            raise FileNotFoundError(2, "No such file or directory")
        try:
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
        except FileNotFoundError:
            self._absent.add(entry)
            raise
        if flags & os.O_DIRECTORY and not self.is_stubborn:
            self._refresh(fd)
        return fd

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int) -> None:
        self._absent.discard((os.fstat(dir_fd).st_ino, path))
        os.mkdir(path, mode, dir_fd=dir_fd)

    def scandir(self, path: int) -> Any:
        self._refresh(path)
        return os.scandir(path)

    def link(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
        if not self._is_elsewhere:
            self._absent.discard((os.fstat(dst_dir_fd).st_ino, target))
            self.lies += 1
            raise FileExistsError(17, "File exists")

    def _refresh(self, folder: int) -> None:
        inode = os.fstat(folder).st_ino
        self._absent = {entry for entry in self._absent if entry[0] != inode}
