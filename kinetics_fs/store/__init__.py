"""The local cache: clips on this machine's disk, their sizes, and the reasons why clips are unavailable.

A store is one directory, shared by any number of processes of one user. `Store` is the entry point; the paths in the
directory are in `layout`. `docs/crash-safety.md` describes how the two databases and the files stay consistent when a
process is killed or the power fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinetics_fs.util.lazy import import_on_use

if TYPE_CHECKING:
    from kinetics_fs.store.check import (
        CacheSummary,
        Condition,
        Verdict,
        quick_check,
        remove_bad,
        summarize_cache,
        verify_clips,
    )
    from kinetics_fs.store.clip_files import ClipRecord, OpenClipFile
    from kinetics_fs.store.eviction import MAX_FETCHES_PER_OPEN, LimitRefused, evicted_too_early
    from kinetics_fs.store.failures import (
        KINDS_SHARED_BY_DEFAULT,
        LASTING_KINDS,
        Failure,
        FailureLog,
        FailureReport,
        ImportedFailures,
        InvalidLine,
        LastingFailure,
        one_line,
        read_reports,
        report_line,
        without_import,
    )
    from kinetics_fs.store.history import ActivityCounts, History, HistoryRecorder, Sample
    from kinetics_fs.store.layout import CacheLayout, FillCheckpoints, is_cache, prepare_folder
    from kinetics_fs.store.pins import PinCounts, Pinned, Pins
    from kinetics_fs.store.selection import SelectionPage, class_pages, selection_pages
    from kinetics_fs.store.short_clips import is_short
    from kinetics_fs.store.store import CachedFile, Claim, KnownSize, Space, Store, StoredClip, Usage
    from kinetics_fs.store.suspicion import VERDICTS
    from kinetics_fs.store.throttle import (
        ControlNeeded,
        ControlPermit,
        Permit,
        RateLimited,
        SourceState,
        Throttle,
        usable_limit,
    )

__all__ = [
    "KINDS_SHARED_BY_DEFAULT",
    "LASTING_KINDS",
    "MAX_FETCHES_PER_OPEN",
    "VERDICTS",
    "ActivityCounts",
    "CacheLayout",
    "CacheSummary",
    "CachedFile",
    "Claim",
    "ClipRecord",
    "Condition",
    "ControlNeeded",
    "ControlPermit",
    "Failure",
    "FailureLog",
    "FailureReport",
    "FillCheckpoints",
    "History",
    "HistoryRecorder",
    "ImportedFailures",
    "InvalidLine",
    "KnownSize",
    "LastingFailure",
    "LimitRefused",
    "OpenClipFile",
    "Permit",
    "PinCounts",
    "Pinned",
    "Pins",
    "RateLimited",
    "Sample",
    "SelectionPage",
    "SourceState",
    "Space",
    "Store",
    "StoredClip",
    "Throttle",
    "Usage",
    "Verdict",
    "class_pages",
    "evicted_too_early",
    "is_cache",
    "is_short",
    "one_line",
    "prepare_folder",
    "quick_check",
    "read_reports",
    "remove_bad",
    "report_line",
    "selection_pages",
    "summarize_cache",
    "usable_limit",
    "verify_clips",
    "without_import",
]

__getattr__ = import_on_use(
    __name__,
    {
        "check": "CacheSummary Condition Verdict quick_check remove_bad summarize_cache verify_clips",
        "clip_files": "ClipRecord OpenClipFile",
        "eviction": "MAX_FETCHES_PER_OPEN LimitRefused evicted_too_early",
        "failures": "KINDS_SHARED_BY_DEFAULT LASTING_KINDS Failure FailureLog FailureReport ImportedFailures "
        "InvalidLine LastingFailure one_line read_reports report_line without_import",
        "history": "ActivityCounts History HistoryRecorder Sample",
        "layout": "CacheLayout FillCheckpoints is_cache prepare_folder",
        "pins": "PinCounts Pinned Pins",
        "selection": "SelectionPage class_pages selection_pages",
        "short_clips": "is_short",
        "store": "CachedFile Claim KnownSize Space Store StoredClip Usage",
        "suspicion": "VERDICTS",
        "throttle": "ControlNeeded ControlPermit Permit RateLimited SourceState Throttle usable_limit",
    },
)
