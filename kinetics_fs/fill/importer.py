"""A folder of clips into the store, in one walk through it."""

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
from typing import NamedTuple

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.verify import VerifyLevel
from kinetics_fs.sources import NotInSource
from kinetics_fs.sources.archive.tar import MOST_CLIP_BYTES
from kinetics_fs.sources.folder import SOURCE, import_file, parse_file_name, stat_local
from kinetics_fs.store import Store, one_line

_log = logging.getLogger(__name__)

_PAGE = 500
_AT_ONCE = 4
"""Clips to take at the same time: most of it is waiting for disks."""

Report = Callable[[int], object]
"""Told now and then how many more files are done."""


@dataclass
class ImportResult:
    """What a walk through a folder came to, in files unless said otherwise.

    Attributes:
        taken: published.
        linked: those of them that are hard links.
        present: clips that are in the store already.
        not_wanted: clips that are not in the catalog.
        busy: clips that were being fetched by another process at that moment.
        corrupt: under the name of a clip, but not fit to be published, by reason.
        unreadable: files and folders that could not be read, by reason.
        passed_over: files that are no clips, by reason.
    """

    taken: int = 0
    linked: int = 0
    present: int = 0
    not_wanted: int = 0
    busy: int = 0
    corrupt: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)


class _File(NamedTuple):
    """A file that has the name of a clip."""

    folder: str
    name: str
    clip: Clip


class FolderImporter:
    """Takes the clips of a folder into a store: `look`, then `take`.

    Args:
        folder: where they are. Symbolic links to files are followed, those to folders are not.
        store: where they go. Nothing that is there is evicted for them.
        catalog: the clips that are wanted.
        depth: how closely they are looked at.
        link: whether hard links will do.
    """

    def __init__(self, folder: Path, store: Store, catalog: Catalog, *, depth: VerifyLevel, link: bool = True) -> None:
        self._folder = folder
        self._store = store
        self._catalog = catalog
        self._depth = depth
        self._link = link
        self._device = store.folder.stat().st_dev
        self._lock = threading.Lock()
        self._found: dict[str, list[str]] = {}
        """By folder, the names of the files to take: that of each folder is held once."""
        self._again: list[Path] = []
        """Further files of the same clips, to be taken where the first is not fit."""
        self.intake = ImportResult()
        self.files = 0
        """To take, as far as the folder was looked at."""
        self.bytes = 0
        """Of the clips in them."""
        self.bytes_to_copy = 0
        """Of those of them that will take room on the disk."""

    def look(self, report: Report = lambda files: None) -> None:
        """Walks through the folder, and finds what there is to take."""
        seen: set[Clip] = set()
        files = self._walk(report)
        while page := list(islice(files, _PAGE)):
            wanted = {place.key for place in self._catalog.positions({file.clip.key for file in page})}
            sizes = self._store.sizes(list(wanted))
            for file in page:
                key = file.clip.key
                if key not in wanted:
                    self.intake.not_wanted += 1
                elif key in sizes and sizes[key].cached:
                    self.intake.present += 1
                elif self._find(file, again=file.clip in seen):
                    seen.add(file.clip)

    def take(self, report: Report = lambda files: None) -> None:
        """Takes what was found; may be broken off at any point, and done again.

        Raises:
            FetchError: there is no room, or the store cannot be written (LOCAL).
            StoreError: the store cannot be used.
        """
        pool = ThreadPoolExecutor(_AT_ONCE)
        files = (Path(folder, name) for folder, names in self._found.items() for name in names)
        try:
            while page := list(islice(files, _PAGE)):
                for _ in pool.map(self._take, page):
                    report(1)
        finally:
            # Those under way end as they would have.
            pool.shutdown(cancel_futures=True)
        for path in self._again:  # one by one, for three may be of one clip
            self._take(path)
            report(1)

    # Looking

    def _walk(self, report: Report) -> Iterator[_File]:
        own = self._store.folder.stat()
        waiting = [str(self._folder)]
        while waiting:
            place = waiting.pop()
            try:
                if os.path.samestat(Path(place).stat(), own):
                    continue  # what is under way there has names of clips, too
                with os.scandir(place) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            self.intake.passed_over["hidden"] += 1
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        elif (clip := parse_file_name(entry.name)) is None:
                            self.intake.passed_over["not the name of a clip"] += 1
                        else:
                            yield _File(place, entry.name, clip)
                        report(1)
            except OSError as error:
                self._count_unreadable(place, f"cannot be read: {error.strerror}")

    def _find(self, file: _File, *, again: bool) -> bool:
        """Puts down a file that is to be taken, or why it is not; returns whether it is."""
        path = Path(file.folder, file.name)
        try:
            status = stat_local(path)
        except OSError as error:
            self._count_unreadable(str(path), f"cannot be read: {error.strerror}")
            return False
        if status is None:
            self.intake.passed_over["not a regular file"] += 1
            return False
        if not 0 < status.st_size <= MOST_CLIP_BYTES:
            self._count_corrupt(path, "the file is too large for a clip" if status.st_size else "the file is empty")
            return False
        self.files += 1
        if again:
            self._again.append(path)
            return True
        self._found.setdefault(file.folder, []).append(file.name)
        self.bytes += status.st_size
        if not (self._link and status.st_dev == self._device and status.st_uid == os.geteuid()):
            self.bytes_to_copy += status.st_size
        return True

    # Taking

    def _take(self, path: Path) -> None:
        clip = parse_file_name(path.name)
        assert clip is not None
        try:
            self._publish(path, clip)
        except NotInSource:
            self._count_unreadable(str(path), "gone meanwhile")
        except FetchError as error:
            if error.kind is FailureKind.CORRUPT:
                self._count_corrupt(path, error.reason)
            elif error.kind is FailureKind.TRANSIENT:
                self._count_unreadable(str(path), error.reason)
            else:
                raise

    def _publish(self, path: Path, clip: Clip) -> None:
        if self._store.is_cached(clip):  # it is in the folder twice
            self._count(present=1)
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
            self._depth.check(file)
            claim.publish(file, SOURCE)
        self._count(taken=1, linked=int(linked))

    # Counting

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self.intake, name, getattr(self.intake, name) + number)

    def _count_corrupt(self, path: Path, reason: str) -> None:
        _log.warning("%s: not taken: %s", one_line(str(path)), reason)
        with self._lock:
            self.intake.corrupt[reason] += 1

    def _count_unreadable(self, path: str, reason: str) -> None:
        _log.warning("%s: %s", one_line(path), reason)
        with self._lock:
            self.intake.unreadable[reason] += 1
