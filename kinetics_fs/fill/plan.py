"""The plan of a fill: archives to read, and the space that their clips need. Its verdict: clips that no archive has."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from rich import filesize

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.errors import FailureKind, FetchError, KineticsError, SettingError
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.sources.archive.base import Version
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import (
    archive_address,
    archive_of_class,
    list_archives,
    names_split,
    published_archives,
    stem,
)
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.store import FailureLog, FillCheckpoints, Store, selection_pages
from kinetics_fs.util.files import atomic_write
from kinetics_fs.util.text import parse_json

if TYPE_CHECKING:
    from kinetics_fs.shared.listing import StoredClips

_log = logging.getLogger(__name__)

_MAX_REQUESTS = 8
"""Archives whose versions are asked for at the same time."""

_MAX_MEAN_CLIP_BYTES = 2 * 1024 * 1024
"""Upper bound of the mean size of clips whose sizes are unknown. The mean of Kinetics is 1.5 MB."""


_GOLDEN_RATIO = 0.6180339887498949

# Names and versions of archives


def archives_holding(base: str, catalog: Catalog, *, whole: bool) -> list[str]:
    """Return the names of the archives that hold the clips of a catalog, replacements first.

    Args:
        base: http(s) or s3 address, or folder, that has the archives.
        catalog: a release, or a selection from it.
        whole: the catalog has all classes of its release, so that it needs all archives of its splits.

    A split without archives is left out, with a warning, unless there are no archives at all.

    Raises:
        FetchError: there are no archives, or the list of them cannot be read.
        ArchiveError: the list of archives is damaged.
    """
    names: list[str] = []
    missing: list[FetchError] = []
    for split in catalog.splits():
        try:
            available = list_archives(base, catalog.release, split.split)
        except FetchError as error:
            if error.kind is not FailureKind.CONFIG:
                raise
            missing.append(error)
            continue
        if not whole:
            wanted = [str(directory.label) for directory in catalog.classes(split)]
            available = _of_classes(available, catalog, split.split, wanted)
        names += available
    if missing and not names:
        raise missing[0]
    for failure in missing:
        _log.warning("%s", failure)
    return sorted(dict.fromkeys(names), key=lambda name: not is_replacement(name))


def _of_classes(available: Sequence[str], catalog: Catalog, split: str, wanted: Sequence[str]) -> list[str]:
    """Return those of the available archives of a split that can have clips of some classes."""
    labels = catalog.labels()

    def archives(classes: Sequence[str]) -> dict[str, str]:
        """Return the class archives, by name without suffix; with its folders only if the available ones have them."""
        names = (archive_of_class(catalog.release, split, label, labels) for label in classes)
        known = [name for name in names if name is not None]
        return {stem(name if names_split(available[0]) else name.rpartition("/")[2]): name for name in known}

    by_class = archives(wanted)
    if len(by_class) < len(wanted):
        return list(available)
    found = {stem(name): name for name in available}
    if names_split(available[0]):
        return [found.get(key, name) for key, name in by_class.items()]
    of_others = archives(labels).keys() - by_class.keys()
    return [name for key, name in found.items() if key not in of_others]


def is_replacement(name: str) -> bool:
    """Return whether an archive replaces broken clips of other archives, and so must be read before them."""
    return "replacement" in name


def find_versions(base: str, names: Sequence[str]) -> tuple[dict[str, Version], dict[str, str]]:
    """Return the current version of each archive, and for each archive that cannot be read the reason.

    If as many archives in a row fail as are requested at the same time, the server is down, and the others are skipped.
    """
    failures: list[FetchError] = []
    """Failures of the server, since it last answered."""

    def find(name: str) -> Version | KineticsError:
        if len(before := failures[:]) >= _MAX_REQUESTS:
            return FetchError(FailureKind.TRANSIENT, f"skipped because the server failed before: {before[-1].reason}")
        try:
            version = open_archive(archive_address(base, name)).version()
        except FetchError as error:
            if error.kind is FailureKind.TRANSIENT:
                failures.append(error)
            else:
                failures.clear()
            return error
        except KineticsError as error:
            return error
        failures.clear()
        return version

    pool = ThreadPoolExecutor(_MAX_REQUESTS)
    try:
        found = dict(zip(names, pool.map(find, names), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    versions = {name: answer for name, answer in found.items() if isinstance(answer, Version)}
    return versions, {name: str(answer) for name, answer in found.items() if isinstance(answer, KineticsError)}


def indexed_archives(
    index_db: ArchiveIndexDB | None, versions: Mapping[str, Version], *, confirmed: bool = False
) -> set[str]:
    """Return the names of the archives that are indexed in exactly these versions. An index without clips is none.

    Args:
        index_db: the archive indexes of the cache; None if there are none.
        versions: the versions, by name.
        confirmed: only those with a confirmed index.
    """
    indexed = index_db.versions(confirmed=confirmed) if index_db else {}
    return {name for name, version in indexed.items() if name in versions and version.matches(versions[name])}


def coverage_of(catalog: Catalog, *, all_clips: bool) -> str:
    """Return a digest of what a fill stores: equal on all machines that select the same clips.

    Args:
        catalog: the selection.
        all_clips: clips of the archive that no annotation names are stored, too.
    """
    return hashlib.sha256(f"{catalog.annotations_digest} {all_clips}".encode()).hexdigest()[:32]


# The order of several machines


@dataclass(frozen=True)
class Shard:
    """The share of the archives with which a machine begins. It then takes what is left of the others.

    Attributes:
        index: number of the machine, from 0.
        count: number of machines; None if it is unknown.
        origin: where the numbers come from, for messages.
    """

    index: int
    count: int | None
    origin: str = "--shard"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text such as `3/16`.

        Raises:
            SettingError: the text is not of this form.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise SettingError(f"cannot use --shard {text!r}: it is not I/N with 0 <= I < N; write, for example, 0/16")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Shard | None:
        """Return the shard of a task of Slurm, or of a pod of an Indexed Job of Kubernetes; None for neither."""
        task, tasks, pod = (
            int(value) if re.fullmatch(r"[0-9]{1,9}", value := environment.get(name, "")) else None
            for name in ("SLURM_PROCID", "SLURM_NTASKS", "JOB_COMPLETION_INDEX")
        )
        if task is not None and tasks is not None and task < tasks and tasks > 1:
            return cls(task, tasks, "SLURM_PROCID and SLURM_NTASKS")
        return None if pod is None else cls(pod, None, "JOB_COMPLETION_INDEX")

    def ranks(self, names: Collection[str]) -> dict[str, int]:
        """Return in which order this machine takes archives: first its own, then those of the next machine.

        Args:
            names: all archives of the selection.
        """
        if self.count is None:  # the golden ratio spreads any number of starts evenly
            start, count = int(self.index * _GOLDEN_RATIO % 1 * len(names)), len(names)
        else:
            start, count = self.index, self.count
        return {name: (position - start) % count for position, name in enumerate(sorted(names))}

    def __str__(self) -> str:
        return f"{self.index}/{self.count}" if self.count else str(self.index)


@dataclass(frozen=True)
class ArchivesLeft:
    """Archives that a fill still has to read.

    Attributes:
        archives: all archives of the selection, sorted.
        left: those of them that are to be read, sorted.
        failed: those of them whose versions cannot be read, with the reasons. They are left, too.
    """

    archives: list[str]
    left: list[str]
    failed: dict[str, str]

    @property
    def array(self) -> str:
        """Positions of the archives that are left, as `sbatch --array` has them, for example `0-3,7`."""
        position = {name: number for number, name in enumerate(self.archives)}
        return ",".join(_ranges([position[name] for name in self.left]))

    def to_json(self) -> dict[str, Any]:
        """Return the names, and the positions for `sbatch --array`."""
        return {"archives": len(self.archives), "left": self.left, "array": self.array, "failed": self.failed}


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Yield sorted numbers as `3`, and consecutive ones as `3-5`."""
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0])


# Archives that were read to their end


def remember_done(checkpoints: FillCheckpoints, name: str, version: Version, *, all_clips: bool) -> None:
    """Record that an archive was read to its end, and whether the clips that no annotation names were stored, too."""
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(checkpoints.done_mark(name), durable=False) as file:
        file.write(json.dumps([version.size, version.etag, *([True] if all_clips else [])]).encode())


def was_done(checkpoints: FillCheckpoints, name: str, version: Version, *, all_clips: bool) -> bool:
    """Return whether this version of an archive was read to its end, and all of its clips were stored if necessary."""
    try:
        size, etag, *stored_all = parse_json(checkpoints.done_mark(name).read_bytes())
    except (OSError, ValueError, TypeError):  # no such file, or one that a power cut damaged
        return False
    return Version(size, etag).matches(version) and (stored_all == [True] or not all_clips)


# The plan


@dataclass(frozen=True)
class SpaceEstimate:
    """Space that a fill needs, in bytes.

    Attributes:
        cached: clips of the selection that are cached already.
        incoming: clips that the archives are to bring. Exact for archives with a confirmed index, else estimated from
            their sizes.
        pinned: pinned clips of other selections, which the fill cannot evict.
    """

    cached: int
    incoming: int
    pinned: int

    def check(self, store: Store, *, min_free: int, is_shared: bool) -> None:
        """Refuse a fill that does not fit.

        Args:
            store: the store to fill.
            min_free: bytes of the disk to leave free.
            is_shared: a shared store receives the clips, too, and could do so alone.

        Raises:
            KineticsError: the limit or the disk is too small.
        """
        needed = self.cached + self.incoming
        beside = f" beside {filesize.decimal(self.pinned)} of pinned clips" if self.pinned else ""
        unpin = ", unpin clips (kinetics-fs pin remove)" if self.pinned else ""
        give = "give --no-local," if is_shared else "give"
        usage = store.usage()
        if usage.limit is not None and needed + self.pinned > usage.limit:
            raise KineticsError(
                f"cannot fill the cache: the selection needs about {filesize.decimal(needed)}{beside}, and the limit of"
                f" the cache is {filesize.decimal(usage.limit)}; {give} a larger --cache-size{unpin} or select less"
            )
        free = max(0, usage.disk_free - min_free + usage.bytes - self.cached - self.pinned)
        if self.incoming > free:
            raise KineticsError(
                f"cannot fill the cache: the archives bring about {filesize.decimal(self.incoming)}, and the disk of"
                f" {store.folder} has space for {filesize.decimal(free)}{beside}; {give} a --cache-dir on"
                f" another disk{unpin} or select less"
            )


def check_scratch(store: Store, clips: int, *, min_free: int) -> None:
    """Refuse a fill that only uploads if the disk has no room for the clips that are on their way.

    Args:
        store: the store whose disk is used.
        clips: number of clips that are on their way.
        min_free: bytes of the disk to leave free.

    Raises:
        KineticsError: the disk is too small.
    """
    needed, free = clips * _MAX_MEAN_CLIP_BYTES, store.usage().disk_free - min_free
    if needed > free:
        raise KineticsError(
            f"cannot fill the shared store: clips on their way need about {filesize.decimal(needed)}, and the disk of"
            f" {store.folder} has space for {filesize.decimal(max(0, free))}; give a --cache-dir on another disk"
        )


@dataclass(frozen=True)
class FillPlan:
    """The archives that a fill need not read, and the space that it needs.

    Attributes:
        read_before: archives that were read to their end before, and lost no clip since; also those of which no clip is
            missing by their index.
        space: space that the fill needs.
    """

    read_before: list[str]
    space: SpaceEstimate


def plan_fill(
    versions: Mapping[str, Version],
    catalog: Catalog,
    store: Store,
    index_db: ArchiveIndexDB | None,
    checkpoints: FillCheckpoints,
    *,
    index: bool,
    all_clips_of: Container[str] = (),
) -> FillPlan:
    """Decide which archives to read for a selection, and estimate the space that their clips need.

    Args:
        versions: the archives that hold the selection, with their versions.
        catalog: the selection.
        store: the store to fill.
        index_db: the archive indexes of the cache; None if there are none.
        checkpoints: has the marks of archives that were read to their end.
        index: an archive that is not indexed is to be read again for its index.
        all_clips_of: archives whose clips are all to be stored, in the selection or not.
    """
    indexed = indexed_archives(index_db, versions, confirmed=True)
    cached = _CachedPart.of(catalog, store, index_db)
    read_before = [
        name
        for name, version in versions.items()
        if was_done(checkpoints, name, version, all_clips=name in all_clips_of)
        and name not in cached.evicted_from
        and (name in indexed or not index)
    ]
    incoming = 0
    if index_db:
        for archive in index_db.indexes([name for name in versions if name in indexed and name not in read_before]):
            every = archive.archive in all_clips_of
            wanted = ((clip, record) for clip, record in archive.records.items() if every or catalog.locate(clip))
            missing = [record.size for clip, record in wanted if record.size and not store.is_cached(clip)]
            incoming += sum(missing)
            if not missing:
                read_before.append(archive.archive)
    # Videos hardly deflate: an archive is about as large as its clips.
    archive_bytes = sum(
        version.size for name, version in versions.items() if name not in read_before and name not in indexed
    )
    expected = max(0, archive_bytes - cached.bytes_not_indexed)
    if not all_clips_of:
        expected = min(expected, cached.unknown * _MAX_MEAN_CLIP_BYTES)
    incoming += expected
    pinned = store.pins.totals().bytes - cached.pinned
    return FillPlan(read_before, SpaceEstimate(cached.bytes, incoming, pinned))


@dataclass
class _CachedPart:
    """The cached part of a selection before a fill.

    Attributes:
        bytes: size of the cached clips.
        pinned: size of those of them that are pinned.
        bytes_not_indexed: size of those of them that no index has.
        unknown: number of clips that are neither cached nor indexed.
        evicted_from: archives with clips that were cached once, or are cached with other cut settings only: an earlier
            fill with these may have passed over them.
    """

    bytes: int = 0
    pinned: int = 0
    bytes_not_indexed: int = 0
    unknown: int = 0
    evicted_from: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, catalog: Catalog, store: Store, index_db: ArchiveIndexDB | None) -> _CachedPart:
        part = cls()
        for page in selection_pages(catalog, store):
            part.pinned += store.pins.of(page.keys).bytes
            indexed = index_db.sizes(page.keys) if index_db else {}
            of_any_profile = {file.clip for file in store.cached_files(page.keys)}
            for clip in (entry.clip for entry in page.entries):
                known = page.sizes.get(clip.key)
                if known is not None and known.cached:
                    part.bytes += known.size
                    part.bytes_not_indexed += 0 if clip.key in indexed else known.size
                    continue
                part.unknown += clip.key not in indexed
                if (known is not None or clip in of_any_profile) and index_db:
                    part.evicted_from.update(location.archive for location in index_db.find(clip))
        return part


# The verdict


@dataclass
class MissingClips:
    """Clips of a selection that are not stored after a fill.

    Attributes:
        not_stored: an indexed archive has them, but they failed verification, are no plain files, or another process is
            fetching them.
        in_no_archive: no archive has them that was read to its end.
    """

    not_stored: list[Clip] = field(default_factory=list)
    in_no_archive: list[Clip] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        store: Store,
        index_db: ArchiveIndexDB | None,
        shared: StoredClips | None = None,
    ) -> MissingClips:
        """Find the missing clips of a selection; each clip is listed once.

        Args:
            catalog: the selection.
            store: the cache, which must have the clips unless there is a shared store.
            index_db: the archive indexes of the cache; None if there are none.
            shared: the clips of the shared store, which must have them; None if there is none.
        """
        missing = cls()
        seen: set[Clip] = set()
        for page in selection_pages(catalog, store):
            absent = [
                entry.clip
                for entry in page.entries
                if entry.clip not in seen
                and not (page.is_cached(entry) if shared is None else _is_shared(entry.clip, store, shared))
            ]
            seen.update(absent)
            indexed = index_db.listed([clip.key for clip in absent], usable=False) if index_db else set()
            for clip in absent:
                (missing.not_stored if clip.key in indexed else missing.in_no_archive).append(clip)
        return missing


def _is_shared(clip: Clip, store: Store, shared: StoredClips) -> bool:
    return shared.has(clip, SOURCE) or shared.has(clip, store.profile.name)


class ArchiveVerdict:
    """Decides which clips the archives are proven to lack.

    Args:
        base: location of all archives: an http(s) or s3 address, or a folder.
        release: all clips of the release: archives outside the selection may have a selected clip.
        complete: names of the archives that were read to their end and indexed.
    """

    def __init__(self, base: str, release: Catalog, complete: Collection[str]) -> None:
        self._base = base
        self._release = release
        self._complete = {stem(name) for name in complete}
        self._labels = release.labels()
        self._covered: dict[str, bool] = {}
        """For splits whose archives mix classes: whether all of these are complete."""

    def is_gone(self, clip: Clip) -> bool:
        """Return whether every archive that may have a clip is complete. No index has the clip."""
        directories = (self._release.directory(entry.directory) for entry in self._release.locate(clip))
        return all(directory and self._covers(directory.split, directory.label) for directory in directories)

    def _covers(self, split: str, label: str | None) -> bool:
        """Return whether all archives that may have clips of a class are complete."""
        release = self._release.release
        archive = archive_of_class(release, split, label, self._labels) if label else None
        if archive is not None:
            return stem(archive) in self._complete
        if split not in self._covered:
            try:
                names = published_archives(self._base, release, split)
            except KineticsError:  # a folder may have any part of the archives
                names = []
            self._covered[split] = _is_complete_list(names) and all(stem(name) in self._complete for name in names)
        return self._covered[split]


def retry_indexed(index_db: ArchiveIndexDB, failures: FailureLog) -> None:
    """Let clips be tried again that were said to be in no archive, if an index has them now."""
    found = failures.all([FailureKind.GONE])
    lacking = [failure.clip for failure in found if failure.is_of_archives]
    indexed = index_db.listed([clip.key for clip in lacking])
    for clip in lacking:
        if clip.key in indexed:
            failures.make_due(clip)


def _is_complete_list(names: Sequence[str]) -> bool:
    """Return whether a list of archives is not empty, and no number is missing between those of its archives."""
    parts = [stem(name) for name in names if not is_replacement(name)]
    numbers = sorted(int(match[0]) for part in parts if (match := re.search(r"[0-9]{1,6}$", part)))
    return bool(parts) and all(after == before + 1 for before, after in pairwise(numbers))
