"""What we hold: the clips on this machine's disk, their sizes, and why the missing ones are missing.

A store is one folder, shared by any number of processes of one user::

    <cache>/                    mode 0700
        CACHEDIR.TAG            says that this is a cache, to backup programs and to us
        clips/cache.db          diskcache's table: clip key → file (the truth about what is here)
        clips/xx/<key>.<token>.mp4
        incoming/<token>/       one private folder per fetch under way
        ledger.sqlite           sizes for ever, order of use, pins, failures, fetches under way, history
        owners/<name>           a file that each living process holds locked

`Store` is the only door. How the two databases and the files stay in step, whatever dies when, is told in
`docs/crash-safety.md`.
"""

from kinetics_fs.store.check import Condition, Verdict, drop_bad, verify_clips
from kinetics_fs.store.clip_files import ClipRecord
from kinetics_fs.store.exchange import KINDS_SHARED_BY_DEFAULT, SHAREABLE_KINDS, RefusedLine, read_reports, report_line
from kinetics_fs.store.failures import Failure, FailureLog, FailureReport, ImportedFailures, one_line
from kinetics_fs.store.history import ActivityCounts, History, HistoryRecorder, Sample
from kinetics_fs.store.layout import CacheLayout, prepare_folder
from kinetics_fs.store.pins import PinCounts, Pinned, Pins
from kinetics_fs.store.selection import SelectionPage, class_pages, selection_pages
from kinetics_fs.store.store import Claim, KnownSize, Store, StoredClip, Usage
from kinetics_fs.store.throttle import Origins, OriginState, Permit, RateLimited

__all__ = [
    "KINDS_SHARED_BY_DEFAULT",
    "SHAREABLE_KINDS",
    "ActivityCounts",
    "CacheLayout",
    "Claim",
    "ClipRecord",
    "Condition",
    "Failure",
    "FailureLog",
    "FailureReport",
    "History",
    "HistoryRecorder",
    "ImportedFailures",
    "KnownSize",
    "OriginState",
    "Origins",
    "Permit",
    "PinCounts",
    "Pinned",
    "Pins",
    "RateLimited",
    "RefusedLine",
    "Sample",
    "SelectionPage",
    "Store",
    "StoredClip",
    "Usage",
    "Verdict",
    "class_pages",
    "drop_bad",
    "one_line",
    "prepare_folder",
    "read_reports",
    "report_line",
    "selection_pages",
    "verify_clips",
]
