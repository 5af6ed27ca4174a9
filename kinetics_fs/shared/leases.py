"""Leases: which machine fetches a clip or fills an archive, so that the others need not.

A lease saves work and never guards anything: an object is created once however many machines write it, so that two
machines that fetch one clip end with one object. A lease is a record::

    leases/<name>.json   {"owner": HOST, "nonce": …, "ttl": SECONDS, "failure": null | {…}, "done": BOOL}

No time of day is compared, because clocks of machines differ. A lease is over for an observer that has seen the same
nonce for `ttl` seconds by its own monotonic clock: the owner renews it, with a new nonce, three times as often. It is
then taken over by compare-and-swap, so that one of many observers gets it. When the result is in the store, the owner
marks the lease as done, and deletes it some minutes later. Until then a machine that has looked for the result before,
in vain, finds the mark instead of a free name, and looks once more. An owner that failed writes the failure into the
lease. The cause may be its own network or account, so that another machine tries at once. If that one fails, too, the
failure holds for all until its time to retry, so that not every machine meets it in turn.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from kinetics_fs.errors import FailureKind, FetchError, SharedStoreError
from kinetics_fs.shared.backend import ObjectDamaged
from kinetics_fs.shared.records import Record, Records, StoreClock
from kinetics_fs.store import one_line

_log = logging.getLogger(__name__)

CLIP_TTL = 60.0
"""Seconds after which the lease of a clip whose owner died is over."""
ARCHIVE_TTL = 300.0
"""The same for the lease of an archive."""

MIN_DONE_AGE = 300.0
"""Seconds until a lease that is done is deleted: longer than a machine needs from its look for the result to here."""
_MIN_TTL, _MAX_TTL = 1.0, 600.0
"""Limits of what the lease of another machine may say."""
_MAX_RETRY = 3600.0
"""Longest time in seconds for which a failure in a lease holds."""
LEASES = "leases"
"""The prefix of the keys of leases."""
MAX_LEASE_AGE = 2 * _MAX_RETRY
"""Seconds after which a lease that was not renewed is over, whatever it says."""
_MAX_SEEN = 10_000
"""Leases of other machines that are observed at a time."""


class LeaseHeld(NamedTuple):
    """Another machine works: look again later.

    Attributes:
        owner: its name.
        seconds: the longest time until the lease can be taken over.
    """

    owner: str
    seconds: float


class LeaseState(NamedTuple):
    """A lease as it is in the store, for a person to read.

    Attributes:
        name: its name.
        owner: the machine that wrote it last.
        age: seconds since then, by the clock of the store.
        ttl: seconds for which it holds from then on.
        failure: why the owner failed; None if it works.
        is_done: the result is in the store.
    """

    name: str
    owner: str
    age: float
    ttl: float
    failure: FetchError | None
    is_done: bool

    @property
    def is_in_force(self) -> bool:
        """Whether a machine works, or has failed and the others believe it."""
        return self.age < self.ttl

    @classmethod
    def of(cls, key: str, record: Record, now: float) -> LeaseState:
        """Return the state in an untrusted record."""
        ttl, failure = _parse(record)
        age = max(0.0, now - record.modified)
        name = key.removeprefix(f"{LEASES}/").removesuffix(".json")
        owner, is_done = record.values.get("owner", ""), record.values.get("done") is True
        return cls(name, one_line(str(owner)), age, ttl, failure, is_done)


class Lease:
    """A lease that this process holds.

    Attributes:
        name: its name, below `leases/`.
        is_new: no machine had it in the last minutes. Otherwise look for the result once more before working.
        is_lost: another machine has taken it over. The work may go on: its result is as good.

    Args:
        leases: the leases that it belongs to.
        name: its name.
        ttl: see `Leases.acquire`.
        record: its present version.
        sent_at: when that was written, by the monotonic clock.
        is_new: see the attribute.
        failed_by: the owner that failed before; empty if none did.
    """

    def __init__(
        self, leases: Leases, name: str, ttl: float, record: Record, sent_at: float, *, is_new: bool, failed_by: str
    ) -> None:
        self._leases = leases
        self._ttl = ttl
        self._record = record
        self._renewed_at = sent_at
        self._lock = threading.Lock()
        self._failed_by = failed_by
        self.name = name
        self.is_new = is_new
        self.is_lost = False

    def release(self) -> None:
        """End the lease. The result must be in the store, or nothing must have been done."""
        if self._end({"owner": self._leases.owner, "ttl": 0, "failure": None, "done": True}):
            self._leases._delete_later(self.name)

    def fail(self, failure: FetchError, retry_after: float) -> None:
        """Write the failure into the lease.

        Args:
            failure: why there is no result.
            retry_after: seconds for which the other machines take it for theirs, if another one has failed before; 0 if
                they are to try at once in any case.
        """
        is_first = _machine(self._failed_by) in ("", _machine(self._leases.owner))
        self._end(
            {
                "owner": self._leases.owner,
                "ttl": 0.0 if is_first else min(max(retry_after, 0.0), _MAX_RETRY),
                "failure": {"kind": failure.kind, "reason": failure.reason, "source": failure.source},
                "done": False,
            }
        )

    def _end(self, values: dict[str, Any]) -> bool:
        """Stop renewing, and write the last version; return whether that succeeded. Otherwise time ends the lease."""
        self._leases._forget(self)
        with self._lock, contextlib.suppress(SharedStoreError):
            if not self.is_lost:
                return self._leases._records.replace(_key(self.name), self._record.version, values) is not None
        return False

    def _renew(self) -> None:
        """Write a new nonce, if it is time."""
        with self._lock:
            now = self._leases._monotonic()
            if self.is_lost or now < self._renewed_at + self._ttl / 3:
                return
            try:
                renewed = self._leases._records.replace(
                    _key(self.name), self._record.version, _held(self._leases.owner, self._ttl)
                )
            except SharedStoreError as error:
                _log.debug("lease %s: not renewed: %s", self.name, error)
                return
            if renewed is None:
                self.is_lost = True
                _log.debug("lease %s: another machine has taken it over", self.name)
            else:
                self._record, self._renewed_at = renewed, now


class _Seen(NamedTuple):
    """A lease of another machine, as it was first seen."""

    nonce: str
    at: float
    """By the monotonic clock of this machine."""


class Leases:
    """The leases of a store. Safe for threads.

    Every method raises a `SharedStoreError` if the store cannot serve it, or has something else under the name. The
    caller then works without a lease.

    Args:
        records: the records of the store.
        clock: the clock of the store. It only tells whether a failure in a lease is old.
        owner: name of this process in messages of others: the name of its machine, a colon and a number.
        monotonic: a clock in seconds.
    """

    def __init__(
        self, records: Records, clock: StoreClock, owner: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.owner = owner
        self._records = records
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: set[Lease] = set()
        self._done: deque[tuple[float, str]] = deque()
        """Leases to delete, with the time by the monotonic clock."""
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._closing = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire(self, name: str, ttl: float = CLIP_TTL) -> Lease | LeaseHeld:
        """Try to get a lease. See `Lease.is_new`.

        Args:
            name: its name, from `clip_lease` or `archive_lease`.
            ttl: seconds after which it is over if this machine dies.

        Raises:
            FetchError: another machine failed, and its time to retry has not come.
        """
        sent_at, is_new, failed_by = self._monotonic(), True, ""
        record = self._records.create(_key(name), _held(self.owner, ttl))
        if record is None:
            found = self._look(name)
            if isinstance(found, LeaseHeld):
                return found
            sent_at, is_new = self._monotonic(), False
            if found is None:  # deleted meanwhile
                record = self._records.create(_key(name), _held(self.owner, ttl))
            else:
                failed_by = str(found.values.get("owner", "")) if found.values.get("failure") else ""
                record = self._records.replace(_key(name), found.version, _held(self.owner, ttl))
            if record is None:
                return LeaseHeld("another machine", ttl)
        lease = Lease(self, name, ttl, record, sent_at, is_new=is_new, failed_by=failed_by)
        with self._lock:
            self._held.add(lease)
            self._seen.pop(name, None)
        return lease

    def look(self, name: str) -> LeaseHeld | None:
        """Return the machine that works; None if none does: look for the result once more, or work.

        Raises:
            FetchError: another machine failed, and its time to retry has not come.
        """
        found = self._look(name)
        return found if isinstance(found, LeaseHeld) else None

    def _look(self, name: str) -> LeaseHeld | Record | None:
        """Return who works; the record of a lease that is over; None if there is no lease."""
        try:
            record = self._records.read(_key(name))
        except ObjectDamaged as error:
            if error.version is None:
                raise
            return Record({"nonce": ""}, error.version, 0.0)  # no machine renews it
        if record is None:
            with self._lock:
                self._seen.pop(name, None)
            return None
        ttl, failure = _parse(record)
        waited = self._observe(name, record)
        if failure is not None:
            now = self._clock.now()
            # A failure of yesterday must not hold today, because this machine sees it for the first time.
            waited = max(waited, 0.0 if now is None else now - record.modified)
        if waited >= ttl:
            return record
        if failure is not None:
            raise FetchError(failure.kind, failure.reason, source=failure.source, retry_after=ttl - waited)
        return LeaseHeld(one_line(str(record.values.get("owner", ""))), ttl - waited)

    def _observe(self, name: str, record: Record) -> float:
        """Return for how many seconds this version of a lease has been seen."""
        now = self._monotonic()
        with self._lock:
            seen = self._seen.get(name)
            if seen is None or seen.nonce != record.nonce:
                seen = self._seen[name] = _Seen(record.nonce, now)
                if len(self._seen) > _MAX_SEEN:
                    self._seen.popitem(last=False)
            return now - seen.at

    def held(self) -> list[str]:
        """Return the names of the leases that this process holds."""
        with self._lock:
            return sorted(lease.name for lease in self._held)

    def _forget(self, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)

    def _delete_later(self, name: str) -> None:
        with self._lock:
            self._done.append((self._monotonic() + MIN_DONE_AGE, name))

    # Renewal

    def renew(self) -> None:
        """Renew the leases for which it is time, and delete those that were done some minutes ago."""
        with self._lock:
            held = list(self._held)
        for lease in held:
            lease._renew()
        self._delete_done(self._monotonic())

    def _delete_done(self, until: float) -> None:
        keys: list[str] = []
        with self._lock:
            while self._done and self._done[0][0] <= until and len(keys) < 1000:
                keys.append(_key(self._done.popleft()[1]))
        if keys:
            # Those that stay after a failure can be acquired like any lease that is over.
            with contextlib.suppress(SharedStoreError):
                self._records.delete(*keys)

    def start(self, interval: float = 5.0) -> None:
        """Renew the leases in a thread, which looks every so many seconds, until `close`."""

        def run() -> None:
            while not self._closing.wait(interval):
                self.renew()

        self._renewer = threading.Thread(target=run, name="shared-leases", daemon=True)
        self._renewer.start()

    def close(self) -> None:
        """Stop renewing, and let other machines have the leases at once."""
        self._closing.set()
        if self._renewer is not None:
            self._renewer.join()
        with self._lock:
            held = list(self._held)
        for lease in held:
            lease.fail(FetchError(FailureKind.TRANSIENT, f"{self.owner} shut down"), 0.0)
        while self._done:
            self._delete_done(math.inf)


def _machine(owner: str) -> str:
    """Return the machine of an owner."""
    return owner.rpartition(":")[0] or owner


def _key(name: str) -> str:
    return f"{LEASES}/{name}.json"


def _held(owner: str, ttl: float) -> dict[str, Any]:
    return {"owner": owner, "ttl": ttl, "failure": None, "done": False}


def _parse(record: Record) -> tuple[float, FetchError | None]:
    """Return for how long an untrusted lease holds, and the failure in it."""
    ttl, failure = record.values.get("ttl"), record.values.get("failure")
    if record.values.get("done") is True:
        return 0.0, None
    seconds = float(ttl) if isinstance(ttl, int | float) and abs(ttl) <= _MAX_RETRY else CLIP_TTL
    if not isinstance(failure, dict):
        return min(max(seconds, _MIN_TTL), _MAX_TTL), None
    kind = failure.get("kind")
    return min(seconds, _MAX_RETRY), FetchError(
        FailureKind(kind) if kind in list(FailureKind) else FailureKind.TRANSIENT,
        one_line(str(failure.get("reason", ""))),
        source=one_line(str(failure.get("source", ""))),
    )
