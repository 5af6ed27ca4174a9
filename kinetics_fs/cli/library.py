"""The library that a command uses, and a warning about invalid rows of its annotations."""

from __future__ import annotations

import click

from kinetics_fs.api import Library
from kinetics_fs.catalog import Catalog
from kinetics_fs.config import Settings

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
        warn_of_refused_rows(library.catalog)
    return library


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
