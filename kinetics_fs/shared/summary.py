"""The clips, failures, leases and budgets in a shared store, for the people who look after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from kinetics_fs.errors import SharedStoreError
from kinetics_fs.shared.backend import ListedObject, ObjectDamaged
from kinetics_fs.shared.budget import BudgetStatus, budget_names, read_budget
from kinetics_fs.shared.leases import LEASES, LeaseState
from kinetics_fs.shared.store import Capabilities, SharedStore, StoreFormat
from kinetics_fs.util.parallel import map_in_order

THREADS = 8
"""Requests for records at the same time."""
_MAX_LEASES = 10_000
"""Leases that are read. Each takes a request."""
_MAX_BUDGETS = 1000
_MAX_PROFILES = 1000
_PROGRESS_STEP = 1000


@dataclass
class ProfileTotals:
    """The number of clips of a profile, and their bytes."""

    clips: int = 0
    bytes: int = 0


class GroupBudget(NamedTuple):
    """The budget of a source for the machines of a rate group.

    Attributes:
        group: the rate group.
        budget: the budget.
        blocked_for: seconds until a machine tests the source; None if it is not blocked.
    """

    group: str
    budget: BudgetStatus
    blocked_for: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the budget as an object for `json.dumps`."""
        budget = self.budget
        return {
            "source": budget.source,
            "rate_group": self.group,
            "used": budget.used,
            "machines": budget.nodes,
            "blocked_for": self.blocked_for,
            "reason": budget.reason,
        }


@dataclass
class StoreContent:
    """The content of a store, according to a listing.

    Attributes:
        profiles: clips by profile.
        gone: clips that are known to be unavailable on every machine.
        indexes: archive indexes.
        fills: archives whose fill is complete.
    """

    profiles: dict[str, ProfileTotals] = field(default_factory=dict)
    gone: int = 0
    indexes: int = 0
    fills: int = 0

    @property
    def clips(self) -> int:
        """Number of clips of all profiles."""
        return sum(totals.clips for totals in self.profiles.values())

    @property
    def bytes(self) -> int:
        """Bytes of all clips."""
        return sum(totals.bytes for totals in self.profiles.values())


@dataclass
class StoreSummary:
    """The state of a shared store.

    Attributes:
        address: of the store.
        format: least versions of readers and writers.
        can_use: whether this version may write to it.
        capabilities: its abilities.
        content: its clips and other objects; None if it was not listed.
        leases: leases in force, the latest first; of many only some thousand are looked at.
        expired_leases: number of the others, which count for nothing.
        budgets: of all sources and rate groups.
        damaged: messages about records that are damaged.
    """

    address: str
    format: StoreFormat
    can_use: bool
    capabilities: Capabilities
    content: StoreContent | None = None
    leases: list[LeaseState] = field(default_factory=list)
    expired_leases: int = 0
    budgets: list[GroupBudget] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as an object for `json.dumps`."""
        content = None
        if self.content is not None:
            content = {"clips": self.content.clips, "bytes": self.content.bytes, **asdict(self.content)}
        return {
            "address": self.address,
            "format": self.format._asdict(),
            "can_write": self.can_use and self.capabilities.can_write,
            "conditional_writes": self.capabilities.has_conditional_writes,
            "reason": self.capabilities.reason,
            "content": content,
            "leases": [
                {
                    "name": lease.name,
                    "owner": lease.owner,
                    "renewed_seconds_ago": round(lease.age, 1),
                    "ends_in_seconds": round(lease.ttl - lease.age, 1),
                    "failure": lease.failure and lease.failure.reason,
                }
                for lease in self.leases
            ],
            "expired_leases": self.expired_leases,
            "budgets": [one.to_json() for one in self.budgets],
            "damaged": self.damaged,
        }


def summarize_store(
    store: SharedStore, *, quick: bool = False, on_progress: Callable[[StoreContent], object] = lambda content: None
) -> StoreSummary:
    """Return the state of a store.

    Args:
        store: the store.
        quick: do not list the clips.
        on_progress: receives what has been listed so far.

    Raises:
        SharedStoreError: the store cannot be used.
    """
    can_use = store.open(create=False)
    summary = StoreSummary(store.backend.address, store.read_format(), can_use, store.probe())
    now = store.clock.now() or time.time()
    _add_leases(summary, store, now)
    for source, group in islice(budget_names(store.backend), _MAX_BUDGETS):
        try:
            budget = read_budget(store.records, source, group, now)
        except ObjectDamaged as error:
            summary.damaged.append(str(error))
        else:
            until = budget.blocked_until
            blocked_for = None if until is None else round(max(0.0, until - now), 1)
            summary.budgets.append(GroupBudget(group, budget, blocked_for))
    if not quick:
        summary.content = list_content(store, on_progress)
    return summary


def _add_leases(summary: StoreSummary, store: SharedStore, now: float) -> None:
    def read(entry: ListedObject) -> LeaseState | SharedStoreError | None:
        try:
            record = store.records.read(entry.key)
        except ObjectDamaged as error:
            return error
        return record and LeaseState.of(entry.key, record, now)

    for found in map_in_order(read, islice(store.backend.scan(LEASES), _MAX_LEASES), THREADS):
        if isinstance(found, SharedStoreError):
            summary.damaged.append(str(found))
        elif found is not None and found.is_in_force:
            summary.leases.append(found)
        elif found is not None:
            summary.expired_leases += 1
    summary.leases.sort(key=lambda lease: lease.age)


def list_content(store: SharedStore, on_progress: Callable[[StoreContent], object]) -> StoreContent:
    """Return what a store has, by a listing."""
    content = StoreContent()
    for number, listed in enumerate(store.listing()):
        profile = listed.profile
        if profile not in content.profiles and len(content.profiles) == _MAX_PROFILES:
            profile = "others"
        totals = content.profiles.setdefault(profile, ProfileTotals())
        totals.clips += 1
        totals.bytes += listed.size
        if number % _PROGRESS_STEP == 0:
            on_progress(content)
    for _ in store.gone_clips():
        content.gone += 1
        if content.gone % _PROGRESS_STEP == 0:
            on_progress(content)
    content.indexes, content.fills = store.count_indexes(), store.count_fills()
    on_progress(content)
    return content
