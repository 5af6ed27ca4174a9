"""The requests that all machines with one public address may send to a source, and the breaker of that source.

A source counts requests and refuses them by address, so that 64 machines behind one address have one budget. It is one
record for each source and rate group, which machines change by compare-and-swap::

    budget/<source>@<rate group>.json
        {"nonce": …, "used": {MINUTE: REQUESTS, …}, "nodes": {NODE: MINUTE, …}, "block": null | {…}}

A machine takes a few requests at a time (a grant), uses them within seconds, and gives the others back.
As in `kinetics_fs.store.throttle`, at most the limit is used in any 60 minutes. All times are those of the clock of the
store, because the clocks of machines differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError
from kinetics_fs.shared.backend import Backend, ObjectDamaged, StoreUnreachable
from kinetics_fs.shared.records import Record, Records, StoreClock
from kinetics_fs.store import Permit, RateLimited, one_line
from kinetics_fs.store.throttle import (
    ANSWERS,
    MAX_PAUSE,
    PROBE_TIMEOUT,
    RECOVERED_AFTER,
    pause_after,
    usable_limit,
)

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

GRANT = 5
"""Requests that a machine takes at a time."""
_GRANT_TTL = 30.0
"""Seconds within which they are used. Also the longest time until a machine learns that a source is blocked."""
_LIMITED_TTL = 15.0
"""Seconds until a machine looks again whether the budget is still used up."""
_HOUR, _MINUTE = 3600.0, 60
_COUNTED = _HOUR + _GRANT_TTL + 5
"""Seconds after its minute for which a grant counts: an hour after its last use, and the lateness of `StoreClock`."""
_CALIBRATE_EVERY = 600.0
"""Seconds after which a write is followed by a look at its time."""
_TRIES = 12
"""Tries of a change while other machines change the record, too."""
_UNKNOWN_NODES = 16
"""Number of machines to assume if the store was never reachable."""
_MAX_NODES = 1024
_MAX_TRIPS = 32
_BUDGETS = "budget"
"""The prefix of the keys of budgets."""
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,64}")


def node_id() -> str:
    """Return a text that no other machine has, and that tells nothing about this one."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:12]


class SharedBlock(NamedTuple):
    """A block of a source. Times are seconds since the epoch by the clock of the store.

    Attributes:
        reason: why it is blocked.
        at: when it refused a request.
        until: when one machine may test it.
        trips: number of blocks in a row.
        probe_until: when a test in progress counts as lost; 0 if none is in progress.
        recovered_at: when a test was answered; 0 while it is blocked.
    """

    reason: str
    at: float
    until: float
    trips: int
    probe_until: float = 0.0
    recovered_at: float = 0.0


class BudgetStatus(NamedTuple):
    """The budget of a source, as this machine has seen it last.

    Attributes:
        source: name of the source.
        used: requests of all machines in the last hour.
        nodes: machines that asked in the last hour; None if unknown.
        blocked_until: None if the source is in use; see `SharedBlock.until`.
        reason: why it is blocked; empty if it is not.
    """

    source: str
    used: int
    nodes: int | None
    blocked_until: float | None
    reason: str


@dataclass(slots=True)
class _State:
    """The content of the record.

    Attributes:
        used: requests by minute.
        nodes: the minute when a machine asked last.
        block: the last block; None if there was none.
    """

    used: dict[int, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    block: SharedBlock | None = None

    def values(self) -> dict[str, Any]:
        return {
            "used": {str(minute): count for minute, count in sorted(self.used.items())},
            "nodes": self.nodes,
            "block": self.block and self.block._asdict(),
        }

    def expire(self, now: float) -> None:
        """Forget what no longer counts, and what a machine with a wrong clock has written."""
        minute = int(now) // _MINUTE
        self.used = {at: count for at, count in self.used.items() if count > 0 and at <= minute + 2 and now < _end(at)}
        recent = sorted(self.nodes.items(), key=lambda node: node[1])[-_MAX_NODES:]
        self.nodes = {node: at for node, at in recent if minute - 60 < at <= minute + 2}
        block = self.block
        if block is not None and max(block.at, block.until) > now + MAX_PAUSE + _MINUTE:
            self.block = None
        elif block is not None and block.probe_until > now + PROBE_TIMEOUT + _MINUTE:
            self.block = block._replace(probe_until=0.0)

    def seconds_until_free(self, now: float, limit: int) -> float:
        """Return how long it takes until less than `limit` requests count; 0 if that is so now."""
        total = sum(self.used.values())
        for minute, count in sorted(self.used.items()):
            if total < limit:
                break
            total -= count
            now_free = _end(minute) - now
            if total < limit:
                return max(now_free, 0.0)
        return 0.0


@dataclass(slots=True)
class _Grant:
    """Requests that this machine may send now.

    Attributes:
        left: how many; infinite without a limit.
        minute: when they were taken.
        until: by the monotonic clock of this machine.
        is_probe: the one request tests the source.
    """

    left: float = 0
    minute: int = 0
    until: float = 0.0
    is_probe: bool = False


class SharedBudget:
    """The budget and the breaker of one source for all machines with one address. Safe for threads.

    Methods that need the store raise a `SharedStoreError` if it cannot serve them. The caller then goes on alone, with
    the `share` of the limit.

    Args:
        records: the records of the store.
        backend: where they are.
        clock: the clock of the store.
        source: name of the source.
        group: the rate group: the machines with one public address.
        node: name of this machine, from `node_id`.
        monotonic: a clock in seconds.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        records: Records,
        backend: Backend,
        clock: StoreClock,
        source: str,
        group: str,
        node: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not _GROUP.fullmatch(source) or not _GROUP.fullmatch(group):
            raise ValueError(f"not the name of a source and of a rate group: {source!r}, {group!r}")
        self.source = source
        self._records = records
        self._backend = backend
        self._clock = clock
        self._key = _budget_key(source, group)
        self._node = node
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._grant = _Grant()
        self._limited_until = {False: -math.inf, True: -math.inf}
        """When to look again whether the budget is used up, without and with the reserve."""
        self._known: Record | None = None
        self._status = BudgetStatus(source, 0, None, None, "")
        self._status_at = -math.inf
        self._calibrated_at = -math.inf

    # Requests

    def acquire(self, *, limit: int | None, urgent: bool) -> Permit:
        """Return a permit for one request. Pass the permit to `record` or to `cancel` afterwards.

        Args:
            limit: maximum number of requests of all machines in any 60 minutes; None for no limit.
            urgent: True if a process waits in `open`: the request may use the reserve.

        Raises:
            FetchError: the source is blocked (BLOCKED).
            RateLimited: the budget is used up.
            SharedStoreError: the store cannot be used.
        """
        with self._lock:
            now = self._monotonic()
            if self._grant.left < 1 or now >= self._grant.until:
                if (wait := self._limited_until[urgent] - now) > 0:
                    raise RateLimited(wait)
                try:
                    self._grant = self._change(lambda state, at: self._take(state, at, limit, urgent=urgent))
                except RateLimited as limited:
                    self._limited_until[urgent] = now + min(limited.seconds, _LIMITED_TTL)
                    raise
            self._grant.left -= 1
            return Permit(self.source, self._store_time(), is_probe=self._grant.is_probe)

    def _take(self, state: _State, now: float, limit: int | None, *, urgent: bool) -> _Grant:
        block = state.block
        is_probe = block is not None and not block.recovered_at
        if block is not None and is_probe:
            wait = max(block.until, block.probe_until) - now
            if wait > 0:
                cause = block.reason if block.until > now else f"another machine tests the source: {block.reason}"
                raise FetchError(
                    FailureKind.BLOCKED,
                    f"no requests for {wait:.0f} s: {cause}",
                    source=self.source,
                    retry_after=wait,
                )
        minute, count = int(now) // _MINUTE, math.inf
        if limit is not None:
            usable = usable_limit(limit, urgent=urgent)
            if wait := state.seconds_until_free(now, usable):
                raise RateLimited(wait)
            taken = 1 if is_probe else min(GRANT, usable - sum(state.used.values()))
            state.used[minute] = state.used.get(minute, 0) + taken
            count = taken
        if block is not None and is_probe:
            state.block = block._replace(probe_until=now + PROBE_TIMEOUT)
        return _Grant(1 if is_probe else count, minute, self._monotonic() + _GRANT_TTL, is_probe)

    def record(self, permit: Permit, error: FetchError | None) -> None:
        """Record the outcome of a request: the error, or None if the source delivered the clip.

        Raises:
            SharedStoreError: the store cannot be used.
        """
        kind = error.kind if error else None
        if error is not None and kind is FailureKind.BLOCKED:
            with self._lock:
                self._change(lambda state, now: self._trip(state, now, permit, error))
        elif permit.is_probe:
            with self._lock:
                self._change(lambda state, now: self._end_probe(state, now, answered=kind in ANSWERS))

    @staticmethod
    def _trip(state: _State, now: float, permit: Permit, error: FetchError) -> None:
        earlier = state.block
        if earlier is not None and earlier.at > permit.at:
            return  # the request began before an earlier block
        trips = 1
        if earlier is not None and (earlier.recovered_at or now) > now - RECOVERED_AFTER:
            trips = min(earlier.trips + 1, _MAX_TRIPS)
        state.block = SharedBlock(one_line(error.reason), now, now + pause_after(trips, error.retry_after), trips)

    @staticmethod
    def _end_probe(state: _State, now: float, *, answered: bool) -> None:
        if state.block is not None:
            state.block = state.block._replace(probe_until=0.0, recovered_at=now if answered else 0.0)

    def cancel(self, permit: Permit) -> None:
        """Give back a permit that was not used.

        Raises:
            SharedStoreError: the store cannot be used.
        """
        with self._lock:
            if permit.is_probe:
                self._change(lambda state, now: self._end_probe(state, now, answered=False))
            elif int(permit.at) // _MINUTE == self._grant.minute:
                self._grant.left += 1

    def reset_block(self) -> None:
        """End the block, for example after a change of address or cookies.

        Raises:
            SharedStoreError: the store cannot be used.
        """

        def reset(state: _State, _: float) -> None:
            state.block = None

        with self._lock:
            self._change(reset)

    def close(self) -> None:
        """Give back what is left of the grant, if the store can be reached."""
        with self._lock, contextlib.suppress(SharedStoreError):
            if 0 < self._grant.left < math.inf:
                self._change(lambda state, now: None)

    # Without the store

    def share(self, limit: int) -> int:
        """Return the part of the limit for this machine while the store is unreachable.

        It is divided by the number of machines that asked in the last hour. Together they may use up to twice the limit
        in that hour, because the others' requests before it are unknown.
        """
        nodes = self._status.nodes
        if nodes is None or self._monotonic() > self._status_at + _HOUR:
            return self.share_of_unknown(limit)
        return max(1, limit // max(1, nodes))

    @staticmethod
    def share_of_unknown(limit: int) -> int:
        """Return the part of the limit for one of an unknown number of machines."""
        return max(1, limit // _UNKNOWN_NODES)

    def status(self) -> BudgetStatus:
        """Return the budget as this machine has seen it last. Sends no request."""
        return self._status

    # Compare and swap

    def _store_time(self) -> float:
        return self._clock.now() or 0.0

    def _change(self, change: Callable[[_State, float], _Result]) -> _Result:
        """Apply a change to the record, and give back what is left of the grant.

        Args:
            change: receives the state and the time. If it raises, it must not have changed the state.
        """
        for attempt in range(_TRIES):
            record, is_fresh = (self._known, False) if self._known else (self._read(), True)
            self._known = None
            if self._clock.now() is None:
                if self._records.replace(self._key, record.version, record.values) is not None:
                    self._look_at_time()
                continue
            now = self._store_time()
            state = _parse(record.values)
            if 0 < self._grant.left < math.inf and self._grant.minute in state.used:
                state.used[self._grant.minute] -= int(self._grant.left)
            state.expire(now)
            is_new = self._node not in state.nodes
            state.nodes[self._node] = int(now) // _MINUTE
            try:
                result = change(state, now)
            except (RateLimited, FetchError):
                self._note(state)
                if is_fresh:
                    if is_new:  # so that `share` counts machines that wait, too
                        self._records.replace(self._key, record.version, state.values())
                    raise
                continue  # with what other machines have written meanwhile
            self._known = self._records.replace(self._key, record.version, state.values())
            if self._known is not None:
                self._grant = _Grant()
                self._note(state)
                if self._monotonic() > self._calibrated_at + _CALIBRATE_EVERY:
                    self._look_at_time()
                return result
            self._sleep(random.uniform(0, 0.05 * 2 ** min(attempt, 5)))
        raise StoreUnreachable(
            f"cannot change {self._backend.address}/{self._key}: other machines change it at the same time"
        )

    def _read(self) -> Record:
        try:
            found = self._records.read(self._key)
        except ObjectDamaged as error:
            if error.version is None:
                raise
            # Earlier requests and a block are forgotten.
            found = self._records.replace(self._key, error.version, _State().values())
        found = found or self._records.create(self._key, _State().values()) or self._records.read(self._key)
        if found is None:
            raise StoreUnreachable(f"cannot read {self._backend.address}/{self._key}: it was deleted")
        return found

    def _look_at_time(self) -> None:
        facts = self._backend.stat(self._key)
        if facts is not None:
            self._clock.observe(facts.modified)
            self._calibrated_at = self._monotonic()

    def _note(self, state: _State) -> None:
        self._status = _status_of(self.source, state)
        self._status_at = self._monotonic()


def _status_of(source: str, state: _State) -> BudgetStatus:
    block = state.block if state.block is not None and not state.block.recovered_at else None
    return BudgetStatus(
        source, sum(state.used.values()), len(state.nodes), block and block.until, block.reason if block else ""
    )


def budget_names(backend: Backend) -> Iterator[tuple[str, str]]:
    """Yield the source and the rate group of each budget in the store."""
    for entry in backend.scan(_BUDGETS):
        source, separator, group = entry.key.removeprefix(f"{_BUDGETS}/").removesuffix(".json").partition("@")
        if separator and _GROUP.fullmatch(source) and _GROUP.fullmatch(group):
            yield source, group


def read_budget(records: Records, source: str, group: str, now: float) -> BudgetStatus:
    """Return the budget of a source as it is in the store.

    Args:
        records: the records of the store.
        source: name of the source.
        group: the rate group.
        now: the time in seconds since the epoch by the clock of the store.

    Raises:
        ObjectDamaged: the record is damaged.
    """
    record = records.read(_budget_key(source, group))
    state = _parse(record.values) if record is not None else _State()
    state.expire(now)
    return _status_of(source, state)


def _budget_key(source: str, group: str) -> str:
    return f"{_BUDGETS}/{source}@{group}.json"


def _end(minute: int) -> float:
    """Return when the requests of a minute no longer count."""
    return (minute + 1) * _MINUTE + _COUNTED


def _parse(values: Mapping[str, Any]) -> _State:
    """Return the state in an untrusted record, without its invalid parts."""
    state = _State()
    used, nodes, block = values.get("used"), values.get("nodes"), values.get("block")
    if isinstance(used, dict):
        state.used = {
            int(minute): count
            for minute, count in list(used.items())[:1000]
            if re.fullmatch("[0-9]{1,12}", minute) and type(count) is int and 0 < count < 10**6
        }
    if isinstance(nodes, dict):
        state.nodes = {
            node: at
            for node, at in list(nodes.items())[: 2 * _MAX_NODES]
            if re.fullmatch("[0-9a-f]{1,64}", node) and type(at) is int
        }
    if isinstance(block, dict):
        times = [block.get(name) for name in ("at", "until", "probe_until", "recovered_at")]
        trips, reason = block.get("trips"), block.get("reason")
        if (
            all(type(one) in (int, float) and math.isfinite(one) for one in times)  # type: ignore[arg-type]
            and type(trips) is int
            and isinstance(reason, str)
        ):
            at, until, probe_until, recovered_at = map(float, times)  # type: ignore[arg-type]
            trips = min(max(trips, 1), _MAX_TRIPS)
            state.block = SharedBlock(one_line(reason), at, until, trips, probe_until, recovered_at)
    return state
