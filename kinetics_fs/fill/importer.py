"""Import of a folder of clips into a store, in one walk through the folder."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich import filesize

from kinetics_fs.catalog import Catalog, Clip, parse_file_name
from kinetics_fs.errors import FailureKind, FetchError, KineticsError
from kinetics_fs.media.verify import VerifyLevel
from kinetics_fs.sources import NotInSource
from kinetics_fs.sources.archive.tar import MAX_CLIP_SIZE
from kinetics_fs.sources.folder import SOURCE, import_file, stat_local
from kinetics_fs.store import ActivityCounts, HistoryRecorder, Store, one_line

_log = logging.getLogger(__name__)

_PAGE_SIZE = 500
_THREADS = 4
"""Files to import at the same time: most of the time they wait for disks."""


@dataclass
class ImportResult:
    """The result of an import, in files unless said otherwise.

    Attributes:
        found: files and folders seen in the folder so far.
        to_import: files that have the name of a wanted clip.
        done: files of those that were imported or refused so far.
        imported: clips that were added to the store.
        linked: those of them that are hard links to the files in the folder.
        already_cached: files whose clips are in the store already.
        not_in_annotations: files whose clips are not in the catalog.
        busy: files whose clips another process was fetching at that moment.
        corrupt: files that have the name of a clip but failed verification, by reason.
        unreadable: files and folders that could not be read, by reason.
        skipped: files that are not clips, by reason.
        problem: the failure that ended the import early.
        interrupted: Ctrl-C ended the import early.
    """

    found: int = 0
    to_import: int = 0
    done: int = 0
    imported: int = 0
    linked: int = 0
    already_cached: int = 0
    not_in_annotations: int = 0
    busy: int = 0
    corrupt: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    problem: FetchError | None = None
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every file that has the name of a wanted clip is in the store."""
        return not (self.corrupt or self.unreadable or self.busy or self.problem or self.interrupted)

    def to_json(self) -> dict[str, Any]:
        """Return the result without the progress."""
        left_out = ("found", "to_import", "done", "problem")
        return {name: value for name, value in vars(self).items() if name not in left_out}


OnProgress = Callable[[ImportResult], object]
"""Receives the result so far after each file."""


def import_folder(
    folder: Path,
    store: Store,
    catalog: Catalog,
    *,
    verify: VerifyLevel,
    link: bool,
    limit: int | None,
    min_free: int,
    on_progress: OnProgress = lambda result: None,
) -> ImportResult:
    """Import the clips of a catalog that are anywhere below a folder. Nothing in the store is evicted for them.

    An import may end at any point, and be repeated: it passes over the clips that are in the store.

    Args:
        folder: the folder. Symbolic links to files are followed, those to folders are not.
        store: the store to import into.
        catalog: the clips that are wanted.
        verify: how to verify each file.
        link: make hard links where possible; else copy.
        limit: maximum size of the cache, in bytes; None for no limit.
        min_free: bytes of the disk to leave free.
        on_progress: receives the result so far.

    Raises:
        KineticsError: the clips do not fit into the cache or on the disk. Nothing was imported.
        StoreError: the store cannot be used.
    """
    walk = _FolderImport(folder, store, catalog, verify=verify, link=link, on_progress=on_progress)
    with HistoryRecorder(store.history, ActivityCounts):  # an import fetches nothing, but the size of the cache changes
        try:
            walk.find_files()
            walk.check_space(limit, min_free)
            walk.import_files()
        except KeyboardInterrupt:
            walk.result.interrupted = True
        except FetchError as error:
            walk.result.problem = error
    return walk.result


class _File(NamedTuple):
    """A file that has the name of a clip."""

    folder: str
    name: str
    clip: Clip


class _FolderImport:
    def __init__(
        self,
        folder: Path,
        store: Store,
        catalog: Catalog,
        *,
        verify: VerifyLevel,
        link: bool,
        on_progress: OnProgress,
    ) -> None:
        self._folder = folder
        self._store = store
        self._catalog = catalog
        self._verify = verify
        self._link = link
        self._on_progress = on_progress
        self._device = store.folder.stat().st_dev
        self._lock = threading.Lock()
        self._names: dict[str, list[str]] = {}
        """Names of the files to import, by folder, so that the path of each folder is in memory once."""
        self._duplicates: list[Path] = []
        """Further files of clips in `_names`, to be imported if the first file fails verification."""
        self._bytes = 0
        """Size of the files to import."""
        self._bytes_to_copy = 0
        """Size of those of them that will take space on the disk."""
        self.result = ImportResult()

    def find_files(self) -> None:
        """Walk through the folder and find the files to import."""
        seen: set[Clip] = set()
        files = self._walk()
        while page := list(islice(files, _PAGE_SIZE)):
            wanted = {position.key for position in self._catalog.positions({file.clip.key for file in page})}
            sizes = self._store.sizes(list(wanted))
            for file in page:
                key = file.clip.key
                if key not in wanted:
                    self.result.not_in_annotations += 1
                elif key in sizes and sizes[key].cached:
                    self.result.already_cached += 1
                elif self._add_file(file, duplicate=file.clip in seen):
                    seen.add(file.clip)

    def check_space(self, limit: int | None, min_free: int) -> None:
        """Refuse an import that does not fit beside all cached clips.

        Raises:
            KineticsError: the limit or the disk is too small.
        """
        usage = self._store.usage()
        refusal = f"cannot import {one_line(str(self._folder))}"
        if self._bytes and limit is not None and usage.bytes + self._bytes > limit:
            raise KineticsError(
                f"{refusal}: its clips have {filesize.decimal(self._bytes)}, the cached clips"
                f" {filesize.decimal(usage.bytes)}, and --cache-size is {filesize.decimal(limit)}; give a larger"
                " --cache-size or select less"
            )
        free = max(0, usage.disk_free - min_free)
        if self._bytes_to_copy > free:
            raise KineticsError(
                f"{refusal}: {filesize.decimal(self._bytes_to_copy)} must be copied, and the disk of"
                f" {self._store.folder} has space for {filesize.decimal(free)}; give a --cache-dir on another disk or"
                " select less"
            )

    def import_files(self) -> None:
        """Import the files that were found.

        Raises:
            FetchError: there is no space, or the store cannot be written (LOCAL).
            StoreError: the store cannot be used.
        """
        pool = ThreadPoolExecutor(_THREADS)
        files = (Path(folder, name) for folder, names in self._names.items() for name in names)
        try:
            while page := list(islice(files, _PAGE_SIZE)):
                for _ in pool.map(self._import, page):
                    self._finish_file()
        finally:
            # Files in progress are finished.
            pool.shutdown(cancel_futures=True)
        for path in self._duplicates:  # one after the other: three of them may be the same clip
            self._import(path)
            self._finish_file()

    # Finding

    def _walk(self) -> Iterator[_File]:
        own = self._store.folder.stat()
        folders = [str(self._folder)]
        while folders:
            folder = folders.pop()
            try:
                if os.path.samestat(Path(folder).stat(), own):
                    continue  # the store has files with names of clips, too
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            self.result.skipped["hidden"] += 1
                        elif entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif (clip := _clip_of(entry.name)) is None:
                            self.result.skipped["not the name of a clip"] += 1
                        else:
                            yield _File(folder, entry.name, clip)
                        self.result.found += 1
                        self._on_progress(self.result)
            except OSError as error:
                self._count_unreadable(folder, f"cannot be read: {error.strerror}")

    def _add_file(self, file: _File, *, duplicate: bool) -> bool:
        """Add a file to those to import, or count why it is not; return whether it was added."""
        path = Path(file.folder, file.name)
        try:
            status = stat_local(path)
        except OSError as error:
            self._count_unreadable(str(path), f"cannot be read: {error.strerror}")
            return False
        if status is None:
            self.result.skipped["not a regular file"] += 1
            return False
        if not 0 < status.st_size <= MAX_CLIP_SIZE:
            self._count_corrupt(path, "the file is too large for a clip" if status.st_size else "the file is empty")
            return False
        self.result.to_import += 1
        if duplicate:
            self._duplicates.append(path)
            return True
        self._names.setdefault(file.folder, []).append(file.name)
        self._bytes += status.st_size
        if not (self._link and status.st_dev == self._device and status.st_uid == os.geteuid()):
            self._bytes_to_copy += status.st_size
        return True

    # Importing

    def _import(self, path: Path) -> None:
        clip = _clip_of(path.name)
        assert clip is not None
        try:
            self._publish(path, clip)
        except NotInSource:
            self._count_unreadable(str(path), "removed during the import")
        except FetchError as error:
            if error.kind is FailureKind.CORRUPT:
                self._count_corrupt(path, error.reason)
            elif error.kind is FailureKind.TRANSIENT:
                self._count_unreadable(str(path), error.reason)
            else:
                raise

    def _publish(self, path: Path, clip: Clip) -> None:
        if self._store.is_cached(clip):  # another file in the folder has the same clip
            self._count(already_cached=1)
            return
        try:
            size = path.stat().st_size
        except OSError:
            raise NotInSource from None
        claim = self._store.claim(clip, size=size, protect_used_since=0)
        if claim is None:
            self._count(busy=1)
            return
        with claim:
            file = claim.folder / clip.name
            linked = import_file(path, file, link=self._link)
            original = file.stat().st_ino
            self._verify.check(file)
            linked = linked and file.stat().st_ino == original
            claim.publish(file, SOURCE)
        self._count(imported=1, linked=int(linked))

    # Counting

    def _finish_file(self) -> None:
        self.result.done += 1
        self._on_progress(self.result)

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self.result, name, getattr(self.result, name) + number)

    def _count_corrupt(self, path: Path, reason: str) -> None:
        _log.warning("%s: not imported: %s", one_line(str(path)), reason)
        with self._lock:
            self.result.corrupt[reason] += 1

    def _count_unreadable(self, path: str, reason: str) -> None:
        _log.warning("%s: %s", one_line(path), reason)
        with self._lock:
            self.result.unreadable[reason] += 1


def _clip_of(name: str) -> Clip | None:
    parsed = parse_file_name(name)
    return parsed.clip if parsed.suffix == ".mp4" else None
