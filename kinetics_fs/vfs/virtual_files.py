"""The virtual files in `.kinetics`: what a loader or a script would otherwise have to find out by walking."""

from __future__ import annotations

import csv
import io
import json
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

from kinetics_fs.catalog import Catalog, Directory
from kinetics_fs.vfs.hidden import HiddenClips

_NAME_BYTES = len("0123456789a_000000_000010.mp4")


class TextHandle:
    """A control file as it was when it was opened."""

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
    """A control file made by a function.

    Args:
        render: makes the content.
        live: whether it changes while mounted.
        slow: whether that may take long, so that only who opens it may have to wait.
    """

    def __init__(self, render: Callable[[], str], *, live: bool, slow: bool = False) -> None:
        self._render = render
        self.live = live
        self.slow = slow
        self._last_size = 0

    def size(self) -> int:
        """Bytes; of a slow one, as of when it was last opened."""
        return self._last_size if self.slow else self.open().size

    def open(self) -> TextHandle:
        handle = TextHandle(self._render().encode(), live=self.live)
        self._last_size = handle.size
        return handle


class SplitList:
    """`<split>.csv`: a line ``path label_index`` per clip, as PySlowFast and mmaction2 read it.

    The file of a whole split has 25 MB and more, so that it is never made: all lines of one class are equally long,
    and the lines of any range of bytes can be computed from the catalog.

    Args:
        catalog: what is listed.
        classes: the class directories of one split, and each one's name in the mount.
        indexes: label → class index; others get -1.
        hidden: what is left out at the moment, for who opens the file; None where that never changes.
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
        """Bytes."""
        return self.open().size

    def open(self) -> SplitListHandle:
        if self._hidden is not None and self._latest.hidden is not (hidden := self._hidden()):
            self._latest = SplitListHandle(self._catalog, self._classes, hidden, live=True)
        return self._latest


class SplitListHandle:
    """A split's list without what was left out when it was opened, and so it stays."""

    def __init__(
        self, catalog: Catalog, classes: list[tuple[str, str, Directory]], hidden: HiddenClips, *, live: bool
    ) -> None:
        self._catalog = catalog
        self._classes = classes
        self.hidden = hidden
        self.live = live
        sizes = [
            (directory.clips - len(hidden.of(directory.ino))) * (len(before.encode()) + _NAME_BYTES + len(after))
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
            position = bisect_right(self._ends, offset)
            begin = self._ends[position - 1] if position else 0
            piece = self._read_class(position, offset - begin, end - offset)
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        pass

    def _read_class(self, position: int, offset: int, size: int) -> bytes:
        before, after, directory = self._classes[position]
        length = len(before.encode()) + _NAME_BYTES + len(after)
        first, skip = divmod(offset, length)
        last = first + -(-(skip + size) // length) - 1
        begin = self.hidden.place(directory.ino, first)
        end = self.hidden.place(directory.ino, last) + 1
        left_out = set(self.hidden.between(directory.ino, begin, end))
        entries = self._catalog.entries(directory, begin, end - begin)
        text = "".join(
            f"{before}{entry.clip.name}{after}" for place, entry in enumerate(entries, begin) if place not in left_out
        )
        return text.encode()[skip : skip + size]


def to_csv(header: list[str], rows: list[list[str]]) -> str:
    """Rows as CSV with LF line ends."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def to_json(value: object) -> str:
    """A value as JSON for people: indented, with a final line end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
