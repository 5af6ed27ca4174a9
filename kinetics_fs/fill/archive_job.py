"""The fill of a store from one archive, in one pass that can resume after a kill.

Every second the pass writes a checkpoint file: where in the archive to continue, the index so far, and the summary so
far. All clips before the checkpoint are in the store.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from kinetics_fs.catalog import UNLABELED, Catalog, Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError, StoreError
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.checker import Checker
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

_log = logging.getLogger(__name__)

SOURCE = "archive"
"""Source that the store records for the clips."""

_MAX_UNPUBLISHED = 4
"""Clips that may be unpacked but not yet in the store."""

_REPORT_INTERVAL = 0.5
"""Seconds between two reports of the progress."""

_CHECKPOINT_INTERVAL = 1.0
"""Seconds between two checkpoints, and so the work that a kill may cost."""

_FORMAT = 2
_MAGIC = b"kinetics-fs fill %d\n"
"""The first line of a checkpoint file."""
_LENGTH = 4
"""Bytes of the field that gives the length of the packed checkpoint."""
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

    All fields except the last two cover the whole archive, even if the pass was killed and resumed. Clips that were
    stored between the last checkpoint and a kill count as `present` in the resumed pass.

    Attributes:
        stored: published.
        present: already in the store.
        not_wanted: not in the catalog.
        unlisted: not in the catalog, and stored or present nevertheless, since an archive of the release has them.
        busy: being fetched by another process, and not cached at the end of the pass.
        corrupt: clips of which no copy so far has passed verification: the reason by `Clip.key`.
        refused: members of the archive that are not clips, by reason.
        indexed: in the index that was built.
        not_indexed: not in the index, because they cannot be read alone.
        bytes: bytes of the archive that the last part of the pass read.
        resumed_at: offset in the archive at which the last part of the pass began; 0 for the beginning.
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
    bytes: int = 0
    resumed_at: int = 0

    @property
    def failed(self) -> Counter[str]:
        """Number of corrupt clips, by reason."""
        return Counter(self.corrupt.values())

    def pack(self) -> str:
        """Return the summary as one line of text."""
        return json.dumps(vars(self))

    @classmethod
    def unpack(cls, line: str) -> Self:
        """Parse a line of text.

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
        return summary


class Outcome(NamedTuple):
    """What came of an archive that was read to its end.

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
    checkpoint = progress.checkpoint.pack()
    with atomic_write(path, durable=False) as file:
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
            line = re.fullmatch(rb"kinetics-fs fill ([0-9]{1,9})\n", file.readline(64))
            found = int(line[1]) if line else 0
            if found > _FORMAT:
                raise StoreError(newer_format(path, found, _FORMAT, "remove it to read the archive from its beginning"))
            if found != _FORMAT:
                return None
            length = int.from_bytes(file.read(_LENGTH), "little")
            if length > os.fstat(file.fileno()).st_size:
                return None
            checkpoint = Checkpoint.unpack(file.read(length))
            summary = Summary.unpack(file.readline(_MAX_SUMMARY).decode())
            [partial_index] = read_indexes(file)
    except (OSError, ValueError, ArchiveError):
        return None
    return Progress(checkpoint, partial_index, summary)


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
        return _Fill(job, store, catalog, whole, checker, archive, report).run()


class _Fill:
    """One pass: the main thread reads and unpacks, a second one verifies and publishes."""

    def __init__(
        self,
        job: ArchiveJob,
        store: Store,
        catalog: Catalog | None,
        whole: Catalog | None,
        checker: Checker,
        archive: Archive,
        report: Report,
    ) -> None:
        self._job = job
        self._store = store
        self._catalog = catalog
        self._whole = whole
        self._checker = checker
        self._archive = archive
        self._report = report
        self._summary = Summary()
        self._refused_before: Counter[str] = Counter()
        """Refusals of the part of the pass that an earlier process made."""
        self._claims = ExitStack()
        """Holds the claim of the clip that is being unpacked."""
        self._claim: Claim | None = None
        self._busy: list[Clip] = []
        self._scan = Scan(index=False)
        # Unpacking uses one core. Verifying a clip and forcing it to the disk take as long, so they run beside it.
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._unpublished: dict[Clip, Future[None]] = {}
        """The oldest first."""
        self._checkpoint_file = job.checkpoints.progress_file(
            job.base, job.archive, indexing=job.index, all_clips=whole is not None
        )

    def run(self) -> Outcome:
        try:
            return self._run()
        except ArchiveError as error:
            self._checkpoint_file.unlink(missing_ok=True)
            self._count_members()
            incomplete = isinstance(error, IncompleteArchive)
            raise UnfinishedArchive(str(error), self._summary, incomplete=incomplete) from error

    def _run(self) -> Outcome:
        version = self._archive.version()
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
        clips = stream_clips(self._archive, version, scan, self._claim_path, check, begin=begin, progress=count)
        with every(_REPORT_INTERVAL, report), self._publisher, self._claims, closing(clips):
            for clip, path in clips:
                if path is not None:
                    self._publish_later(clip, path)
                if time.monotonic() - saved >= _CHECKPOINT_INTERVAL:
                    self._save(scan, version)
                    saved = time.monotonic()
            self._wait_for_published()
        report()
        # Another archive that is read at the same time may have brought them.
        since_cached = sum(map(self._store.is_cached, self._busy))
        self._summary.busy -= since_cached
        self._summary.present += since_cached
        # An index without some of the clips would prove that the archive lacks them.
        index = scan.index(self._job.archive, version) if self._job.index and not scan.not_indexed else None
        if index is not None:
            self._summary.indexed = len(scan.records)
        self._checkpoint_file.unlink(missing_ok=True)
        self._count_members()
        return Outcome(self._summary, index)

    def _resume(self, version: Version) -> tuple[Scan, int]:
        """Return the scan, new or as of the last checkpoint, and the offset in the archive from which to read."""
        indexing = self._job.index
        progress = read_progress(self._checkpoint_file)
        if progress is None or Version(progress.partial_index.size, progress.partial_index.etag) != version:
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

    def _save(self, scan: Scan, version: Version) -> None:
        checkpoint = scan.checkpoint()
        if checkpoint is not None:
            self._wait_for_published()  # everything before the checkpoint must be in the store
            self._job.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            self._count_members()
            index = scan.index(self._job.archive, version)
            write_progress(self._checkpoint_file, Progress(checkpoint, index, self._summary))

    def _count_members(self) -> None:
        self._summary.refused = self._refused_before + self._scan.refusals
        self._summary.not_indexed = self._scan.not_indexed

    def _claim_path(self, clip: Clip, size: int) -> Path | None:
        """Claim a clip and return the file to unpack it to; None if it is not to be stored."""
        if not self._job.keep:
            return None
        if clip in self._unpublished:
            self._wait_for_published()  # its first copy may fail verification
        first = not self._scan.is_repeated
        if self._catalog is not None and not self._catalog.locate(clip):
            if not self._is_unlisted(clip):
                self._summary.not_wanted += first
                return None
            self._summary.unlisted += first
        if self._store.is_cached(clip):
            self._summary.present += first
        elif (claim := self._store.claim(clip, size=size)) is None:
            self._summary.busy += 1
            self._busy.append(clip)
        else:
            self._claim = self._claims.enter_context(claim)
            return claim.folder / clip.name
        return None

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
        assert self._claim is not None
        self._wait_for_published(but=_MAX_UNPUBLISHED - 1)
        publish = self._publisher.submit(self._publish, clip, path, self._claim, self._claims.pop_all())
        self._unpublished[clip] = publish

    def _wait_for_published(self, but: int = 0) -> None:
        """Wait until at most `but` clips are unpublished, and raise the error of any that failed."""
        while len(self._unpublished) > but:
            self._unpublished.pop(next(iter(self._unpublished))).result()

    def _publish(self, clip: Clip, path: Path, claim: Claim, resources: ExitStack) -> None:
        with resources:
            try:
                duration = self._checker.check(path, self._job.verify)
                claim.publish(path, SOURCE, duration=duration)
            except FetchError as error:
                if error.kind is not FailureKind.CORRUPT:
                    raise
                _log.warning("%s: not stored from %s: %s", clip.key, self._job.archive, error.reason)
                self._summary.corrupt[clip.key] = error.reason
            else:
                self._summary.stored += 1
                self._summary.corrupt.pop(clip.key, None)
