"""What is known of a selection before anything of it is fetched: what is here, what cannot be had, and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kinetics_fs.catalog import Catalog, Clip, Directory
from kinetics_fs.errors import FailureKind
from kinetics_fs.store import Failure, Store, selection_pages

_REASONS_SHOWN = 5
_CLASSES_SHOWN = 10


class FailureCounts:
    """Failures, counted by kind and reason."""

    def __init__(self) -> None:
        self._kinds: dict[FailureKind, Counter[str]] = {}

    def add(self, failure: Failure) -> None:
        self._kinds.setdefault(failure.kind, Counter())[failure.group] += 1

    @property
    def clips(self) -> int:
        return sum(reasons.total() for reasons in self._kinds.values())

    def as_json(self) -> dict[str, Any]:
        return {
            kind: {"clips": reasons.total(), "reasons": dict(reasons.most_common())} for kind, reasons in self._most()
        }

    def lines(self) -> Iterator[str]:
        for kind, reasons in self._most():
            yield f"{reasons.total():>10,}  {kind}"
            for reason, number in reasons.most_common(_REASONS_SHOWN):
                yield f"{number:>14,}  {reason}"
            if len(reasons) > _REASONS_SHOWN:
                yield f"{'':14}  … and {len(reasons) - _REASONS_SHOWN:,} more reasons"

    def _most(self) -> list[tuple[FailureKind, Counter[str]]]:
        return sorted(self._kinds.items(), key=lambda item: -item[1].total())


def survey(catalog: Catalog, store: Store) -> Iterator[tuple[Directory, dict[str, int], dict[Clip, Failure]]]:
    """Goes through the clips of a catalog, some thousand at a time.

    Yields:
        Their class in its split; how many clips there are, are cached, and were cached once; and the failures of
        those that are not cached.
    """
    for page in selection_pages(catalog, store):
        clips = [entry.clip for entry in page.entries]
        cached = {entry.clip for entry in page.entries if page.is_cached(entry)}
        failures = {clip: one for clip, one in store.failure_log.of(clips).items() if clip not in cached}
        evicted = len(page.sizes) - len(cached) - sum(clip.key in page.sizes for clip in failures)
        yield page.directory, {"clips": len(clips), "cached": len(cached), "evicted": evicted}, failures


def class_counts(catalog: Catalog, store: Store) -> list[dict[str, Any]]:
    """Of each class in each split: how many clips there are, are here, and could not be had."""
    classes: dict[int, dict[str, Any]] = {}
    for place, counts, failures in survey(catalog, store):
        zero = {"split": place.split, "label": place.label or "", "clips": 0, "cached": 0, "unavailable": 0}
        one = classes.setdefault(place.ino, zero)
        one["clips"] += counts["clips"]
        one["cached"] += counts["cached"]
        one["unavailable"] += len(failures)
    return list(classes.values())


class Coverage:
    """What of a selection is here, and what cannot be had."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._release = catalog.release
        self._counts = Counter[str]()
        self._classes: dict[str, Counter[str]] = {}
        self._places: dict[tuple[str, str], Counter[str]] = {}
        self._tally = FailureCounts()
        now = time.time()
        for place, counts, failures in survey(catalog, store):
            self._counts["due"] += sum(failure.retry_at <= now for failure in failures.values())
            counts["unavailable"] = len(failures)
            self._counts.update(counts)
            label = place.label or ""
            self._classes.setdefault(label, Counter()).update(counts)
            self._places.setdefault((place.split, label), Counter()).update(counts)
            for failure in failures.values():
                self._tally.add(failure)

    def as_json(self) -> dict[str, Any]:
        return {
            "release": self._release,
            "clips": self._counts["clips"],
            "cached": self._counts["cached"],
            "evicted": self._counts["evicted"],
            "untried": _untried(self._counts),
            "unavailable": self._tally.clips,
            "due": self._counts["due"],
            "kinds": self._tally.as_json(),
            "classes": [
                {"label": label, **{name: counts[name] for name in ("clips", "cached", "unavailable")}}
                for label, counts in self._worst()
            ],
        }

    def by_place(self) -> list[dict[str, Any]]:
        """How many clips of each class in each split are here, were here, could not be had, and were never tried."""
        return [
            {
                "split": split,
                "label": label,
                **{name: counts[name] for name in ("clips", "cached", "evicted", "unavailable")},
                "untried": _untried(counts),
            }
            for (split, label), counts in self._places.items()
        ]

    def lines(self) -> Iterator[str]:
        yield f"Kinetics-{self._release}, {self._counts['clips']:,} clips:"
        yield f"{self._counts['cached']:>10,}  are here"
        if self._counts["evicted"]:
            yield f"{self._counts['evicted']:>10,}  were here, and had to make room"
        yield f"{_untried(self._counts):>10,}  were never tried"
        due = f"; {self._counts['due']:,} of them are tried again when opened" if self._counts["due"] else ""
        yield f"{self._tally.clips:>10,}  could not be had{due}"
        if not self._tally.clips:
            return
        yield ""
        yield from self._tally.lines()
        worst = self._worst()
        width = max(len(label) for label, _ in worst[:_CLASSES_SHOWN])
        yield ""
        yield f"{'class':<{width}}  {'clips':>8}  {'here':>8}  could not be had"
        for label, counts in worst[:_CLASSES_SHOWN]:
            share = counts["unavailable"] / counts["clips"]
            yield (
                f"{label:<{width}}  {counts['clips']:>8,}  {counts['cached']:>8,}"
                f"  {counts['unavailable']:>8,} ({share:.1%})"
            )
        if len(worst) > _CLASSES_SHOWN:
            yield f"… and {len(worst) - _CLASSES_SHOWN:,} more classes"

    def _worst(self) -> list[tuple[str, Counter[str]]]:
        """The classes of which clips could not be had, that with the greatest share of them first."""
        some = [(label, counts) for label, counts in self._classes.items() if counts["unavailable"]]
        return sorted(some, key=lambda one: (-one[1]["unavailable"] / one[1]["clips"], -one[1]["unavailable"], one[0]))


def _untried(counts: Counter[str]) -> int:
    return counts["clips"] - counts["cached"] - counts["evicted"] - counts["unavailable"]
