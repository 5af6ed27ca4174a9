"""The objects of a shared store: clips, failures, archive indexes and completed fills.

::

    kinetics-store.json                              who may read and write: `StoreFormat`
    clips/v1/<profile>/<hh>/<id>_<start>_<end>.mp4   a clip, created once
    gone/v1/<hh>/<id>_<start>_<end>.json             a failure that holds on every machine
    indexes/v1/<archive>/<etag>                      the index of an archive
    fills/v1/<archive>@<etag>.json                   an archive of which the store has all clips of a selection
    checkpoints/v1/<archive>@<etag>                  where to continue in an archive that is being read
    leases/…, budget/…                               see `leases` and `budget`

`<hh>` are two digits of a digest of the name, so that no folder has too many names. The profile is `source` for clips
as their source has them, or a digest of the settings with which they were cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kinetics_fs.catalog.clip import Clip, parse_clip_name
from kinetics_fs.errors import SharedStoreError
from kinetics_fs.shared.backend import (
    MAX_FILE,
    MAX_RECORD,
    AccessRefused,
    Backend,
    Conflict,
    ObjectDamaged,
    Version,
)
from kinetics_fs.shared.records import Record, Records, StoreClock
from kinetics_fs.store import Failure, FailureReport, InvalidLine, one_line, read_reports, report_line
from kinetics_fs.store.layout import SHARED_STORE_RECORD

_log = logging.getLogger(__name__)

_READER = 1
"""The version of this program as a reader. A change that old readers would misread increases it."""
_WRITER = 1
"""The version of this program as a writer."""

_CLIPS, GONE, _INDEXES, PROBES = "clips/v1", "gone/v1", "indexes/v1", "probe"
_FILLS, _CHECKPOINTS = "fills/v1", "checkpoints/v1"
_TOP_NAMES = {"clips", "gone", "indexes", "fills", "checkpoints", "leases", "budget", "probe", SHARED_STORE_RECORD}
"""The first segments of all keys. A place that has only these is a store that lost its record."""
_PROFILE = re.compile(r"[a-z0-9]{1,32}")
ALL_CLIPS = "all"
"""Coverage of a fill that stored all clips of an archive, whatever was selected."""
_DELETED_AT_A_TIME = 1000
_TRIES = 5
"""Tries to replace a record that other machines replace at the same time."""


class StoreFormat(NamedTuple):
    """The least versions of readers and writers of a store, as `reader` and `writer` of this module."""

    reader: int
    writer: int


class ClipFacts(NamedTuple):
    """The facts about a clip.

    Attributes:
        size: bytes.
        sha256: digest of the whole file, hexadecimal.
        source: name of the source that delivered it.
        duration: seconds that its pictures cover; None if they were not measured.
    """

    size: int
    sha256: str
    source: str
    duration: float | None

    @classmethod
    def of(cls, body: bytes, source: str, duration: float | None) -> ClipFacts:
        """Return the facts about a file."""
        return cls(len(body), hashlib.sha256(body).hexdigest(), source, duration)


class SharedClip(NamedTuple):
    """A clip from the store. Its size and digest are those of its metadata.

    Attributes:
        body: its bytes.
        facts: its metadata.
        profile: how the bytes were made.
        version: the object.
    """

    body: bytes
    facts: ClipFacts
    profile: str
    version: Version


class ListedClip(NamedTuple):
    """A clip in a listing of the store.

    Attributes:
        clip: the clip.
        profile: how its bytes were made.
        size: bytes.
        modified: when it was written, in seconds since the epoch by the clock of the store.
    """

    clip: Clip
    profile: str
    size: int
    modified: float


class CompletedFill(NamedTuple):
    """An archive of which the store has every clip of a selection that is sound.

    Attributes:
        archive: its name.
        etag: tells which content of the archive was read.
        coverage: `ALL_CLIPS`, or the digest of the selection.
        indexed: the pass indexed the archive. The store has the index, unless a clip cannot be read alone.
        clips: number of clips.
        bytes: their bytes.
        node: the machine that finished it.
    """

    archive: str
    etag: str
    coverage: str
    indexed: bool
    clips: int
    bytes: int
    node: str


class IndexKey(NamedTuple):
    """The key of the index of an archive.

    Attributes:
        archive: a part of the key that names the archive.
        etag: a part of the key that tells which content of the archive was indexed.
    """

    archive: str
    etag: str

    @classmethod
    def of(cls, archive: str, etag: str) -> IndexKey:
        """Return the key for an archive and its entity tag."""
        return cls(archive_name(archive), _sha256(etag.encode())[:24])

    def __str__(self) -> str:
        return f"{_INDEXES}/{self.archive}/{self.etag}"


class Capabilities(NamedTuple):
    """The abilities of a store.

    Attributes:
        can_write: objects can be created.
        has_conditional_writes: machines can exclude each other. Without this there are no leases and no common budget;
            clips stay correct.
        reason: why one of them is missing; empty if none is.
    """

    can_write: bool
    has_conditional_writes: bool
    reason: str = ""


class SharedStore:
    """A store that several machines use. Safe for threads.

    Every method raises `StoreUnreachable` or `AccessRefused` if the store cannot serve it.

    Args:
        backend: has the objects.
        clock: the clock of the store.

    Attributes:
        backend: has the objects.
        clock: the clock of the store.
        records: the records in it.
    """

    def __init__(self, backend: Backend, clock: StoreClock | None = None) -> None:
        self.backend = backend
        self.clock = clock or StoreClock()
        self.records = Records(backend)
        self._damaged: dict[str, Version] = {}
        """Damaged files that this process has met, to replace them."""
        self._rejected: set[str] = set()
        """Those of them whose digests are right."""

    # The store as a whole

    def exists(self) -> bool:
        """Return whether the place is a store, of any version."""
        return self.records.read(SHARED_STORE_RECORD) is not None

    def open(self, *, create: bool) -> bool:
        """Check that this program may use the store.

        Args:
            create: make an empty place a store.

        Returns:
            Whether this program may write to it.

        Raises:
            SharedStoreError: it is no store, or a newer version of kinetics-fs must read it.
        """
        address = self.backend.address
        if create and not self.exists():
            if others := self.backend.top_names() - _TOP_NAMES:
                raise SharedStoreError(
                    f"cannot make {address} a shared store: it has other files, such as {one_line(min(others))!r};"
                    " give an empty folder or prefix"
                )
            self.records.create(SHARED_STORE_RECORD, {"format": "kinetics-fs", "reader": _READER, "writer": _WRITER})
        found = self.read_format()
        if found.reader > _READER:
            raise SharedStoreError(
                f"cannot use {address} as the shared store: a newer version of kinetics-fs made it; update kinetics-fs"
            )
        return found.writer <= _WRITER

    def read_format(self) -> StoreFormat:
        """Return who may read and write the store.

        Raises:
            SharedStoreError: it is no store.
        """
        address = self.backend.address
        record = self.records.read(SHARED_STORE_RECORD)
        if record is None:
            raise SharedStoreError(
                f"cannot use {address} as the shared store: it has no {SHARED_STORE_RECORD}; check the address, or"
                " create the store with kinetics-fs shared init"
            )
        reader, writer = record.values.get("reader"), record.values.get("writer")
        if record.values.get("format") != "kinetics-fs" or type(reader) is not int or type(writer) is not int:
            raise ObjectDamaged(
                f"cannot use {address} as the shared store: {SHARED_STORE_RECORD} is damaged; remove it and run"
                " kinetics-fs shared init",
                record.version,
            )
        return StoreFormat(reader, writer)

    def probe(self) -> Capabilities:
        """Try conditional writes on an object that is then deleted, and set the clock by it."""
        key = f"{PROBES}/{secrets.token_hex(12)}.json"
        try:
            first = self.records.create(key, {})  # knows its own write again if the answer is lost
        except AccessRefused as error:
            return Capabilities(False, False, str(error))
        try:
            written = self.backend.stat(key)
            if written is not None:
                self.clock.observe(written.modified)
            second = first and self.records.replace(key, first.version, {})
            if first is None or second is None:
                faults = ["it does not replace an unchanged object"]
            else:
                faults = []
                if self._is_accepted(lambda: self.backend.create(key, b"3")):
                    faults.append("it overwrites an object that is to be created")
                found = self.backend.stat(key)
                if self._is_accepted(lambda: self.backend.replace(key, b"4", first.version)):
                    faults.append("it replaces an object that was changed")
                if not faults and (found is None or found.version != second.version):
                    faults.append("it does not show what was written last")
        except AccessRefused as error:
            faults = [str(error)]
        finally:
            with contextlib.suppress(AccessRefused):
                self.backend.delete(key)
        reason = f"{self.backend.address} has no conditional writes: {faults[0]}" if faults else ""
        return Capabilities(True, not faults, reason)

    @staticmethod
    def _is_accepted(write: Any) -> bool:
        try:
            write()
        except Conflict:
            return False
        return True

    # Clips

    def get_clip(self, clip: Clip, profile: str) -> SharedClip | None:
        """Return a clip by one request; None if the store does not have it.

        Raises:
            ObjectDamaged: its size or digest is not that of its metadata. The next `put_clip` replaces it.
        """
        key = clip_key(clip, profile)
        try:
            found = self.backend.get(key, max_size=MAX_FILE)
            if found is None:
                return None
            facts = _parse_facts(found.info.metadata, key)
            if facts is None or len(found.body) != facts.size or _sha256(found.body) != facts.sha256:
                raise ObjectDamaged(
                    f"cannot read {self.backend.address}/{key}: it is not what its metadata says", found.info.version
                )
        except ObjectDamaged as error:
            if error.version is not None:
                self._damaged[key] = error.version
            raise
        if self._damaged.get(key) == found.info.version and key in self._rejected:
            raise ObjectDamaged(f"cannot read {self.backend.address}/{key}: it is no video", found.info.version)
        self._damaged.pop(key, None)
        self._rejected.discard(key)
        return SharedClip(found.body, facts, profile, found.info.version)

    def mark_damaged(self, clip: Clip, found: SharedClip) -> None:
        """Take a clip for damaged whatever its metadata says. The next `put_clip` replaces it."""
        key = clip_key(clip, found.profile)
        self._damaged[key] = found.version
        self._rejected.add(key)

    def has_clip(self, clip: Clip, profile: str) -> bool:
        """Return whether the store has a clip, whatever was known before. A damaged one does not count."""
        key = clip_key(clip, profile)
        found = self.backend.stat(key)
        return found is not None and self._damaged.get(key) != found.version

    def put_clip(self, clip: Clip, profile: str, body: bytes, facts: ClipFacts) -> bool:
        """Write a clip that the store does not have, or in place of a damaged one that this process has met.

        Returns:
            Whether it was written; False if the store has it.

        Raises:
            ObjectDamaged: `body` is not what `facts` say.
        """
        key = clip_key(clip, profile)
        if len(body) != facts.size or _sha256(body) != facts.sha256 or facts.size > MAX_FILE:
            raise ObjectDamaged(f"cannot write {self.backend.address}/{key}: the cached file is damaged")
        metadata = {
            "key": key,
            "sha256": facts.sha256,
            "size": str(facts.size),
            "source": one_line(facts.source)[:64],
            "duration": "" if facts.duration is None else f"{facts.duration:.3f}",
        }
        if key in self._damaged:
            return self._replace_damaged(clip, profile, body, metadata)
        try:
            self.backend.create(key, body, metadata)
        except Conflict:
            return False
        return True

    def _replace_damaged(self, clip: Clip, profile: str, body: bytes, metadata: Mapping[str, str]) -> bool:
        key = clip_key(clip, profile)
        try:
            # Once more: if only the metadata was damaged, a bucket has the same version for the damaged and the sound.
            if self.get_clip(clip, profile) is None:
                self.backend.create(key, body, metadata)
            else:
                return False
        except ObjectDamaged as error:
            if error.version is None:
                raise
            try:
                self.backend.replace(key, body, error.version, metadata)
            except Conflict:
                return False
            _log.warning("%s: replaced the damaged clip in %s", clip.key, self.backend.address)
        except Conflict:
            return False
        self._damaged.pop(key, None)
        self._rejected.discard(key)
        return True

    def clips(self, profile: str, *, after: Clip | None = None) -> Iterator[tuple[Clip, int]]:
        """Yield the clips of a profile with their sizes in bytes, in the order of their keys.

        Args:
            profile: the profile.
            after: continue after this clip.
        """
        start = clip_key(after, profile) if after else ""
        for listed in self._listed(f"{_CLIPS}/{_checked(profile)}", start):
            yield listed.clip, listed.size

    def listing(self) -> Iterator[ListedClip]:
        """Yield the clips of all profiles, in the order of their keys."""
        return self._listed(_CLIPS)

    def _listed(self, prefix: str, after: str = "") -> Iterator[ListedClip]:
        for entry in self.backend.scan(prefix, after=after):
            *_, profile, _, name = f"//{entry.key}".split("/")
            clip = parse_clip_name(name)
            if clip is not None and is_profile(profile) and entry.key == clip_key(clip, profile):
                yield ListedClip(clip, profile, entry.size, entry.modified)

    def delete_clips(self, clips: Iterable[tuple[Clip, str]]) -> None:
        """Delete clips, each named with its profile. Call `forget_fills`, so that fills bring them again."""
        self._delete([clip_key(clip, profile) for clip, profile in clips])

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETED_AT_A_TIME):
            self.backend.delete(*keys[start : start + _DELETED_AT_A_TIME])

    # Failures

    def get_gone(self, clip: Clip) -> FailureReport | None:
        """Return the failure of a clip that holds on every machine; None if none is known.

        Raises:
            ObjectDamaged: the record is invalid.
        """
        return self.read_gone(_gone_key(clip))

    def read_gone(self, key: str) -> FailureReport | None:
        """Return the failure with this key; None if there is none.

        Raises:
            ObjectDamaged: the record is invalid.
        """
        found = self.backend.get(key, max_size=MAX_RECORD)
        if found is None:
            return None
        for report in read_reports(io.BytesIO(found.body)):
            if not isinstance(report, InvalidLine) and _gone_key(report.clip) == key:
                return report
        raise ObjectDamaged(
            f"cannot read {self.backend.address}/{key}: it is no failure of this clip", found.info.version
        )

    def put_gone(self, failure: Failure) -> None:
        """Write a failure that holds on every machine, unless a later one is known."""
        key = _gone_key(failure.clip)
        body = f"{report_line(failure)}\n".encode()
        for _ in range(_TRIES):
            try:
                self.backend.create(key, body)
                return
            except Conflict:
                known = self.backend.stat(key)
            try:
                report = self.get_gone(failure.clip)
                if report is not None and report.last_at >= int(failure.last_at):
                    return
            except ObjectDamaged:
                pass  # replaced
            if known is not None:
                try:
                    self.backend.replace(key, body, known.version)
                    return
                except Conflict:
                    pass  # another machine wrote its own: compare again

    def has_gone(self, clip: Clip) -> bool:
        """Return whether there is a failure of a clip, valid or not."""
        return self.backend.stat(_gone_key(clip)) is not None

    def forget_gone(self, clips: Iterable[Clip]) -> None:
        """Delete the failures of clips, so that the next machine tries them again."""
        self._delete([_gone_key(clip) for clip in clips])

    def gone_clips(self) -> Iterator[Clip]:
        """Yield the clips of which the store has a failure, in the order of their keys."""
        for entry in self.backend.scan(GONE):
            clip = parse_clip_name(entry.key.rpartition("/")[2].removesuffix(".json") + ".mp4")
            if clip is not None and entry.key == _gone_key(clip):
                yield clip

    # Archives

    def get_index(self, index: IndexKey) -> bytes | None:
        """Return the index of an archive; None if the store has none.

        Raises:
            ObjectDamaged: it is not what its metadata says.
        """
        return self._get_file(str(index))

    def put_index(self, index: IndexKey, body: bytes) -> None:
        """Write the index of an archive, unless the store has a sound one."""
        key = str(index)
        try:
            self.backend.create(key, body, _file_metadata(key, body))
        except Conflict:
            try:
                self._get_file(key)
            except ObjectDamaged as damaged:
                if damaged.version is not None:
                    with contextlib.suppress(Conflict):  # another machine has replaced it
                        self.backend.replace(key, body, damaged.version, _file_metadata(key, body))

    def indexes(self) -> Iterator[IndexKey]:
        """Yield the newest index of each archive, by one listing."""
        newest: dict[str, tuple[float, str]] = {}
        for entry in self.backend.scan(_INDEXES):
            archive, _, etag = entry.key.removeprefix(f"{_INDEXES}/").partition("/")
            if etag and "/" not in etag:
                newest[archive] = max(newest.get(archive, (0.0, "")), (entry.modified, etag))
        yield from (IndexKey(archive, etag) for archive, (_, etag) in newest.items())

    def get_fill(self, archive: str, etag: str, coverage: str) -> CompletedFill | None:
        """Return the completion record of an archive that covers a selection; None if there is no valid one."""
        for covered in dict.fromkeys((ALL_CLIPS, coverage)):
            if (fill := self._read_fill(_fill_key(archive, etag, covered))[0]) is not None:
                return fill
        return None

    def put_fill(self, fill: CompletedFill) -> None:
        """Write a completion record, unless there is one that says as much."""
        key = _fill_key(fill.archive, fill.etag, fill.coverage)
        if self.records.create(key, fill._asdict()) is not None:
            return
        known, version = self._read_fill(key)
        if version is not None and (known is None or (fill.indexed and not known.indexed)):
            self.records.replace(key, version, fill._asdict())

    def delete_fill(self, fill: CompletedFill) -> None:
        """Delete a completion record, because the store has lost clips of the archive."""
        self.records.delete(_fill_key(fill.archive, fill.etag, fill.coverage))

    def count_indexes(self) -> int:
        """Return the number of archive indexes, by a listing."""
        return sum(1 for _ in self.backend.scan(_INDEXES))

    def count_fills(self) -> int:
        """Return the number of completion records, by a listing."""
        return sum(1 for _ in self.backend.scan(_FILLS))

    def forget_fills(self, is_affected: Callable[[str], bool]) -> int:
        """Delete the completion records of archives of which clips were deleted, and all checkpoints of fills.

        Args:
            is_affected: returns whether the archive with this name may have had the clips.

        Returns:
            The number of completion records.
        """
        keys = []
        for entry in self.backend.scan(_FILLS):
            with contextlib.suppress(ObjectDamaged):
                record = self.records.read(entry.key)
                archive = None if record is None else record.values.get("archive")
                if isinstance(archive, str) and not is_affected(archive):
                    continue
            keys.append(entry.key)
        self._delete([*keys, *(entry.key for entry in self.backend.scan(_CHECKPOINTS))])
        return len(keys)

    def fills(self) -> Iterator[CompletedFill]:
        """Yield all valid completion records. Takes a request for each."""
        for entry in self.backend.scan(_FILLS):
            if (fill := self._read_fill(entry.key)[0]) is not None:
                yield fill

    def _read_fill(self, key: str) -> tuple[CompletedFill | None, Version | None]:
        """Return a completion record, None if it is invalid, with its version, None if there is none."""
        try:
            record = self.records.read(key)
        except ObjectDamaged as error:
            _log.warning("%s", error)
            return None, error.version
        return (None, None) if record is None else (_parse_fill(record, key), record.version)

    def get_progress(self, archive: str, etag: str, coverage: str) -> bytes | None:
        """Return the checkpoint of an archive that a machine was reading; None if there is none.

        Raises:
            ObjectDamaged: it is not what its metadata says.
        """
        return self._get_file(_checkpoint_key(archive, etag, coverage))

    def put_progress(self, archive: str, etag: str, coverage: str, body: bytes) -> None:
        """Write the checkpoint of an archive that this machine reads, in place of an earlier one.

        If two machines read one archive, each checkpoint is right, and the later one stays.
        """
        key = _checkpoint_key(archive, etag, coverage)
        with contextlib.suppress(Conflict):  # another machine has written its own
            found = self.backend.stat(key)
            if found is None:
                self.backend.create(key, body, _file_metadata(key, body))
            else:
                self.backend.replace(key, body, found.version, _file_metadata(key, body))

    def delete_progress(self, archive: str, etag: str, coverage: str) -> None:
        """Delete the checkpoint of an archive."""
        self.backend.delete(_checkpoint_key(archive, etag, coverage))

    def _get_file(self, key: str) -> bytes | None:
        found = self.backend.get(key, max_size=MAX_FILE)
        if found is None:
            return None
        metadata = found.info.metadata
        if (metadata.get("key"), metadata.get("sha256")) != (key, _sha256(found.body)):
            raise ObjectDamaged(
                f"cannot read {self.backend.address}/{key}: it is not what its metadata says", found.info.version
            )
        return found.body


def clip_key(clip: Clip, profile: str) -> str:
    """Return the key of a clip."""
    return f"{_CLIPS}/{_checked(profile)}/{_hh(clip.key)}/{clip.name}"


def clip_lease(clip: Clip, profile: str) -> str:
    """Return the name of the lease of a clip."""
    return f"clip/{_checked(profile)}/{_hh(clip.key)}/{clip.key}"


def archive_lease(archive: str, etag: str) -> str:
    """Return the name of the lease of an archive."""
    return f"archive/{archive_name(archive, etag)}"


def archive_name(archive: str, *more: str) -> str:
    """Return a part of a key that names an archive, or a content of it: readable, and unique by a digest."""
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", archive.rpartition("/")[2])[:80].lstrip(".") or "archive"
    return f"{readable}@{_sha256(json.dumps([archive, *more]).encode())[:24]}"


def _file_metadata(key: str, body: bytes) -> dict[str, str]:
    return {"key": key, "sha256": _sha256(body)}


def _fill_key(archive: str, etag: str, coverage: str) -> str:
    return f"{_FILLS}/{archive_name(archive, etag, coverage)}.json"


def _checkpoint_key(archive: str, etag: str, coverage: str) -> str:
    return f"{_CHECKPOINTS}/{archive_name(archive, etag, coverage)}"


def _gone_key(clip: Clip) -> str:
    return f"{GONE}/{_hh(clip.key)}/{clip.key}.json"


def _hh(name: str) -> str:
    return _sha256(name.encode())[:2]


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def is_profile(text: str) -> bool:
    """Return whether a text names a profile: `source`, or a digest of settings."""
    return bool(_PROFILE.fullmatch(text))


def _checked(profile: str) -> str:
    if not is_profile(profile):
        raise ValueError(f"not a profile: {profile!r}")
    return profile


def _parse_facts(metadata: Mapping[str, str], key: str) -> ClipFacts | None:
    """Return the facts in the metadata of an object; None if they are invalid, or of an object with another key."""
    size, sha256, duration = (metadata.get(name, "") for name in ("size", "sha256", "duration"))
    if metadata.get("key") != key:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", size) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return None
    seconds = float(duration) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", duration) else None
    return ClipFacts(int(size), sha256, one_line(metadata.get("source", "")), seconds)


def _parse_fill(record: Record, key: str) -> CompletedFill | None:
    values = record.values
    archive, etag, coverage, node = (values.get(name) for name in ("archive", "etag", "coverage", "node"))
    if not (isinstance(archive, str) and isinstance(etag, str) and isinstance(coverage, str) and isinstance(node, str)):
        return None
    indexed, clips, size = values.get("indexed"), values.get("clips"), values.get("bytes")
    if type(indexed) is not bool or type(clips) is not int or type(size) is not int:
        return None
    if _fill_key(archive, etag, coverage) != key:
        return None
    return CompletedFill(archive, etag, coverage, indexed, clips, size, one_line(node))
