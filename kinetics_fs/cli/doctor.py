"""`kinetics-fs doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.cli.options import json_option, with_settings
from kinetics_fs.cli.parameters import UntouchedPath
from kinetics_fs.config import Settings
from kinetics_fs.util.text import count

if TYPE_CHECKING:
    from kinetics_fs.doctor import Finding

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
_WIDTH = 16


@click.command("doctor", cls=Command, short_help="Check this machine, the cache, the sources and the mounts.")
@click.argument("mountpoint", type=UntouchedPath(), required=False)
@click.option("--offline", is_flag=True, help="Skip the checks that use the network.")
@with_settings("cache", "limits", "shared", "cut", "sources", "network", "archive", "mount")
@json_option
def command(mountpoint: Path | None, offline: bool, settings: Settings, as_json: bool) -> int:
    """Check this machine, the cache, the shared store, the sources, and the mount at MOUNTPOINT or all mounts.

    Prints each finding and how to fix each problem. Changes nothing, except that it writes a small object to the shared
    store and deletes it. The checks apply to the settings that a mount
    would use, so pass the same options. Exits with 1 if there is a problem; warnings do not count.

    \b
    kinetics-fs doctor
    kinetics-fs doctor --offline /mnt/kinetics
    kinetics-fs doctor --cache-dir /data/kinetics --cookies cookies.txt --json
    """
    from kinetics_fs.app import check_source_settings
    from kinetics_fs.doctor import State, diagnose

    check_source_settings(settings)
    findings = list(diagnose(settings, mountpoint, offline=offline))
    problems, warnings = (sum(one.state is state for one in findings) for state in (State.PROBLEM, State.WARNING))
    if as_json:
        report = {"findings": [asdict(one) for one in findings], "problems": problems, "warnings": warnings}
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            _print(finding)
        click.echo(f"{count(problems, 'problem')}, {count(warnings, 'warning')}")
    return 1 if problems else 0


def _print(finding: Finding) -> None:
    # Symbols and colours on a terminal, words in files and pipes.
    if sys.stdout.isatty() and sys.stdout.encoding.lower() == "utf-8":
        sign, colour = _SIGNS[finding.state]
        label, width = click.style(sign, fg=colour), len(sign)
    else:
        label, width = f"{finding.state:<7}", 7
    click.echo(f"{label}  {finding.name:<{_WIDTH}}  {finding.found}")
    if finding.fix:
        click.echo(f"{'':{width + _WIDTH + 4}}{finding.fix}")
