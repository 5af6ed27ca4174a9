"""Import of a folder of clips into a cache or a shared store, in one walk through the folder.

The list of files is in a temporary database, so that the memory of an import does not grow with the folder.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from rich import filesize

from kinetics_fs.catalog import Catalog, Clip, FileName, parse_file_name
from kinetics_fs.catalog.file_names import HIDDEN, NO_TIMES
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.media.checker import Checker
from kinetics_fs.sources import NotInSource
from kinetics_fs.sources.archive.tar import MAX_CLIP_SIZE
from kinetics_fs.sources.folder import SOURCE, find_excerpt_of, find_file, import_file, is_on_disk, preference
from kinetics_fs.sources.folder_files import DANGLING, LINK_TO_FOLDER, UnusedFiles, list_folder
from kinetics_fs.store import ActivityCounts, HistoryRecorder, Store, one_line
from kinetics_fs.store.layout import SHARED_STORE_RECORD
from kinetics_fs.util.beneath import find_beneath

if TYPE_CHECKING:
    from kinetics_fs.shared.sync import SyncResult

_log = logging.getLogger(__name__)

_PAGE_SIZE = 500
_THREADS = 4
"""Files to import at the same time: most of the time they wait for disks."""

_NOT_SELECTED = "not in the annotations"


@dataclass
class ImportResult:
    """The result of an import, in files unless said otherwise.

    Attributes:
        found: files and folders seen in the folder so far.
        to_import: files that have the name of a wanted clip.
        done: files of those that were imported or refused so far.
        imported: clips that were added to the store.
        linked: those of them that are hard links to the files in the folder.
        bytes: size of the clips that were added.
        already_cached: files whose clips are in the store already.
        not_in_annotations: files whose clips are not in the catalog.
        busy: files whose clips another process was fetching at that moment.
        corrupt: files that have the name of a clip but failed verification, by reason.
        unreadable: files and folders that could not be read, by reason.
        unused: files that are not clips or not in the catalog, by the pattern of their names.
        uploads: the clips that were uploaded to the shared store afterwards; None without one.
        problem: the failure that ended the import or the uploads early.
        interrupted: Ctrl-C ended them early.
    """

    found: int = 0
    to_import: int = 0
    done: int = 0
    imported: int = 0
    linked: int = 0
    bytes: int = 0
    already_cached: int = 0
    not_in_annotations: int = 0
    busy: int = 0
    corrupt: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    unused: UnusedFiles = field(default_factory=UnusedFiles)
    uploads: SyncResult | None = None
    problem: KineticsError | None = None
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every file that has the name of a wanted clip was imported, and uploaded if there are uploads."""
        is_uploaded = self.uploads is None or self.uploads.complete
        return is_uploaded and not (self.corrupt or self.unreadable or self.busy or self.problem or self.interrupted)

    @property
    def skipped(self) -> Counter[str]:
        """Files that are not clips, by reason."""
        reasons = Counter[str]()
        for group in self.unused.groups():
            if group.reason != _NOT_SELECTED:
                reasons[group.reason] += group.files
        return reasons

    def to_json(self) -> dict[str, Any]:
        """Return the result without the progress."""
        left_out = ("found", "to_import", "done", "problem", "unused", "uploads")
        result = {name: value for name, value in vars(self).items() if name not in left_out}
        if self.uploads is not None:
            result["uploads"] = self.uploads.to_json()
        return result | {"skipped": self.skipped, "unused": [group._asdict() for group in self.unused.groups()]}


OnProgress = Callable[[ImportResult], object]
"""Receives the result so far after each file."""


class ImportClaim(Protocol):
    """The right to add a clip, to be used as a context. See `kinetics_fs.store.Claim`.

    Attributes:
        folder: a private, empty folder for the file of the clip.
    """

    @property
    def folder(self) -> Path:
        """See the class."""
        ...

    def publish(self, path: Path, source: str, *, cut: bool, duration: float | None) -> int:
        """Make a finished and verified file the clip, and return its size in bytes."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...


class ImportTarget(Protocol):
    """The place to which clips are imported, to be used as a context. Safe for threads."""

    @property
    def scratch(self) -> Path:
        """The folder for the folders of confined processes."""
        ...

    @property
    def links_on(self) -> int | None:
        """The filesystem on which hard links to files of the user take no space; None if they cannot be made."""
        ...

    def stored(self, clips: Sequence[Clip]) -> set[Clip]:
        """Return the clips that need not be imported."""
        ...

    def find_shortage(self, size: int, copied: int, min_free: int) -> str:
        """Return why an import does not fit, and what to do about it; empty if it does.

        Args:
            size: bytes of all clips.
            copied: bytes of those that are no hard links.
            min_free: bytes of the disk to leave free.
        """
        ...

    def claim(self, clip: Clip, size: int | None) -> ImportClaim | None:
        """Return the right to add a clip of about this size in bytes; None if another process adds it."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...


class CacheTarget:
    """A cache as the target of an import. Nothing in it is evicted for the clips.

    Args:
        store: the cache.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # An import fetches nothing, but the size of the cache changes.
        self._history = HistoryRecorder(store.history, ActivityCounts)
        self.scratch = store.scratch
        self.links_on: int | None = store.folder.stat().st_dev

    def stored(self, clips: Sequence[Clip]) -> set[Clip]:
        """See `ImportTarget.stored`."""
        sizes = self._store.sizes([clip.key for clip in clips])
        return {clip for clip in clips if clip.key in sizes and sizes[clip.key].cached}

    def find_shortage(self, size: int, copied: int, min_free: int) -> str:
        """See `ImportTarget.find_shortage`."""
        usage = self._store.usage()
        if size and usage.limit is not None and usage.bytes + size > usage.limit:
            return (
                f"its clips have {filesize.decimal(size)}, the cached clips {filesize.decimal(usage.bytes)}, and the"
                f" limit of the cache is {filesize.decimal(usage.limit)}; give a larger --cache-size or select less"
            )
        free = max(0, usage.disk_free - min_free)
        if copied > free:
            return (
                f"{filesize.decimal(copied)} must be copied, and the disk of {self._store.folder} has space for"
                f" {filesize.decimal(free)}; give a --cache-dir on another disk or select less"
            )
        return ""

    def claim(self, clip: Clip, size: int | None) -> ImportClaim | None:
        """See `ImportTarget.claim`."""
        return self._store.claim(clip, size=size, protect_used_since=0)

    def __enter__(self) -> Self:
        self._history.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._history.__exit__(*error)


def import_folder(
    folder: Path,
    target: ImportTarget,
    catalog: Catalog,
    *,
    verify: VerifyLevel,
    link: bool,
    min_free: int,
    max_height: int,
    exact: bool,
    on_progress: OnProgress = lambda result: None,
) -> ImportResult:
    """Import the clips of a catalog that are anywhere below a folder.

    An import may end at any point, and be repeated: it passes over the clips that the target has.

    Args:
        folder: the folder. Symbolic links to files are followed as `find_beneath` describes, those to folders are not.
        target: the place to import into.
        catalog: the clips that are wanted.
        verify: how to verify each file.
        link: make hard links where possible; else copy.
        min_free: bytes of the disk to leave free.
        max_height: maximum height in lines of clips that are cut out of whole videos.
        exact: cut these to the exact frame by re-encoding; otherwise copy from a keyframe on.
        on_progress: receives the result so far.

    Raises:
        KineticsError: the clips do not fit into the target. Nothing was imported.
        StoreError: the cache cannot be used.
        SharedStoreError: the shared store cannot be used.
    """
    if (folder / SHARED_STORE_RECORD).exists():
        raise KineticsError(
            f"cannot import {one_line(str(folder))}: it is a shared store, in which files have more than the bytes of"
            " their clips; read it with --shared"
        )
    with _FileList(folder) as files, target, Checker(target.scratch) as checker:
        cut = partial(checker.cut, max_height=max_height, exact=exact)
        walk = _FolderImport(
            folder, target, catalog, files, checker, verify=verify, link=link, cut=cut, on_progress=on_progress
        )
        try:
            walk.find_files()
            walk.check_space(min_free)
            walk.import_files()
        except KeyboardInterrupt:
            walk.result.interrupted = True
        except FetchError as error:
            walk.result.problem = error
    return walk.result


class _File(NamedTuple):
    """A file to import.

    Attributes:
        clip: the clip that it has.
        preference: smaller for better files of the same clip.
        size: bytes that it will need in the cache.
        copied: whether it will take space on the disk.
        folder: path of its folder below the one to import.
        name: its name.
    """

    clip: Clip
    preference: int
    size: int
    copied: bool
    folder: str
    name: str


class _FileList:
    """The files to import, in a temporary database that SQLite removes however the process ends.

    Args:
        folder: the folder to import, for messages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE folder (id INTEGER PRIMARY KEY, path BLOB UNIQUE);
            CREATE TABLE file (
                youtube_id TEXT, start INTEGER, "end" INTEGER, preference INTEGER, size INTEGER, copied INTEGER,
                folder INTEGER, name BLOB, first INTEGER DEFAULT 1
            );
            """
        )

    def add(self, files: Sequence[_File]) -> None:
        """Add files."""
        folders = {os.fsencode(file.folder) for file in files}
        self._run("INSERT OR IGNORE INTO folder (path) VALUES (?)", [(folder,) for folder in folders])
        self._run(
            'INSERT INTO file (youtube_id, start, "end", preference, size, copied, folder, name)'
            " VALUES (?, ?, ?, ?, ?, ?, (SELECT id FROM folder WHERE path = ?), ?)",
            [(*file.clip, *file[1:4], os.fsencode(file.folder), os.fsencode(file.name)) for file in files],
        )

    def finish(self) -> None:
        """Find the best file of each clip."""
        self._run('CREATE INDEX of_clip ON file (youtube_id, start, "end", preference)', [()])
        self._run(
            """
            UPDATE file SET first = 0 WHERE EXISTS (
                SELECT 1 FROM file AS other
                WHERE (other.youtube_id, other.start, other."end") = (file.youtube_id, file.start, file."end")
                AND (other.preference, other.rowid) < (file.preference, file.rowid)
            )
            """,
            [()],
        )

    def bytes(self, *, copied: bool) -> int:
        """Return the total size of the best files, or of those of them that take space on the disk."""
        ((total,),) = self._database.execute(
            "SELECT COALESCE(SUM(size), 0) FROM file WHERE first AND copied >= ?", (copied,)
        )
        return int(total)

    def files(self, *, first: bool) -> Iterator[tuple[Clip, Path]]:
        """Yield the best file of each clip in the order of the folders, or the others, the better ones first."""
        order = "file.rowid" if first else "preference, file.rowid"
        for *clip, path, name in self._database.execute(
            'SELECT youtube_id, start, "end", path, name FROM file JOIN folder ON folder.id = folder'
            f" WHERE first = ? ORDER BY {order}",
            (first,),
        ):
            yield Clip(*clip), Path(os.fsdecode(path), os.fsdecode(name))

    def _run(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            self._database.executemany(sql, rows)
        except sqlite3.Error as error:
            raise KineticsError(
                f"cannot import {one_line(str(self._folder))}: the list of its files cannot be kept in a temporary"
                f" file ({error}); free space, or set TMPDIR to a folder on another disk"
            ) from error

    def __enter__(self) -> _FileList:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


class _FolderImport:
    def __init__(
        self,
        folder: Path,
        target: ImportTarget,
        catalog: Catalog,
        files: _FileList,
        checker: Checker,
        *,
        verify: VerifyLevel,
        link: bool,
        cut: Callable[[Media, float, Path], float],
        on_progress: OnProgress,
    ) -> None:
        self._folder = folder
        self._target = target
        self._catalog = catalog
        self._files = files
        self._verify = verify
        self._checker = checker
        self._cut = cut
        self._on_progress = on_progress
        self._links_on = target.links_on if link else None
        self._lock = threading.Lock()
        self.result = ImportResult()

    def find_files(self) -> None:
        """Walk through the folder and find the files to import.

        Raises:
            KineticsError: there is no space for the list of them.
        """
        files = self._walk()
        while page := list(islice(files, _PAGE_SIZE)):
            videos = self._catalog.clips_of_videos({parsed.youtube_id for _, _, parsed in page})
            stored = self._target.stored([clip for clips in videos.values() for clip in clips])
            wanted: list[_File] = []
            for folder, name, parsed in page:
                clips = videos.get(parsed.youtube_id, [])
                if parsed.clip is not None:
                    clips = [clip for clip in clips if clip == parsed.clip]
                if not clips:
                    self.result.not_in_annotations += 1
                    self.result.unused.add(self._path(folder, name), _NOT_SELECTED)
                elif len(clips) > 1:
                    self.result.unused.add(self._path(folder, name), NO_TIMES)
                elif clips[0] in stored:
                    self.result.already_cached += 1
                elif (one := self._judge(folder, name, parsed, clips[0])) is not None:
                    wanted.append(one)
            self.result.to_import += len(wanted)
            self._files.add(wanted)
        self._files.finish()

    def check_space(self, min_free: int) -> None:
        """Refuse an import that does not fit.

        Raises:
            KineticsError: the limit or the disk is too small.
        """
        size, copied = self._files.bytes(copied=False), self._files.bytes(copied=True)
        if shortage := self._target.find_shortage(size, copied, min_free):
            raise KineticsError(f"cannot import {one_line(str(self._folder))}: {shortage}")

    def import_files(self) -> None:
        """Import the files that were found.

        Raises:
            FetchError: there is no space, or the store cannot be written (LOCAL).
            StoreError: the store cannot be used.
        """
        pool = ThreadPoolExecutor(_THREADS)
        files = self._files.files(first=True)
        try:
            while page := list(islice(files, _PAGE_SIZE)):
                for _ in pool.map(self._import, page):
                    self._finish_file()
        finally:
            # Files in progress are finished.
            pool.shutdown(cancel_futures=True)
        for file in self._files.files(first=False):  # one after the other: three of them may be the same clip
            self._import(file)
            self._finish_file()

    # Finding

    def _walk(self) -> Iterator[tuple[str, str, FileName]]:
        """Yield the files that have the name of a clip or a video, with their folders. Count all others."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with find_beneath(self._folder, folder) as opened:
                    for file in list_folder(opened):
                        path, name = self._path(folder, file.name), parse_file_name(file.name)
                        if name.fault == HIDDEN:
                            self.result.unused.add(path, HIDDEN)
                        elif file.folder and file.link:
                            self.result.unused.add(path, LINK_TO_FOLDER)
                        elif file.folder:
                            folders.append(f"{folder}/{file.name}" if folder else file.name)
                        elif not name.fault:
                            yield folder, file.name, name
                        elif file.link and not os.path.exists(path):  # noqa: PTH110  # a Path for each file is slow
                            self.result.unused.add(path, DANGLING)
                        else:
                            self.result.unused.add(path, name.fault)
                        self.result.found += 1
                        self._on_progress(self.result)
            except OSError as error:
                self._count_unreadable(self._path(folder), f"cannot be read: {error.strerror}")

    def _path(self, *names: str) -> str:
        return "/".join((str(self._folder), *filter(None, names)))

    def _judge(self, folder: str, name: str, parsed: FileName, clip: Clip) -> _File | None:
        """Return a file to import; None if it is not fit, which is counted."""
        path = self._path(folder, name)
        try:
            with find_beneath(self._folder, Path(folder, name)) as file:
                status = file.status if is_on_disk(file) else None
        except OSError as error:
            self._count_unreadable(path, f"cannot be read: {error.strerror}")
            return None
        if status is None:
            self.result.unused.add(path, "not a regular file")
            return None
        size = status.st_size
        if parsed.clip is None:  # it may be a whole video, of which only a part is stored
            size = min(size, MAX_CLIP_SIZE)
        if not 0 < size <= MAX_CLIP_SIZE:
            self._count_corrupt(path, "the file is too large for a clip" if size else "the file is empty")
            return None
        copied = status.st_dev != self._links_on or status.st_uid != os.geteuid()
        return _File(clip, preference(parsed), size, copied, folder, name)

    # Importing

    def _import(self, file: tuple[Clip, Path]) -> None:
        clip, name = file
        path = self._path(str(name))
        try:
            self._publish(name, clip)
        except NotInSource:
            self._count_unreadable(path, "removed during the import")
        except FetchError as error:
            if error.kind in (FailureKind.CORRUPT, FailureKind.GONE):
                self._count_corrupt(path, error.reason)
            elif error.kind is FailureKind.TRANSIENT:
                self._count_unreadable(path, error.reason)
            else:
                raise

    def _publish(self, path: Path, clip: Clip) -> None:
        if self._target.stored([clip]):  # another file in the folder has the same clip
            self._count(already_cached=1)
            return
        name = parse_file_name(path.name)
        with find_file(self._folder, path) as file:
            size = file.status.st_size if name.clip is not None else None
            claim = self._target.claim(clip, size)
            if claim is None:
                self._count(busy=1)
                return
            with claim:
                target, linked, is_cut, media = claim.folder / clip.name, False, False, None
                if name.clip is None:
                    media = find_excerpt_of(file, clip, self._checker.find_excerpt)
                if media is None or media.whole:
                    linked = import_file(file, target, link=self._links_on is not None)
                    original = target.stat().st_ino
                    # Without verification, the name must say that it is an mp4 file, or the first bytes.
                    duration = self._checker.check(target, self._verify, accept_unknown=name.suffix == ".mp4")
                    linked = linked and target.stat().st_ino == original
                else:
                    duration, is_cut = self._cut(media, clip.duration, target), True
                size = claim.publish(target, SOURCE, cut=is_cut, duration=duration)
        self._count(imported=1, linked=int(linked), bytes=size)

    # Counting

    def _finish_file(self) -> None:
        self.result.done += 1
        self._on_progress(self.result)

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self.result, name, getattr(self.result, name) + number)

    def _count_corrupt(self, path: str, reason: str) -> None:
        _log.warning("%s: not imported: %s", one_line(path), reason)
        with self._lock:
            self.result.corrupt[reason] += 1

    def _count_unreadable(self, path: str, reason: str) -> None:
        _log.warning("%s: %s", one_line(path), reason)
        with self._lock:
            self.result.unreadable[reason] += 1
