"""The `.kinetics` directory: files that are rendered when they are opened.

==================  ==========================================================================================
`classes.txt`       a label per line; its line number, from 0, is its class index
`<split>.csv`       path and class index of every clip shown; `val.csv` is `validation.csv`
`status.json`       the status of the mount
`metrics`           the same for Prometheus, if a renderer is given
`failures.csv`      the remembered failures of clips of this mount
`refused.csv`       the rows of the annotations that are invalid
`catalog.json`      the release, a digest of the clips shown, and the lists and archives that name them
==================  ==========================================================================================
"""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import accumulate
from typing import Protocol

from kinetics_fs.catalog import Catalog, Directory, parse_clip_name
from kinetics_fs.errors import KineticsError
from kinetics_fs.store import Store
from kinetics_fs.vfs.hidden import HiddenClips
from kinetics_fs.vfs.nodes import (
    FIRST_VIRTUAL_FILE,
    AttrCache,
    Attributes,
    DirectoryTree,
    DirEntry,
    Handle,
    NodeType,
)

_NAMES = (
    *("classes.txt", "status.json", "failures.csv", "refused.csv"),
    *("train.csv", "validation.csv", "val.csv", "test.csv"),
    *("metrics", "catalog.json"),
)
"""Every name that a mount may have, so that each has the same inode number in all mounts. Append new ones."""

_CLIP_NAME_BYTES = len("0123456789a_000000_000010.mp4")


class VirtualFile(Protocol):
    """A file whose content is rendered."""

    @property
    def live(self) -> bool:
        """True if the content changes while it is mounted."""
        ...

    @property
    def slow(self) -> bool:
        """True if rendering may take long, so that only a process that opens the file may wait for it."""
        ...

    def size(self) -> int:
        """Return the size in bytes; of a slow file, the size at its last open."""
        ...

    def open(self) -> Handle:
        """Render the content."""
        ...


class VirtualFiles:
    """The files of the `.kinetics` directory of one mount.

    Args:
        catalog: the clips of the mount.
        store: the remembered failures.
        directories: how the mount names classes.
        hidden: returns the hidden clips; None if the mount never hides any.
        status: renders `status.json`.
        metrics: renders `metrics`; None for no such file.
        mtime: modification time of files that never change, in seconds since the epoch.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        directories: DirectoryTree,
        *,
        hidden: Callable[[], HiddenClips] | None,
        status: Callable[[], str],
        metrics: Callable[[], str] | None,
        mtime: int,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._directories = directories
        self._mtime = mtime
        files: dict[str, VirtualFile] = {
            "classes.txt": TextFile(lambda: "".join(f"{name}\n" for name in directories.class_names), live=False),
            "status.json": TextFile(status, live=True),
            "failures.csv": TextFile(self._failures_csv, live=True, slow=True),
            "refused.csv": TextFile(self._refused_csv, live=False),
            "catalog.json": TextFile(self._catalog_json, live=False),
        }
        if metrics is not None:
            files["metrics"] = TextFile(metrics, live=True, slow=True)
        indexes = {label: index for index, label in enumerate(catalog.labels())}
        for name, split in directories.splits.items():
            classes = list(directories.classes[split.ino].items())
            files[f"{name}.csv"] = SplitList(catalog, classes, indexes, hidden)
        if "validation.csv" in files:
            files["val.csv"] = files["validation.csv"]  # the name that PySlowFast opens
        numbers = {name: FIRST_VIRTUAL_FILE + index for index, name in enumerate(_NAMES)}
        self._inodes = {name: ino for name, ino in numbers.items() if name in files}
        self._files = {self._inodes[name]: file for name, file in files.items()}

    def lookup(self, name: str) -> int | None:
        """Return the inode number of a file; None if there is no file of this name."""
        return self._inodes.get(name)

    def entries(self) -> list[DirEntry]:
        """Return the names in the directory."""
        return [DirEntry(name, ino, NodeType.FILE) for name, ino in self._inodes.items()]

    def attributes(self, ino: int) -> Attributes | None:
        """Return the result of stat; None if the inode is not one of these files."""
        file = self._files.get(ino)
        if file is None:
            return None
        mtime = int(time.time()) if file.live else self._mtime
        attr_cache = AttrCache.NONE if file.live else AttrCache.FOREVER
        try:
            size = file.size()
        except KineticsError:  # its open says why; a listing must have its name all the same
            size, attr_cache = 0, AttrCache.NONE
        return Attributes(ino, NodeType.FILE, size, 1, mtime, attr_cache)

    def open(self, ino: int) -> Future[Handle] | None:
        """Open a file; None if the inode is not one of these files."""
        file = self._files.get(ino)
        if file is None:
            return None
        opened: Future[Handle] = Future()
        if file.slow:
            threading.Thread(target=_open_slow, args=(file, opened), name="render", daemon=True).start()
        else:
            opened.set_result(file.open())
        return opened

    def _failures_csv(self) -> str:
        rows = []
        for failure in self._store.failures.all():
            clip = parse_clip_name(f"{failure.key}.mp4")
            for entry in self._catalog.locate(clip) if clip else ():
                rows.append(
                    [
                        self._directories.path(entry),
                        failure.kind,
                        failure.reason,
                        failure.source,
                        str(failure.attempts),
                        timestamp(failure.first_at),
                        timestamp(failure.last_at),
                        timestamp(failure.retry_at),
                    ]
                )
        return _to_csv(["path", "kind", "reason", "source", "attempts", "first", "last", "retry_after"], rows)

    def _refused_csv(self) -> str:
        refusals = self._catalog.refusals()
        rows = [[refusal.file, str(refusal.line), refusal.reason, refusal.text] for refusal in refusals.first]
        return _to_csv(["file", "line", "reason", "row"], rows)

    def _catalog_json(self) -> str:
        catalog = self._catalog
        result = {
            "release": catalog.release,
            "clips": catalog.clip_count,
            "digest": catalog.digest,
            "annotations_digest": catalog.annotations_digest,
            "origins": [asdict(origin) for origin in catalog.origins()],
        }
        return json.dumps(result, indent=1, ensure_ascii=False) + "\n"


def _open_slow(file: VirtualFile, opened: Future[Handle]) -> None:
    try:
        handle = file.open()
    except BaseException as error:
        if opened.set_running_or_notify_cancel():
            opened.set_exception(error)
    else:
        if opened.set_running_or_notify_cancel():
            opened.set_result(handle)


class TextHandle:
    """A text file as it was when it was opened."""

    def __init__(self, content: bytes, *, live: bool) -> None:
        self._content = content
        self.size = len(content)
        self.live = live

    def consume_invalidation(self) -> bool:
        return False

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    def close(self) -> None:
        pass


class TextFile:
    """A text file rendered by a function.

    Args:
        render: returns the content.
        live: see `VirtualFile`.
        slow: see `VirtualFile`.
    """

    def __init__(self, render: Callable[[], str], *, live: bool, slow: bool = False) -> None:
        self._render = render
        self.live = live
        self.slow = slow
        self._last_size = 0

    def size(self) -> int:
        return self._last_size if self.slow else self.open().size

    def open(self) -> TextHandle:
        handle = TextHandle(self._render().encode(), live=self.live)
        self._last_size = handle.size
        return handle


class SplitList:
    """`<split>.csv`: a line ``path label_index`` per clip, as PySlowFast and mmaction2 read it.

    The file of a complete split has 25 MB and more, so it is never rendered as a whole: all lines of one class have
    the same length, and the lines of any range of bytes can be computed from the catalog.

    Args:
        catalog: the clips.
        classes: the names and class directories of one split.
        indexes: label → class index; clips of other labels get -1.
        hidden: returns the hidden clips; None if they never change.
    """

    slow = False

    def __init__(
        self,
        catalog: Catalog,
        classes: list[tuple[str, Directory]],
        indexes: dict[str, int],
        hidden: Callable[[], HiddenClips] | None,
    ) -> None:
        self._catalog = catalog
        self._classes = [
            (f"{directory.split}/{name}/", f" {indexes.get(directory.label or '', -1)}\n", directory)
            for name, directory in classes
        ]
        self._hidden = hidden
        self.live = hidden is not None
        self._latest = SplitListHandle(catalog, self._classes, HiddenClips(), live=hidden is not None)

    def size(self) -> int:
        return self.open().size

    def open(self) -> SplitListHandle:
        if self._hidden is not None and self._latest.hidden is not (hidden := self._hidden()):
            self._latest = SplitListHandle(self._catalog, self._classes, hidden, live=True)
        return self._latest


class SplitListHandle:
    """The list of a split without the clips that were hidden when it was opened."""

    def __init__(
        self, catalog: Catalog, classes: list[tuple[str, str, Directory]], hidden: HiddenClips, *, live: bool
    ) -> None:
        self._catalog = catalog
        self._classes = classes
        self.hidden = hidden
        self.live = live
        sizes = [
            (directory.clips - len(hidden.in_directory(directory.ino))) * _line_bytes(before, after)
            for before, after, directory in classes
        ]
        self._ends = list(accumulate(sizes))
        self.size = self._ends[-1] if self._ends else 0

    def consume_invalidation(self) -> bool:
        return False

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        pieces = []
        while offset < end:
            index = bisect_right(self._ends, offset)
            begin = self._ends[index - 1] if index else 0
            piece = self._read_class(index, offset - begin, end - offset)
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        pass

    def _read_class(self, index: int, offset: int, size: int) -> bytes:
        before, after, directory = self._classes[index]
        length = _line_bytes(before, after)
        first, skip = divmod(offset, length)
        last = first + -(-(skip + size) // length) - 1
        begin = self.hidden.position(directory.ino, first)
        end = self.hidden.position(directory.ino, last) + 1
        left_out = set(self.hidden.between(directory.ino, begin, end))
        entries = self._catalog.entries(directory, begin, end - begin)
        text = "".join(
            f"{before}{entry.clip.name}{after}"
            for position, entry in enumerate(entries, begin)
            if position not in left_out
        )
        return text.encode()[skip : skip + size]


def _line_bytes(before: str, after: str) -> int:
    """Return the length of a line of a split list, given the text before and after the file name."""
    return len(before.encode()) + _CLIP_NAME_BYTES + len(after)


def timestamp(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _to_csv(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as CSV with LF line ends."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()
