"""The cache directory: the path of everything in it, and the preparation of the directory itself.

::

    <cache>/                    mode 0700
        CACHEDIR.TAG            marks a cache for backup programs, and this cache for kinetics-fs, with its format
        clips/cache.db          diskcache's table: clip key and profile → file; decides which clips are cached
        clips/xx/<key>.<token>.mp4
        incoming/<token>/       a private folder for each fetch in progress
        locks/<name>            a file that a living process keeps locked
        scratch/<name>/         folders of the confined processes of that process
        state.sqlite            the state database: sizes, durations, access times, pins, failures, fetches, history
        archives.sqlite         indexes of archives; archives.sqlite.reading is locked by the process that reads one
        catalog/                compiled catalogs
        catalog/annotations/    copies of downloaded annotations
        fills/<digest>/         checkpoints of fills of the catalog with that digest: `FillCheckpoints`
        fills/<digest>-<hash>/  the same, of fills whose clips are in the cache directories of workers of a cluster
        fills/index/            checkpoints of `kinetics-fs index build`
        fill-report.json        the report of the last fill
        prefetches/<hash>/      unfinished prefetches of a mount point
        uploads.sqlite          clips that wait for their upload to the shared store
        yt-dlp/                 the cache of yt-dlp
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kinetics_fs.errors import StoreError
from kinetics_fs.util.disk import UNWRITABLE, DiskFault, fault_of
from kinetics_fs.util.files import atomic_write, fsync

FORMAT = 2
"""The format of a cache directory: which files it has, and the schemas of its databases."""

SHARED_STORE_RECORD = "kinetics-store.json"
"""The record that makes a folder or a bucket a shared store; see `kinetics_fs.shared.store`."""

_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
"""The first line that the Cache Directory Tagging Specification requires (bford.info/cachedir)."""

_OWN_LINE = re.compile(
    rb"^# (?:The cache of kinetics-fs|kinetics-fs cache, format (?P<format>[0-9]{1,9})(?P<changing>, changing)?):",
    re.MULTILINE,
)
"""The second line. It tells this cache from those of other programs that use the same tag. Format 1 had no number, and
a version that knows only that one refuses a cache with the line of a later format as a folder of another program."""
_MAX_TAG = 4096
"""Bytes of a tag that are read: other programs write such files, too."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The paths below a cache directory. They need not exist.

    Attributes:
        root: the cache directory.
    """

    root: Path

    @property
    def tag(self) -> Path:
        """The file that marks the directory as a cache."""
        return self.root / "CACHEDIR.TAG"

    @property
    def clips(self) -> Path:
        """The folder of the cached clips and of their table."""
        return self.root / "clips"

    @property
    def clip_table(self) -> Path:
        """The database of diskcache, which maps the key of a clip to its file."""
        return self.clips / "cache.db"

    @property
    def incoming(self) -> Path:
        """The folder below which each fetch in progress has a private folder."""
        return self.root / "incoming"

    @property
    def scratch(self) -> Path:
        """The folder in which each process has one for the folders of its confined processes."""
        return self.root / "scratch"

    @property
    def process_locks(self) -> Path:
        """The folder of the files that processes keep locked while they live."""
        return self.root / "locks"

    @property
    def state_database(self) -> Path:
        """The state database."""
        return self.root / "state.sqlite"

    @property
    def archive_indexes(self) -> Path:
        """The database of archive indexes."""
        return self.root / "archives.sqlite"

    @property
    def catalogs(self) -> Path:
        """The folder of the compiled catalogs."""
        return self.root / "catalog"

    @property
    def annotations(self) -> Path:
        """The folder of the downloaded annotations."""
        return self.catalogs / "annotations"

    @property
    def archive_reading_lock(self) -> Path:
        """The file of which a process locks a byte range while it reads an archive as a whole."""
        return self.root / "archives.sqlite.reading"

    @property
    def index_checkpoints(self) -> FillCheckpoints:
        """The checkpoints of a run that builds indexes and stores no clips."""
        return FillCheckpoints(self.root / "fills" / "index")

    @property
    def fill_report(self) -> Path:
        """The report of the last fill."""
        return self.root / "fill-report.json"

    @property
    def uploads(self) -> Path:
        """The queue of clips that wait for their upload to the shared store."""
        return self.root / "uploads.sqlite"

    @property
    def ytdlp_cache(self) -> Path:
        """The folder that yt-dlp uses as its cache."""
        return self.root / "yt-dlp"

    def fill_checkpoints(self, annotations_digest: str, *, workers: str | None = None) -> FillCheckpoints:
        """Return the checkpoints of fills of the catalog with this digest of its annotations.

        Args:
            annotations_digest: the digest (hexadecimal).
            workers: cache directory of the workers of a cluster, if they store the clips instead of this cache.
        """
        name = annotations_digest[:32]
        return FillCheckpoints(self.root / "fills" / (name if workers is None else f"{name}-{_digest(workers)}"))

    def prefetches(self, mountpoint: Path) -> Path:
        """Return the folder of the unfinished prefetches of a mount point."""
        return self.root / "prefetches" / hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class FillCheckpoints:
    """The paths of the checkpoints of fills of one catalog. They need not exist.

    Attributes:
        folder: the folder that has them.
    """

    folder: Path

    def progress_file(
        self, base: str, archive: str, *, indexing: bool, all_clips: bool = False, shared: str = ""
    ) -> Path:
        """Return the checkpoint of an archive that is being read.

        Passes of different kinds have checkpoints of their own, because the results of one are useless to another.

        Args:
            base: location of all archives, as the user wrote it.
            archive: name of the archive.
            indexing: the pass builds an index.
            all_clips: the pass stores the clips that no annotation names, too, and builds an index.
            shared: address of the shared store to which the pass uploads its clips; empty for none.
        """
        kind = "all" if all_clips else "indexed" if indexing else "plain"
        uploading = f" {shared}" if shared else ""
        return self.folder / f"{_digest(f'{base} {archive}{uploading}')}.{kind}"

    def done_mark(self, archive: str) -> Path:
        """Return the file that says that an archive was read to its end."""
        return self.folder / f"{_digest(archive)}.done"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class CacheFormat(NamedTuple):
    """The format of a cache directory, as its tag names it.

    Attributes:
        number: the format.
        changing: a change to this format has begun, and may be unfinished.
    """

    number: int
    changing: bool = False


def read_format(root: Path) -> CacheFormat | None:
    """Return the format of a cache directory; None if the folder is no cache directory of kinetics-fs.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        fd = os.open(CacheLayout(root).tag, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        line = _OWN_LINE.search(os.read(fd, _MAX_TAG)) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
    return line and CacheFormat(int(line["format"] or 1), bool(line["changing"]))


def write_format(root: Path, found: CacheFormat) -> None:
    """Write the tag of a cache directory.

    Raises:
        OSError: the tag cannot be written.
    """
    with atomic_write(CacheLayout(root).tag) as file:
        file.write(_tag(found))
    fsync(root)


def _tag(found: CacheFormat) -> bytes:
    changing = ", changing" if found.changing else ""
    line = f"# kinetics-fs cache, format {found.number}{changing}: clips that can be fetched again."
    return f"{_SIGNATURE}\n{line}\n".encode()


def is_cache(root: Path) -> bool:
    """Return whether a folder is a cache directory of kinetics-fs.

    Raises:
        OSError: the folder cannot be read.
    """
    return read_format(root) is not None


def newer_format(path: Path, found: int, known: int, remedy: str = "choose another --cache-dir") -> str:
    """Return the sentence that refuses a file or folder of a later version.

    Args:
        path: the file or folder.
        found: its format.
        known: the latest format that this version can read.
        remedy: another way than to update.
    """
    return (
        f"cannot use {path}: it has format {found}, and this version of kinetics-fs knows formats up to {known};"
        f" update kinetics-fs, or {remedy}"
    )


def is_own_or_empty(root: Path) -> bool:
    """Return whether a folder is a cache directory of kinetics-fs or has no files, so that it may become one.

    Raises:
        OSError: the folder cannot be read.
    """
    tag = CacheLayout(root).tag
    return is_cache(root) or not any(path != tag or path.stat().st_size for path in root.iterdir())


def prepare_folder(root: Path) -> None:
    """Create the cache directory with mode 0700, or check that an existing one is usable.

    Raises:
        StoreError: the directory cannot be created, belongs to another user, contains other files, or is a cache of a
            later version.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
        if status.st_uid != os.geteuid():
            raise StoreError(
                f"cannot use {root} as the cache directory: it belongs to another user (uid {status.st_uid});"
                " choose one of your own with --cache-dir"
            )
        with locked(root):
            tag, found = CacheLayout(root).tag, read_format(root)
            if found is not None and found.number > FORMAT:
                raise StoreError(newer_format(root, found.number, FORMAT))
            if found is None:
                # A mistyped path: without this check, the mode of that folder would change and its files be removed.
                if not is_own_or_empty(root):
                    raise StoreError(
                        f"cannot use {root} as the cache directory: it contains other files;"
                        " choose an empty or new folder with --cache-dir"
                    )
                # Not by `write_format`: after a kill, its temporary file would be one of the other files.
                tag.write_bytes(_tag(CacheFormat(FORMAT)))
        if stat.S_IMODE(status.st_mode) != 0o700 and not os.statvfs(root).f_flag & os.ST_RDONLY:
            root.chmod(0o700)
    except OSError as error:
        raise cache_error(root, fault_of(error, root)) from error


def cache_error(root: Path, fault: DiskFault) -> StoreError:
    """Return the error for a cache directory that cannot be used, given why."""
    cause = fault.cause.replace(f"{root} was ", "it was ", 1)
    other = "" if fault.errno == errno.ENOENT else ", or choose another with --cache-dir"
    failed = f"cannot use {root} as the cache directory"
    if fault.errno in UNWRITABLE:
        failed = f"cannot write to the cache directory {root}"
    return StoreError(f"{failed}: {cause}; {fault.cure}{other}", errno=fault.errno)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from preparing the same folder while the block runs.

    Raises:
        OSError: the folder cannot be opened or locked.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
