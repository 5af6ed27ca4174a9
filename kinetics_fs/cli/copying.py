"""The end of the commands that copy clips: `import`, `export`, and those that upload to a shared store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kinetics_fs.cli import DONE_IN_PART

if TYPE_CHECKING:
    from kinetics_fs.fill.importer import ImportResult
    from kinetics_fs.shared.sync import SyncResult
    from kinetics_fs.store.export import ExportResult

INTERRUPTED = 130


def exit_code(result: ImportResult | ExportResult | SyncResult) -> int:
    """Return the exit code of the command, and tell if it was interrupted.

    Raises:
        KineticsError: the failure that ended the command early.
    """
    if result.interrupted:
        click.echo("Interrupted. Run the same command again to resume.", err=True)
        return INTERRUPTED
    if result.problem:
        raise result.problem
    return 0 if result.complete else DONE_IN_PART
