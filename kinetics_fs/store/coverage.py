"""How much of a selection the cache has, and why the rest is unavailable. Measuring it never uses the network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from kinetics_fs.catalog import Catalog, Clip, Directory, Origin, origins_to_json
from kinetics_fs.errors import FailureKind
from kinetics_fs.store.failures import Failure
from kinetics_fs.store.selection import SelectionPage, selection_pages
from kinetics_fs.store.store import Store


@dataclass(frozen=True, slots=True)
class FailureCounts:
    """Number of failures by kind and reason, the most frequent first.

    Attributes:
        kinds: kind → reason, with `…` for ids and numbers → number of clips.
    """

    kinds: Mapping[FailureKind, Mapping[str, int]]

    @classmethod
    def of(cls, failures: Iterable[Failure]) -> FailureCounts:
        """Count failures."""
        return cls.of_reasons(Counter((failure.kind, failure.group) for failure in failures))

    @classmethod
    def of_reasons(cls, reasons: Counter[tuple[FailureKind, str]]) -> FailureCounts:
        """Return the counts of these kinds and reasons."""
        kinds: dict[FailureKind, Counter[str]] = {}
        for (kind, reason), number in reasons.items():
            kinds.setdefault(kind, Counter())[reason] += number
        most_frequent = sorted(kinds.items(), key=lambda item: -item[1].total())
        return cls({kind: dict(reasons.most_common()) for kind, reasons in most_frequent})

    @property
    def clips(self) -> int:
        """Number of all failures."""
        return sum(sum(reasons.values()) for reasons in self.kinds.values())

    def to_json(self) -> dict[str, Any]:
        """Return kind → `{"clips": number, "reasons": {reason: number}}`."""
        return {
            str(kind): {"clips": sum(reasons.values()), "reasons": dict(reasons)}
            for kind, reasons in self.kinds.items()
        }

    @classmethod
    def from_json(cls, kinds: Mapping[str, Any]) -> FailureCounts:
        """Return the counts that `to_json` described."""
        return cls({FailureKind(kind): dict(counts["reasons"]) for kind, counts in kinds.items()})


@dataclass(frozen=True, slots=True)
class ClassCoverage:
    """Coverage of one class in one split, in numbers of clips.

    Attributes:
        split: name of the split.
        label: label of the class; empty in a split without labels.
        clips: all clips of the class that are selected.
        cached: clips in the cache.
        short: cached clips whose pictures cover much less than the annotated seconds; see `SHORT_BELOW`.
        evicted: clips that were in the cache and had to make room.
        unavailable: clips that are not cached and failed to be fetched.
        untried: clips that were never requested.
    """

    split: str
    label: str
    clips: int
    cached: int
    short: int
    evicted: int
    unavailable: int
    untried: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of a selection.

    Attributes:
        release: name of the release.
        classes: coverage of each class in each split, in the order of the catalog.
        failures: why clips are unavailable.
        due: number of unavailable clips whose next open retries them.
        origins: the lists and archives that name the clips.
    """

    release: str
    classes: tuple[ClassCoverage, ...]
    failures: FailureCounts
    due: int
    origins: tuple[Origin, ...]

    @property
    def clips(self) -> int:
        """Number of clips in the selection."""
        return sum(one.clips for one in self.classes)

    @property
    def cached(self) -> int:
        """Number of clips in the cache."""
        return sum(one.cached for one in self.classes)

    @property
    def short(self) -> int:
        """Number of cached clips that are short."""
        return sum(one.short for one in self.classes)

    @property
    def evicted(self) -> int:
        """Number of clips that were in the cache and had to make room."""
        return sum(one.evicted for one in self.classes)

    @property
    def unavailable(self) -> int:
        """Number of clips that are not cached and failed to be fetched."""
        return sum(one.unavailable for one in self.classes)

    @property
    def untried(self) -> int:
        """Number of clips that were never requested."""
        return sum(one.untried for one in self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return the totals, the failures by kind, and a row per class and split."""
        return {
            "release": self.release,
            "clips": self.clips,
            "cached": self.cached,
            "short": self.short,
            "evicted": self.evicted,
            "untried": self.untried,
            "unavailable": self.unavailable,
            "due": self.due,
            "kinds": self.failures.to_json(),
            "classes": [asdict(one) for one in self.classes],
            **origins_to_json(self.release, self.origins),
        }

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> Coverage:
        """Return the coverage that `to_json` described."""
        return cls(
            text["release"],
            tuple(ClassCoverage(**one) for one in text["classes"]),
            FailureCounts.from_json(text["kinds"]),
            text["due"],
            tuple(Origin(**one) for one in text["origins"]),
        )


class UnavailableClip(NamedTuple):
    """A clip that is not cached, with the failure that the cache remembers."""

    directory: Directory
    clip: Clip
    failure: Failure

    @property
    def path(self) -> str:
        """Path of the clip in a mount with raw class names: `split/class/clip.mp4`."""
        return f"{self.directory.split}/{self.directory.label}/{self.clip.name}"


def measure_coverage(catalog: Catalog, store: Store) -> Coverage:
    """Measure how many of the catalog's clips the store has."""
    classes: list[ClassCoverage] = []
    reasons = Counter[tuple[FailureKind, str]]()
    due, now = 0, time.time()
    for page in selection_pages(catalog, store):
        failures = _failures(page, store)
        due += sum(failure.retry_at <= now for failure in failures.values())
        reasons.update((failure.kind, failure.group) for failure in failures.values())
        cached_keys = [key for key, known in page.sizes.items() if known.cached]
        cached = len(cached_keys)
        evicted = len(page.sizes) - cached - sum(clip.key in page.sizes for clip in failures)
        numbers = Counter(
            clips=len(page.entries),
            cached=cached,
            short=store.short_clips.count(cached_keys),
            evicted=evicted,
            unavailable=len(failures),
            untried=len(page.entries) - cached - evicted - len(failures),
        )
        split, label = page.directory.split, page.directory.label or ""
        if classes and (classes[-1].split, classes[-1].label) == (split, label):  # a further page of the same class
            last = asdict(classes.pop())
            numbers.update({name: last[name] for name in numbers})
        classes.append(ClassCoverage(split, label, **numbers))
    return Coverage(catalog.release, tuple(classes), FailureCounts.of_reasons(reasons), due, tuple(catalog.origins()))


def unavailable_clips(catalog: Catalog, store: Store) -> Iterator[UnavailableClip]:
    """Yield the clips of the catalog that are not cached and failed to be fetched, in the order of the catalog."""
    for page in selection_pages(catalog, store):
        for clip, failure in _failures(page, store).items():
            yield UnavailableClip(page.directory, clip, failure)


def _failures(page: SelectionPage, store: Store) -> dict[Clip, Failure]:
    """Return the failures of the clips of a page that are not cached."""
    return store.failures.of([entry.clip for entry in page.entries if not page.is_cached(entry)])
