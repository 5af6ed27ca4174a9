"""What a mount says of itself, for Prometheus. The names are told in docs/metrics.md, and stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kinetics_fs.errors import FailureKind
from kinetics_fs.fetch.stats import BOUNDS, FetchStats

_ENDS_OF_OPENS = {"cached": "from_cache", "fetched": "fetched", "failed": "failed", "interrupted": "interrupted"}


def exposition(status: Mapping[str, Any], counters: FetchStats) -> str:
    """The metrics in Prometheus' text format.

    Args:
        status: what `Filesystem.status` says.
        counters: of the fetcher.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Mount(status, counters))
    return generate_latest(registry).decode()


class _Mount(Collector):
    def __init__(self, status: Mapping[str, Any], counters: FetchStats) -> None:
        self._status = status
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield from self._mount()
        yield from self._fetches()
        yield from self._cache()

    def _mount(self) -> Iterator[Metric]:
        status, opens = self._status, self._status["opens"]
        about = {"version": str(status.get("version", "")), "release": status["release"]}
        build = GaugeMetricFamily(
            "kinetics_fs_build_info", "Version of kinetics-fs, and what it shows.", labels=[*about]
        )
        build.add_metric(list(about.values()), 1)
        yield build
        since = datetime.fromisoformat(status["since"]).timestamp()
        yield GaugeMetricFamily("kinetics_fs_start_time_seconds", "When it was mounted, as seconds since 1970.", since)
        yield GaugeMetricFamily("kinetics_fs_clips", "Clips that are shown.", status["clips"] - status["hidden"])
        ends = {result: opens[name] for result, name in _ENDS_OF_OPENS.items()}
        yield _counter("kinetics_fs_opens", "Opens of clips, by how they ended.", "result", ends)
        yield GaugeMetricFamily("kinetics_fs_waiting_opens", "Opens that wait for their clip.", opens["waiting"])
        states = Counter[str]()
        for prefetch in status.get("prefetches", ()):
            had = {state: prefetch[state] for state in ("fetched", "already_cached", "failed")}
            left = 0 if prefetch["state"] in ("cancelled", "stopped") else prefetch["clips"] - sum(had.values())
            states.update({**had, "to_do": max(0, left)})
        if states:
            help = "Clips of the prefetches that are under way or ended of late."
            yield _gauge("kinetics_fs_prefetch_clips", help, "state", states)

    def _fetches(self) -> Iterator[Metric]:
        fetch, counters = self._status["fetch"], self._counters
        yield _gauge("kinetics_fs_queue", "Clips that wait to be fetched.", "priority", fetch["queue"])
        yield GaugeMetricFamily("kinetics_fs_fetching", "Clips that are being fetched.", len(fetch["flights"]))
        asked = CounterMetricFamily(
            "kinetics_fs_fetches", "What became of what sources were asked for.", labels=["source", "outcome"]
        )
        for names, number in sorted(counters.outcomes.copy().items()):
            asked.add_metric(names, number)
        yield asked
        help = "Bytes of the clips that were fetched."
        yield _counter("kinetics_fs_fetched_bytes", help, "source", counters.bytes.copy())
        took = HistogramMetricFamily(
            "kinetics_fs_fetch_seconds", "From asking a source to the clip in the cache.", labels=["source"]
        )
        bounds = [*map(str, BOUNDS), "+Inf"]
        for source, durations in sorted(counters.durations.copy().items()):
            counts = accumulate(durations.counts.copy())
            took.add_metric([source], list(zip(bounds, counts, strict=True)), durations.sum)
        yield took
        origins = self._status["origins"].items()
        help = "Whether a source is left alone, because it refused us."
        blocked = {name: int(origin["blocked_for"] is not None) for name, origin in origins}
        yield _gauge("kinetics_fs_source_blocked", help, "source", blocked)

    def _cache(self) -> Iterator[Metric]:
        cache, failures = self._status["cache"], self._status["failures"]
        yield GaugeMetricFamily("kinetics_fs_cache_bytes", "Bytes of the clips in the cache.", cache["bytes"])
        if cache["limit"] is not None:
            yield GaugeMetricFamily("kinetics_fs_cache_limit_bytes", "The most that it may hold.", cache["limit"])
        yield GaugeMetricFamily("kinetics_fs_cache_clips", "Clips in the cache.", cache["clips"])
        yield GaugeMetricFamily("kinetics_fs_disk_free_bytes", "Free on the disk of the cache.", cache["disk_free"])
        help = "Clips that this mount removed from the cache, to have room for others."
        yield CounterMetricFamily("kinetics_fs_evictions", help, self._status["evicted"])
        kinds = {str(kind): failures.get(kind, 0) for kind in FailureKind}
        yield _gauge("kinetics_fs_failures", "Clips of which it is remembered that they failed.", "kind", kinds)


def _gauge(name: str, help: str, label: str, values: dict[str, int]) -> Metric:
    metric = GaugeMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _counter(name: str, help: str, label: str, values: dict[str, int]) -> Metric:
    metric = CounterMetricFamily(name, help, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric
