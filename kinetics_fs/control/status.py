"""The status of a mount, as typed objects and as JSON.

`MountStatus` is what a mount reports in `.kinetics/status.json` and in answer to the request `status` (see
docs/control.md). The store, the fetcher and the front ends build its parts; `kinetics_fs.mount.collector` puts them
together. Every key of the JSON is the name of a field here.

Sizes are bytes. Times are seconds since the epoch, except `MountStatus.mounted_at`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from kinetics_fs.errors import MountError

_MAX_NUMBER = 2**63
"""Bound of all numbers."""


class InvalidStatusError(MountError):
    """JSON that is not the status of a mount of this version.

    Attributes:
        problem: the missing or invalid field.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"cannot read the status of the mount: {problem}; it runs another version of kinetics-fs, so unmount it and"
            " mount it again"
        )
        self.problem = problem


@dataclass(frozen=True)
class CacheStatus:
    """The size and the limits of the cache.

    Attributes:
        folder: path of the cache directory.
        clips: number of cached clips.
        bytes: size of the cached clips.
        limit: maximum size of the cached clips; None if there is no limit.
        reserved: bytes reserved for fetches in progress.
        disk_free: bytes that the cache may still use on its disk.
        pinned_clips: number of pinned clips.
        pinned_cached: number of pinned clips that are cached.
        pinned_bytes: size of the pinned clips that are cached.
        error: why the cache cannot be used or changed at the moment; empty if it can. If it cannot even be read, the
            numbers are 0.
    """

    folder: str
    clips: int = 0
    bytes: int = 0
    limit: int | None = None
    reserved: int = 0
    disk_free: int = 0
    pinned_clips: int = 0
    pinned_cached: int = 0
    pinned_bytes: int = 0
    error: str = ""


@dataclass(frozen=True)
class SourceStatus:
    """The requests to a source, and whether it blocks this address.

    Attributes:
        blocked_for: seconds until a clip is requested from the source again; 0 if that request is due or in progress;
            None if the source is not blocked.
        reason: answer with which the source blocked this address; empty if it never did.
        fetches_last_hour: number of clips requested from it in the last hour.
    """

    blocked_for: int | None
    reason: str
    fetches_last_hour: int


@dataclass(frozen=True)
class StoreStatus:
    """The status of a cache directory, which all mounts on it share.

    Attributes:
        cache: the size and the limits.
        sources: the sources that clips were requested from, by name.
        failures: number of remembered failures by kind.
    """

    cache: CacheStatus
    sources: dict[str, SourceStatus]
    failures: dict[str, int]

    @classmethod
    def of_mount(cls, mount: MountStatus) -> StoreStatus:
        """Return the status of the cache of a mount."""
        return cls(mount.cache, mount.sources, mount.failures)

    def to_json(self) -> dict[str, Any]:
        """Return the status as an object for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class InFlightFetch:
    """A clip that a worker process is fetching.

    Attributes:
        id: tells the fetch from others in logs.
        clip: key of the clip.
        label: label of its class; empty if it is unknown.
        priority: `foreground`, `soon` or `background`.
        seconds: time since the clip was requested.
        source: the source that is being asked; None before the first one.
        bytes: bytes that the sources have sent for it so far.
    """

    id: str
    clip: str
    label: str
    priority: str
    seconds: float
    source: str | None
    bytes: int


@dataclass(frozen=True)
class FailedFetch:
    """A clip that no source delivered.

    Attributes:
        clip: key of the clip.
        label: label of its class; empty if it is unknown.
        source: the source of the reason.
        kind: `FailureKind` of the reason.
        reason: why the clip is unavailable.
        at: when the fetch failed.
        retry_at: when the clip is fetched again; None if that depends on when its source is asked again.
    """

    clip: str
    label: str
    source: str
    kind: str
    reason: str
    at: float
    retry_at: float | None


@dataclass(frozen=True)
class FetchRate:
    """The speed of fetching over a period."""

    clips_per_minute: float
    bytes_per_second: int


@dataclass(frozen=True)
class FetchRates:
    """The speed of fetching in the last minute and in the last hour."""

    last_minute: FetchRate
    last_hour: FetchRate


@dataclass(frozen=True)
class FetchStatus:
    """The progress of the fetches of one process.

    Attributes:
        pending: number of clips that are queued or in flight.
        queue: number of queued clips by priority.
        in_flight: the clips that are being fetched.
        fetched: number of clips fetched so far, siblings from the same download included.
        failed: number of clips that no source delivered.
        rates: the speed.
        last_failures: the last failed clips that are unavailable still, latest first.
        sandbox: which parts of the sandbox are in force in the processes that parse what comes from outside; None
            before the first one.
    """

    pending: int
    queue: dict[str, int]
    in_flight: tuple[InFlightFetch, ...]
    fetched: int
    failed: int
    rates: FetchRates
    last_failures: tuple[FailedFetch, ...]
    sandbox: str | None = None


class PrefetchState(StrEnum):
    """The state of a prefetch."""

    RUNNING = "running"
    WAITING = "waiting"
    """It waits for space in the cache, or until a source that blocks this address can be used again."""
    DONE = "done"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """Every other clip would fail the same way as the last one."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing further is requested."""
        return self not in (PrefetchState.RUNNING, PrefetchState.WAITING)


@dataclass(frozen=True)
class PrefetchProgress:
    """The progress of a prefetch.

    Attributes:
        state: where the prefetch stands.
        reason: why it waits or stopped; None otherwise.
        kind: `FailureKind` of the reason; None if there is no reason.
        retry_at: when a prefetch that waits tries again; None otherwise.
        clips: number of clips selected.
        fetched: number of clips fetched.
        already_cached: number of clips that were in the cache already.
        failed: number of unavailable clips.
        failures: number of unavailable clips by kind of failure.
        in_progress: estimated share of the clips that are being fetched that has arrived, in clips.
        bytes: bytes that the sources have sent for it.
        bytes_per_second: speed of all fetches of its process in the last seconds.
        seconds_left: estimated time to its end; None if it is unknown.
        limit: the setting that limits its speed, in words; None if none does.
    """

    state: PrefetchState
    reason: str | None
    kind: str | None
    retry_at: float | None
    clips: int
    fetched: int
    already_cached: int
    failed: int
    failures: dict[str, int]
    in_progress: float
    bytes: int
    bytes_per_second: int
    seconds_left: float | None
    limit: str | None

    @property
    def finished(self) -> int:
        """Number of clips that are cached or unavailable."""
        return self.fetched + self.already_cached + self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the progress as an object for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class PrefetchStatus(PrefetchProgress):
    """A prefetch of a mount and its progress.

    Attributes:
        id: number of the prefetch, for the requests `watch` and `cancel`.
        selection: the selected clips in words.
        started_at: when the mount started it.
    """

    id: int
    selection: str
    started_at: int

    @classmethod
    def from_json(cls, value: object) -> PrefetchStatus:
        """Read what `to_json` returned.

        Raises:
            InvalidStatusError: a field is missing or has the wrong type.
        """
        status: PrefetchStatus = _from_json(cls, value, "")
        return status


@dataclass(frozen=True)
class FrontendStatus:
    """The connection of a mount to the kernel.

    Attributes:
        name: `native` or `fusepy`.
        mode: how the kernel reads cached clips, for example `passthrough`.
        open_files: number of open files; None if the front end does not count them.
        waiting_opens: number of parked opens; None if the front end does not count them.
        max_open_files: limit of both together; None if there is no limit. With `--allow-other`, a user may have as many
            as are still free.
    """

    name: str
    mode: str
    open_files: int | None = None
    waiting_opens: int | None = None
    max_open_files: int | None = None


@dataclass(frozen=True)
class SplitCounts:
    """The clips and class directories of a split."""

    clips: int
    classes: int


@dataclass(frozen=True)
class OpenCounts:
    """The opens of clips in a mount, by result.

    Attributes:
        from_cache: opens of a clip that was cached.
        not_in_cache: opens of a clip that was not cached.
        fetched: opens that succeeded after a fetch.
        failed: opens that failed.
        interrupted: opens that the reader gave up.
    """

    from_cache: int
    not_in_cache: int
    hit_rate: float | None
    fetched: int
    failed: int
    interrupted: int
    waiting: int

    @classmethod
    def of(cls, *, from_cache: int, not_in_cache: int, fetched: int, failed: int, interrupted: int) -> OpenCounts:
        """Compute the counts that follow from the others: the hit rate (0 to 1) and the opens that still wait."""
        total = from_cache + not_in_cache
        return cls(
            from_cache=from_cache,
            not_in_cache=not_in_cache,
            hit_rate=round(from_cache / total, 4) if total else None,
            fetched=fetched,
            failed=failed,
            interrupted=interrupted,
            waiting=max(0, not_in_cache - fetched - failed - interrupted),
        )


@dataclass(frozen=True)
class BudgetStatus:
    """The limits on the fetches that opens may start, and how much of them is used.

    Attributes:
        allowed: whether opens may fetch at all; false with `--only cached`.
        fetches: number of fetches that opens started.
        max_fetches: limit of `fetches`; None if there is no limit.
        bytes: size of the clips that opens fetched.
        max_bytes: limit of `bytes`; None if there is no limit.
    """

    allowed: bool
    fetches: int
    max_fetches: int | None
    bytes: int
    max_bytes: int | None


@dataclass(frozen=True)
class UploadStatus:
    """The clips that wait for their upload to the shared store.

    Attributes:
        queued: number of clips, of all processes that use the cache.
        oldest: seconds since the oldest of them was queued.
        uploaded: clips that this process uploaded.
        bytes: their size.
        dropped: clips that a full queue dropped.
        evicted: clips that were evicted before their upload.
        refused: clips that the store cannot take.
        paused: why nothing is uploaded at the moment; empty if uploads go on.
        retry_in: seconds until the next try; 0 if nothing is paused.
    """

    queued: int
    oldest: float
    uploaded: int
    bytes: int
    dropped: int
    evicted: int
    refused: int
    paused: str
    retry_in: float


@dataclass(frozen=True)
class SharedBudgetStatus:
    """The requests to a source that all machines of a rate group share, as this machine has seen them last.

    Attributes:
        source: name of the source.
        group: name of the rate group.
        used: requests of all machines in the last hour.
        limit: maximum number of requests in an hour; None if there is no limit.
        machines: machines that asked in the last hour; None if unknown.
        blocked_for: seconds until a machine tests the source; None if it is not blocked.
        reason: why it is blocked; empty if it is not.
    """

    source: str
    group: str
    used: int
    limit: int | None
    machines: int | None
    blocked_for: int | None
    reason: str


@dataclass(frozen=True)
class SharedStatus:
    """How a process uses the shared store.

    Attributes:
        address: the store.
        error: why it cannot be used at the moment, so that this machine works alone; empty if it can.
        retry_in: seconds until it is tried again; 0 if it can be used.
        note: abilities that the store lacks, for example conditional writes; empty if it lacks none.
        listed: clips of the store whose sizes are known from its listing; None if it is not listed.
        hits: clips that came from the store.
        misses: clips that this process had to fetch from a source.
        waits: clips for which it waited for another machine.
        damaged: damaged objects that it met.
        leases: clips that it fetches for all machines.
        uploads: the uploads; None if this machine uploads nothing.
        budgets: the shared budgets.
    """

    address: str
    error: str
    retry_in: float
    note: str
    listed: int | None
    hits: int
    misses: int
    waits: int
    damaged: int
    leases: int
    uploads: UploadStatus | None
    budgets: tuple[SharedBudgetStatus, ...]


@dataclass(frozen=True)
class MountStatus:
    """The status of a running mount.

    Attributes:
        version: version of kinetics-fs that serves the mount.
        mountpoint: absolute path of the mount point.
        pid: process id of the mount.
        user: name of the user who mounted it.
        mounted_at: when it was mounted, in ISO 8601.
        release: release of Kinetics, for example `700-2020`.
        frontend: the connection to the kernel; None until the mount is ready.
        metrics_url: address of the metrics; None without `--metrics-port`.
        clips: number of clips in the catalog of the mount.
        hidden: number of clips that `--hide-unavailable` leaves out.
        splits: the splits by name.
        refused_rows: number of refused annotation rows by reason.
        duplicate_rows: number of annotation rows that repeat another one.
        opens: the opens of clips.
        fetch: the fetches.
        cache: the cache, as in `StoreStatus`.
        sources: the sources, as in `StoreStatus`.
        failures: the remembered failures, as in `StoreStatus`.
        budget: the limits on fetches that opens start.
        evicted: number of clips that this mount evicted.
        prefetches: the running prefetches and the last ones that ended.
        shared: the use of the shared store; None without one.
    """

    version: str
    mountpoint: str
    pid: int
    user: str
    mounted_at: str
    release: str
    frontend: FrontendStatus | None
    metrics_url: str | None
    clips: int
    hidden: int
    splits: dict[str, SplitCounts]
    refused_rows: dict[str, int]
    duplicate_rows: int
    opens: OpenCounts
    fetch: FetchStatus
    cache: CacheStatus
    sources: dict[str, SourceStatus]
    failures: dict[str, int]
    budget: BudgetStatus
    evicted: int
    prefetches: tuple[PrefetchStatus, ...]
    shared: SharedStatus | None

    def to_json(self) -> dict[str, Any]:
        """Return the status as an object for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> MountStatus:
        """Read what `to_json` returned. Unknown keys, as a newer version may add them, are ignored.

        Raises:
            InvalidStatusError: a field is missing or has the wrong type, because another version of kinetics-fs wrote
                it or because it is damaged.
        """
        status: MountStatus = _from_json(cls, value, "")
        return status


@dataclass(frozen=True)
class UnreachableMount:
    """A mount that did not report its status.

    Attributes:
        mountpoint: absolute path of the mount point.
        reason: why there is no status.
        advice: what to do, with the command.
        hung: whether its process is alive or may be, but does not answer.
        pid: process id of the mount; None if it is unknown.
        user: name of the user who mounted it; empty if it is unknown.
    """

    mountpoint: str
    reason: str
    advice: str
    hung: bool = False
    pid: int | None = None
    user: str = ""

    def __str__(self) -> str:
        return f"{self.mountpoint}: {self.reason}; {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """Return the facts as an object for `json.dumps`."""
        return asdict(self)


def _from_json(expected: Any, value: object, path: str) -> Any:
    """Convert a parsed JSON value to the type of a field.

    Args:
        expected: a dataclass of this module, or the type of one of its fields.
        value: the parsed value.
        path: names of the fields that lead to the value, for messages.
    """
    container, arguments = get_origin(expected), get_args(expected)
    if container is UnionType:
        [expected] = [argument for argument in arguments if argument is not NoneType]
        return None if value is None else _from_json(expected, value, path)
    if is_dataclass(expected):
        entries = _checked(value, Mapping, path)
        types = get_type_hints(expected)
        found = {}
        for field in fields(expected):
            inner = f"{path}.{field.name}".removeprefix(".")
            if field.name not in entries:
                raise InvalidStatusError(f"{inner!r} is missing")
            found[field.name] = _from_json(types[field.name], entries[field.name], inner)
        return expected(**found)  # type: ignore[operator]  # a class, not an object
    if container is dict:
        entries = _checked(value, Mapping, path)
        return {name: _from_json(arguments[1], entry, f"{path}.{name}") for name, entry in entries.items()}
    if container is tuple:
        items = _checked(value, list, path)
        return tuple(_from_json(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(items))
    if issubclass(expected, StrEnum):
        try:
            return expected(_checked(value, str, path))
        except ValueError as error:
            raise InvalidStatusError(f"{path!r} is {value!r}, not one of {', '.join(expected)}") from error
    if expected is float and type(value) is int:
        return float(_checked(value, int, path))
    return _checked(value, expected, path)


def _checked(value: object, expected: type, path: str) -> Any:
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        where = repr(path) if path else "the status"
        name = "dict" if expected is Mapping else expected.__name__
        raise InvalidStatusError(f"{where} is {type(value).__name__}, not {name}")
    if isinstance(value, int | float) and not abs(value) < _MAX_NUMBER:
        raise InvalidStatusError(f"{path!r} is out of range")
    return value
