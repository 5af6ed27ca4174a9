"""One archive into the store, in one pass."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from kinetics_fs.catalog import Catalog
from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.fill.state import State, read_state, write_state
from kinetics_fs.fill.summary import Summary
from kinetics_fs.media.verify import VerifyLevel
from kinetics_fs.sources.archive.base import Archive, Version
from kinetics_fs.sources.archive.index import ArchiveIndex
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Scan
from kinetics_fs.sources.archive.tar import Begin, End
from kinetics_fs.store import Claim, Store

_log = logging.getLogger(__name__)

SOURCE = "archive"
_MOST_UNPUBLISHED = 4
"""Clips that are unpacked and not yet in the store."""

_CHECKPOINT_EVERY = 1.0
"""Seconds of work that a kill may cost."""


@dataclass(frozen=True)
class Job:
    """What it takes to fill a store from one archive.

    Args:
        base: where all archives are: an http(s) or s3 address, or a folder.
        archive: its name there.
        cache: folder of the store.
        limit: most bytes of clips that the store holds; None for no limit.
        min_free: bytes of the disk to leave free.
        catalog: file of the catalog whose clips are wanted; None for all that the archive has.
        shelf: file of the indexes; None if none is to be made.
        states: folder for what it takes to go on after a kill.
        depth: how closely clips are looked at.
        connections: to read with.
        keep: publish the clips; else only the index is made.
    """

    base: str
    archive: str
    cache: Path
    limit: int | None
    min_free: int
    catalog: Path | None
    index_db: Path | None
    states: Path
    depth: VerifyLevel = VerifyLevel.CONTAINER
    connections: int = 8
    keep: bool = True


Report = Callable[[int, int], None]
"""Told now and then: bytes of the archive that are done, and all."""


def fill_archive(job: Job, report: Report = lambda done, total: None) -> Summary:
    """Fills a store from one archive, and makes its index.

    Raises:
        FetchError: the archive cannot be read, or there is no room.
        ArchiveError: the archive is damaged, as far as its own checksum at the end tells.
            In both cases what was published stays. After the first the next call goes on where this one stopped, after
            the second it begins anew, for the damage may be in what it would go on from.
        StoreError, CatalogError: the store or the catalog cannot be used.
    """
    with ExitStack() as opened:
        store = opened.enter_context(Store(job.cache, limit=job.limit, min_free=job.min_free))
        catalog = opened.enter_context(Catalog(job.catalog)) if job.catalog else None
        index_db = (
            opened.enter_context(ArchiveIndexDB(job.index_db)) if job.index_db and finds_block_boundaries() else None
        )
        archive = open_archive(archive_address(job.base, job.archive), connections=job.connections)
        return _Fill(job, store, catalog, index_db, archive, report).run()


class _Fill:
    def __init__(
        self,
        job: Job,
        store: Store,
        catalog: Catalog | None,
        index_db: ArchiveIndexDB | None,
        archive: Archive,
        report: Report,
    ) -> None:
        self._job = job
        self._store = store
        self._catalog = catalog
        self._index_db = index_db
        self._archive = archive
        self._report = report
        self._summary = Summary()
        self._refused_before: Counter[str] = Counter()
        self._coming = ExitStack()
        """What the clip that is coming holds: its claim and its file."""
        self._claim: Claim | None = None
        self._file: IO[bytes] | None = None
        # Unpacking takes one core; to check a clip and force it to the disk takes as long beside it, not after it.
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._publishing: deque[Future[None]] = deque()
        # An index that lacks the clips of an earlier part is none: so there is a state with one, and one without.
        kind = "indexed" if index_db else "plain"
        name = hashlib.sha256(f"{job.base} {job.archive}".encode()).hexdigest()[:32]
        self._state = job.states / f"{name}.{kind}"

    def run(self) -> Summary:
        try:
            return self._run()
        except ArchiveError:
            self._state.unlink(missing_ok=True)
            raise

    def _run(self) -> Summary:
        version = self._archive.version()
        scan, begin = self._scan(version)
        done, saved = begin, time.monotonic()
        with self._publisher, self._coming, closing(self._archive.stream(begin, version)) as stream:
            for data in stream:
                for event in scan.feed(data):
                    if isinstance(event, Begin):
                        self._begin(event.clip, event.size)
                    elif isinstance(event, End):
                        self._end(event.clip)
                        if time.monotonic() - saved >= _CHECKPOINT_EVERY:
                            self._save(scan, version)
                            saved = time.monotonic()
                    elif self._file is not None:
                        self._file.write(event)
                done += len(data)
                self._report(done, version.size)
            self._wait_for_published()
        scan.finish()
        if self._index_db is not None:
            self._index_db.add(self._index(scan, version))
        self._state.unlink(missing_ok=True)
        self._summary.bytes = done - begin
        self._summary.resumed_at = begin
        self._summary.refused = self._refused_before + scan.refusals
        self._summary.indexed = len(scan.records)
        return self._summary

    # Going on

    def _scan(self, version: Version) -> tuple[Scan, int]:
        """The pass, from its beginning or from where the last one stopped, and the byte of the archive that is."""
        index = self._index_db is not None
        state = read_state(self._state)
        if state is None or (state.learnt.size, state.learnt.etag) != (version.size, version.etag):
            return Scan(index=index), 0
        checkpoint = state.checkpoint
        self._summary = state.summary
        self._refused_before = state.summary.refused
        return Scan(at=checkpoint, records=state.learnt.records, index=index), checkpoint.block.bit // 8

    def _save(self, scan: Scan, version: Version) -> None:
        checkpoint = scan.checkpoint()
        if checkpoint is not None:
            self._wait_for_published()  # what comes before it is in the store
            self._job.states.mkdir(parents=True, exist_ok=True)
            summary = replace(self._summary, refused=self._refused_before + scan.refusals)
            write_state(self._state, State(checkpoint, self._index(scan, version), summary))

    def _index(self, scan: Scan, version: Version) -> ArchiveIndex:
        return ArchiveIndex(self._job.archive, version.size, version.etag, scan.gzipped, scan.records)

    # A clip

    def _begin(self, clip: Clip, size: int) -> None:
        if not self._job.keep:
            return
        if self._catalog is not None and not self._catalog.locate(clip):
            self._summary.not_wanted += 1
        elif self._store.is_cached(clip):
            self._summary.present += 1
        elif (claim := self._store.claim(clip, size=size)) is None:
            self._summary.busy += 1
        else:
            self._claim = self._coming.enter_context(claim)
            self._file = self._coming.enter_context((claim.folder / clip.name).open("xb"))

    def _end(self, clip: Clip) -> None:
        claim, file = self._claim, self._file
        if claim is None or file is None:
            return
        self._claim = self._file = None
        self._wait_for_published(but=_MOST_UNPUBLISHED - 1)
        held = self._coming.pop_all()
        self._publishing.append(self._publisher.submit(self._publish, clip, claim, file, held))

    def _wait_for_published(self, but: int = 0) -> None:
        """Waits until no more clips than that are unpublished, and raises what any of them raised."""
        while len(self._publishing) > but:
            self._publishing.popleft().result()

    def _publish(self, clip: Clip, claim: Claim, file: IO[bytes], held: ExitStack) -> None:
        with held:
            file.close()
            path = claim.folder / clip.name
            try:
                self._job.depth.check(path)
                claim.publish(path, SOURCE)
            except FetchError as error:
                if error.kind is not FailureKind.CORRUPT:
                    raise
                _log.warning("%s: not taken from %s: %s", clip.key, self._job.archive, error.reason)
                self._summary.failed[error.reason] += 1
            else:
                self._summary.stored += 1
