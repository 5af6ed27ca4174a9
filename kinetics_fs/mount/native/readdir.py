"""Directory listings: READDIR, and READDIRPLUS with attributes, in pages of prepared records."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from kinetics_fs.mount.native import protocol as p
from kinetics_fs.vfs import AttrCache, DirEntry, Filesystem, HiddenClips, NodeType, mode_of

BLOCK_SIZE = 4096

ENTRY_SECONDS = 86400
"""How long the kernel may cache a name, or that there is none: names do not change unless it is notified."""

ATTR_SECONDS = {AttrCache.NONE: 0, AttrCache.UNTIL_OPEN: 60, AttrCache.FOREVER: 86400}
"""How long the kernel may cache attributes. A minute for a clip that is not in the cache is enough for a walk over all
of them, and safe: the open that fetches the clip makes the kernel forget them."""

_PAGE_ENTRIES = 512
_PAGE_SECONDS = 1.0
_MAX_PAGES = 16
"""Number of listings in progress for which a page is kept."""


class DirPage(NamedTuple):
    """Records of a directory that are prepared ahead of the requests.

    Args:
        begin: position of the first record in the listing.
        records: one per position; empty for a hidden name.
        expires: when sizes may have changed, by the monotonic clock.
        hidden: the hidden names when the records were made.
    """

    begin: int
    records: list[bytes]
    expires: float
    hidden: HiddenClips


class DirectoryPages:
    """Answers READDIR and READDIRPLUS.

    The offset of an entry is its position plus one, after `.` and `..`. Positions never change, so that a listing in
    progress continues correctly whatever is hidden meanwhile.

    Args:
        filesystem: the filesystem of the mount.
        uid: owner of all files.
        gid: group of all files.
    """

    def __init__(self, filesystem: Filesystem, uid: int, gid: int) -> None:
        self._filesystem = filesystem
        self._uid = uid
        self._gid = gid
        self._pages: dict[int, DirPage] = {}

    def invalidate(self) -> None:
        """Forget the prepared records, because a size has changed."""
        self._pages.clear()

    def readdir(self, header: p.InHeader, body: memoryview) -> bytes:
        """READDIR: names and types."""
        request = p.READ_IN.unpack(body)
        records: list[bytes] = []
        space = request.size
        for offset, (text, ino, kind) in self._entries(header.nodeid, request.offset, request.size // p.DIRENT.size):
            name = os.fsencode(text)
            record = _dirent(len(name))
            space -= record.size
            if space < 0:
                break
            records.append(record.pack(ino, offset, len(name), kind >> 12, name))
        return b"".join(records)

    def readdirplus(self, header: p.InHeader, body: memoryview) -> bytes:
        """READDIRPLUS: names with attributes, which the kernel then caches."""
        request = p.READ_IN.unpack(body)
        space = request.size
        records: list[bytes] = []
        for offset, (text, ino, kind) in enumerate(self._dots(header.nodeid)[request.offset :], request.offset + 1):
            name = os.fsencode(text)
            # Node 0: the kernel must not cache an inode under this name.
            record = _direntplus(len(name)).pack(*[0] * 22, ino, offset, len(name), kind >> 12, name)
            space -= len(record)
            if space < 0:
                return b"".join(records)
            records.append(record)
        position = max(0, request.offset - 2)
        while page := self._page(header.nodeid, position):
            for record in page:
                space -= len(record)
                if space < 0:
                    return b"".join(records)
                records.append(record)
            position += len(page)
        return b"".join(records)

    def _entries(self, ino: int, offset: int, count: int) -> Iterator[tuple[int, DirEntry]]:
        """Yield the entries of a directory from an offset on, each with the offset after it."""
        yield from enumerate(self._dots(ino)[offset:], offset + 1)
        position = max(0, offset - 2)
        while page := self._filesystem.entries_with_attributes(ino, position, count):
            for next_offset, entry in enumerate(page, position + 3):
                if entry is not None:
                    yield next_offset, DirEntry(entry[0], entry[1].ino, entry[1].type)
            position += len(page)

    def _page(self, ino: int, position: int) -> list[bytes]:
        """Return READDIRPLUS records of a directory from a position on; empty only at its end.

        A kernel requests about twenty records at a time, in order. Many more are prepared at once.
        """
        hidden = self._filesystem.hidden
        page = self._pages.get(ino)
        if (
            page is not None
            and page.begin <= position < page.begin + len(page.records)
            and time.monotonic() < page.expires
            and page.hidden is hidden
        ):
            return page.records[position - page.begin :]
        records = self._records(ino, position)
        if len(self._pages) >= _MAX_PAGES:
            del self._pages[next(iter(self._pages))]
        self._pages.pop(ino, None)
        self._pages[ino] = DirPage(position, records, time.monotonic() + _PAGE_SECONDS, hidden)
        return records

    def _records(self, ino: int, position: int) -> list[bytes]:
        uid, gid = self._uid, self._gid
        records: list[bytes] = []
        entries = self._filesystem.entries_with_attributes(ino, position, _PAGE_ENTRIES)
        for offset, entry in enumerate(entries, position + 3):
            if entry is None:
                records.append(b"")
                continue
            text, (node, kind, size, links, seconds, attr_cache) = entry
            name = text.encode(errors="surrogateescape")
            # EntryOut, Attr and Dirent in one call: this is the hot path of every listing.
            record = _direntplus(len(name)).pack(
                node, 0, ENTRY_SECONDS, ATTR_SECONDS[attr_cache], 0, 0,
                node, size, -(-size // 512), seconds, seconds, seconds, 0, 0, 0,
                mode_of(kind), links, uid, gid, 0, BLOCK_SIZE, 0,
                node, offset, len(name), kind >> 12, name,
            )  # fmt: skip
            records.append(record)
        return records

    def _dots(self, ino: int) -> list[DirEntry]:
        parent = self._filesystem.parent(ino)
        return [DirEntry(".", ino, NodeType.DIRECTORY), DirEntry("..", parent, NodeType.DIRECTORY)]


_dirent = cache(p.dirent_packer)
_direntplus = cache(p.direntplus_packer)
