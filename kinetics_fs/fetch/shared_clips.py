"""The fetcher's use of a shared store: clips that come from it, and news about the others for the other machines."""

from __future__ import annotations

import threading

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.outcomes import FailedElsewhere, FailureMemory, RetryLater
from kinetics_fs.media.boxes import is_mp4
from kinetics_fs.media.profile import SOURCE
from kinetics_fs.shared import Connection, SharedClip, Wait, Work
from kinetics_fs.store import Claim, FailureReport, Store

_MAX_UNCERTAIN = 1000
"""Verdicts that are remembered until they are certain."""


class SharedClips:
    """The clips of a shared store for one fetcher. Safe for threads.

    Args:
        connection: the store. It is started here and ended by `close`.
        store: the cache.
        failures: the failures of the fetcher.

    Raises:
        SharedStoreError: the address has no store, or one that this program cannot use.
    """

    def __init__(self, connection: Connection, store: Store, failures: FailureMemory) -> None:
        self.connection = connection
        self._store = store
        self._failures = failures
        self._lock = threading.Lock()
        self._uncertain: set[Clip] = set()
        """Clips with a verdict that the next delivery of its source confirms."""
        connection.start(self._note_gone)

    # Clips from the store

    def find(self, clip: Clip, claim: Claim) -> int | None:
        """Publish a clip if the store has it. Return its bytes; None if the store does not have it.

        Raises:
            FailedElsewhere: the clip is gone.
            FetchError: it cannot be published.
        """
        node = self.connection.node
        try:
            found = None if node is None else node.find(clip)
        except FetchError as error:
            raise _failed_elsewhere(error) from error
        return None if found is None else self._take(clip, claim, found)

    def begin(self, clip: Clip, claim: Claim, *, patient: bool) -> int | Work | None:
        """Publish a clip if the store has it; else return what to do about it.

        Args:
            clip: the clip.
            claim: the right to publish it.
            patient: whether to wait for another machine that fetches it.

        Returns:
            The bytes of the clip; the work that other machines wait for; or None: fetch it.

        Raises:
            RetryLater: another machine is fetching it.
            FailedElsewhere: the clip is gone, or another machine has just failed to fetch it.
            FetchError: it cannot be published.
        """
        node = self.connection.node
        while node is not None:
            try:
                found = node.begin(clip, patient=patient)
            except FetchError as error:
                raise _failed_elsewhere(error) from error
            if isinstance(found, Wait):
                raise RetryLater(found.seconds, f"{found.owner} is fetching it")
            if isinstance(found, Work):
                return found
            if (size := self._take(clip, claim, found)) is not None:
                return size
        return None

    def _take(self, clip: Clip, claim: Claim, found: SharedClip) -> int | None:
        """Publish a clip of the store. Return its bytes; None if it is not an mp4 file.

        The machine that uploaded it has verified it, and it has the digest of the verified file. What remains are
        objects of other programs under the name of a clip, whatever their metadata says.
        """
        if not is_mp4(found.body):
            assert self.connection.node is not None
            self.connection.node.reject(clip, found)
            return None
        path = claim.folder / clip.name
        try:
            path.write_bytes(found.body)
        except OSError as error:
            raise FetchError(
                FailureKind.LOCAL, f"cannot store the clip: {error.strerror}", cause_errno=error.errno
            ) from error
        cut = found.profile != SOURCE
        return claim.publish(path, found.facts.source, cut=cut, duration=found.facts.duration)

    # News for the other machines

    def note_published(self, clip: Clip, source: str, *, cut: bool, work: Work | None) -> None:
        """Enqueue a clip for its upload, which this machine fetched from a source.

        Args:
            clip: the clip, which is cached.
            source: name of the source.
            cut: it was cut with the settings of the cache.
            work: what other machines wait for; None if they do not.
        """
        profile = self._store.profile.name if cut else SOURCE
        if not self.connection.uploads(source):
            if work is not None:
                work.abandon("not uploaded")
        elif work is not None and work.is_leased:
            work.finish(profile)
        else:
            self.connection.add(clip, profile)

    def note_failed(self, clip: Clip, error: FetchError, work: Work) -> None:
        """Let other machines know that a clip could not be fetched.

        A verdict is shared with them once it is certain: a source that refuses this machine may use the same words.
        """
        failure = self._store.failures.get(clip)
        certain = failure is not None and failure.kind is FailureKind.GONE and not self._store.failures.is_doubted(clip)
        if error.kind is FailureKind.GONE and not certain:
            with self._lock:
                if len(self._uncertain) < _MAX_UNCERTAIN:
                    self._uncertain.add(clip)
        work.fail(error, failure if certain and error.kind is FailureKind.GONE else None)

    def share_verdicts(self) -> None:
        """Share the verdicts that have become certain, because their source has delivered something since."""
        node = self.connection.node
        if node is None:
            return
        with self._lock:
            clips, self._uncertain = self._uncertain, set()
        for clip in clips:
            if self._store.failures.is_doubted(clip):
                with self._lock:
                    self._uncertain.add(clip)
                continue
            failure = self._store.failures.get(clip)
            if failure is not None and failure.kind is FailureKind.GONE:
                node.share(failure)

    def _note_gone(self, report: FailureReport) -> FetchError | None:
        """Take over a failure of another machine; return the error if it holds on this one, too."""
        self._store.failures.import_reports([report])
        return self._failures.held(report.clip)

    def close(self, flush: float) -> None:
        """End the connection; see `Connection.close`."""
        self.connection.close(flush)


def _failed_elsewhere(error: FetchError) -> FailedElsewhere:
    return FailedElsewhere(error.kind, error.reason, source=error.source, retry_after=error.retry_after)
