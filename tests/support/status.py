"""The status of a mount, with a value in every field."""

from __future__ import annotations

from kinetics_fs.control.status import (
    BudgetStatus,
    CacheStatus,
    FailedFetch,
    FetchRate,
    FetchRates,
    FetchStatus,
    FrontendStatus,
    InFlightFetch,
    MountStatus,
    OpenCounts,
    PrefetchState,
    PrefetchStatus,
    SourceStatus,
    SplitCounts,
)

STATUS = MountStatus(
    version="1.0",
    mountpoint="/mnt/kinetics",
    pid=42,
    mounted_at="2026-01-01T00:00:00+00:00",
    release="600",
    frontend=FrontendStatus("native", "passthrough", open_files=1, waiting_opens=0),
    metrics_url=None,
    clips=1000,
    hidden=3,
    splits={"train": SplitCounts(clips=1000, classes=5)},
    refused_rows={"label has a slash": 1},
    duplicate_rows=0,
    opens=OpenCounts.of(from_cache=3, not_in_cache=1, fetched=0, failed=0, interrupted=0),
    fetch=FetchStatus(
        pending=1,
        queue={"foreground": 0, "soon": 0, "background": 0},
        in_flight=(InFlightFetch("-demo_video_000010_000020", "foreground", 1.5, None),),
        fetched=7,
        failed=1,
        rates=FetchRates(FetchRate(2.0, 100), FetchRate(0.5, 10)),
        last_failures=(FailedFetch("-demo_video_000000_000010", "youtube", "gone", "private", 1.0, None),),
    ),
    cache=CacheStatus("/cache", 7, 100, None, 0, 1000, 2, 1, 50),
    sources={"youtube": SourceStatus(blocked_for=None, reason="", fetches_last_hour=8)},
    failures={"gone": 1},
    budget=BudgetStatus(allowed=True, fetches=0, max_fetches=None, bytes=0, max_bytes=None),
    evicted=0,
    prefetches=(
        PrefetchStatus(PrefetchState.RUNNING, None, 10, 2, 3, 1, {"gone": 1}, 1, "train; all classes", 1700000000),
    ),
)
