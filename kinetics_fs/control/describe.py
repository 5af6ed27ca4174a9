"""The status of mounts and of the cache in words, for every command that shows it to people."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

from rich import filesize

from kinetics_fs.control.status import (
    BudgetStatus,
    CacheStatus,
    FailedFetch,
    FetchRates,
    FetchStatus,
    FrontendStatus,
    InFlightFetch,
    MountStatus,
    OpenCounts,
    PrefetchProgress,
    PrefetchState,
    PrefetchStatus,
    SharedBudgetStatus,
    SharedStatus,
    SourceStatus,
    StoreStatus,
    UnreachableMount,
    UploadStatus,
)
from kinetics_fs.errors import FailureKind, printable
from kinetics_fs.util.text import count, duration, short_time, user_name, without_details


def describe_statuses(mounts: Sequence[MountStatus | UnreachableMount], store: StoreStatus | None) -> list[str]:
    """Return the status of mounts and of the caches that they use, each cache once.

    Args:
        mounts: the mounts.
        store: one more cache; None for none.
    """
    caches = {mount.cache.folder: StoreStatus.of_mount(mount) for mount in mounts if isinstance(mount, MountStatus)}
    if store is not None:
        caches.setdefault(store.cache.folder, store)
    return [
        *(line for mount in mounts for line in describe_mount(mount)),
        *(line for cache in caches.values() for line in describe_store(cache)),
    ]


def describe_mount(status: MountStatus | UnreachableMount) -> list[str]:
    """Return the status of a mount without its cache, in lines: a title, then one indented fact per line.

    Another user's filesystem can pass for a mount and report anything.
    """
    if isinstance(status, UnreachableMount):
        return [printable(str(status))]
    return _lines(describe_title(status), _mount_facts(status))


def describe_store(status: StoreStatus) -> list[str]:
    """Return the status of a cache directory, in lines as those of a mount."""
    return _lines(f"Cache {describe_cache(status.cache)}", _store_facts(status))


def _lines(title: str, facts: Iterable[tuple[str, str]]) -> list[str]:
    return [printable(title), *(f"  {label:<9} {printable(text)}" for label, text in facts)]


def describe_title(status: MountStatus) -> str:
    """Return the mount point, the user if it is another one, and what the mount shows."""
    user = f" (of the user {status.user})" if status.user not in ("", user_name(os.geteuid())) else ""
    return f"{status.mountpoint}{user}: Kinetics-{status.release}, {count(status.clips, 'clip')}"


def describe_opens(opens: OpenCounts) -> str:
    """Return the number of opens by result."""
    rate = "" if opens.hit_rate is None else f" (hit rate {opens.hit_rate:.1%})"
    return f"{opens.from_cache:,} from the cache, {opens.not_in_cache:,} not cached{rate}; {opens.waiting:,} waiting"


def describe_frontend(frontend: FrontendStatus) -> str:
    """Return how the mount talks to the kernel, and the number and the limit of open files."""
    files = ""
    if frontend.max_open_files is not None:
        used = "" if frontend.open_files is None else f"{frontend.open_files:,} of "
        files = f", {used}at most {frontend.max_open_files:,} open files"
    return f"{frontend.name}, {frontend.mode}{files}"


def describe_queue(fetch: FetchStatus) -> str:
    """Return the number of queued clips by priority."""
    return ", ".join(f"{clips:,} {priority}" for priority, clips in fetch.queue.items())


def describe_rates(rates: FetchRates) -> list[str]:
    """Return the speed of fetching, a line per period."""
    return [
        f"{rate.clips_per_minute:,.1f} clips/min, {filesize.decimal(rate.bytes_per_second)}/s in the last {period}"
        for period, rate in (("minute", rates.last_minute), ("hour", rates.last_hour))
    ]


def describe_fetch(fetch: InFlightFetch) -> str:
    """Return a clip that is being fetched, its source, and how far it is."""
    source = f"from {fetch.source}" if fetch.source else "starting"
    size = f", {filesize.decimal(fetch.bytes)}" if fetch.bytes else ""
    clip = describe_clip(fetch.clip, fetch.label)
    return f"{clip} {source}{size} after {duration(fetch.seconds)}; {fetch.priority}, fetch {fetch.id}"


def describe_clip(key: str, label: str) -> str:
    """Return the key of a clip and its class."""
    return f"{key} ({label})" if label else key


def describe_prefetch(prefetch: PrefetchStatus, blocked: Collection[str] = ()) -> str:
    """Return the number, the state and the progress of a prefetch.

    Args:
        prefetch: the prefetch.
        blocked: the sources that are blocked, which is described elsewhere.
    """
    notes = prefetch_notes(prefetch, reason=not (blocked and prefetch.kind == FailureKind.BLOCKED))
    if prefetch.state is PrefetchState.STOPPED:
        notes.insert(0, str(prefetch.reason))
    parts = f"{prefetch.fetched:,} fetched, {prefetch.already_cached:,} already cached"
    return "; ".join(
        [f"{prefetch.id}, {prefetch.state}: {describe_progress(prefetch)}", parts, *notes, prefetch.selection]
    )


def describe_progress(progress: PrefetchProgress) -> str:
    """Return how far a prefetch has come, its speed, and the time that is left."""
    parts = [f"{progress.finished:,} of {count(progress.clips, 'clip')}"]
    if progress.bytes:
        parts.append(filesize.decimal(progress.bytes))
    if progress.state is PrefetchState.RUNNING:
        if progress.bytes_per_second:
            parts.append(f"{filesize.decimal(progress.bytes_per_second)}/s")
        if progress.seconds_left is not None and progress.limit is None:
            parts.append(describe_time_left(progress.seconds_left))
    return ", ".join(parts)


def describe_time_left(seconds: float) -> str:
    """Return an estimate of the time that is left."""
    return f"about {duration(seconds)} left"


def prefetch_notes(progress: PrefetchProgress, *, reason: bool = True) -> list[str]:
    """Return what limits a prefetch, why it waits, and how many clips are unavailable.

    Args:
        progress: the progress.
        reason: include the reason why it waits.
    """
    notes = []
    if progress.state is PrefetchState.WAITING:
        cause = "blocked" if progress.kind == FailureKind.BLOCKED else "waiting for space"
        again = f"{cause}: next try in {duration((progress.retry_at or 0.0) - time.time())}"
        notes.append(f"{again}; {progress.reason}" if reason else again)
    elif progress.limit is not None and progress.state is PrefetchState.RUNNING:
        left = "" if progress.seconds_left is None else f": {describe_time_left(progress.seconds_left)}"
        notes.append(f"{progress.limit}{left}")
    if progress.failed:
        kinds = ", ".join(f"{clips:,} {kind}" for kind, clips in progress.failures.items())
        notes.append(f"{progress.failed:,} unavailable ({kinds})")
    return notes


def describe_failures(failures: Sequence[FailedFetch]) -> list[str]:
    """Return the last failures, those of one reason together: the reason, when it is tried again, and the clips."""
    groups: dict[tuple[str, str, str], list[FailedFetch]] = {}
    for failure in failures:
        reason = without_details(failure.reason, failure.clip)
        groups.setdefault((failure.source, failure.kind, reason), []).append(failure)
    return [_describe_failures(*group) for group in groups.values()]


def _describe_failures(*failures: FailedFetch) -> str:
    first = failures[0]
    clips = ", ".join(describe_clip(failure.clip, failure.label) for failure in failures)
    if first.kind == FailureKind.BLOCKED:  # the reason is that of the source, which is described elsewhere
        return f"{clips}: {first.source} is blocked"
    retries = [failure.retry_at for failure in failures if failure.retry_at is not None]
    return f"{clips}: {first.source}: {first.kind}: {first.reason}; {_describe_retry(min(retries, default=None))}"


def _describe_retry(at: float | None) -> str:
    if at is None:
        return "next retry when the source is asked again"
    return f"next retry after {short_time(at)}" if at > time.time() else "next retry at the next open"


def describe_budget(budget: BudgetStatus) -> str:
    """Return what opens may fetch and how much of it they have fetched; an empty string if there is no limit."""
    if not budget.allowed:
        return "opens fetch nothing (--only cached)"
    limits = []
    if budget.max_fetches is not None:
        limits.append(f"{budget.fetches:,} of {count(budget.max_fetches, 'fetch')} started")
    if budget.max_bytes is not None:
        limits.append(f"{filesize.decimal(budget.bytes)} of {filesize.decimal(budget.max_bytes)} fetched")
    return ", ".join(limits)


def describe_source(name: str, source: SourceStatus) -> str:
    """Return how many clips were requested from a source, or that it blocks this address, until when, and why."""
    if source.blocked_for is None:
        return f"{name}: {count(source.fetches_last_hour, 'clip')} requested in the last hour"
    again = f"next try in {duration(source.blocked_for)}" if source.blocked_for else "the next clip tests it"
    hint = "to try at once: kinetics-fs failures clear --kind blocked"
    return f"{name}: blocked, {again}: {source.reason} ({hint})"


def describe_shared(shared: SharedStatus) -> list[str]:
    """Return how a mount uses the shared store, its uploads, and the shared budgets, a line for each."""
    note = f"; {shared.note}" if shared.note else ""
    if shared.error:
        note += (
            f"; cannot be used, so this machine works alone, next try in {duration(shared.retry_in)}: {shared.error}"
        )
    damaged = f", {count(shared.damaged, 'damaged clip')}" if shared.damaged else ""
    used = (
        f"{shared.address}: {count(shared.hits, 'clip')} from it, {shared.misses:,} not in it, {shared.waits:,} fetched"
        f" by other machines meanwhile{damaged}, {count(shared.leases, 'lease')}{note}"
    )
    uploads = [] if shared.uploads is None else [describe_uploads(shared.uploads)]
    return [used, *uploads, *map(describe_shared_budget, shared.budgets)]


def describe_uploads(uploads: UploadStatus) -> str:
    """Return how many clips wait for their upload to the shared store, and why they were not uploaded."""
    waiting = f"{uploads.queued:,} waiting"
    if uploads.queued:
        waiting += f", the oldest for {duration(uploads.oldest)}"
    lost = [("dropped", uploads.dropped), ("evicted before", uploads.evicted), ("refused", uploads.refused)]
    rest = "".join(f", {clips:,} {what}" for what, clips in lost if clips)
    paused = f"; paused, next try in {duration(uploads.retry_in)}: {uploads.paused}" if uploads.paused else ""
    return f"uploads: {waiting}, {uploads.uploaded:,} done ({filesize.decimal(uploads.bytes)}){rest}{paused}"


def describe_shared_budget(budget: SharedBudgetStatus) -> str:
    """Return the requests to a source that the machines of a rate group have sent, and whether it is blocked."""
    limit = "" if budget.limit is None else f" of {budget.limit:,}"
    machines = "" if budget.machines is None else f" by {count(budget.machines, 'machine')}"
    blocked = ""
    if budget.blocked_for is not None:
        again = f"next try in {duration(budget.blocked_for)}" if budget.blocked_for else "the next clip tests it"
        blocked = f"; blocked, {again}: {budget.reason}"
    requests = f"{budget.used:,}{limit} requests in the last hour{machines}"
    return f"{budget.source}, rate group {budget.group}: {requests}{blocked}"


def describe_cache(cache: CacheStatus) -> str:
    """Return the folder, the size and the limits of the cache, and why it cannot be used, if that is so."""
    if cache.error and not (cache.clips or cache.disk_free):
        return cache.error
    limit = f"of {filesize.decimal(cache.limit)}" if cache.limit else "no limit"
    pins = ""
    if cache.pinned_clips:
        pins = (
            f"; {count(cache.pinned_clips, 'clip')} pinned, {cache.pinned_cached:,} of them cached,"
            f" {filesize.decimal(cache.pinned_bytes)}"
        )
    return (
        f"{cache.folder}: {count(cache.clips, 'clip')}, {filesize.decimal(cache.bytes)} ({limit}),"
        f" {filesize.decimal(cache.disk_free)} free on the disk{pins}{cache.error and f'; {cache.error}'}"
    )


def _mount_facts(status: MountStatus) -> Iterator[tuple[str, str]]:
    fetch = status.fetch
    if status.hidden:
        yield "hidden", f"{status.hidden:,} of them, known to be unavailable"
    yield "process", f"{status.pid}, since {_mounted_at(status)}"
    if status.frontend is not None:
        yield "frontend", describe_frontend(status.frontend)
    if status.metrics_url:
        yield "metrics", status.metrics_url
    yield "opens", describe_opens(status.opens)
    yield "fetches", f"{fetch.pending:,} pending, {fetch.fetched:,} done, {fetch.failed:,} failed"
    for one in fetch.in_flight:
        yield "fetching", describe_fetch(one)
    if fetch.sandbox is not None:
        yield "sandbox", fetch.sandbox
    if any(fetch.queue.values()):
        yield "queue", describe_queue(fetch)
    if fetch.rates.last_hour.clips_per_minute:
        yield "rates", "; ".join(describe_rates(fetch.rates))
    if limits := describe_budget(status.budget):
        yield "limits", limits
    if status.shared is not None:
        for line in describe_shared(status.shared):
            yield "shared", line
    for prefetch in status.prefetches:
        yield "prefetch", describe_prefetch(prefetch, blocked_sources(status))
    for failures in describe_failures(fetch.last_failures):
        yield "failed", failures
    for reason, rows in status.refused_rows.items():
        yield "refused", f"{count(rows, 'row')}: {reason}"


def _store_facts(status: StoreStatus) -> Iterator[tuple[str, str]]:
    for name, source in status.sources.items():
        yield "source", describe_source(name, source)
    if status.failures:
        yield "failures", ", ".join(f"{clips:,} {kind}" for kind, clips in status.failures.items())


def blocked_sources(status: MountStatus) -> list[str]:
    """Return the names of the sources that are blocked."""
    return [name for name, source in status.sources.items() if source.blocked_for is not None]


def _mounted_at(status: MountStatus) -> str:
    try:
        return short_time(datetime.fromisoformat(status.mounted_at).timestamp())
    except (ValueError, OverflowError, OSError):  # of another user's filesystem
        return "an unknown time"
