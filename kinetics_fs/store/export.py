"""Export of a store as plain files, for programs that need the clips without a mount."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from kinetics_fs.catalog import Catalog, ClassNames, Clip, class_name, name_table
from kinetics_fs.errors import FetchError, KineticsError, StoreError
from kinetics_fs.store.selection import selection_pages
from kinetics_fs.store.store import Store, StoredClip
from kinetics_fs.util.beneath import Found, find_beneath
from kinetics_fs.util.files import fsync, link_or_copy
from kinetics_fs.util.parallel import map_in_order

_PORTABLE = re.compile(
    r"(?!(con|prn|aux|nul|com\d|lpt\d)\b)[ !#-)+-.0-9;=@-[\]-{}~]*(?<![. ])", re.IGNORECASE | re.ASCII
)
"""Names that every disk accepts and keeps as they are."""

_READERS = 8
"""Clips that are read from elsewhere at the same time. Each is in memory as a whole."""

OnProgress = Callable[["ExportResult"], object]
"""Receives the result so far after each clip."""


@dataclass
class ExportResult:
    """The result of an export, in files unless said otherwise.

    Attributes:
        clips: number of clips to export.
        done: number of clips that were exported, skipped or found missing so far.
        written: files that were created.
        linked: those of them that are hard links.
        bytes: size of these files.
        from_shared: those of them whose clips are not cached, and came from the shared store.
        already_there: files that existed with the right content. If the clip is not cached, its file is not compared.
        skipped: names that something else has, which was left as it is.
        missing: clips that are unavailable here.
        problem: the failure that ended the export early.
        interrupted: Ctrl-C ended the export early.
    """

    clips: int
    done: int = 0
    written: int = 0
    linked: int = 0
    bytes: int = 0
    from_shared: int = 0
    already_there: int = 0
    skipped: int = 0
    missing: int = 0
    problem: KineticsError | None = None
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every clip is there as a file."""
        return not (self.skipped or self.missing or self.problem or self.interrupted)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers without the progress."""
        left_out = ("clips", "done", "problem")
        return {name: value for name, value in vars(self).items() if name not in left_out}


ReadElsewhere = Callable[[Clip], bytes | None]
"""Returns the bytes of a clip that is not cached, from another place; None if that does not have it."""


def export_clips(
    store: Store,
    catalog: Catalog,
    folder: Path,
    *,
    class_names: ClassNames,
    link: bool = True,
    elsewhere: ReadElsewhere | None = None,
    on_progress: OnProgress = lambda result: None,
) -> ExportResult:
    """Write `split/class/clip.mp4` for each clip of a catalog that is cached.

    A file appears complete or not at all, and whatever has its name already is never changed. An export may end at any
    point, and be repeated.

    Args:
        store: the store that has the clips.
        catalog: the clips that are wanted.
        folder: the folder to write into; created if it does not exist.
        class_names: how the folders of classes are named.
        link: make hard links where possible; only the owner of the store can read them. Else copy.
        elsewhere: another place with clips; None for none. Called by several threads.
        on_progress: receives the result so far.

    Raises:
        CatalogError: two classes would share a folder.
    """
    name_table(catalog.labels(), class_names)
    export = _Export(store, catalog, folder, class_names, link, elsewhere, on_progress)
    try:
        export.run()
    except KeyboardInterrupt:
        export.result.interrupted = True
    except KineticsError as error:
        export.result.problem = error
    return export.result


class _Export:
    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        folder: Path,
        style: ClassNames,
        link: bool,
        elsewhere: ReadElsewhere | None,
        on_progress: OnProgress,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._folder = folder
        self._style = style
        self._link = link
        self._elsewhere = elsewhere
        self._on_progress = on_progress
        self.result = ExportResult(catalog.clip_count)

    def run(self) -> None:
        """Export all clips.

        Raises:
            StoreError: the folder cannot be written, or another export is writing there.
            FetchError: a clip cannot be read now.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock_folder():
                self._check_names()
                self._write_all()
        except FetchError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write {error.filename or self._folder}: {error.strerror}") from error

    @contextlib.contextmanager
    def _lock_folder(self) -> Iterator[None]:
        """Keep other exports out of the folder: the names of unfinished files are always the same."""
        with self._find_folder() as folder:
            fd = folder.open()
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"cannot export to {self._folder}: another export is writing there; wait until it ends"
                ) from None
            except OSError:  # some network filesystems cannot lock a folder
                pass
            yield
        finally:
            os.close(fd)

    def _check_names(self) -> None:
        """Check that the disk gives a folder of its own to each class.

        Only names that a disk may confuse, change or refuse are tried. Their folders are made, compared and removed.

        Raises:
            StoreError: the disk refuses a name, or takes two for one.
        """
        for split in self._catalog.splits():
            existing: list[str] = []
            with contextlib.suppress(FileNotFoundError), self._find_folder(split.split) as folder:
                existing = sorted(path.name for path in folder.path.iterdir())
            names = [class_name(str(one.label), self._style) for one in self._catalog.classes(split)]
            alike = Counter(map(_folded, {*names, *existing}))
            risky = [name for name in names if alike[_folded(name)] > 1 or not _PORTABLE.fullmatch(name)]
            if risky:
                tried = set(map(_folded, risky))
                self._try_names(split.split, risky, [name for name in existing if _folded(name) in tried])

    def _try_names(self, split: str, names: list[str], existing: list[str]) -> None:
        with contextlib.ExitStack() as made:
            if not os.path.lexists(self._folder / split):
                made.callback(_remove_empty, self._folder / split)
            folder = made.enter_context(self._make_folder(split))
            seen: dict[tuple[int, int], str] = {}
            for name in (*existing, *names):
                path = folder.path / name
                try:
                    with contextlib.suppress(FileExistsError):
                        path.mkdir()
                        made.callback(_remove_empty, path)
                    status = path.stat()
                except OSError as error:
                    raise StoreError(
                        f'cannot export the class "{name}" to {self._folder}: its disk refuses the name'
                        f" ({error.strerror}); export to another disk, or without this class"
                    ) from error
                other = seen.setdefault((status.st_dev, status.st_ino), name)
                is_form_of_it = normalize("NFC", other) == normalize("NFC", name) and other not in names
                if other != name and not is_form_of_it:
                    raise StoreError(
                        f'cannot export to {self._folder}: its disk takes the folders "{other}" and "{name}" for one;'
                        " export to another disk, or export one class at a time with --class to separate folders"
                    )

    def _find_folder(self, *names: str) -> Found:
        """Find an existing folder below the one to write into.

        Raises:
            OSError: it does not exist, is none, or cannot be used.
        """
        path = self._folder.joinpath(*names)
        try:
            folder = find_beneath(self._folder, "/".join(names))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if not folder.is_folder:
            folder.close()
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return folder

    def _make_folder(self, *names: str) -> Found:
        """Find a folder below the one to write into, or make it.

        Raises:
            OSError: it cannot be made or used.
        """
        with contextlib.suppress(FileNotFoundError):
            return self._find_folder(*names)
        with (
            self._make_folder(*names[:-1]) if names[:-1] else self._find_folder() as parent,
            contextlib.suppress(FileExistsError),  # made at this moment, or a link to nothing
        ):
            os.mkdir(names[-1], dir_fd=parent.fd)
        return self._find_folder(*names)

    def _write_all(self) -> None:
        for page in selection_pages(self._catalog, self._store):
            class_folder = page.directory.split, class_name(str(page.directory.label), self._style)
            for entry in page.entries:
                if page.is_cached(entry):
                    self._export(entry.clip, *class_folder)
                    self._finish()
            self._export_others([entry.clip for entry in page.entries if not page.is_cached(entry)], class_folder)

    def _finish(self) -> None:
        self.result.done += 1
        self._on_progress(self.result)

    def _export_others(self, clips: Sequence[Clip], class_folder: tuple[str, str]) -> None:
        """Export clips that are not cached."""
        if self._elsewhere is None:
            self.result.missing += len(clips)
            self.result.done += len(clips)
            self._on_progress(self.result)
            return
        read = self._elsewhere

        def read_new(clip: Clip) -> tuple[Clip, bytes | None, bool]:
            is_there = os.path.lexists(self._folder.joinpath(*class_folder, clip.name))
            return clip, None if is_there else read(clip), is_there

        for clip, body, is_there in map_in_order(read_new, clips, _READERS, queued=2 * _READERS):
            if is_there:
                self.result.already_there += 1
            elif body is None:
                self.result.missing += 1
            else:
                with self._make_folder(*class_folder) as folder:
                    self._write_body(body, folder.path / clip.name)
            self._finish()

    def _write_body(self, body: bytes, target: Path) -> None:
        """Write a file with this content, unless another process creates one of this name meanwhile."""
        with _unfinished(target) as unfinished:
            unfinished.write_bytes(body)
            fsync(unfinished)
            if _link_new(unfinished, target):
                self.result.written += 1
                self.result.from_shared += 1
                self.result.bytes += len(body)
            else:
                self.result.skipped += 1

    def _export(self, clip: Clip, *class_folder: str) -> None:
        stored = self._store.open(clip)
        if stored is None:  # evicted or lost since the page was read
            self.result.missing += 1
            return
        try:
            with self._make_folder(*class_folder) as folder:
                target = folder.path / clip.name
                if os.path.lexists(target):
                    if self._is_right(clip, stored, target):
                        self.result.already_there += 1
                    else:
                        self.result.skipped += 1
                elif self._write(stored, target):
                    self.result.written += 1
                    self.result.bytes += stored.size
                else:
                    self.result.skipped += 1
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder.joinpath(*class_folder))) from error
        finally:
            stored.close()

    def _is_right(self, clip: Clip, stored: StoredClip, path: Path) -> bool:
        """Return whether a file has the content of a clip."""
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
        """Write a file; return False if another process created one of this name meanwhile."""
        with _unfinished(target) as unfinished:
            linked = link_or_copy(stored.fd, unfinished, max_size=stored.size, link=self._link)
            if not linked:
                fsync(unfinished)
            if not _link_new(unfinished, target):
                return False
        self.result.linked += linked
        return True


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Yield the path for the file that is to become `target`; nothing is left of it afterwards."""
    unfinished = target.with_name(f".{target.name}.part")
    unfinished.unlink(missing_ok=True)  # left by an export that was killed
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def _folded(name: str) -> str:
    """Return what may remain of a name on a disk that ignores case, the form of Unicode, or dots at the end."""
    return normalize("NFKD", normalize("NFKD", name).casefold()).rstrip(". ")


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _link_new(file: Path, name: Path) -> bool:
    """Give a file a name atomically; return False if something has that name."""
    try:
        os.link(file, name, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError:  # the filesystem has no hard links
        if os.path.lexists(name):
            return False
        file.rename(name)
    return True
