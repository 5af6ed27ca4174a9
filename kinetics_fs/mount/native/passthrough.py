"""Passthrough: the kernel reads cached files itself.

Linux 6.9 and newer; see Documentation/filesystems/fuse/fuse-passthrough.rst of the kernel.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kinetics_fs.mount.mountpoint import is_stacked
from kinetics_fs.mount.native import device
from kinetics_fs.mount.native.protocol import InitFlag
from kinetics_fs.vfs import SharedFile

_log = logging.getLogger(__name__)


def required_stack_depth(folder: Path | None) -> int:
    """Return the `max_stack_depth` that passthrough of the files in a folder needs.

    Args:
        folder: the cache directory; None to turn passthrough off.

    Returns:
        1, or 2 if the folder is on a stacked filesystem such as overlayfs; 0 if passthrough is off.
    """
    if folder is None:
        return 0
    return 2 if is_stacked(folder) else 1


@dataclass(slots=True)
class PassthroughFile:
    """The registration of a file with the kernel, and the number of handles that use it."""

    backing_id: int
    users: int = 0


class Passthrough:
    """The files that the kernel reads itself.

    Args:
        fd: the FUSE descriptor.
        max_stack_depth: how many filesystems the kernel may stack: see `required_stack_depth`.

    Attributes:
        enabled: True once the kernel and this process agreed to it, until a registration fails.
        mode: how the kernel reads cached clips, for the status.
    """

    def __init__(self, fd: int, max_stack_depth: int) -> None:
        self._fd = fd
        self._max_stack_depth = max_stack_depth
        self._files: dict[SharedFile, PassthroughFile] = {}
        self.enabled = False
        self.mode = "not started"

    @property
    def max_stack_depth(self) -> int:
        """The stack depth to announce to the kernel, or 0 if passthrough is off.

        It is as small as possible, because another filesystem may be stacked on this one.
        """
        return self._max_stack_depth if self.enabled else 0

    def negotiate(self, offered: InitFlag) -> None:
        """Decide whether to use passthrough, given the flags that the kernel offers in INIT."""
        if not self._max_stack_depth:
            self.mode = "page cache (passthrough is turned off)"
        elif not offered & InitFlag.PASSTHROUGH:
            self.mode = "page cache (passthrough needs Linux 6.9)"
        elif os.geteuid() != 0:
            self.mode = "page cache (passthrough needs root)"
        else:
            self.enabled = True
            self.mode = "passthrough"

    def acquire(self, file: SharedFile) -> PassthroughFile | None:
        """Register a file for one more handle.

        A file that is registered stays so for all its handles: the kernel refuses a mix of modes for one inode.

        Returns:
            The registration; None if passthrough is off or the filesystem of the file does not support it.
        """
        registered = self._files.get(file)
        if registered is None:
            if not self.enabled:
                return None
            try:
                registered = self._files[file] = PassthroughFile(device.open_backing(self._fd, file.fd))
            except OSError as error:
                self.enabled = False
                self.mode = f"page cache (passthrough failed: {error.strerror})"
                _log.warning("cannot register a cached file for passthrough: %s; using the page cache", error.strerror)
                return None
        registered.users += 1
        return registered

    def release(self, file: SharedFile) -> None:
        """Give up the registration of a file for one handle; does nothing if the file is not registered."""
        registered = self._files.get(file)
        if registered is None:
            return
        registered.users -= 1
        if not registered.users:
            del self._files[file]
            with suppress(OSError):  # if the connection has ended, so has the registration
                device.close_backing(self._fd, registered.backing_id)
