"""Archive indexes of a cache as a whole: build, verify, export and import them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import ArchiveError, KineticsError
from kinetics_fs.fill.archive_job import ArchiveJob
from kinetics_fs.fill.executors import Executor
from kinetics_fs.fill.plan import find_versions, indexed_archives
from kinetics_fs.fill.runner import ArchiveProgress, ArchiveResults, read_archives
from kinetics_fs.fill.turns import Turns
from kinetics_fs.media import VerifyLevel
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.extract import extract
from kinetics_fs.sources.archive.index import UNUSABLE, ArchiveIndex, Record, read_indexes, write_index
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB, check_import
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.libz import finds_block_boundaries
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.store import FailureLog, FillCheckpoints

if TYPE_CHECKING:
    from kinetics_fs.shared import SharedStore

_MAX_READS = 4


def select_archives(index_db: ArchiveIndexDB, names: Sequence[str]) -> list[str]:
    """Return these names, each once, or the names of all indexed archives if there are none.

    Raises:
        ArchiveError: one of the archives is not indexed.
    """
    indexed = [archive.archive for archive in index_db.archives()]
    for name in names:
        if name not in indexed:
            raise ArchiveError(f"the cache has no index of {name}; see kinetics-fs index list")
    return list(dict.fromkeys(names)) or indexed


def build_indexes(
    base: str,
    names: Sequence[str],
    index_db: Path,
    *,
    cache_dir: Path,
    checkpoints: FillCheckpoints,
    failures: FailureLog,
    executor: Executor,
    progress: ArchiveProgress,
    shared: SharedStore | None = None,
    share: bool = True,
) -> ArchiveResults:
    """Index archives in one pass over each. Archives that are indexed in their current version are not read again.

    Args:
        base: http(s) or s3 address, or folder, that has the archives.
        names: the archives to index.
        index_db: file of the archive index database; created if it does not exist.
        cache_dir: the cache directory.
        checkpoints: where in half-read archives to continue.
        failures: the failures of the cache. A clip that was said to be in no archive is tried again if an index of the
            shared store has it.
        executor: reads the archives; it is shut down in the end.
        progress: receives the progress.
        shared: shared store whose indexes are used instead of reading the archives again; None for none.
        share: put the indexes into that store.

    Raises:
        ArchiveError: this Python cannot build indexes.
        SharedStoreError: the shared store cannot be used.
    """
    if not finds_block_boundaries():
        raise ArchiveError("cannot build an index: this Python links zlib statically; use a Python with a shared libz")
    versions, failed = find_versions(base, names)
    turns = Turns()
    with ArchiveIndexDB(index_db) as opened:
        if shared is not None:
            from kinetics_fs.fill.index_turns import IndexTurns
            from kinetics_fs.fill.shared_indexes import import_indexes_of, put_missing

            if shared.open(create=False) and share:
                turns = IndexTurns(shared)
                put_missing(shared, opened, indexed_archives(opened, versions, confirmed=True))
            import_indexes_of(shared, opened, cache_dir, versions, failures)
        indexed = indexed_archives(opened, versions)
    results = ArchiveResults(read_before=[name for name in versions if name in indexed], failed=failed)
    jobs = (
        ArchiveJob(
            base=base,
            archive=name,
            cache_dir=cache_dir,
            min_free=0,
            catalog_file=None,
            index=True,
            checkpoints=checkpoints,
            verify=VerifyLevel.NONE,
            keep=False,
        )
        for name in versions
        if name not in indexed
    )
    read_archives(jobs, versions, results, index_db=index_db, executor=executor, progress=progress, turns=turns)
    return results


# Verification


@dataclass
class IndexCheck:
    """The result of verifying indexes.

    Attributes:
        archives: number of archives.
        clips: number of clips to read.
        clips_read: number of clips that were read.
        bytes: bytes of the archives that were read for them.
        wrong_archives: archives that cannot be read, or are not the version that was indexed, with the reasons.
        wrong_clips: clips that cannot be read by the index, as `archive: clip`, with the reasons.
    """

    archives: int
    clips: int = 0
    clips_read: int = 0
    bytes: int = 0
    wrong_archives: dict[str, str] = field(default_factory=dict)
    wrong_clips: dict[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> dict[str, str]:
        """Wrong archives and clips, with the reasons."""
        return self.wrong_archives | self.wrong_clips

    def to_json(self) -> dict[str, Any]:
        """Return all but the number of clips to read."""
        result = dataclasses.asdict(self)
        del result["clips"]
        return result


def verify_indexes(
    base: str,
    names: Sequence[str],
    index_db: ArchiveIndexDB,
    *,
    sample: int | None,
    on_progress: Callable[[IndexCheck], object] = lambda check: None,
) -> IndexCheck:
    """Read clips by the indexes, and compare their sizes and checksums. No clip is stored.

    An index of which all clips were read and are right is confirmed.

    Args:
        base: http(s) or s3 address, or folder, that has the archives.
        names: the archives to verify; all of them are indexed.
        index_db: the indexes.
        sample: number of clips to read, at random; None for all.
        on_progress: receives the check so far after each clip.
    """
    indexed = {archive.archive: archive for archive in index_db.archives()}
    versions, failed = find_versions(base, names)
    check = IndexCheck(len(names), wrong_archives=failed)
    for name, version in versions.items():
        if indexed[name].version.size != version.size:
            check.wrong_archives[name] = "not the version that was indexed"
    readable = [name for name in versions if name not in check.wrong_archives]
    total = sum(indexed[name].clips for name in readable)
    chosen = range(total) if sample is None else sorted(random.sample(range(total), min(sample, total)))
    check.clips = len(chosen)
    first = 0
    with ThreadPoolExecutor(_MAX_READS) as pool:
        for name in readable:
            numbers = [number - first for number in chosen if first <= number < first + indexed[name].clips]
            first += indexed[name].clips
            for index in index_db.indexes([name]) if numbers else ():
                # A copy elsewhere may have another entity tag: its clips tell whether it is the same archive.
                current = dataclasses.replace(index, etag=versions[name].etag)
                records = sorted((clip, record) for clip, record in current.records.items() if record != UNUSABLE)
                clips = [records[number] for number in numbers]
                mistakes = pool.map(lambda clip, current=current: _find_mistake(base, current, *clip), clips)
                wrong = len(check.wrong_clips)
                for (clip, record), mistake in zip(clips, mistakes, strict=True):
                    check.clips_read += 1
                    check.bytes += record.end - record.begin
                    if mistake:
                        check.wrong_clips[f"{name}: {clip.key}"] = mistake
                    on_progress(check)
                if len(clips) == len(records) and len(check.wrong_clips) == wrong:
                    index_db.confirm(name)
    return check


def _find_mistake(base: str, index: ArchiveIndex, clip: Clip, record: Record) -> str | None:
    """Return why a clip cannot be read by an index; None if it can."""
    archive = open_archive(archive_address(base, index.archive))
    try:
        with closing(archive.read(record.begin, record.end, Version(index.size, index.etag))) as pieces:
            for _ in extract(clip, record, pieces, gzipped=index.gzipped):
                pass
    except KineticsError as error:
        return str(error)
    return None


# Index files


@dataclass
class ImportedIndexes:
    """The result of importing indexes.

    Attributes:
        imported: number of indexes that were imported.
        replaced: number of those of them that replaced an earlier index.
        clips: number of clips in them.
        refused: why an index was not imported, so that it and everything after it in the file was skipped; None if all
            were imported.
    """

    imported: int = 0
    replaced: int = 0
    clips: int = 0
    refused: str | None = None


def export_indexes(index_db: ArchiveIndexDB, names: Sequence[str], file: BinaryIO) -> int:
    """Write indexes to a file, and return how many were written. Such files may be concatenated."""
    count = 0
    for index in index_db.indexes(names):
        write_index(index, file)
        count += 1
    return count


def import_indexes(index_db: ArchiveIndexDB, file: BinaryIO, *, folder: Path) -> ImportedIndexes:
    """Import the indexes in a file that `export_indexes` wrote. An index replaces an earlier one of the same archive.

    Args:
        index_db: receives the indexes.
        file: the file, which is untrusted.
        folder: folder of the database.

    Raises:
        ArchiveError: the first index in the file is invalid or does not fit on the disk, so that nothing was imported.
    """
    earlier: Collection[str] = {archive.archive for archive in index_db.archives()}
    result = ImportedIndexes()
    indexes = read_indexes(file)
    while True:
        try:
            index = next(indexes, None)
            if index is None:
                return result
            index = check_import(index, folder)
        except ArchiveError as error:
            result.refused = f"cannot import index {result.imported + 1:,} in {file.name}: {error}"
            if not result.imported:
                raise ArchiveError(result.refused) from error
            return result
        index_db.add(index, confirmed=False)
        result.imported += 1
        result.clips += len(index.records)
        result.replaced += index.archive in earlier
