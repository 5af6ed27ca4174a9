"""The cache folder: ours, private, and marked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kinetics_fs.errors import StoreError

_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
"""The first line that the Cache Directory Tagging Specification asks for (bford.info/cachedir)."""


def prepare_folder(folder: Path) -> None:
    """Makes the cache folder with mode 0700, or checks that it is one and that nobody else can put things into it.

    Raises:
        StoreError: it cannot be made, belongs to another user, or holds somebody's other files.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid():
            raise StoreError(f"the cache folder {folder} belongs to another user: give your own with --cache-dir")
        tag = folder / _TAG
        if not tag.exists():
            # The rest of the check is for a path mistyped: its mode would be changed, and its files mistaken for ours.
            if any(folder.iterdir()) and not tag.exists():
                raise StoreError(f"{folder} holds other files: give an empty or a new folder as --cache-dir")
            tag.write_text(f"{_SIGNATURE}\n# The cache of kinetics-fs: clips that can be fetched again.\n")
        if stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise StoreError(f"cannot use {folder} as the cache folder: {error.strerror}") from error
