"""The data of the report, without its pictures; can be serialized as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from kinetics_fs._version import __version__
from kinetics_fs.store import Store

_COUNTS = ("clips", "cached", "evicted", "unavailable", "untried")


def gather(
    store: Store,
    *,
    selection: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    failures: Mapping[str, Any],
    mounts: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Collect the data of the report.

    Args:
        store: the cache.
        selection: the selection, with the names of the settings as keys.
        classes: for each class in each split, the number of clips and how many of them are cached, evicted,
            unavailable and untried.
        failures: for each kind of failure, the number of `clips` and of each of the `reasons`.
        mounts: the status of each running mount.
    """
    splits: dict[str, dict[str, Any]] = {}
    for row in classes:
        sums = splits.setdefault(row["split"], {"split": row["split"], **dict.fromkeys(_COUNTS, 0)})
        for name in _COUNTS:
            sums[name] += row[name]
    shown = [_mount(status) for status in mounts]
    same_cache = [mount for mount in shown if mount["dead"] or mount["cache"] == str(store.folder)]
    return {
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "selection": dict(selection),
        "total": {name: sum(sums[name] for sums in splits.values()) for name in _COUNTS},
        "splits": list(splits.values()),
        "classes": [dict(row) for row in sorted(classes, key=lambda row: row["label"].casefold())],
        **{name: value for name, value in store.report().items() if name in ("cache", "origins")},
        "failures": dict(failures),
        "history": [sample._asdict() for sample in store.history.samples()],
        "mounts": same_cache,
        "mounts_of_other_caches": len(shown) - len(same_cache),
    }


def _mount(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a mount's status that the report shows.

    The mount can run another version, or belong to another user, so no field can be relied on.
    """
    prefetches = status.get("prefetches")
    return {
        **{name: status.get(name) for name in ("mountpoint", "dead", "release", "clips", "pid", "since")},
        "cache": _inside(status, "cache", "folder"),
        "frontend": _inside(status, "frontend", "name"),
        "mode": _inside(status, "frontend", "mode"),
        "from_cache": _inside(status, "opens", "from_cache"),
        "not_in_cache": _inside(status, "opens", "not_in_cache"),
        **{name: _inside(status, "fetch", name) for name in ("under_way", "fetched", "failed")},
        "prefetches": [
            {
                name: one.get(name)
                for name in ("id", "what", "state", "reason", "clips", "fetched", "already_cached", "failed")
            }
            for one in (prefetches if isinstance(prefetches, list) else ())
            if isinstance(one, dict)
        ],
    }


def _inside(status: Mapping[str, Any], group: str, name: str) -> Any:
    inside = status.get(group)
    return inside.get(name) if isinstance(inside, dict) else None
