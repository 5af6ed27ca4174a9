"""`kinetics-fs status`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich import filesize

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import UntouchedPath, json_option, with_settings
from kinetics_fs.config import Settings
from kinetics_fs.errors import MountError

_PATIENCE_FOR_CLASSES = 300.0
"""Seconds for going through all clips of a mount."""


@click.command("status", cls=Command, short_help="Say how mounts are doing, and what the cache holds.")
@click.argument("mountpoint", type=UntouchedPath(), required=False)
@click.option("--classes", is_flag=True, help="With MOUNTPOINT: how much of each class is here; may take seconds.")
@with_settings("cache")
@json_option
def command(mountpoint: Path | None, classes: bool, settings: Settings, as_json: bool) -> int:
    """Say how mounts are doing: that on MOUNTPOINT, or all; and what the cache holds.

    Of a mount that hangs or is dead it says what to do about it; and exits with 1, if it is that on MOUNTPOINT.

    \b
    kinetics-fs status
    kinetics-fs status --json /mnt/kinetics
    kinetics-fs status --classes /mnt/kinetics
    """
    from kinetics_fs.app import open_store
    from kinetics_fs.mount.query import mount_on, statuses

    if classes and mountpoint is None:
        raise click.UsageError("--classes is about the classes of a mount: name MOUNTPOINT")
    mounts = statuses(None if mountpoint is None else mount_on(mountpoint))
    report: dict[str, Any] = {"mounts": mounts}
    dead = any("dead" in mount for mount in mounts)
    if classes and not dead:
        mounts[0]["by_class"] = _classes_of(Path(mounts[0]["mountpoint"]))
    if mountpoint is None:
        with open_store(settings) as store:
            report |= store.report()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    return 1 if dead and mountpoint is not None else 0


def _classes_of(place: Path) -> list[dict[str, Any]]:
    from kinetics_fs.control import connect

    connection = connect(place, _PATIENCE_FOR_CLASSES)
    if connection is None:
        raise MountError(f"no mount of yours answers on {place}: --classes is for who mounted, or root")
    with connection:
        classes: list[dict[str, Any]] = connection.ask("classes")
        return classes


def _print(report: dict[str, Any]) -> None:
    mounts = report["mounts"]
    for mount in mounts:
        click.echo("\n".join(mount_lines(mount)))
        if "by_class" in mount:
            _print_classes(mount["by_class"])
    if not mounts:
        click.echo("No mounts.")
    if "cache" in report:
        click.echo(f"Cache {_cache_line(report['cache'])}")
        for line in _origin_lines(report["origins"]):
            click.echo(f"Source {line}")


def mount_lines(status: dict[str, Any]) -> list[str]:
    """What a mount says of itself, for people."""
    if "dead" in status:
        return [f"{status['mountpoint']}: {status['dead']}; {status['to_do']}"]
    try:
        parts = [f"  {label:<9} {text}" for label, text in _parts(status)]
        return [f"{status['mountpoint']}: Kinetics-{status['release']}, {status['clips']:,} clips", *parts]
    except (LookupError, TypeError, ValueError):
        # Mounted before the program was renewed.
        version = status.get("version")
        return [f"{status.get('mountpoint')}: is of version {version}; mount it anew, or see what it says by --json"]


def _parts(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    opens, fetch = status["opens"], status["fetch"]
    if status["hidden"]:
        yield "hidden", f"{status['hidden']:,} of them, known to be gone"
    yield "process", f"{status['pid']} since {status['since']}"
    yield "frontend", f"{status['frontend']['name']}, {status['frontend']['mode']}"
    if status.get("metrics"):
        yield "metrics", status["metrics"]
    rate = "" if opens["hit_rate"] is None else f" ({opens['hit_rate']:.1%} had at once)"
    yield (
        "opens",
        f"{opens['from_cache']:,} from cache, {opens['not_in_cache']:,} not{rate}; {opens['waiting']:,} waiting",
    )
    yield "fetches", f"{fetch['under_way']:,} under way, {fetch['fetched']:,} done, {fetch['failed']:,} failed"
    if any(fetch["queue"].values()):
        yield "queue", f"of them {queue_in_words(fetch['queue'])}"
    if fetch["rates"]["last_hour"]["clips_per_minute"]:
        yield "rates", "; ".join(rate_in_words(span, rates) for span, rates in fetch["rates"].items())
    if limits := limits_in_words(status["gate"]):
        yield "limits", limits
    yield "cache", _cache_line(status["cache"])
    for line in _origin_lines(status["origins"]):
        yield "source", line
    for prefetch in status["prefetches"]:
        yield "prefetch", prefetch_in_words(prefetch)
    for kind, number in status["failures"].items():
        yield "failures", f"{number:,} {kind}"
    for failure in fetch["last_failures"]:
        yield "failed", failure_in_words(failure)
    for reason, number in status["refused_rows"].items():
        yield "refused", f"{number:,} rows: {reason}"


def queue_in_words(queue: dict[str, int]) -> str:
    """How many clips of which priority wait to be fetched."""
    return "waiting: " + ", ".join(f"{number:,} {priority}" for priority, number in queue.items())


def rate_in_words(span: str, rates: dict[str, float]) -> str:
    """How fast clips came in the last minute or hour."""
    speed = f"{filesize.decimal(round(rates['bytes_per_second']))}/s"
    return f"{rates['clips_per_minute']:,.1f} clips/min, {speed} in the {span.replace('_', ' ')}"


def prefetch_in_words(prefetch: dict[str, Any]) -> str:
    """How a prefetch is going."""
    done = prefetch["fetched"] + prefetch["already_cached"]
    failed = f", {prefetch['failed']:,} not to be had" if prefetch["failed"] else ""
    reason = f": {prefetch['reason']}" if prefetch["reason"] else ""
    return (
        f"{prefetch['id']}, {prefetch['state']}{reason}: {done:,} of {prefetch['clips']:,}{failed}; {prefetch['what']}"
    )


def failure_in_words(failure: dict[str, Any]) -> str:
    """Which clip could not be had, why, and when it is tried again."""
    retry_at = failure["retry_at"]
    if retry_at is None:
        again = "when its source is asked again"
    elif retry_at <= time.time():
        again = "at the next open"
    else:
        again = f"after {datetime.fromtimestamp(retry_at, UTC).isoformat(timespec='seconds')}"
    return f"{failure['clip']} ({failure['source']}, {failure['kind']}): {failure['reason']}; next try {again}"


def limits_in_words(gate: dict[str, Any]) -> str:
    """What opens may fetch and how much of it they have; nothing if they may fetch anything."""
    if not gate["allowed"]:
        return "nothing is fetched (--only cached)"
    words = []
    if gate["max_fetches"] is not None:
        words.append(f"{gate['fetches']:,} of {gate['max_fetches']:,} fetches begun")
    if gate["max_bytes"] is not None:
        words.append(f"{filesize.decimal(gate['bytes'])} of {filesize.decimal(gate['max_bytes'])} fetched")
    return ", ".join(words)


def _print_classes(classes: list[dict[str, Any]]) -> None:
    width = max((len(one["label"]) for one in classes), default=0)
    click.echo(f"\n{'split':<10}  {'class':<{width}}  {'clips':>8}  {'here':>8}          could not be had")
    for one in classes:
        share = one["cached"] / one["clips"] if one["clips"] else 1.0
        click.echo(
            f"{one['split']:<10}  {one['label']:<{width}}  {one['clips']:>8,}  {one['cached']:>8,}  {share:>6.1%}"
            f"  {one['unavailable']:>15,}"
        )


def _origin_lines(origins: dict[str, Any]) -> Iterator[str]:
    for name, origin in origins.items():
        asked = f"asked for {origin['fetches_last_hour']:,} clips in the last hour"
        yield f"{name}: {asked if origin['blocked_for'] is None else blocked_in_words(origin)}"


def blocked_in_words(origin: dict[str, Any]) -> str:
    """Why an origin is left alone, and for how long."""
    minutes, seconds = divmod(origin["blocked_for"], 60)
    left = f"for another {minutes} min {seconds} s" if origin["blocked_for"] else "until the next clip is tried"
    return f"left alone {left}: {origin['reason']} (to try at once: kinetics-fs failures clear --kind blocked)"


def _cache_line(cache: dict[str, Any]) -> str:
    limit = f"of {filesize.decimal(cache['limit'])}" if cache["limit"] else "no limit"
    pins = ""
    if cache["pinned_clips"]:
        pins = (
            f"; {cache['pinned_clips']:,} clips are pinned, {cache['pinned_cached']:,} of them here,"
            f" {filesize.decimal(cache['pinned_bytes'])}"
        )
    return (
        f"{cache['folder']}: {cache['clips']:,} clips, {filesize.decimal(cache['bytes'])} ({limit}),"
        f" {filesize.decimal(cache['disk_free'])} free on the disk{pins}"
    )
