"""Opens the catalog for a command: who runs it is told what was wrong with the annotations."""

from __future__ import annotations

import click

from kinetics_fs.app import open_selected_catalog
from kinetics_fs.catalog import Catalog
from kinetics_fs.config import Settings


def catalog_of(settings: Settings) -> Catalog:
    """The catalog of the selection, after a word on rows that were refused.

    Raises:
        CatalogError: annotations cannot be had or read, or the selection names what is not there.
    """
    catalog = open_selected_catalog(settings)
    refusals = catalog.refusals()
    if refusals.total:
        click.echo(f"kinetics-fs: {refusals.total} rows of the annotations were refused:", err=True)
        for refusal in refusals.first[:3]:
            click.echo(f"  {refusal.file}, line {refusal.line}: {refusal.reason}", err=True)
        if refusals.total > 3:
            click.echo("  … (all: .kinetics/refused.csv in the mount)", err=True)
    return catalog
