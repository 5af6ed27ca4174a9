"""Progress, results and exit codes of the commands that copy clips: `import`, `export`, and uploads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.fill.importer import ImportResult
    from kinetics_fs.shared.sync import SyncResult
    from kinetics_fs.store.export import ExportResult

INTERRUPTED = 130

_REASONS_SHOWN = 10
_GROUPS_SHOWN = 20


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


def add_import(bars: ProgressBars) -> Callable[[ImportResult], object]:
    """Add bars for an import, and return the function that moves them."""
    finding = bars.add("finding clips", "files")
    importing = bars.add("importing", "files", visible=False)

    def show(result: ImportResult) -> None:
        if result.done:
            importing.show(result.done, result.to_import, size=result.bytes)
        else:
            finding.show(result.found, None)

    return show


def print_import(result: ImportResult, counts: str) -> None:
    """Print the result of an import.

    Args:
        result: the result.
        counts: the imported clips, and those that the target has.
    """
    click.echo(f"{counts}, {result.not_in_annotations:,} not in the annotations, {result.corrupt.total():,} corrupt")
    _print_reasons("corrupt", result.corrupt)
    _print_reasons("unreadable", result.unreadable)
    groups = result.unused.groups()
    for group in groups[:_GROUPS_SHOWN]:
        click.echo(f"  {group}")
    if rest := sum(group.files for group in groups[_GROUPS_SHOWN:]):
        click.echo(f"  {count(rest, 'file')} with other names not used")
    if result.busy:
        click.echo(f"  {result.busy:,} skipped: another process is fetching them")


def _print_reasons(what: str, reasons: Counter[str]) -> None:
    shown = reasons.most_common(_REASONS_SHOWN)
    for reason, files in shown:
        click.echo(f"  {files:,} {what}: {reason}")
    if rest := reasons.total() - sum(files for _, files in shown):
        click.echo(f"  {rest:,} {what} for other reasons")


def add_sync(bars: ProgressBars) -> Callable[[SyncResult], object]:
    """Add bars for a sync, and return the function that moves them."""
    listing, uploading = bars.add("listing", "clips", visible=False), bars.add("uploading", "clips", visible=False)

    def show(result: SyncResult) -> None:
        if result.done:
            uploading.show(result.done, result.to_upload, size=result.bytes)
        else:
            listing.show(result.listed, None)

    return show


def print_sync(result: SyncResult) -> None:
    """Print the result of a sync."""
    click.echo(
        f"{count(result.uploaded, 'clip')} uploaded, {filesize.decimal(result.bytes)}; {result.already_stored:,} stored"
        f" already, {result.evicted:,} evicted meanwhile, {result.refused:,} refused"
    )
