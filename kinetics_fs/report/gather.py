"""The data of the report, without its pictures; can be serialized as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from kinetics_fs._version import __version__
from kinetics_fs.control.status import MountStatus, UnreachableMount
from kinetics_fs.store import Store

_COUNTS = ("clips", "cached", "short", "evicted", "unavailable", "untried")


def gather(
    store: Store,
    *,
    selection: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    failures: Mapping[str, Any],
    mounts: Iterable[MountStatus | UnreachableMount],
) -> dict[str, Any]:
    """Collect the data of the report.

    Args:
        store: the cache.
        selection: the selection, with the names of the settings as keys.
        classes: for each class in each split, the number of clips and how many of them are cached, short, evicted,
            unavailable and untried.
        failures: for each kind of failure, the number of `clips` and of each of the `reasons`.
        mounts: the status of each running mount.
    """
    splits: dict[str, dict[str, Any]] = {}
    for row in classes:
        sums = splits.setdefault(row["split"], {"split": row["split"], **dict.fromkeys(_COUNTS, 0)})
        for name in _COUNTS:
            sums[name] += row[name]
    shown = list(mounts)
    same_cache = [
        _mount(status)
        for status in shown
        if isinstance(status, UnreachableMount) or status.cache.folder == str(store.folder)
    ]
    store_status = store.status()
    return {
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "selection": dict(selection),
        "total": {name: sum(sums[name] for sums in splits.values()) for name in _COUNTS},
        "splits": list(splits.values()),
        "classes": [dict(row) for row in sorted(classes, key=lambda row: row["label"].casefold())],
        "cache": asdict(store_status.cache),
        "sources": {name: asdict(source) for name, source in store_status.sources.items()},
        "failures": dict(failures),
        "history": [sample._asdict() for sample in store.history.samples()],
        "mounts": same_cache,
        "mounts_of_other_caches": len(shown) - len(same_cache),
    }


def _mount(status: MountStatus | UnreachableMount) -> dict[str, Any]:
    """Return what the page shows of a mount; a mount that is unreachable has only `mountpoint` and `unreachable`."""
    if isinstance(status, UnreachableMount):
        return {"mountpoint": status.mountpoint, "unreachable": status.reason}
    return {
        "mountpoint": status.mountpoint,
        "unreachable": None,
        "release": status.release,
        "clips": status.clips,
        "pid": status.pid,
        "mounted_at": status.mounted_at,
        "cache": status.cache.folder,
        "frontend": status.frontend.name if status.frontend else None,
        "mode": status.frontend.mode if status.frontend else None,
        "from_cache": status.opens.from_cache,
        "not_in_cache": status.opens.not_in_cache,
        "pending": status.fetch.pending,
        "fetched": status.fetch.fetched,
        "failed": status.fetch.failed,
        "prefetches": [asdict(prefetch) for prefetch in status.prefetches],
    }
