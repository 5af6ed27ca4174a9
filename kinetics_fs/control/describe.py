"""The status of mounts and of the cache in words, for every command that shows it to people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from rich import filesize

from kinetics_fs.control.status import (
    BudgetStatus,
    CacheStatus,
    FailedFetch,
    FetchRates,
    FetchStatus,
    FrontendStatus,
    MountStatus,
    OpenCounts,
    PrefetchStatus,
    SourceStatus,
    StoreStatus,
    UnreachableMount,
)
from kinetics_fs.errors import printable
from kinetics_fs.util.text import count


def describe_mount(status: MountStatus | UnreachableMount) -> list[str]:
    """Return the status of a mount in lines: a title, then one indented fact per line.

    Another user's filesystem can pass for a mount and report anything.
    """
    if isinstance(status, UnreachableMount):
        return [printable(str(status))]
    title = printable(describe_title(status))
    return [title, *(f"  {label:<9} {printable(text)}" for label, text in _mount_facts(status))]


def describe_store(status: StoreStatus) -> list[str]:
    """Return the status of a cache directory in lines."""
    sources = (f"Source {describe_source(name, source)}" for name, source in status.sources.items())
    return [f"Cache {describe_cache(status.cache)}", *sources]


def describe_title(status: MountStatus) -> str:
    """Return the mount point and what it shows."""
    return f"{status.mountpoint}: Kinetics-{status.release}, {count(status.clips, 'clip')}"


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


def describe_prefetch(prefetch: PrefetchStatus) -> str:
    """Return the number, the state and the progress of a prefetch."""
    cached = prefetch.fetched + prefetch.already_cached
    failed = f", {prefetch.failed:,} unavailable" if prefetch.failed else ""
    reason = f": {prefetch.reason}" if prefetch.reason else ""
    return (
        f"{prefetch.id}, {prefetch.state}{reason}: {cached:,} of {prefetch.clips:,} cached{failed};"
        f" {prefetch.selection}"
    )


def describe_failed_fetch(failure: FailedFetch) -> str:
    """Return a failed clip, the reason, and when it is fetched again."""
    if failure.retry_at is None:
        next_retry = "when its source is asked again"
    elif failure.retry_at <= time.time():
        next_retry = "at the next open"
    else:
        next_retry = f"after {datetime.fromtimestamp(failure.retry_at, UTC).isoformat(timespec='seconds')}"
    return f"{failure.clip} ({failure.source}, {failure.kind}): {failure.reason}; next retry {next_retry}"


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
    minutes, seconds = divmod(source.blocked_for, 60)
    until = f"for another {minutes} min {seconds} s" if source.blocked_for else "until the next clip is tried"
    hint = "to try at once: kinetics-fs failures clear --kind blocked"
    return f"{name}: blocked, not used {until}: {source.reason} ({hint})"


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
    yield "process", f"{status.pid} since {status.mounted_at}"
    if status.frontend is not None:
        yield "frontend", describe_frontend(status.frontend)
    if status.metrics_url:
        yield "metrics", status.metrics_url
    yield "opens", describe_opens(status.opens)
    yield "fetches", f"{fetch.pending:,} pending, {fetch.fetched:,} done, {fetch.failed:,} failed"
    if any(fetch.queue.values()):
        yield "queue", describe_queue(fetch)
    if fetch.rates.last_hour.clips_per_minute:
        yield "rates", "; ".join(describe_rates(fetch.rates))
    if limits := describe_budget(status.budget):
        yield "limits", limits
    yield "cache", describe_cache(status.cache)
    for name, source in status.sources.items():
        yield "source", describe_source(name, source)
    for prefetch in status.prefetches:
        yield "prefetch", describe_prefetch(prefetch)
    for kind, clips in status.failures.items():
        yield "failures", f"{clips:,} {kind}"
    for failure in fetch.last_failures:
        yield "failed", describe_failed_fetch(failure)
    for reason, rows in status.refused_rows.items():
        yield "refused", f"{count(rows, 'row')}: {reason}"
