"""The progress of downloading and compiling annotations."""

from __future__ import annotations


class CatalogProgress:
    """Receives the progress, and ignores it; subclass it to show it. Any thread may call it."""

    def downloading(self, name: str, done: int, total: int | None) -> None:
        """Handle progress of a download.

        Args:
            name: name of the file.
            done: bytes so far.
            total: all bytes; None if the server does not say.
        """

    def compiling(self, rows: int) -> None:
        """Handle progress of compiling: the number of rows that were read so far. Called every few thousand rows."""
