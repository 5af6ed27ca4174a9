"""`kinetics-fs shared sync` and `import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import filesize

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.copying import INTERRUPTED, add_import, add_sync, exit_code, print_import, print_sync
from kinetics_fs.cli.options import json_option, selection_given, verify_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.fill.importer import ImportResult
    from kinetics_fs.shared.sync import SyncResult


@click.command("sync", cls=Command, short_help="Upload the cached clips that a shared store lacks.")
@click.option("--dry-run", is_flag=True, help="Only count the clips.")
@with_settings("selection", "cache", "cut", "--shared", "--shared-write")
@json_option
def sync(dry_run: bool, settings: Settings, as_json: bool) -> int:
    """Upload the cached clips that a shared store lacks: all clips, or those of a selection if you give one.

    Run it after an outage of the store, or after `kinetics-fs status` shows that a full queue dropped clips. It uploads
    clips as their source has them, and clips that were cut with the present settings. Without a selection, it also
    uploads all that mounts have queued. You can interrupt or kill the command and run it again: it resumes. Exits with
    3 if some clips are damaged or too large.

    \b
    kinetics-fs shared sync --shared s3://bucket/kinetics
    kinetics-fs shared sync --shared /lustre/project/kinetics --split validation --dry-run
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars

    selection = selection_given()
    with open_library(settings, whole_cache=not selection) as library, ProgressBars() as bars:
        result = library.shared.sync(selection=selection, dry_run=dry_run, on_progress=add_sync(bars))
    if as_json:
        click.echo(json.dumps(result.to_json()))
    elif dry_run:
        click.echo(
            f"{count(result.to_upload, 'clip')}, {filesize.decimal(result.to_upload_bytes)}, would be uploaded;"
            f" {result.already_stored:,} stored already"
        )
    else:
        print_sync(result)
    return exit_code(result)


@click.command("import", cls=Command, short_help="Upload the clips of folders or caches into a shared store.")
@click.argument(
    "folders",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@with_settings("selection", "cache", "cut", "--shared")
@verify_option
@json_option
def import_(folders: tuple[Path, ...], settings: Settings, verify: str, as_json: bool) -> int:
    """Upload the clips that are anywhere below each DIR into a shared store. Nothing is cached on this machine.

    DIR is a folder in the layout of any download tool, as for `kinetics-fs import`: its files are verified, and those
    that have the name of a clip of the selection are uploaded. Or it is a cache directory of kinetics-fs: its clips of
    all profiles are compared with the SHA-256 with which they were stored, and uploaded; all of them if you give no
    selection. Clips that the store has are skipped. You can interrupt or kill the command and run it again: it resumes.
    With --json, a line is printed for each DIR. Exits with 3 if some files were not fit to be uploaded.

    \b
    kinetics-fs shared import --shared s3://bucket/kinetics --release 400 /data/k400
    kinetics-fs shared import --shared s3://bucket/kinetics /scratch/kinetics-fs
    """
    from kinetics_fs.cli.library import open_library
    from kinetics_fs.cli.progress import ProgressBars
    from kinetics_fs.store.layout import is_cache

    caches = [folder for folder in folders if is_cache(folder)]
    status = 0
    with open_library(settings, whole_cache=len(caches) == len(folders) and not selection_given()) as library:
        for folder in folders:
            with ProgressBars() as bars:
                result: ImportResult | SyncResult
                if folder in caches:
                    result = library.shared.import_cache(
                        folder, selection=selection_given(), on_progress=add_sync(bars)
                    )
                else:
                    listing = bars.add("listing", "clips", visible=False)
                    result = library.shared.import_folder(
                        folder,
                        verify=verify,
                        on_listed=lambda number, bar=listing: bar.show(number, None),  # type: ignore[misc]
                        on_progress=add_import(bars),
                    )
            _print_imported(folder, result, as_json)
            status = max(status, exit_code(result))
            if status == INTERRUPTED:
                break
    return status


def _print_imported(folder: Path, result: ImportResult | SyncResult, as_json: bool) -> None:
    from kinetics_fs.shared.sync import SyncResult

    if as_json:
        click.echo(json.dumps({"folder": str(folder), **result.to_json()}))
    elif isinstance(result, SyncResult):
        print_sync(result)
    else:
        counts = f"{count(result.imported, 'clip')} uploaded, {filesize.decimal(result.bytes)}"
        print_import(result, f"{counts}, {result.already_cached:,} stored already")
