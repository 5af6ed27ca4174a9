"""The number of bytes that this process has received from sources, so that progress can be shown within a clip."""

from __future__ import annotations

import threading


class ReceivedBytes:
    """A counter of bytes. Safe for threads.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, size: int) -> None:
        """Count `size` bytes."""
        with self._lock:
            self.total += size


RECEIVED = ReceivedBytes()
"""The counter of this process."""
