"""`kinetics-fs top`."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import filesize
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import UntouchedPath
from kinetics_fs.cli.status import (
    blocked_in_words,
    failure_in_words,
    limits_in_words,
    mount_lines,
    prefetch_in_words,
    queue_in_words,
    rate_in_words,
)

_EVERY = 1.0
"""Seconds between two looks."""

_BAR = 30
_WIDTH = 110
"""Columns, where there is no terminal."""


@click.command("top", cls=Command, short_help="Watch what mounts are doing, every second.")
@click.argument("mountpoint", type=UntouchedPath(), required=False)
def command(mountpoint: Path | None) -> None:
    """Watch what mounts are doing, every second: that on MOUNTPOINT, or all.

    q ends it, as Ctrl-C does. Where its output is no terminal it takes one look.

    \b
    kinetics-fs top
    kinetics-fs top /mnt/kinetics
    """
    view = _View(mountpoint)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        Console(width=_WIDTH).print(view.look())
        return
    with _keys_at_once(), Live(view.look(), screen=True, auto_refresh=False) as live:
        try:
            while not _is_asked_to_end(_EVERY):
                live.update(view.look(), refresh=True)
        except KeyboardInterrupt:  # the usual end
            pass


class _View:
    """Looks at mounts, and knows what it saw before.

    Args:
        mountpoint: of the one to look at; None for all.
    """

    def __init__(self, mountpoint: Path | None) -> None:
        from kinetics_fs.mount.query import mount_on

        self._place = None if mountpoint is None else mount_on(mountpoint)
        self._before: dict[str, tuple[float, int]] = {}

    def look(self) -> RenderableType:
        from kinetics_fs.mount.query import statuses

        mounts = [self._mount(status) for status in statuses(self._place)]
        return Group(*mounts) if mounts else Text("No mounts.")

    def _mount(self, status: dict[str, Any]) -> RenderableType:
        try:
            return Group(
                Rule(
                    Text(f"{status['mountpoint']}  Kinetics-{status['release']}, {status['clips']:,} clips"),
                    align="left",
                ),
                self._numbers(status),
                *_fetches(status["fetch"]["flights"]),
                *_prefetches(status["prefetches"]),
                *_lines("failed", [failure_in_words(one) for one in status["fetch"]["last_failures"]]),
            )
        except LookupError:  # dead, or of another version
            return Text("\n".join(mount_lines(status)), style="red")

    def _numbers(self, status: dict[str, Any]) -> RenderableType:
        opens, fetch, cache = status["opens"], status["fetch"], status["cache"]
        table = Table.grid(padding=(0, 2))
        speed = self._opens_per_second(status)
        rate = "" if opens["hit_rate"] is None else f", {opens['hit_rate']:.1%} had at once"
        table.add_row("opens", Text(f"{speed:,.1f}/s{rate}, {opens['waiting']:,} waiting"))
        table.add_row("queue", Text(queue_in_words(fetch["queue"])))
        for span, rates in fetch["rates"].items():
            table.add_row("rates", Text(rate_in_words(span, rates)))
        held = f"{filesize.decimal(cache['bytes'])}, {cache['clips']:,} clips, {status['evicted']:,} evicted"
        if cache["limit"]:
            bar = ProgressBar(total=cache["limit"], completed=cache["bytes"], width=_BAR)
            held = f"of {filesize.decimal(cache['limit'])}: {held}"
            table.add_row("cache", bar)
        table.add_row("" if cache["limit"] else "cache", Text(held))
        if limits := limits_in_words(status["gate"]):
            table.add_row("limits", Text(limits))
        for name, origin in status["origins"].items():
            if origin["blocked_for"] is not None:
                table.add_row("source", Text(f"{name}: {blocked_in_words(origin)}", style="yellow"))
        return table

    def _opens_per_second(self, status: dict[str, Any]) -> float:
        """Since the look before; 0 at the first."""
        now, opens = time.monotonic(), status["opens"]["from_cache"] + status["opens"]["not_in_cache"]
        key = f"{status['mountpoint']} {status['pid']}"
        before, had = self._before.get(key, (now, opens))
        self._before[key] = (now, opens)
        return (opens - had) / (now - before) if now > before else 0.0


def _fetches(fetches: list[dict[str, Any]]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    for fetch in fetches:
        source = fetch["source"] or "begins"
        table.add_row("fetch", fetch["clip"], fetch["priority"], source, f"{fetch['seconds']:.0f} s")
    if fetches:
        yield table


def _prefetches(prefetches: list[dict[str, Any]]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    running = [one for one in prefetches if one["state"] in ("running", "waiting")]
    for one in running:
        done = one["fetched"] + one["already_cached"] + one["failed"]
        bar = ProgressBar(total=max(1, one["clips"]), completed=done, width=_BAR)
        table.add_row("prefetch", bar, Text(prefetch_in_words(one)))
    if running:
        yield table


def _lines(label: str, lines: list[str]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    for line in lines:
        table.add_row(label, Text(line))
    if lines:
        yield table


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys are read as they are pressed, and not shown."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_asked_to_end(seconds: float) -> bool:
    """Waits; whether q was pressed meanwhile."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    keys = os.read(sys.stdin.fileno(), 100)
    return not keys or b"q" in keys.lower()
