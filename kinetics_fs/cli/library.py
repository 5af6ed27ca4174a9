"""The library that a command uses: the progress of its annotations, and a warning about their invalid rows."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import click

from kinetics_fs.api import Library
from kinetics_fs.catalog import Catalog, CatalogProgress
from kinetics_fs.config import Settings
from kinetics_fs.errors import printable

if TYPE_CHECKING:
    from kinetics_fs.cli.progress import Bar, ProgressBars

_REFUSALS_SHOWN = 3


def open_library(settings: Settings, *, whole_cache: bool = False) -> Library:
    """Open the library of a command.

    Args:
        settings: settings of the command.
        whole_cache: the command applies to the whole cache: no annotations are read.

    Raises:
        CatalogError: the annotations cannot be downloaded or read, or the selection matches nothing.
        StoreError: the cache directory cannot be used.
    """
    library = Library(settings)
    if not whole_cache:
        with CatalogBars() as progress:
            catalog = library.open_catalog(progress)
        warn_of_refused_rows(catalog)
    return library


class CatalogBars(CatalogProgress):
    """Bars of the downloads and the compilation of annotations, of which there are none most of the time.

    Use it as a context.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._bars: ProgressBars | None = None
        self._of: dict[str, Bar] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def downloading(self, name: str, done: int, total: int | None) -> None:
        """Show the progress of a download."""
        self._bar(f"downloading {name}", "bytes").show(done, total)

    def compiling(self, rows: int) -> None:
        """Show how many rows were compiled."""
        self._bar("compiling the annotations", "rows").show(rows, None)

    def _bar(self, description: str, unit: str) -> Bar:
        with self._lock:
            if self._bars is None:
                from kinetics_fs.cli.progress import ProgressBars  # imports rich, which takes 50 ms

                self._bars = self._opened.enter_context(ProgressBars(transient=True))
            if description not in self._of:
                self._of[description] = self._bars.add(description, unit)
                if unit == "bytes" and self._bars.prints_lines:
                    click.echo(f"kinetics-fs: {printable(description)}", err=True)
            return self._of[description]


def warn_of_refused_rows(catalog: Catalog) -> None:
    """Print how many rows of the annotations were refused, and the first of them."""
    refusals = catalog.refusals()
    if not refusals.total:
        return
    click.echo(f"kinetics-fs: {refusals.total:,} invalid rows of the annotations were skipped:", err=True)
    for refusal in refusals.first[:_REFUSALS_SHOWN]:
        click.echo(f"  {refusal.file}, line {refusal.line}: {refusal.reason}", err=True)
    if refusals.total > _REFUSALS_SHOWN:
        click.echo("  A mount lists all of them in .kinetics/refused.csv.", err=True)
