"""The clips of a store as a plain tree of files, for tools that are to have them without a mount."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kinetics_fs.catalog import Catalog, ClassNames, Clip, class_name, name_table
from kinetics_fs.errors import StoreError
from kinetics_fs.store.selection import selection_pages
from kinetics_fs.store.store import Store, StoredClip
from kinetics_fs.util.files import fsync, link_or_copy

Report = Callable[[int], object]
"""Told now and then how many more clips are done."""


@dataclass
class Exported:
    """What an export came to, in files.

    Attributes:
        written: made now.
        linked: those of them that are hard links.
        already_there: with the right content.
        kept: something else has the name, and was left as it is.
        not_here: clips that the store does not have.
    """

    written: int = 0
    linked: int = 0
    already_there: int = 0
    kept: int = 0
    not_here: int = 0


class Export:
    """Writes `split/class/clip.mp4` for all clips of a catalog that are in a store.

    A file is there whole or not at all, and what has its name already is never touched.

    Args:
        store: where the clips are.
        catalog: which of them are wanted.
        folder: what to write into; made if it is not there.
        class_names: how the folders of classes are named.
        link: whether hard links will do: those are readable by the owner of the store alone.

    Raises:
        CatalogError: two classes would share a folder.
    """

    def __init__(
        self, store: Store, catalog: Catalog, folder: Path, *, class_names: ClassNames, link: bool = True
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._folder = folder
        self._style = class_names
        self._link = link
        self.exported = Exported()
        name_table(catalog.labels(), class_names)

    def run(self, report: Report = lambda clips: None) -> None:
        """Does it; may be broken off at any point, and done again.

        Raises:
            StoreError: the folder cannot be written, or another export is writing there.
            FetchError: a clip cannot be read now.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._write_all(report)
        except OSError as error:
            raise StoreError(f"cannot write {error.filename or self._folder}: {error.strerror}") from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other exports out of the folder, for names of unfinished files are always the same."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"another export is writing to {self._folder}: let it end first") from None
            except OSError:  # some file servers cannot lock a folder
                pass
            yield
        finally:
            os.close(fd)

    def _write_all(self, report: Report) -> None:
        for page in selection_pages(self._catalog, self._store):
            place = self._folder / page.directory.split / class_name(str(page.directory.label), self._style)
            for entry in page.entries:
                if page.is_cached(entry):
                    self._export(entry.clip, place)
                else:
                    self.exported.not_here += 1
                report(1)

    def _export(self, clip: Clip, place: Path) -> None:
        stored = self._store.open(clip)
        if stored is None:  # evicted meanwhile, or lost
            self.exported.not_here += 1
            return
        try:
            place.mkdir(parents=True, exist_ok=True)
            target = place / clip.name
            if os.path.lexists(target):
                if self._is_right(clip, stored, target):
                    self.exported.already_there += 1
                else:
                    self.exported.kept += 1
            elif self._write(stored, target):
                self.exported.written += 1
            else:
                self.exported.kept += 1
        finally:
            stored.close()

    def _is_right(self, clip: Clip, stored: StoredClip, path: Path) -> bool:
        """Whether a file has the content of a clip."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if os.path.samestat(status, os.fstat(stored.fd)):
                return True
            if not stat.S_ISREG(status.st_mode) or status.st_size != stored.size:
                return False
            record = self._store.record(clip)
            return record is not None and hashlib.file_digest(file, "sha256").hexdigest() == record.sha256

    def _write(self, stored: StoredClip, target: Path) -> bool:
        """Makes a file; whether nobody else made one of this name meanwhile."""
        unfinished = target.with_name(f".{target.name}.part")
        unfinished.unlink(missing_ok=True)  # of an export that was killed
        linked = link_or_copy(stored.fd, unfinished, most=stored.size, link=self._link)
        try:
            if not linked:
                fsync(unfinished)
            if not _give_name(unfinished, target):
                return False
        finally:
            unfinished.unlink(missing_ok=True)
        self.exported.linked += linked
        return True


def _give_name(file: Path, name: Path) -> bool:
    """Gives a file a name that nothing has, at once; whether nothing had it."""
    try:
        os.link(file, name, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError:  # a filesystem without hard links
        if os.path.lexists(name):
            return False
        file.rename(name)
    return True
