"""The filesystem of one mount: names, attributes and opens by inode number.

::

/                                   1
├── .kinetics/                      virtual files, rendered when opened (`kinetics_fs.vfs.virtual_files`)
├── train/  validation/  test/
│   └── <class>/<clip>.mp4
└── val -> validation

Threading: every method may be called from any thread, and none waits for the network; `Filesystem.open` returns a
future.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kinetics_fs.catalog import KEY_LENGTH, Catalog, ClassNames, Clip, Directory, Entry, parse_clip_name
from kinetics_fs.control.status import OpenCounts
from kinetics_fs.errors import FailureKind, FetchError, KineticsError, StoreError
from kinetics_fs.store import KnownSize, Space, Store
from kinetics_fs.vfs.budget import FetchBudget
from kinetics_fs.vfs.hidden import HiddenClips, HiddenIndex, HiddenWatcher, Name
from kinetics_fs.vfs.nodes import (
    CONTROL_DIRECTORY,
    MAX_NAME_BYTES,
    ROOT,
    VAL_LINK,
    AttrCache,
    Attributes,
    DirectoryTree,
    DirEntry,
    Handle,
    NodeType,
    Statistics,
)
from kinetics_fs.vfs.open_limit import OpenLimit
from kinetics_fs.vfs.opens import ClipOpens, Fetcher, OnOpen
from kinetics_fs.vfs.virtual_files import VirtualFiles

_log = logging.getLogger(__name__)

_CONTROL_NAME = ".kinetics"
_VAL_NAME = "val"
_VALIDATION = "validation"

_ESTIMATED_BYTES_PER_SECOND = 1024 * 1024
"""Size shown for a clip that was never in the cache, per second of it. An estimate that is too large is harmless: the
size is exact once a file is open. One that is too small would truncate. Cut clips stay below it by construction
(`kinetics_fs.media.cut`)."""

_XATTR_PREFIX = "user.kinetics."

_NOTHING_HIDDEN = HiddenClips()


@dataclass(frozen=True, slots=True)
class FilesystemOptions:
    """How a mount shows its clips, and what it takes from other packages.

    Attributes:
        class_names: how labels become directory names.
        hide_unavailable: do not list clips that are known to be unavailable (`LASTING_KINDS`).
        elsewhere: returns those of some keys (`Clip.key`) whose clips a folder or an archive has; not hidden.
        budget: limits the fetches that opens start.
        known_sizes: returns the sizes, in bytes, of clips that archives or the shared store have, by `Clip.key`.
        on_open: see `OnOpen`; must return quickly.
        status: returns the content of `status.json`.
        metrics: returns the content of the file `metrics`; None for no such file.
        open_limit: limits the files that each user may have open. The front end counts them.
    """

    class_names: ClassNames = ClassNames.RAW
    hide_unavailable: bool = False
    elsewhere: Callable[[Collection[str]], Collection[str]] = lambda keys: ()
    budget: FetchBudget = field(default_factory=FetchBudget)
    known_sizes: Callable[[Sequence[str]], Mapping[str, int]] | None = None
    on_open: OnOpen = lambda entry, phase: None
    status: Callable[[], str] = lambda: "{}\n"
    metrics: Callable[[], str] | None = None
    open_limit: OpenLimit = field(default_factory=OpenLimit)


class Filesystem:
    """The files and directories of one mount.

    Args:
        catalog: the clips of the mount.
        store: the cache.
        fetcher: fetches clips that are not in the cache.
        options: everything else.

    Raises:
        CatalogError: two labels get the same directory name.
        StoreError: the remembered failures cannot be read.
    """

    def __init__(
        self, catalog: Catalog, store: Store, fetcher: Fetcher, options: FilesystemOptions | None = None
    ) -> None:
        options = options or FilesystemOptions()
        self._catalog = catalog
        self._store = store
        self._fetcher = fetcher
        self._options = options
        self.open_limit = options.open_limit
        self._known_sizes = options.known_sizes
        self._since = time.time()
        self._last_space = Space(0, 0, 0)
        self._mtime = int(datetime.combine(catalog.published, datetime.min.time(), UTC).timestamp())
        self._directories = DirectoryTree(catalog, options.class_names)
        self._hidden = HiddenIndex(catalog, store.failures, options.elsewhere) if options.hide_unavailable else None
        self._watcher: HiddenWatcher | None = None
        self._opens = ClipOpens(
            store,
            fetcher,
            options.budget,
            shown_since=self._since,
            on_open=options.on_open,
            on_unavailable=self._on_unavailable,
        )
        self._virtual = VirtualFiles(
            catalog,
            store,
            self._directories,
            hidden=(lambda: self.hidden) if options.hide_unavailable else None,
            status=options.status,
            metrics=options.metrics,
            mtime=self._mtime,
        )

    # Hidden clips

    @property
    def hidden(self) -> HiddenClips:
        """The clips that are hidden now: another object whenever they have changed."""
        return _NOTHING_HIDDEN if self._hidden is None else self._hidden.hidden

    def watch_names(self, on_change: Callable[[Name], None]) -> HiddenWatcher | None:
        """Start to watch for names that appear or disappear.

        Args:
            on_change: called in the thread of the watcher for each of them, when the filesystem already shows it so.

        Returns:
            The watcher, for the caller to stop and join; None if names never change.
        """
        if self._hidden is None:
            return None
        self._watcher = HiddenWatcher(self._hidden, self._store.failures, on_change)
        self._watcher.start()
        return self._watcher

    def _on_unavailable(self, clip: Clip) -> None:
        if self._watcher is not None:
            self._watcher.check_soon(clip)

    # Names

    def lookup(self, parent: int, name: str) -> int:
        """Return the inode number of a name.

        Raises:
            OSError: ENOENT, ENOTDIR, or ENAMETOOLONG.
        """
        if len(name) > MAX_NAME_BYTES or len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        splits, classes = self._directories.splits, self._directories.classes
        found: int | None = None
        if parent == ROOT:
            if name == _CONTROL_NAME:
                found = CONTROL_DIRECTORY
            elif name == _VAL_NAME and _VALIDATION in splits:
                found = VAL_LINK
            elif name in splits:
                found = splits[name].ino
        elif parent == CONTROL_DIRECTORY:
            found = self._virtual.lookup(name)
        elif parent in classes:
            directory = classes[parent].get(name)
            found = directory.ino if directory else None
        else:
            clip = parse_clip_name(name)
            directory = self._directory(parent)
            if clip is not None and not (self._hidden and clip.key in self._hidden.hidden.keys):
                found = self._catalog.find(directory, clip)
        if found is None:
            raise OSError(errno.ENOENT, "no such file or directory", name)
        return found

    def entries(self, ino: int) -> list[DirEntry]:
        """Return the names in a directory.

        Raises:
            OSError: ENOTDIR.
        """
        if not self._has_clips(ino):
            return self._directory_entries(ino)
        hidden = set(self.hidden.in_directory(ino))
        return [
            DirEntry(entry.clip.name, entry.ino, NodeType.FILE)
            for position, entry in enumerate(self._catalog.entries(self._directory(ino)))
            if position not in hidden
        ]

    def entries_with_attributes(self, ino: int, offset: int, count: int) -> list[tuple[str, Attributes] | None]:
        """Return the names at the positions `offset` to `offset + count` of a directory, with their attributes.

        Positions never change: None is in the position of a hidden name, and there are fewer than `count` only at the
        end.

        Raises:
            OSError: ENOTDIR.
        """
        if not self._has_clips(ino):
            page = self._directory_entries(ino)[offset : offset + count]
            return [(entry.name, self.attributes(entry.ino)) for entry in page]
        listing = self._catalog.listing(self._directory(ino), offset, count)
        sizes = self._sizes([name[:KEY_LENGTH] for name, _ino, _seconds in listing])
        entries: list[tuple[str, Attributes] | None] = [
            (name, self._clip_attributes(ino, seconds, sizes.get(name[:KEY_LENGTH]))) for name, ino, seconds in listing
        ]
        for position in self.hidden.between(ino, offset, offset + len(entries)):
            entries[position - offset] = None
        return entries

    def _has_clips(self, ino: int) -> bool:
        return ino not in (ROOT, CONTROL_DIRECTORY) and ino not in self._directories.classes

    def _directory_entries(self, ino: int) -> list[DirEntry]:
        if ino == ROOT:
            splits = self._directories.splits
            entries = [DirEntry(_CONTROL_NAME, CONTROL_DIRECTORY, NodeType.DIRECTORY)]
            entries += [DirEntry(name, split.ino, NodeType.DIRECTORY) for name, split in splits.items()]
            if _VALIDATION in splits:
                entries.append(DirEntry(_VAL_NAME, VAL_LINK, NodeType.SYMLINK))
            return entries
        if ino == CONTROL_DIRECTORY:
            return self._virtual.entries()
        classes = self._directories.classes[ino].items()
        return [DirEntry(name, directory.ino, NodeType.DIRECTORY) for name, directory in classes]

    def parent(self, ino: int) -> int:
        """Return the inode number of the parent of a directory."""
        directory = self._catalog.directory(ino)
        return directory.parent or ROOT if directory else ROOT

    def readlink(self, ino: int) -> str:
        """Return the target of a symbolic link.

        Raises:
            OSError: EINVAL if the node is not one.
        """
        if ino != VAL_LINK:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return _VALIDATION

    # Attributes

    def attributes(self, ino: int) -> Attributes:
        """Return the result of stat; never use the network.

        Raises:
            OSError: ENOENT.
        """
        if ino == ROOT:
            return self._directory_attributes(ino, subdirectories=len(self._directories.splits) + 1)
        if ino == CONTROL_DIRECTORY:
            return self._directory_attributes(ino, subdirectories=0)
        if ino == VAL_LINK:
            return Attributes(ino, NodeType.SYMLINK, len(_VALIDATION), 1, self._mtime, AttrCache.FOREVER)
        if (virtual := self._virtual.attributes(ino)) is not None:
            return virtual
        if (directory := self._catalog.directory(ino)) is not None:
            is_split = directory.label is None
            return self._directory_attributes(ino, len(self._directories.classes[ino]) if is_split else 0)
        clip = self._entry(ino).clip
        return self._clip_attributes(ino, clip.duration, self._sizes([clip.key]).get(clip.key))

    def _sizes(self, keys: list[str]) -> dict[str, KnownSize]:
        try:
            known = self._store.sizes(keys)
        except StoreError:  # reported by the store; sizes are estimates meanwhile
            known = {}
        if self._known_sizes is not None and len(known) < len(keys):
            try:
                others = self._known_sizes([key for key in keys if key not in known])
            except KineticsError as error:
                _log.error("cannot read the sizes of indexed clips: %s; sizes are estimates from now on", error)
                self._known_sizes = None
            else:
                known |= {key: KnownSize(size, cached=False) for key, size in others.items()}
        return known

    def _clip_attributes(self, ino: int, seconds: int, known: KnownSize | None) -> Attributes:
        if (file := self._opens.shared_file(ino)) is not None:
            # The content that its readers have, even if the store has other content by now.
            return Attributes(ino, NodeType.FILE, file.size, 1, self._mtime, AttrCache.FOREVER)
        if known is None:
            size = seconds * _ESTIMATED_BYTES_PER_SECOND
            return Attributes(ino, NodeType.FILE, size, 1, self._mtime, AttrCache.UNTIL_OPEN)
        # A clip that is fetched again after its eviction may have another size.
        attr_cache = AttrCache.FOREVER if known.cached else AttrCache.UNTIL_OPEN
        return Attributes(ino, NodeType.FILE, known.size, 1, self._mtime, attr_cache)

    def _directory_attributes(self, ino: int, subdirectories: int) -> Attributes:
        return Attributes(ino, NodeType.DIRECTORY, 4096, 2 + subdirectories, self._mtime, AttrCache.FOREVER)

    def statistics(self) -> Statistics:
        """Return the result of statfs: the clips shown, and how full the cache is."""
        with suppress(StoreError):  # a mount whose cache is gone is still a mount
            self._last_space = self._store.space()
        return Statistics(self._last_space, self._catalog.clip_count - self.hidden.total)

    # Extended attributes

    def list_xattrs(self, ino: int) -> list[str]:
        """Return the names of the extended attributes of a node; only clips have any."""
        return [] if self._is_virtual(ino) else list(self._xattrs(self._entry(ino)))

    def xattr(self, ino: int, name: str) -> bytes:
        """Return the value of an extended attribute.

        Raises:
            OSError: ENODATA if the node has none of this name.
        """
        if name.startswith(_XATTR_PREFIX) and not self._is_virtual(ino):
            value = self._xattrs(self._entry(ino)).get(name)
            if value is not None:
                return value.encode()
        raise OSError(errno.ENODATA, "no such attribute", name)

    def _xattrs(self, entry: Entry) -> dict[str, str]:
        clip, directory = entry.clip, self._directory(entry.directory)
        values = {"id": clip.youtube_id, "start": str(clip.start), "end": str(clip.end)}
        if directory.label in self._catalog.labels():
            values["label"] = directory.label or ""
        try:
            values |= self._clip_state(clip)
        except StoreError as error:
            values["error"] = f"{FailureKind.LOCAL}: {error}"
        return {_XATTR_PREFIX + name: value for name, value in values.items()}

    def _clip_state(self, clip: Clip) -> dict[str, str]:
        """Return the state of a clip, with what is known about the cached clip, or the error of an open now.

        Raises:
            StoreError: the cache cannot be read.
        """
        values: dict[str, str] = {}
        record, failure = self._store.record(clip), self._store.failures.get(clip)
        if record is not None and record.cached:
            values |= {"state": "cached", "source": record.source, "profile": record.profile, "sha256": record.sha256}
            if record.profile == self._store.profile.name:
                values["profile.settings"] = str(self._store.profile)
            if record.duration is not None:
                values["duration"] = f"{record.duration:.3f}"
            if self._store.faults.current is not None and (file := self._store.peek(clip)) is not None:
                os.close(file.fd)  # else StoreError
        elif self._fetcher.is_fetching(clip):
            values["state"] = "fetching"
        else:
            values["state"] = "absent" if failure is None else "failed"
            # The error of an open now. A block is not a failure of the clip, but makes it unavailable.
            error = self._fetcher.known_failure(clip) or self._options.budget.refusal()
            error = error or (self._block() if failure is None else failure.error())
            if error is not None:
                values["error"] = f"{error.kind}: {error.reason}"
            elif (fault := self._store.faults.current) is not None:
                values["error"] = f"{FailureKind.LOCAL}: {fault}"
        return values

    def _block(self) -> FetchError | None:
        for source in self._store.throttle.states():
            if source.blocked_until is not None:
                return FetchError(FailureKind.BLOCKED, f"{source.name}: {source.reason}")
        return None

    # Content

    def begin_open(self, ino: int) -> Handle | Future[Handle]:
        """Open a file: a clip that is in the cache at once, any other clip after a fetch.

        Returns:
            The handle of a clip that is in the cache; for every other file a future as `open` returns it.

        Raises:
            OSError: ENOENT.
            FetchError: the clip is in the cache, but its file cannot be opened.
        """
        if not self._is_virtual(ino):
            entry = self._entry(ino)
            handle = self._opens.open_cached(entry)
            return self._opens.open_missing(entry) if handle is None else handle
        opened = self._virtual.open(ino)
        if opened is None:
            opened = Future()
            opened.set_exception(OSError(errno.EISDIR, "is a directory"))
        return opened

    def open(self, ino: int) -> Future[Handle]:
        """Open a file; a clip that is not in the cache is fetched.

        Returns:
            A future of the handle. Cancel it to give up. It raises an `OSError`, or the `FetchError` that says why
            the clip is unavailable; see `errno_of`.

        Raises:
            OSError: ENOENT.
            FetchError: the clip is in the cache, but its file cannot be opened.
        """
        opened = self.begin_open(ino)
        if isinstance(opened, Future):
            return opened
        future: Future[Handle] = Future()
        future.set_result(opened)
        return future

    # Status

    def opens(self) -> OpenCounts:
        """Return the number of opens of clips, by result."""
        return self._opens.counts()

    # Nodes

    def _is_virtual(self, ino: int) -> bool:
        return ino < 2**32 or self._catalog.directory(ino) is not None

    def _entry(self, ino: int) -> Entry:
        entry = self._catalog.entry(ino)
        if entry is None:
            raise OSError(errno.ENOENT, "no such inode")
        return entry

    def _directory(self, ino: int) -> Directory:
        directory = self._catalog.directory(ino)
        if directory is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        return directory
