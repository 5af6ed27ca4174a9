"""`kinetics-fs status`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.errors import MountError
from kinetics_fs.settings import Settings
from kinetics_fs.sizes import readable_size


@click.command("status")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@with_settings("store")
@json_option
def command(mountpoint: Path | None, settings: Settings, as_json: bool) -> None:
    """Say how mounts are doing: that on MOUNTPOINT, or all; and what the cache holds.

    \b
    kinetics-fs status
    kinetics-fs status --json /mnt/kinetics
    """
    from kinetics_fs.library import store_of
    from kinetics_fs.mount import find_mounts, real_place

    if mountpoint is None:
        mounts = [read_status(place) for place in find_mounts()]
    elif sys.platform != "linux" or real_place(mountpoint) in find_mounts():
        mounts = [read_status(real_place(mountpoint))]
    else:
        raise MountError(f"{mountpoint} is not a mount of kinetics-fs")
    report: dict[str, Any] = {"mounts": mounts}
    if mountpoint is None:
        with store_of(settings) as store:
            report |= store.report()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for mount in mounts:
        if "dead" in mount:
            click.echo(f"{mount['mountpoint']}: {mount['dead']}; to clear it: kinetics-fs umount {mount['mountpoint']}")
        else:
            _print_mount(mount)
    if not mounts:
        click.echo("No mounts.")
    if "cache" in report:
        click.echo(f"Cache {_cache_line(report['cache'])}")
        _print_origins(report["origins"], "Source")


def read_status(place: Path) -> dict[str, Any]:
    """What the mount on a place says of itself; `mountpoint` and why not, as `dead`, if it says nothing."""
    try:
        status = json.loads((place / ".kinetics/status.json").read_text())
    except (OSError, ValueError) as error:
        return {"mountpoint": str(place), "dead": f"its process does not answer ({error})"}
    assert isinstance(status, dict)
    return status


def _print_mount(status: dict[str, Any]) -> None:
    opens, fetch = status["opens"], status["fetch"]
    click.echo(f"{status['mountpoint']}: Kinetics-{status['release']}, {status['clips']:,} clips")
    if status["hidden"]:
        click.echo(f"  hidden    {status['hidden']:,} of them, known to be gone")
    click.echo(f"  process   {status['pid']} since {status['since']}")
    click.echo(f"  frontend  {status['frontend']['name']}, {status['frontend']['mode']}")
    click.echo(f"  opens     {opens['from_cache']:,} from cache, {opens['not_in_cache']:,} not")
    click.echo(f"  fetches   {fetch['under_way']} under way, {fetch['fetched']:,} done, {fetch['failed']:,} failed")
    click.echo(f"  cache     {_cache_line(status['cache'])}")
    _print_origins(status["origins"], "  source   ")
    for kind, number in status["failures"].items():
        click.echo(f"  failures  {number:,} {kind}")
    for reason, number in status["refused_rows"].items():
        click.echo(f"  refused   {number:,} rows: {reason}")


def _print_origins(origins: dict[str, Any], label: str) -> None:
    for name, origin in origins.items():
        asked = f"asked for {origin['asked_in_an_hour']:,} clips in the last hour"
        click.echo(
            f"{label} {name}: {asked}" if origin["blocked_for"] is None else f"{label} {name}: {_blocked(origin)}"
        )


def _blocked(origin: dict[str, Any]) -> str:
    minutes, seconds = divmod(origin["blocked_for"], 60)
    left = f"for another {minutes} min {seconds} s" if origin["blocked_for"] else "until the next clip is tried"
    return f"left alone {left}: {origin['reason']} (to try at once: kinetics-fs failures clear --kind blocked)"


def _cache_line(cache: dict[str, Any]) -> str:
    limit = f"of {readable_size(cache['limit'])}" if cache["limit"] else "no limit"
    return (
        f"{cache['folder']}: {cache['clips']:,} clips, {readable_size(cache['bytes'])} ({limit}),"
        f" {readable_size(cache['disk_free'])} free on the disk"
    )
