"""`kinetics-fs failures`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.settings import Settings


@click.group("failures")
def command() -> None:
    """Show or forget why clips could not be had."""


@command.command("list")
@with_settings("store")
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List the remembered failures, the latest first.

    \b
    kinetics-fs failures list
    kinetics-fs failures list --json
    """
    from kinetics_fs.cli.rooms import store_of

    with store_of(settings) as store:
        failures = list(store.failures())
    if as_json:
        click.echo(json.dumps([asdict(failure) for failure in failures], indent=2, ensure_ascii=False))
        return
    for failure in failures:
        tries = "1 try" if failure.attempts == 1 else f"{failure.attempts} tries"
        click.echo(
            f"{failure.key}  {failure.kind:<11}  {tries}, last {_time(failure.last_at)},"
            f" next after {_time(failure.retry_at)}  {failure.source}: {failure.reason}"
        )
    if not failures:
        click.echo("No failures are remembered.")


@command.command("clear")
@click.argument("keys", metavar="[CLIP]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget all of them.")
@with_settings("store")
def clear(keys: tuple[str, ...], everything: bool, settings: Settings) -> None:
    """Forget failures, so that the next open tries again. CLIP is a file name, or its part before `.mp4`.

    \b
    kinetics-fs failures clear --all
    kinetics-fs failures clear -- -abcdefghij_000010_000020
    """
    from kinetics_fs.catalog import parse_clip_name
    from kinetics_fs.cli.rooms import store_of

    if bool(keys) == everything:
        raise click.UsageError("name clips, or give --all")
    clips: list[Any] = []
    for key in keys:
        clip = parse_clip_name(key.removesuffix(".mp4") + ".mp4")
        if clip is None:
            raise click.UsageError(f"{key!r} is not a clip: they are named <youtube id>_<start>_<end>")
        clips.append(clip)
    with store_of(settings) as store:
        number = store.forget_failures(None if everything else clips)
    click.echo(f"{number:,} forgotten")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
