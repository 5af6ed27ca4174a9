"""The use of a shared store by one process: from its address to the threads, and their end.

A process that starts while the store is away works alone and connects later. An address without a store is an error at
once, and so is a store that only a newer version can read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.control.status import SharedBudgetStatus, SharedStatus, UploadStatus
from kinetics_fs.errors import SharedStoreError, StoreError
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared.backend import StoreMissing, StoreUnreachable
from kinetics_fs.shared.budget import SharedBudget, node_id
from kinetics_fs.shared.leases import Leases
from kinetics_fs.shared.node import Node, NoteGone
from kinetics_fs.shared.outage import Outage
from kinetics_fs.shared.sizes import SharedSizes
from kinetics_fs.shared.store import SharedStore
from kinetics_fs.shared.upload_queue import UploadQueue
from kinetics_fs.shared.write_back import CachedClips, WriteBack
from kinetics_fs.store import Store
from kinetics_fs.util.text import count

_log = logging.getLogger(__name__)

_FIRST_RETRY, _MAX_RETRY = 5.0, 300.0
"""Seconds until a store that could not be reached, or refused to be written, is tried again; doubled each time."""


class Connection:
    """The use of a shared store by one process. Safe for threads.

    Args:
        store: the shared store.
        cache: the cache of this machine.
        write: which clips are uploaded: `all` that this machine fetches, those from `youtube`, or `none`.
        group: the rate group of this machine.
        limits: the sources whose requests all machines of the group share, with their limits per hour.
        machine: name of this machine.

    Attributes:
        store: the shared store.
        write: which clips are uploaded.
        outage: whether the store can be used at the moment.
    """

    def __init__(
        self,
        store: SharedStore,
        cache: Store,
        *,
        write: str,
        group: str,
        limits: Mapping[str, int | None],
        machine: str = "",
    ) -> None:
        self.store = store
        self.write = write
        self.outage = Outage()
        self._profiles = (cache.profile.name, SOURCE)
        self._group = group
        self._limits = limits
        self._owner = f"{machine or socket.gethostname()}:{os.getpid()}"
        self._queue: UploadQueue | None = None
        self._write_back: WriteBack | None = None
        if write != "none":
            with contextlib.suppress(StoreError):  # on a read-only disk, where nothing can be fetched either
                self._queue = UploadQueue(cache.layout.uploads)
                self._write_back = WriteBack(store, self._queue, CachedClips(cache), note_answer=self.outage.end)
        self._leases: Leases | None = None
        self._node: Node | None = None
        self._budgets: dict[str, SharedBudget] = {}
        self._sizes: SharedSizes | None = None
        self._note = ""
        self._note_gone: NoteGone = lambda report: None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, note_gone: NoteGone) -> None:
        """Connect, and upload and renew leases in the background until `close`.

        Args:
            note_gone: see `kinetics_fs.shared.node.NoteGone`.

        Raises:
            SharedStoreError: the address has no store, or one that this program cannot use.
        """
        self._note_gone = note_gone
        try:
            self._connect()
        except StoreMissing:
            raise
        except StoreUnreachable as error:
            self.outage.begin(error)
        if self._node is None or self._note:
            self._thread = threading.Thread(target=self._connect_later, name="shared-connect", daemon=True)
            self._thread.start()

    def _connect(self) -> None:
        """Find out what the store can do, and use that.

        Raises:
            SharedStoreError: it cannot be used.
        """
        may_write = self.store.open(create=False)
        abilities = self.store.probe()
        if not may_write:
            self._note = "a newer version of kinetics-fs writes to it; update this one to upload clips"
        else:
            self._note = abilities.reason
        can_write = may_write and abilities.can_write
        if self._leases is None and (abilities.has_conditional_writes or not abilities.can_write):
            self._leases = Leases(self.store.records, self.store.clock, self._owner)
            self._leases.start()
        write_back = self._write_back if can_write else None
        if self._node is None:
            self._node = Node(self.store, self._leases, write_back, self._profiles, self.outage, self._note_gone)
        else:
            self._node.set_abilities(self._leases, write_back)
        if write_back is not None:
            write_back.start()
        if abilities.has_conditional_writes and not self._budgets:
            self._budgets = {
                source: SharedBudget(
                    self.store.records, self.store.backend, self.store.clock, source, self._group, node_id()
                )
                for source in self._limits
            }
        self.outage.end()
        if self._note:
            _log.warning("%s: %s", self.store.backend.address, self._note)

    def _connect_later(self) -> None:
        wait = _FIRST_RETRY
        while not self._closing.wait(wait):
            try:
                self._connect()
            except SharedStoreError as error:
                self.outage.begin(error)
            if self._node is not None and not self._note:
                return
            wait = min(wait * 2, _MAX_RETRY)

    # Clips

    @property
    def node(self) -> Node | None:
        """The use of the clips in the store; None until it could be reached for the first time."""
        return self._node

    def uploads(self, source: str) -> bool:
        """Return whether this machine uploads the clips that a source delivered."""
        return self._queue is not None and (self.write == "all" or self.write == source)

    def add(self, clip: Clip, profile: str) -> None:
        """Enqueue a cached clip that no other machine waits for."""
        if self._write_back is not None:
            try:
                self._write_back.add(clip, profile)
            except StoreError as error:
                _log.warning("%s: not uploaded: %s", clip.key, error)

    def list_sizes(self) -> SharedSizes | None:
        """List the sizes of the clips in the background, and return what knows them; None if that is not cheap."""
        if self._sizes is None and self.store.backend.is_listed_cheaply:
            self._sizes = SharedSizes(self.store, self._profiles)
            self._sizes.start()
        return self._sizes

    # Requests to sources

    def budget(self, source: str) -> SharedBudget | None:
        """Return the budget that the machines of the group share for a source; None if they share none."""
        return self._budgets.get(source)

    def shares_budget(self, source: str) -> bool:
        """Return whether machines share the requests to a source, or would if the store could be reached."""
        return source in self._limits and (self._node is None or source in self._budgets)

    def share(self, source: str) -> int | None:
        """Return the limit per hour for this machine alone, while the store cannot be reached."""
        limit = self._limits[source]
        if limit is None:
            return None
        budget = self._budgets.get(source)
        return SharedBudget.share_of_unknown(limit) if budget is None else budget.share(limit)

    # Status and end

    @property
    def queued(self) -> int:
        """Number of clips that wait for their upload."""
        return 0 if self._queue is None else self._queue.status().clips

    def status(self) -> SharedStatus:
        """Return how this process uses the store. Sends no request."""
        node = None if self._node is None else self._node.status()
        return SharedStatus(
            address=self.store.backend.address,
            error=self.outage.reason,
            retry_in=round(self.outage.seconds, 1),
            note=self._note,
            listed=None if self._sizes is None else self._sizes.clips,
            hits=0 if node is None else node.hits,
            misses=0 if node is None else node.misses,
            waits=0 if node is None else node.waits,
            damaged=0 if node is None else node.damaged,
            leases=0 if node is None else len(node.leases),
            uploads=None if self._write_back is None else _upload_status(self._write_back),
            budgets=tuple(self._budget_status(budget) for budget in self._budgets.values()),
        )

    def _budget_status(self, budget: SharedBudget) -> SharedBudgetStatus:
        status = budget.status()
        until = status.blocked_until
        now = self.store.clock.now() or time.time()
        return SharedBudgetStatus(
            source=status.source,
            group=self._group,
            used=status.used,
            limit=self._limits[status.source],
            machines=status.nodes,
            blocked_for=None if until is None else max(0, round(until - now)),
            reason=status.reason,
        )

    def flush(self, timeout: float) -> int:
        """Upload what is queued, and return how many clips are left after the timeout, or once nothing can be uploaded.

        Args:
            timeout: seconds.
        """
        if self._write_back is None:
            return 0
        self._write_back.resume()
        if self._node is None:
            return self.queued
        return self._write_back.flush(timeout)

    def close(self, flush: float) -> None:
        """End the threads. Clips that could not be uploaded stay in the queue for the next process.

        Args:
            flush: seconds in which clips are uploaded before.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if self._sizes is not None:
            self._sizes.close()
        if self._write_back is not None:
            with contextlib.suppress(StoreError):
                if flush and self.queued:
                    _log.warning("uploading clips to %s for up to %.0f s", self.store.backend.address, flush)
                if left := self.flush(flush):
                    _log.warning(
                        "%s not uploaded to %s yet; the next mount or kinetics-fs shared sync uploads the rest",
                        count(left, "clip"),
                        self.store.backend.address,
                    )
            self._write_back.close()
        if self._leases is not None:
            self._leases.close()
        for budget in self._budgets.values():
            budget.close()
        if self._queue is not None:
            self._queue.close()


def _upload_status(write_back: WriteBack) -> UploadStatus:
    status = write_back.status()
    return UploadStatus(
        queued=status.queue.clips,
        oldest=round(status.queue.oldest, 1),
        uploaded=status.uploaded,
        bytes=status.bytes,
        dropped=status.queue.dropped,
        evicted=status.queue.evicted,
        refused=status.queue.refused,
        paused=status.paused,
        retry_in=round(status.seconds, 1),
    )
