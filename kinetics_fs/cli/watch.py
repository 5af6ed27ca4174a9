"""The live view of mounts that `kinetics-fs status --watch` shows."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich import filesize
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from kinetics_fs.control.describe import (
    blocked_sources,
    describe_budget,
    describe_clip,
    describe_failures,
    describe_prefetch,
    describe_queue,
    describe_rates,
    describe_shared,
    describe_source,
    describe_title,
)
from kinetics_fs.control.status import InFlightFetch, MountStatus, StoreStatus, UnreachableMount
from kinetics_fs.errors import printable
from kinetics_fs.util.text import count, duration

_INTERVAL = 1.0
"""Seconds between two updates."""

_BAR_WIDTH = 30
_PLAIN_WIDTH = 110
"""Columns of the output if it is not a terminal."""


def watch(query: Callable[[], Sequence[MountStatus | UnreachableMount]]) -> None:
    """Show mounts until the user presses q or Ctrl-C, or once if the output is not a terminal.

    Args:
        query: returns the statuses to show.
    """
    view = _View()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        Console(width=_PLAIN_WIDTH).print(view.render(query()))
        return
    with _unbuffered_keys(), Live(view.render(query()), screen=True, auto_refresh=False) as live:
        try:
            while not _quit_pressed(_INTERVAL):
                live.update(view.render(query()), refresh=True)
        except KeyboardInterrupt:  # the usual way to end it
            pass


class _View:
    """The layout. It remembers the counts of the last update, to show opens per second."""

    def __init__(self) -> None:
        self._last_opens: dict[tuple[str, int], tuple[float, int]] = {}

    def render(self, statuses: Sequence[MountStatus | UnreachableMount]) -> RenderableType:
        if not statuses:
            return Text("No mounts.")
        caches = {
            status.cache.folder: StoreStatus.of_mount(status) for status in statuses if isinstance(status, MountStatus)
        }
        return Group(*map(self._mount, statuses), *map(_cache, caches.values()))

    def _mount(self, status: MountStatus | UnreachableMount) -> RenderableType:
        if isinstance(status, UnreachableMount):
            return _text(str(status), "red")
        return Group(
            Rule(_text(describe_title(status)), align="left"),
            self._numbers(status),
            *_fetches(status.fetch.in_flight),
            *_prefetches(status),
            *_lines("failed", describe_failures(status.fetch.last_failures)),
        )

    def _numbers(self, status: MountStatus) -> RenderableType:
        opens = status.opens
        table = Table.grid(padding=(0, 2))
        rate = "" if opens.hit_rate is None else f", hit rate {opens.hit_rate:.1%}"
        table.add_row("opens", Text(f"{self._opens_per_second(status):,.1f}/s{rate}, {opens.waiting:,} waiting"))
        table.add_row("queue", Text(describe_queue(status.fetch)))
        for line in describe_rates(status.fetch.rates):
            table.add_row("rates", Text(line))
        if limits := describe_budget(status.budget):
            table.add_row("limits", _text(limits))
        for line in [] if status.shared is None else describe_shared(status.shared):
            table.add_row("shared", _text(line))
        if status.evicted:
            table.add_row("evicted", _text(f"{status.evicted:,}"))
        return table

    def _opens_per_second(self, status: MountStatus) -> float:
        """Return the opens per second since the last update; 0 at the first one."""
        now, opens = time.monotonic(), status.opens.from_cache + status.opens.not_in_cache
        mount = (status.mountpoint, status.pid)
        last, opens_then = self._last_opens.get(mount, (now, opens))
        self._last_opens[mount] = (now, opens)
        return (opens - opens_then) / (now - last) if now > last else 0.0


def _cache(store: StoreStatus) -> RenderableType:
    """Return a cache that one or more of the mounts use."""
    cache = store.cache
    table = Table.grid(padding=(0, 2))
    size = f"{filesize.decimal(cache.bytes)}, {count(cache.clips, 'clip')}"
    if cache.limit:
        table.add_row("size", ProgressBar(total=cache.limit, completed=cache.bytes, width=_BAR_WIDTH))
        table.add_row("", _text(f"{size}, of {filesize.decimal(cache.limit)}"))
    else:
        table.add_row("size", _text(size))
    for name, source in store.sources.items():
        if source.blocked_for is not None:
            table.add_row("source", _text(describe_source(name, source), "yellow"))
    return Group(Rule(_text(f"Cache {cache.folder}"), align="left"), table)


def _text(text: str, style: str = "") -> Text:
    """Return text that cannot control the terminal: another user's filesystem can report anything."""
    return Text(printable(text), style=style)


def _fetches(fetches: Sequence[InFlightFetch]) -> Iterator[RenderableType]:
    if not fetches:
        return
    table = Table.grid(padding=(0, 2))
    for one in fetches:
        size = filesize.decimal(one.bytes) if one.bytes else ""
        source = one.source or "starting"
        row = (describe_clip(one.clip, one.label), one.priority, source, size, duration(one.seconds))
        table.add_row("fetch", *map(_text, row))
    yield table


def _prefetches(status: MountStatus) -> Iterator[RenderableType]:
    running = [one for one in status.prefetches if not one.state.has_ended]
    if not running:
        return
    table = Table.grid(padding=(0, 2))
    for one in running:
        bar = ProgressBar(total=max(1, one.clips), completed=one.finished + one.in_progress, width=_BAR_WIDTH)
        table.add_row("prefetch", bar, _text(describe_prefetch(one, blocked_sources(status))))
    yield table


def _lines(label: str, lines: Iterable[str]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    for line in lines:
        table.add_row(label, _text(line))
    if table.row_count:
        yield table


@contextmanager
def _unbuffered_keys() -> Iterator[None]:
    """Deliver keys as they are pressed, without echo."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quit_pressed(seconds: float) -> bool:
    """Wait, and return whether q was pressed meanwhile or the input has ended."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    keys = os.read(sys.stdin.fileno(), 100)
    return not keys or b"q" in keys.lower()
