"""The fill of a store from one archive, in one pass that can resume after a kill.

Every second the pass writes a checkpoint file: where in the archive to continue, the index so far, and the summary so
far. All clips before the checkpoint are in the store.

With a shared store, clips are uploaded to it beside the reading, and so are checkpoints, less often: another machine
continues there if this one dies. A checkpoint then covers only clips that are in both stores.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from kinetics_fs.catalog import UNLABELED, Catalog, Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError, StoreError
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.checker import Checker, open_file
from kinetics_fs.media.profile import SOURCE as SOURCE_PROFILE
from kinetics_fs.media.profile import CutProfile
from kinetics_fs.sources.archive.access import stream_clips
from kinetics_fs.sources.archive.base import Archive, IncompleteArchive, Version
from kinetics_fs.sources.archive.index import ArchiveIndex, read_indexes, write_index
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Checkpoint, Scan
from kinetics_fs.sources.received import RECEIVED
from kinetics_fs.store import Claim, FillCheckpoints, Store
from kinetics_fs.store.layout import newer_format
from kinetics_fs.util.files import atomic_write
from kinetics_fs.util.text import parse_json
from kinetics_fs.util.ticker import every

if TYPE_CHECKING:
    from kinetics_fs.fill.uploads import ClipUploads, Uploaded

_log = logging.getLogger(__name__)

SOURCE = "archive"
"""Source that the store records for the clips."""

_MAX_UNPUBLISHED = 4
"""Clips that may be unpacked but not yet in the store."""
MAX_NOT_UPLOADED = 16
"""The same with a shared store, for which they may be waiting."""

_REPORT_INTERVAL = 0.5
"""Seconds between two reports of the progress."""

_CHECKPOINT_INTERVAL = 1.0
"""Seconds between two checkpoints, and so the work that a kill may cost."""
_FIRST_SHARED_INTERVAL, _MAX_SHARED_INTERVAL = 2.0, 30.0
"""The same for checkpoints in a shared store: the first is written soon, the others at growing intervals."""

_FORMAT = 2
_MAGIC = b"kinetics-fs fill %d\n"
"""The first line of a checkpoint file."""
_LENGTH = 4
"""Bytes of the field that gives the length of the packed checkpoint."""
_MAX_CHECKPOINT = 1024 * 1024
"""Bytes of a packed checkpoint that are read: far more than its window has."""
_MAX_SUMMARY = 32 * 1024 * 1024
"""Bytes of a packed summary that are read."""


@dataclass(frozen=True)
class ArchiveJob:
    """The fill of a store from one archive, as plain values that can be sent to another process.

    Args:
        base: location of all archives: an http(s) or s3 address, or a folder.
        archive: name of the archive below that location.
        cache_dir: folder of the store.
        min_free: space to leave free on the disk, in bytes.
        catalog_file: file of the catalog whose clips are stored; None for all clips of the archive.
        index: build the index of the archive.
        checkpoints: names of the checkpoint files.
        verify: how thoroughly each clip is verified.
        connections: number of connections with which the archive is read.
        keep: store the clips; otherwise only the index is built.
        unlisted: which clips to store besides those of the catalog; None for no others.
        profile: the profile that the store shows: a clip that was cut with it is not stored again.
        shared: address of the shared store that receives the clips, too, without secrets; empty for none.
        local: publish the clips in the store; otherwise only in the shared one.
        coverage: see `plan.coverage_of`; only with a shared store.
    """

    base: str
    archive: str
    cache_dir: Path
    min_free: int
    catalog_file: Path | None
    index: bool
    checkpoints: FillCheckpoints
    verify: VerifyLevel = VerifyLevel.CONTAINER
    connections: int = 8
    keep: bool = True
    unlisted: Unlisted | None = None
    profile: CutProfile = CutProfile()  # noqa: RUF009  # it is immutable
    shared: str = ""
    local: bool = True
    coverage: str = ""

    def pack(self) -> str:
        """Return the job as one line of ASCII."""
        return json.dumps(asdict(self), default=os.fspath)

    @classmethod
    def unpack(cls, line: str) -> Self:
        """Return the job of a line that `pack` made."""
        values = json.loads(line)
        catalog_file, unlisted = values.pop("catalog_file"), values.pop("unlisted")
        return cls(
            cache_dir=Path(values.pop("cache_dir")),
            catalog_file=Path(catalog_file) if catalog_file else None,
            checkpoints=FillCheckpoints(Path(values.pop("checkpoints")["folder"])),
            verify=VerifyLevel(values.pop("verify")),
            unlisted=Unlisted(**unlisted | {"catalog_file": Path(unlisted["catalog_file"])}) if unlisted else None,
            profile=CutProfile(**values.pop("profile")),
            **values,
        )


@dataclass(frozen=True)
class Unlisted:
    """Stores the clips of an archive to which no annotation of its split gives a class, or none at all.

    Attributes:
        catalog_file: file of the catalog of the whole release.
        split: split of the archive.
        label: label of its clips; `UNLABELED` if it mixes classes.
    """

    catalog_file: Path
    split: str
    label: str


@dataclass
class Summary:
    """The result of a pass over an archive: numbers of clips, unless stated otherwise.

    All fields except the last three cover the whole archive, even if the pass was killed and resumed. Clips that were
    stored between the last checkpoint and a kill count as `present` in the resumed pass.

    Attributes:
        stored: published in the store, or put into the shared one if that alone receives them.
        present: already there.
        not_wanted: not in the catalog.
        unlisted: not in the catalog, and stored or present nevertheless, since an archive of the release has them.
        busy: being fetched by another process, and not cached at the end of the pass.
        corrupt: clips of which no copy so far has passed verification: the reason by `Clip.key`.
        refused: members of the archive that are not clips, by reason.
        indexed: in the index that was built.
        not_indexed: not in the index, because they cannot be read alone.
        in_shared: sound and wanted, and all in the shared store.
        in_shared_bytes: their bytes.
        uploaded: put into the shared store by the pass.
        bytes: bytes of the archive that the last part of the pass read.
        resumed_at: offset in the archive at which the last part of the pass began; 0 for the beginning.
        taken_over: whether the pass continued one of another machine.
    """

    stored: int = 0
    present: int = 0
    not_wanted: int = 0
    unlisted: int = 0
    busy: int = 0
    corrupt: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    indexed: int = 0
    not_indexed: int = 0
    in_shared: int = 0
    in_shared_bytes: int = 0
    uploaded: int = 0
    bytes: int = 0
    resumed_at: int = 0
    taken_over: bool = False

    @property
    def failed(self) -> Counter[str]:
        """Number of corrupt clips, by reason."""
        return Counter(self.corrupt.values())

    def pack(self) -> str:
        """Return the summary as one line of text."""
        return json.dumps(vars(self))

    @classmethod
    def unpack(cls, line: str) -> Self:
        """Parse a line of text, which is untrusted.

        Raises:
            ValueError: `pack` did not make this line.
        """
        try:
            values = parse_json(line)
            if values.get("failed") == {}:  # of an earlier version, which counted corrupt clips by reason alone
                del values["failed"]
            summary = cls(**values)
            summary.corrupt, summary.refused = dict(summary.corrupt), Counter(summary.refused)
        except (AttributeError, TypeError) as error:
            raise ValueError("not a summary") from error
        numbers = {**vars(summary), **summary.refused, "taken_over": int(summary.taken_over)}
        del numbers["corrupt"], numbers["refused"]
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers.values()):
            raise ValueError("not a summary: it has other values than numbers")
        if not all(isinstance(reason, str) for reason in summary.corrupt.values()):
            raise ValueError("not a summary: it has other reasons than texts")
        return summary


class Outcome(NamedTuple):
    """The outcome of an archive that was read to its end.

    Attributes:
        summary: the result of the pass.
        archive_index: the index; None if none was to be built, or some of the clips cannot be read alone.
    """

    summary: Summary
    archive_index: ArchiveIndex | None


class UnfinishedArchive(ArchiveError):
    """The archive is damaged or incomplete.

    Args:
        text: the cause.
        summary: the result of the part that was read.
        incomplete: a part of the archive is missing.
    """

    def __init__(self, text: str, summary: Summary, *, incomplete: bool) -> None:
        super().__init__(text)
        self.summary = summary
        self.incomplete = incomplete


class Progress(NamedTuple):
    """How far a pass over an archive has come.

    Attributes:
        checkpoint: where in the archive to continue.
        partial_index: records of the clips so far; it also names the archive and its version.
        summary: counts of the clips so far.
    """

    checkpoint: Checkpoint
    partial_index: ArchiveIndex
    summary: Summary


def write_progress(path: Path, progress: Progress) -> None:
    """Replace a checkpoint file.

    The file is not forced to the disk: `read_progress` detects one that a power cut damaged, and the archive is then
    read from its beginning.
    """
    with atomic_write(path, durable=False) as file:
        _write_progress(progress, file)


def _write_progress(progress: Progress, file: IO[bytes]) -> None:
    checkpoint = progress.checkpoint.pack()
    file.write(_MAGIC % _FORMAT + len(checkpoint).to_bytes(_LENGTH, "little") + checkpoint)
    file.write(progress.summary.pack().encode() + b"\n")
    write_index(progress.partial_index, file)


def read_progress(path: Path) -> Progress | None:
    """Read a checkpoint file; None if there is none, or it is damaged or of an earlier version.

    Raises:
        StoreError: a later version wrote it.
    """
    try:
        with path.open("rb") as file:
            found, progress = _read_progress(file)
    except OSError:
        return None
    if found > _FORMAT:
        raise StoreError(newer_format(path, found, _FORMAT, "remove it to read the archive from its beginning"))
    return progress


def _read_progress(file: IO[bytes]) -> tuple[int, Progress | None]:
    """Return the format of a checkpoint, and the checkpoint; None if it is damaged or of another format."""
    line = re.fullmatch(rb"kinetics-fs fill ([0-9]{1,9})\n", file.readline(64))
    found = int(line[1]) if line else 0
    if found != _FORMAT:
        return found, None
    try:
        checkpoint = Checkpoint.unpack(file.read(min(int.from_bytes(file.read(_LENGTH), "little"), _MAX_CHECKPOINT)))
        summary = Summary.unpack(file.readline(_MAX_SUMMARY).decode())
        [partial_index] = read_indexes(file)
    except (ValueError, ArchiveError):
        return found, None
    return found, Progress(checkpoint, partial_index, summary)


def pack_progress(progress: Progress) -> bytes:
    """Return a checkpoint as bytes, for another machine."""
    file = io.BytesIO()
    _write_progress(progress, file)
    return file.getvalue()


def unpack_progress(packed: bytes) -> Progress | None:
    """Return the checkpoint of untrusted bytes; None if they are damaged or of another version."""
    return _read_progress(io.BytesIO(packed))[1]


Report = Callable[[int, int], None]
"""Receives the progress of a job: bytes of the archive that are done, and its size in bytes."""


def fill_archive(job: ArchiveJob, report: Report = lambda done, total: None) -> Outcome:
    """Fill a store from one archive, and build its index.

    Clips that were published stay, also if the fill fails later.

    Raises:
        FetchError: the archive cannot be read, there is no space, or this Python cannot build an index. The next call
            resumes where this one stopped.
        UnfinishedArchive: the archive is damaged or incomplete, which may show at its end. The next call begins at the
            start of the archive, because the damage may be in what a checkpoint covers.
        StoreError, CatalogError: the store or the catalog cannot be used.
    """
    if job.index and not finds_block_boundaries():
        raise FetchError(
            FailureKind.LOCAL,
            f"cannot build an index: {sys.executable} links zlib statically; use a Python with a shared libz",
        )
    with ExitStack() as opened:
        store = opened.enter_context(Store(job.cache_dir, profile=job.profile, min_free=job.min_free))
        catalog = opened.enter_context(Catalog(job.catalog_file)) if job.catalog_file else None
        whole = opened.enter_context(Catalog(job.unlisted.catalog_file)) if job.unlisted else None
        checker = opened.enter_context(Checker(store.scratch))
        archive = open_archive(archive_address(job.base, job.archive), connections=job.connections)
        uploads = opened.enter_context(_open_uploads(job)) if job.shared else None
        parts = (job, store, catalog, whole, checker, archive, uploads, report)
        try:
            return _Fill(*parts).run()
        except UnfinishedArchive as error:
            if not error.summary.taken_over:
                raise
            _log.warning("%s: %s; reading it again without the checkpoint of another machine", job.archive, error)
            return _Fill(*parts, resumes=False).run()


def _open_uploads(job: ArchiveJob) -> ClipUploads:
    from kinetics_fs.fill.uploads import ClipUploads

    return ClipUploads(job.shared, job.archive, job.coverage)


class _Pending(NamedTuple):
    """A clip on its way into the stores.

    Attributes:
        published: ends when the clip is verified, and published in the store if it has a claim. Its result ends when
            the clip is in the shared store; None if there is none.
        claimed: it is to be published in the store.
    """

    published: Future[Future[Uploaded] | None]
    claimed: bool


class _Fill:
    """One pass: the main thread reads and unpacks, a second one verifies and publishes, others upload."""

    def __init__(
        self,
        job: ArchiveJob,
        store: Store,
        catalog: Catalog | None,
        whole: Catalog | None,
        checker: Checker,
        archive: Archive,
        uploads: ClipUploads | None,
        report: Report,
        *,
        resumes: bool = True,
    ) -> None:
        self._job = job
        self._store = store
        self._catalog = catalog
        self._whole = whole
        self._checker = checker
        self._archive = archive
        self._uploads = uploads
        self._report = report
        self._resumes = resumes
        self._summary = Summary()
        self._refused_before: Counter[str] = Counter()
        """Refusals of the part of the pass that an earlier process made."""
        self._claims = ExitStack()
        """Holds the claim of the clip that is being unpacked."""
        self._claim: Claim | None = None
        self._busy: list[Clip] = []
        self._folder: Path | None = None
        """For the files of clips that are only uploaded."""
        self._scan = Scan(index=False)
        # Unpacking uses one core. Verifying a clip and forcing it to the disk take as long, so they run beside it.
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._pending: dict[Clip, _Pending] = {}
        """The oldest first."""
        self._published: dict[Clip, bool] = {}
        """Clips that this pass has stored or uploaded, and whether the shared store has them from it."""
        self._max_pending = MAX_NOT_UPLOADED if uploads is not None else _MAX_UNPUBLISHED
        self._checkpoint_file = job.checkpoints.progress_file(
            job.base, job.archive, indexing=job.index, all_clips=whole is not None, shared=job.shared
        )
        self._shared_checkpoint_at = time.monotonic() + _FIRST_SHARED_INTERVAL
        self._shared_interval = _FIRST_SHARED_INTERVAL

    def run(self) -> Outcome:
        version = self._archive.version()
        try:
            return self._run(version)
        except ArchiveError as error:
            incomplete = isinstance(error, IncompleteArchive)
            with suppress(FetchError):
                self._settle()
                if not incomplete or isinstance(error.__cause__, ArchiveError):  # not only cut short
                    self._check_published()
            self._remove_checkpoints(version)
            self._count_members()
            raise UnfinishedArchive(str(error), self._summary, incomplete=incomplete) from error
        except FetchError:
            raise
        except OSError as error:  # of a file to which a clip is unpacked
            reason = f"cannot write to {self._store.folder}: {error.strerror}"
            raise FetchError(FailureKind.LOCAL, reason, cause_errno=error.errno) from error

    def _run(self, version: Version) -> Outcome:
        self._scan, begin = self._resume(version)
        scan = self._scan
        self._summary.resumed_at = begin

        received_before = RECEIVED.total

        def count(done: int) -> None:
            self._summary.bytes = done - begin

        def report() -> None:
            self._report(min(begin + RECEIVED.total - received_before, version.size), version.size)

        report()

        saved = time.monotonic()
        check = partial(self._checker.check, level=VerifyLevel.CONTAINER)
        clips = stream_clips(self._archive, version, scan, self._path_for, check, begin=begin, progress=count)
        with every(_REPORT_INTERVAL, report), self._publisher, self._claims, closing(clips):
            for clip, path in clips:
                if path is not None:
                    self._publish_later(clip, path)
                if time.monotonic() - saved >= _CHECKPOINT_INTERVAL:
                    self._save(scan, version)
                    saved = time.monotonic()
            self._settle()
        report()
        # Another archive that is read at the same time may have brought them.
        since_cached = sum(map(self._store.is_cached, self._busy))
        self._summary.busy -= since_cached
        self._summary.present += since_cached
        # An index without some of the clips would prove that the archive lacks them.
        index = scan.index(self._job.archive, version) if self._job.index and not scan.not_indexed else None
        if index is not None:
            self._summary.indexed = len(scan.records)
        self._remove_checkpoints(version)
        self._count_members()
        return Outcome(self._summary, index)

    def _remove_checkpoints(self, version: Version) -> None:
        self._checkpoint_file.unlink(missing_ok=True)
        if self._uploads is not None:
            self._uploads.remove_progress(version)

    def _resume(self, version: Version) -> tuple[Scan, int]:
        """Return the scan, new or as of the last checkpoint, and the offset in the archive from which to read."""
        indexing = self._job.index
        progress = self._find_progress(version) if self._resumes else None
        if progress is None:
            return Scan(index=indexing), 0
        checkpoint = progress.checkpoint
        self._summary = progress.summary
        self._refused_before = progress.summary.refused
        scan = Scan(
            at=checkpoint,
            records=progress.partial_index.records,
            not_indexed=progress.summary.not_indexed,
            index=indexing,
        )
        return scan, checkpoint.block.bit // 8

    def _find_progress(self, version: Version) -> Progress | None:
        """Return the checkpoint from which to resume: of an earlier run, or of another machine that came further."""
        own = self._fitting(read_progress(self._checkpoint_file), version)
        if self._uploads is None:
            return own
        packed = self._uploads.read_progress(version)
        other = self._fitting(unpack_progress(packed) if packed is not None else None, version)
        if other is None:  # the store may have lost its clips since
            return None
        if own is not None and own.checkpoint.block.bit >= other.checkpoint.block.bit:
            return own
        other.summary.taken_over = True
        return other

    def _fitting(self, progress: Progress | None, version: Version) -> Progress | None:
        """Return a checkpoint if it is one of this archive. One from the shared store is untrusted."""
        if progress is None:
            return None
        checkpoint, index, _ = progress
        is_same = index.archive == self._job.archive and Version(index.size, index.etag) == version
        return progress if is_same and checkpoint.block.bit < 8 * version.size else None

    def _save(self, scan: Scan, version: Version) -> None:
        checkpoint = scan.checkpoint()
        if checkpoint is None:
            return
        self._settle()  # everything before the checkpoint must be in the stores
        self._job.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self._count_members()
        progress = Progress(checkpoint, scan.index(self._job.archive, version), self._summary)
        write_progress(self._checkpoint_file, progress)
        if self._uploads is not None and time.monotonic() >= self._shared_checkpoint_at:
            self._uploads.write_progress(version, pack_progress(progress))
            self._shared_interval = min(2 * self._shared_interval, _MAX_SHARED_INTERVAL)
            self._shared_checkpoint_at = time.monotonic() + self._shared_interval

    def _count_members(self) -> None:
        self._summary.refused = self._refused_before + self._scan.refusals
        self._summary.not_indexed = self._scan.not_indexed

    def _path_for(self, clip: Clip, size: int) -> Path | None:
        """Return the file to unpack a clip to; None if it is not to be stored."""
        if not self._job.keep:
            return None
        if clip in self._pending:
            self._settle()  # its first copy may fail verification
        first = not self._scan.is_repeated
        if self._catalog is not None and not self._catalog.locate(clip):
            if not self._is_unlisted(clip):
                self._summary.not_wanted += first
                return None
            self._summary.unlisted += first
        if self._uploads is not None and not first and clip.key not in self._summary.corrupt:
            return None
        if self._job.local and (path := self._claim_path(clip, size, first=first)) is not None:
            return path
        # A clip that is cached is compared with the shared store by the copy in the archive, which is verified anyway.
        return self._upload_path(clip) if self._uploads is not None else None

    def _claim_path(self, clip: Clip, size: int, *, first: bool) -> Path | None:
        """Claim a clip and return the file to unpack it to; None if the store has it, or another process fetches it."""
        if self._store.is_cached(clip):
            self._summary.present += first
        elif (claim := self._store.claim(clip, size=size)) is None:
            self._summary.busy += 1
            self._busy.append(clip)
        else:
            self._claim = self._claims.enter_context(claim)
            return claim.folder / clip.name
        return None

    def _upload_path(self, clip: Clip) -> Path:
        if self._folder is None:
            self._store.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="", dir=self._store.scratch))
        return self._folder / clip.name

    def _is_unlisted(self, clip: Clip) -> bool:
        """Return whether only the archive says that a clip belongs to its class and split."""
        unlisted = self._job.unlisted
        if self._whole is None or unlisted is None:
            return False
        directories = map(self._whole.directory, (entry.directory for entry in self._whole.locate(clip)))
        return not any(
            directory is not None
            and directory.split == unlisted.split
            and (directory.label != UNLABELED or unlisted.label == UNLABELED)
            for directory in directories
        )

    def _publish_later(self, clip: Clip, path: Path) -> None:
        self._settle(but=self._max_pending - 1)
        claim, self._claim = self._claim, None
        published = self._publisher.submit(self._publish, clip, path, claim, self._claims.pop_all())
        self._pending[clip] = _Pending(published, claim is not None)

    def _publish(self, clip: Clip, path: Path, claim: Claim | None, resources: ExitStack) -> Future[Uploaded] | None:
        with resources, ExitStack() as opened:
            if claim is None:
                opened.callback(path.unlink)
            duration = self._checker.check(path, self._job.verify)
            # Opened before the store can evict the clip.
            file = None if self._uploads is None else opened.enter_context(path.open("rb"))
            if claim is not None:
                claim.publish(path, SOURCE, duration=duration)
            if self._uploads is None or file is None:
                return None
            return self._uploads.submit(clip, os.dup(file.fileno()), SOURCE, duration)

    def _check_published(self) -> None:
        """Decode the clips that came from a damaged archive, and remove those that are damaged.

        The checksum of a gzip file is at its end, and wrong bytes in a clip often unpack without an error. Decoding
        does not find every wrong byte, but the others would be lost with all sound clips of the archive.
        """
        if self._job.verify is not VerifyLevel.CONTAINER:
            return
        for clip, is_shared in self._published.items():
            try:
                self._decode(clip)
            except FetchError as error:
                if error.kind is not FailureKind.CORRUPT:
                    raise
                _log.warning("%s: removed, because %s is damaged: %s", clip.key, self._job.archive, error.reason)
                self._summary.corrupt[clip.key] = error.reason
                self._summary.stored -= 1
                if is_shared and self._uploads is not None:
                    self._uploads.delete(clip)
                    self._summary.in_shared -= 1
                    self._summary.uploaded -= 1

    def _decode(self, clip: Clip) -> None:
        """Decode a clip that this pass has stored; if it is damaged, remove it from the cache.

        Raises:
            FetchError: it is damaged (CORRUPT), or cannot be read now.
        """
        if self._job.local:
            opened = self._store.peek(clip, SOURCE_PROFILE)
            if opened is None:
                return
            try:
                self._checker.decode(opened.fd)
            except FetchError as error:
                if error.kind is FailureKind.CORRUPT:
                    self._store.remove_if_unchanged(clip, SOURCE_PROFILE, opened.filename)
                raise
            finally:
                os.close(opened.fd)
        elif self._uploads is not None and (body := self._uploads.read(clip)) is not None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(body)
                file.flush()
                with open_file(Path(file.name)) as descriptor:
                    self._checker.decode(descriptor)

    def _settle(self, but: int = 0) -> None:
        """Wait until at most `but` clips are on their way, count the others, and raise the error of any that failed."""
        while len(self._pending) > but:
            clip = next(iter(self._pending))
            self._count(clip, self._pending.pop(clip))

    def _count(self, clip: Clip, pending: _Pending) -> None:
        summary = self._summary
        try:
            upload = pending.published.result()
            uploaded = None if upload is None else upload.result()
        except FetchError as error:
            if error.kind is not FailureKind.CORRUPT:
                raise
            _log.warning("%s: not stored from %s: %s", clip.key, self._job.archive, error.reason)
            summary.corrupt[clip.key] = error.reason
            return
        summary.corrupt.pop(clip.key, None)
        summary.stored += pending.claimed
        is_new = uploaded is not None and uploaded.is_new
        if pending.claimed or is_new:
            self._published[clip] = is_new
        if uploaded is not None:
            summary.in_shared += 1
            summary.in_shared_bytes += uploaded.size
            summary.uploaded += uploaded.is_new
            if not self._job.local:
                summary.stored += uploaded.is_new
                summary.present += not uploaded.is_new
