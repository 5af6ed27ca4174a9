"""The tree of one mount.

::

/                                   1
├── .kinetics/                      virtual files, made when read
│   ├── classes.txt                 a label per line; its place is its class index
│   ├── <split>.csv                 path and class index of every clip shown; val.csv is validation.csv
│   ├── status.json  metrics  failures.csv  refused.csv
├── train/  validation/  test/
│   └── <class>/<clip>.mp4
└── val -> validation
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime

from kinetics_fs.catalog import KEY_LENGTH, Catalog, ClassNames, Directory, Entry, name_table, parse_clip_name
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.fetch import Fetcher
from kinetics_fs.store import KnownSize, Store
from kinetics_fs.vfs.budget import FetchBudget
from kinetics_fs.vfs.hidden import HiddenClips, HiddenIndex, HiddenWatcher, Name
from kinetics_fs.vfs.nodes import AttrCache, Attributes, ClipHandle, DirEntry, Handle, NodeType, SharedFile, Statistics
from kinetics_fs.vfs.virtual_files import SplitList, TextFile, to_csv, to_json

_log = logging.getLogger(__name__)

ROOT = 1
_CONTROL = 2
_VAL = 3
_FIRST_CONTROL_FILE = 16
"""Virtual nodes have small inode numbers; those of the catalog begin at 2**32."""

LONGEST_NAME = 255
"""Bytes."""

_CONTROL_NAME = ".kinetics"
_CONTROL_FILES = (
    *("classes.txt", "status.json", "failures.csv", "refused.csv"),
    *("train.csv", "validation.csv", "val.csv", "test.csv"),
    "metrics",
)
"""All that any mount may have, so that each has the same inode number in all of them. New ones go to the end."""

_VAL_NAME = "val"
_VALIDATION = "validation"

_LIKELY_MOST_BYTES_PER_SECOND = 1024 * 1024
"""Size shown for a clip that was never here, per second of it. Too large does no harm, for the size is exact once a
file is open; too small would truncate. Cut clips stay below by construction (`kinetics_fs.media.cut`)."""

_ATTRIBUTES = "user.kinetics."

_OPEN_TRIES = 3

_NOTHING_HIDDEN = HiddenClips()


class Filesystem:
    """What one mount shows.

    Args:
        catalog: the clips that there are.
        store: the clips that are here.
        fetcher: gets the others.
        class_names: how labels become directory names.
        hide_unavailable: leave out clips that are known to be gone.
        sizes: tells the exact sizes in bytes of clips that were never here but are known, by `Clip.key`.
        about: further facts for `status.json`.
        reports: the same, of what changes.
        gate: what opens may fetch; None for all.
        noticed: told of each open of a clip, quickly: False when it must be waited for, True when it is done.

    Raises:
        CatalogError: two labels get the same directory name.
        StoreError: what is gone cannot be read.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        fetcher: Fetcher,
        *,
        class_names: ClassNames = ClassNames.RAW,
        hide_unavailable: bool = False,
        sizes: Callable[[Sequence[str]], Mapping[str, int]] | None = None,
        about: Mapping[str, object] | None = None,
        reports: Mapping[str, Callable[[], object]] | None = None,
        noticed: Callable[[Entry, bool], None] = lambda entry, done: None,
        gate: FetchBudget | None = None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._fetcher = fetcher
        self._about = dict(about or {})
        self._reports = dict(reports or {})
        self._notice = noticed
        self._gate = gate or FetchBudget()
        self._sizes_elsewhere = sizes
        self._frontend: Callable[[], Mapping[str, object]] = dict
        self._unavailable = HiddenIndex(catalog, store.failure_log) if hide_unavailable else None
        self._watch: HiddenWatcher | None = None
        self._mtime = int(datetime.combine(catalog.published, datetime.min.time(), UTC).timestamp())
        self._splits = {split.split: split for split in catalog.splits()}
        self._classes = {split.ino: _named(catalog.classes(split), class_names) for split in self._splits.values()}
        self._class_name = {
            directory.ino: name for classes in self._classes.values() for name, directory in classes.items()
        }
        self._labels = list(name_table(catalog.labels(), class_names))
        files: dict[str, TextFile | SplitList] = {
            "classes.txt": TextFile(lambda: "".join(f"{name}\n" for name in self._labels), live=False),
            "status.json": TextFile(lambda: to_json(self.status()), live=True),
            "metrics": TextFile(self.metrics, live=True, slow=True),
            "failures.csv": TextFile(self._failures_csv, live=True, slow=True),
            "refused.csv": TextFile(self._refused_csv, live=False),
        }
        indexes = {label: index for index, label in enumerate(catalog.labels())}
        for name, split in self._splits.items():
            classes = list(self._classes[split.ino].items())
            files[f"{name}.csv"] = SplitList(
                catalog, classes, indexes, (lambda: self.hidden) if hide_unavailable else None
            )
        if _VALIDATION in self._splits:
            files[f"{_VAL_NAME}.csv"] = files[f"{_VALIDATION}.csv"]  # the name that PySlowFast opens
        numbers = {name: _FIRST_CONTROL_FILE + place for place, name in enumerate(_CONTROL_FILES)}
        self._control_inodes = {name: number for name, number in numbers.items() if name in files}
        self._control_files = {self._control_inodes[name]: file for name, file in files.items()}
        self._files: dict[int, SharedFile] = {}
        self._versions: dict[int, float] = {}
        self._files_lock = threading.Lock()
        self._hits = self._misses = 0
        self._ended = Counter[str]()
        self._ended_lock = threading.Lock()
        self._since = time.time()

    # What is left out

    @property
    def hidden(self) -> HiddenClips:
        """What is left out now: another object whenever that has changed."""
        return _NOTHING_HIDDEN if self._unavailable is None else self._unavailable.hidden

    def watch_names(self, tell: Callable[[Name], None]) -> HiddenWatcher | None:
        """Begins to look for names that come or go; None if they never do.

        Args:
            tell: told each of them, in the watch's own thread, when the tree already shows it so.

        Returns:
            What the caller is to stop and to join.
        """
        if self._unavailable is None:
            return None
        self._watch = HiddenWatcher(self._unavailable, self._store.failure_log, tell)
        self._watch.start()
        return self._watch

    # Names

    def lookup(self, parent: int, name: str) -> int:
        """The inode number of a name.

        Raises:
            OSError: ENOENT, ENOTDIR, or ENAMETOOLONG.
        """
        if len(name) > LONGEST_NAME or len(os.fsencode(name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        found: int | None = None
        if parent == ROOT:
            if name == _CONTROL_NAME:
                found = _CONTROL
            elif name == _VAL_NAME and _VALIDATION in self._splits:
                found = _VAL
            elif name in self._splits:
                found = self._splits[name].ino
        elif parent == _CONTROL:
            found = self._control_inodes.get(name)
        elif parent in self._classes:
            directory = self._classes[parent].get(name)
            found = directory.ino if directory else None
        else:
            clip = parse_clip_name(name)
            directory = self._directory(parent)
            if clip is not None and not (self._unavailable and clip.key in self._unavailable.hidden.keys):
                found = self._catalog.find(directory, clip)
        if found is None:
            raise OSError(errno.ENOENT, "no such file or directory", name)
        return found

    def entries(self, ino: int) -> list[DirEntry]:
        """The names in a directory.

        Raises:
            OSError: ENOTDIR.
        """
        if not self._has_clips(ino):
            return self._directory_entries(ino)
        left_out = set(self.hidden.of(ino))
        return [
            DirEntry(entry.clip.name, entry.ino, NodeType.FILE)
            for place, entry in enumerate(self._catalog.entries(self._directory(ino)))
            if place not in left_out
        ]

    def entries_with_attributes(self, ino: int, offset: int, count: int) -> list[tuple[str, Attributes] | None]:
        """What has the places `offset` to `offset + count` in a directory, with what stat shows of each.

        A place is for ever: None stands for a name that is left out, and only at the end there are fewer than `count`.

        Raises:
            OSError: ENOTDIR.
        """
        if not self._has_clips(ino):
            page = self._directory_entries(ino)[offset : offset + count]
            return [(entry.name, self.attributes(entry.ino)) for entry in page]
        listing = self._catalog.listing(self._directory(ino), offset, count)
        sizes = self._sizes([name[:KEY_LENGTH] for name, _ino, _seconds in listing])
        entries: list[tuple[str, Attributes] | None] = [
            (name, self._clip_attributes(number, seconds, sizes.get(name[:KEY_LENGTH])))
            for name, number, seconds in listing
        ]
        for place in self.hidden.between(ino, offset, offset + len(entries)):
            entries[place - offset] = None
        return entries

    def _has_clips(self, ino: int) -> bool:
        return ino not in (ROOT, _CONTROL) and ino not in self._classes

    def _directory_entries(self, ino: int) -> list[DirEntry]:
        if ino == ROOT:
            entries = [DirEntry(_CONTROL_NAME, _CONTROL, NodeType.DIRECTORY)]
            entries += [DirEntry(name, split.ino, NodeType.DIRECTORY) for name, split in self._splits.items()]
            if _VALIDATION in self._splits:
                entries.append(DirEntry(_VAL_NAME, _VAL, NodeType.SYMLINK))
            return entries
        if ino == _CONTROL:
            return [DirEntry(name, number, NodeType.FILE) for name, number in self._control_inodes.items()]
        classes = self._classes[ino].items()
        return [DirEntry(name, directory.ino, NodeType.DIRECTORY) for name, directory in classes]

    def parent(self, ino: int) -> int:
        """The inode number of a directory's parent."""
        directory = self._catalog.directory(ino)
        return directory.parent or ROOT if directory else ROOT

    def readlink(self, ino: int) -> str:
        """The target of a symbolic link.

        Raises:
            OSError: EINVAL if it is not one.
        """
        if ino != _VAL:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return _VALIDATION

    # Attributes

    def attributes(self, ino: int) -> Attributes:
        """What stat shows; never asks the network.

        Raises:
            OSError: ENOENT.
        """
        if ino == ROOT:
            return self._directory_attributes(ino, subdirectories=len(self._splits) + 1)
        if ino == _CONTROL:
            return self._directory_attributes(ino, subdirectories=0)
        if ino == _VAL:
            return Attributes(ino, NodeType.SYMLINK, len(_VALIDATION), 1, self._mtime, AttrCache.FOREVER)
        control = self._control_files.get(ino)
        if control is not None:
            mtime = int(time.time()) if control.live else self._mtime
            attr_cache = AttrCache.NONE if control.live else AttrCache.FOREVER
            return Attributes(ino, NodeType.FILE, control.size(), 1, mtime, attr_cache)
        if (directory := self._catalog.directory(ino)) is not None:
            return self._directory_attributes(ino, len(self._classes[ino]) if directory.label is None else 0)
        clip = self._entry(ino).clip
        return self._clip_attributes(ino, clip.duration, self._sizes([clip.key]).get(clip.key))

    def _sizes(self, keys: list[str]) -> dict[str, KnownSize]:
        known = self._store.sizes(keys)
        if self._sizes_elsewhere is not None and len(known) < len(keys):
            try:
                others = self._sizes_elsewhere([key for key in keys if key not in known])
            except KineticsError as error:
                _log.error("sizes are estimates from now on: %s", error)
                self._sizes_elsewhere = None
            else:
                known |= {key: KnownSize(size, cached=False) for key, size in others.items()}
        return known

    def statistics(self) -> Statistics:
        """What statfs shows: the clips that are shown, and the bytes that are here."""
        return Statistics(self._store.usage().bytes, self._catalog.clip_count - self.hidden.total)

    def list_xattrs(self, ino: int) -> list[str]:
        """Names of the extended attributes of a node; only clips have some."""
        return [] if self._is_virtual(ino) else list(self._xattrs(self._entry(ino)))

    def xattr(self, ino: int, name: str) -> bytes:
        """An extended attribute.

        Raises:
            OSError: ENODATA if the node has none of this name.
        """
        if name.startswith(_ATTRIBUTES) and not self._is_virtual(ino):
            value = self._xattrs(self._entry(ino)).get(name)
            if value is not None:
                return value.encode()
        raise OSError(errno.ENODATA, "no such attribute", name)

    # Content

    def open_now(self, ino: int) -> Handle | None:
        """Opens a file if it is a clip that is here; None for `open` to see to it.

        Raises:
            OSError: ENOENT.
            FetchError: the clip is here, but cannot be opened.
        """
        if self._is_virtual(ino):
            return None
        handle = self._open_cached(self._entry(ino), arrived=False)
        self._hits += handle is not None
        return handle

    def open(self, ino: int) -> Future[Handle]:
        """Opens a file; a clip that is not here is fetched.

        Returns:
            A future of the handle, which may be waited for, or cancelled by who no longer wants it. It raises an
            `OSError`, or the `FetchError` for which the clip cannot be had; see `errno_of`.
        """
        opened: Future[Handle] = Future()
        control = self._control_files.get(ino)
        if control is not None and control.slow:
            threading.Thread(target=_render, args=(control, opened), daemon=True).start()
        elif control is not None:
            opened.set_result(control.open())
        elif self._is_virtual(ino):
            opened.set_exception(OSError(errno.EISDIR, "is a directory"))
        else:
            self._open_clip(self._entry(ino), opened, tries=_OPEN_TRIES)
        return opened

    def _open_clip(self, entry: Entry, opened: Future[Handle], tries: int) -> None:
        handle = self._open_cached(entry, arrived=tries < _OPEN_TRIES)
        if handle is not None:
            self._hits += tries == _OPEN_TRIES
            # At the first try nobody else has the future yet, who could have cancelled it.
            if tries == _OPEN_TRIES or opened.set_running_or_notify_cancel():
                opened.set_result(handle)
            else:
                handle.close()
            return
        if tries == _OPEN_TRIES:
            self._misses += 1
            opened.add_done_callback(lambda opened: self._count_end(_how_ended(opened)))
        if tries == 0:
            # Fetched again and again, and evicted before we could open it: the cache is far too small.
            opened.set_exception(FetchError(FailureKind.LOCAL, "evicted before it could be opened", errno=errno.ENOSPC))
            return
        begins = not self._fetcher.is_fetching(entry.clip)
        if begins and (refusal := self._gate.refusal()) is not None:
            opened.set_exception(self._fetcher.known_failure(entry.clip) or refusal)
            return

        def arrived(fetch: Future[None]) -> None:
            if opened.cancelled():
                return
            error = fetch.exception()
            try:
                if error is not None:
                    raise error
                if begins and (record := self._store.record(entry.clip)) is not None:
                    self._gate.brought(record.size)
                self._open_clip(entry, opened, tries - 1)
            except BaseException as failure:
                if opened.set_running_or_notify_cancel():
                    opened.set_exception(failure)
                if self._watch and isinstance(failure, FetchError) and failure.kind is FailureKind.GONE:
                    self._watch.found(entry.clip)

        self._notice(entry, False)
        fetch = self._fetcher.request(entry.clip)
        if begins and not fetch.done():  # else a failure that is remembered
            self._gate.begun()
        fetch.add_done_callback(arrived)
        opened.add_done_callback(lambda opened: opened.cancelled() and fetch.cancel())

    def _count_end(self, how: str) -> None:
        with self._ended_lock:
            self._ended[how] += 1

    def _open_cached(self, entry: Entry, *, arrived: bool) -> Handle | None:
        """A handle on a clip that is here; on the same file as the inode's other handles, if it has any."""
        ino = entry.ino
        with self._files_lock:
            file = self._files.get(ino)
            if file is None:
                try:
                    stored = self._store.open_nowait(entry.clip)
                except FetchError:
                    if not arrived:  # else it is counted as one that had to wait
                        self._misses += 1
                        self._count_end("failed")
                    raise
                if stored is None:
                    return None
                # What was stored before we began is what we showed from the beginning.
                news = (arrived or stored.stored_at >= self._since) and self._versions.get(ino) != stored.stored_at
                file = self._files[ino] = SharedFile(stored.fd, stored.size, stored.stored_at, news=news)
            file.users += 1
        self._notice(entry, True)

        def consume_invalidation(file: SharedFile) -> bool:
            with self._files_lock:
                news, file.news = file.news, False
                if news:
                    self._versions[ino] = file.version
            return news

        def release(file: SharedFile) -> None:
            with self._files_lock:
                file.users -= 1
                if file.users:
                    return
                del self._files[ino]
            os.close(file.fd)

        return ClipHandle(file, consume_invalidation=consume_invalidation, release=release)

    # Seeing

    def set_frontend_status(self, state: Callable[[], Mapping[str, object]]) -> None:
        """Tells who shows the tree: `state` says how it goes whenever it is asked, with at least `name` and `mode`."""
        self._frontend = state

    @property
    def opens(self) -> tuple[int, int]:
        """How many opens found their clip here, and how many did not."""
        return self._hits, self._misses

    def status(self) -> dict[str, object]:
        """What `status.json` says."""
        refusals = self._catalog.refusals()
        return {
            **self._about,
            "frontend": dict(self._frontend()),
            "pid": os.getpid(),
            "since": _timestamp(self._since),
            "release": self._catalog.release,
            "clips": self._catalog.clip_count,
            "hidden": self.hidden.total,
            "splits": {
                name: {"clips": split.clips, "classes": len(self._classes[split.ino])}
                for name, split in self._splits.items()
            },
            "refused_rows": refusals.by_reason,
            "duplicate_rows": self._catalog.duplicates,
            "opens": self._opens(),
            "fetch": self._fetcher.report(),
            **self._store.report(),
            "gate": self._gate.report(),
            "evicted": self._store.evicted,
            **{name: report() for name, report in self._reports.items()},
        }

    def _opens(self) -> dict[str, object]:
        hits, misses = self._hits, self._misses
        with self._ended_lock:
            ended = {how: self._ended[how] for how in ("fetched", "failed", "interrupted")}
        return {
            "from_cache": hits,
            "not_in_cache": misses,
            "hit_rate": round(hits / (hits + misses), 4) if hits + misses else None,
            **ended,
            "waiting": max(0, misses - sum(ended.values())),
        }

    def metrics(self) -> str:
        """The same for Prometheus, in its text format."""
        from kinetics_fs.vfs.metrics import exposition  # its library is needed by who asks alone

        return exposition(self.status(), self._fetcher.counters)

    def _failures_csv(self) -> str:
        rows = []
        for failure in self._store.failures():
            clip = parse_clip_name(f"{failure.key}.mp4")
            for entry in self._catalog.locate(clip) if clip else ():
                rows.append(
                    [
                        self._path(entry),
                        failure.kind,
                        failure.reason,
                        failure.source,
                        str(failure.attempts),
                        _timestamp(failure.first_at),
                        _timestamp(failure.last_at),
                        _timestamp(failure.retry_at),
                    ]
                )
        return to_csv(["path", "kind", "reason", "source", "attempts", "first", "last", "retry_after"], rows)

    def _refused_csv(self) -> str:
        refusals = self._catalog.refusals()
        rows = [[refusal.file, str(refusal.line), refusal.reason, refusal.text] for refusal in refusals.first]
        return to_csv(["file", "line", "reason", "row"], rows)

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

    def _clip_attributes(self, ino: int, seconds: int, known: KnownSize | None) -> Attributes:
        if (file := self._files.get(ino)) is not None:
            # What its readers have, whatever came after.
            return Attributes(ino, NodeType.FILE, file.size, 1, self._mtime, AttrCache.FOREVER)
        if known is None:
            size = seconds * _LIKELY_MOST_BYTES_PER_SECOND
            return Attributes(ino, NodeType.FILE, size, 1, self._mtime, AttrCache.UNTIL_OPEN)
        # Fetched anew after an eviction, it may come out a little different.
        attr_cache = AttrCache.FOREVER if known.cached else AttrCache.UNTIL_OPEN
        return Attributes(ino, NodeType.FILE, known.size, 1, self._mtime, attr_cache)

    def _directory_attributes(self, ino: int, subdirectories: int) -> Attributes:
        return Attributes(ino, NodeType.DIRECTORY, 4096, 2 + subdirectories, self._mtime, AttrCache.FOREVER)

    def _path(self, entry: Entry) -> str:
        directory = self._directory(entry.directory)
        return f"{directory.split}/{self._class_name[directory.ino]}/{entry.clip.name}"

    def _xattrs(self, entry: Entry) -> dict[str, str]:
        clip, directory = entry.clip, self._directory(entry.directory)
        record, failure = self._store.record(clip), self._store.failure(clip)
        values = {"id": clip.youtube_id, "start": str(clip.start), "end": str(clip.end)}
        if directory.label in self._catalog.labels():
            values["label"] = directory.label or ""
        if record is not None and record.cached:
            values |= {"state": "cached", "source": record.source, "sha256": record.sha256}
        elif self._fetcher.is_fetching(clip):
            values["state"] = "fetching"
        else:
            values["state"] = "absent" if failure is None else "failed"
            # What its open would say; a block is not the clip's own failure, but why it cannot be had now.
            error = self._fetcher.known_failure(clip) or self._gate.refusal()
            error = error or (self._block() if failure is None else failure.error())
            if error is not None:
                values["error"] = f"{error.kind}: {error.reason}"
        return {_ATTRIBUTES + name: value for name, value in values.items()}

    def _block(self) -> FetchError | None:
        for origin in self._store.origins.states():
            if origin.blocked_until is not None:
                return FetchError(FailureKind.BLOCKED, f"{origin.name}: {origin.reason}")
        return None


def _named(directories: list[Directory], style: ClassNames) -> dict[str, Directory]:
    """Class directories by their names in the mount."""
    by_label = {directory.label or "": directory for directory in directories}
    return {name: by_label[label] for name, label in name_table(list(by_label), style).items()}


def _how_ended(opened: Future[Handle]) -> str:
    if opened.cancelled():
        return "interrupted"
    return "fetched" if opened.exception() is None else "failed"


def _render(file: TextFile | SplitList, opened: Future[Handle]) -> None:
    try:
        handle = file.open()
    except BaseException as error:
        if opened.set_running_or_notify_cancel():
            opened.set_exception(error)
    else:
        if opened.set_running_or_notify_cancel():
            opened.set_result(handle)


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
