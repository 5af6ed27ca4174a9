"""Checking the clips that are here, with progress; and what is said of them."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich import filesize

from kinetics_fs.catalog import Catalog, Clip
from kinetics_fs.cli import DONE_IN_PART
from kinetics_fs.cli.fetching import Outcome, say_fetched
from kinetics_fs.cli.progress import progress_bars
from kinetics_fs.errors import FetchError
from kinetics_fs.store import Condition, Store, Verdict, one_line, remove_bad, selection_pages, verify_clips

_OF_THIS_MACHINE = {errno.ENOENT, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Why a file could not be decoded that say nothing of the file."""


@dataclass
class Report:
    """What was found, and what became of it."""

    repairing: bool
    counts: Counter[Condition] = field(default_factory=Counter)
    bytes: int = 0
    bad: list[Verdict] = field(default_factory=list)
    unknown_files: list[Path] = field(default_factory=list)
    removed: int = 0
    """How many of these."""
    dropped: list[Clip] = field(default_factory=list)
    fetched: Outcome | None = None
    interrupted: bool = False

    def add(self, verdict: Verdict, store: Store) -> None:
        self.counts[verdict.condition] += 1
        if verdict.condition is Condition.EVICTED:
            return
        self.bytes += verdict.size
        if verdict.condition is Condition.GOOD:
            return
        self.bad.append(verdict)
        if self.repairing and verdict.condition is not Condition.UNREADABLE and remove_bad(store, verdict):
            self.dropped.append(verdict.clip)

    def add_unknown(self, path: Path, store: Store) -> None:
        self.unknown_files.append(path)
        if self.repairing and store.remove_unknown_file(path):
            self.removed += 1

    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        fetched = self.fetched.exit_code() if self.fetched else 0
        unmended = not self.repairing or self.counts[Condition.UNREADABLE]
        return fetched or (DONE_IN_PART if self.bad and unmended else 0)

    def as_json(self) -> dict[str, Any]:
        return {
            "clips": self.counts.total(),
            "bytes": self.bytes,
            **{str(condition): self.counts[condition] for condition in Condition},
            "bad": [
                {"clip": verdict.clip.key, "condition": verdict.condition, "reason": verdict.reason}
                for verdict in self.bad
            ],
            "unknown_files": [str(path) for path in self.unknown_files],
            "repair": {
                "removed": len(self.dropped),
                "unknown_files_removed": self.removed,
                "fetched": self.fetched.report.fetched if self.fetched else 0,
                "failures": dict(self.fetched.report.failures) if self.fetched else {},
            }
            if self.repairing
            else None,
            "interrupted": self.interrupted or bool(self.fetched and self.fetched.interrupted),
        }

    def print(self, cache: Path) -> None:
        for verdict in self.bad:
            click.echo(f"{verdict.clip.key:<25}  {verdict.condition:<10}  {verdict.reason}")
        for path in self.unknown_files:
            click.echo(f"of no clip: {one_line(str(path))}")
        told = ", ".join(
            f"{number:,} {condition}"
            for condition in Condition
            if (number := self.counts[condition]) or condition is Condition.GOOD
        )
        click.echo(f"{self.counts.total():,} clips, {filesize.decimal(self.bytes)}: {told}")
        if self.unknown_files:
            click.echo(f"{len(self.unknown_files):,} files of no clip, which take room and harm nobody")
        if self.repairing and (self.bad or self.unknown_files):
            click.echo(f"{len(self.dropped):,} clips and {self.removed:,} files of no clip removed")
        elif self.bad:
            click.echo("To fetch what is bad again: the same command with --repair")
        if self.fetched:
            say_fetched(self.fetched, cache)
        if self.interrupted:
            click.echo("Interrupted.")
            if self.dropped:
                click.echo("What was removed is fetched when it is opened, or by kinetics-fs prefetch.")


def check(store: Store, catalog: Catalog | None, report: Report, *, decode: bool) -> None:
    """Checks what is here, with progress.

    Args:
        store: where it is.
        catalog: of the clips to check; None for all that are here, and for files of no clip, too.
        report: takes what is found, and mends it if it is to.
        decode: whether to decode the clips, too.
    """

    def chosen() -> Iterator[tuple[Clip, int]]:
        return store.cached_clips() if catalog is None else _held_of(catalog, store)

    with progress_bars("bytes") as bars:
        task = bars.add_task("", total=sum(size for _, size in chosen()), note="")
        for verdict in verify_clips(store, chosen(), decode=_decode if decode else None):
            report.add(verdict, store)
            bars.update(task, advance=verdict.size, note=f"{len(report.bad):,} bad" if report.bad else "")
    if catalog is None:
        for path in store.unknown_files():
            report.add_unknown(path, store)


def _held_of(catalog: Catalog, store: Store) -> Iterator[tuple[Clip, int]]:
    """Those clips of a catalog that are here, each of them once."""
    for page in selection_pages(catalog, store):
        for entry in page.entries:
            if page.is_cached(entry) and catalog.locate(entry.clip)[0].ino == entry.ino:
                yield entry.clip, page.sizes[entry.clip.key].size


def _decode(path: Path) -> None:
    """Raises FetchError if a file does not decode, OSError if that cannot be told now."""
    from kinetics_fs.media.verify import verify_clip

    try:
        verify_clip(path, None)
    except FetchError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OF_THIS_MACHINE:
            raise cause from None
        raise
