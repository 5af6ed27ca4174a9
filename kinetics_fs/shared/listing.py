"""The clips that a shared store has, from one listing, in a temporary database that is as large as it must be."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Self

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import KineticsError
from kinetics_fs.shared.store import SharedStore

_BATCH = 1000


class StoredClips:
    """The clips of some profiles that a store has. Safe for threads. Use it as a context.

    Args:
        store: the store, which is listed at once.
        profiles: the profiles; None for all.
        on_progress: receives the number of clips so far.

    Raises:
        SharedStoreError: the store cannot be listed.
        KineticsError: there is no space for the list.
    """

    def __init__(
        self, store: SharedStore, profiles: Collection[str] | None, on_progress: Callable[[int], object]
    ) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            self._database.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                "CREATE TABLE stored (key TEXT, profile TEXT, PRIMARY KEY (key, profile)) WITHOUT ROWID;"
            )
            listing = store.listing()
            number = 0
            while batch := list(islice(listing, _BATCH)):
                self._insert((one.clip, one.profile) for one in batch if profiles is None or one.profile in profiles)
                number += len(batch)
                on_progress(number)
        except BaseException:
            self._database.close()
            raise

    def add(self, clip: Clip, profile: str) -> None:
        """Note a clip that the store has now."""
        with self._lock:
            self._insert([(clip, profile)])

    def _insert(self, clips: Iterable[tuple[Clip, str]]) -> None:
        try:
            self._database.executemany(
                "INSERT OR IGNORE INTO stored VALUES (?, ?)", ((clip.key, profile) for clip, profile in clips)
            )
        except sqlite3.Error as error:
            raise KineticsError(
                f"cannot list the shared store: the list cannot be kept in a temporary file ({error}); free space, or"
                " set TMPDIR to a folder on another disk"
            ) from error

    def has(self, clip: Clip, profile: str) -> bool:
        """Return whether the store had a clip when it was listed."""
        with self._lock:
            return (
                self._database.execute(
                    "SELECT 1 FROM stored WHERE key = ? AND profile = ?", (clip.key, profile)
                ).fetchone()
                is not None
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the list."""
        self._database.close()
