"""`mount.kinetics-fs`: the program that mount(8) runs for entries of type `kinetics-fs` in /etc/fstab.

``mount.kinetics-fs SPEC MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]``
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence

import click

from kinetics_fs.catalog import find_release
from kinetics_fs.cli import run
from kinetics_fs.config import LIST_SEPARATOR, About, table
from kinetics_fs.errors import CatalogError

_ANY_RELEASE = {"kinetics-fs", "kinetics", "none"}
"""Sources that name no release: the configuration file or the default decides."""

_GENERIC_OPTIONS = re.compile(
    r"""defaults|ro|rw|(no)?(auto|user|users|owner|group|suid|dev|exec|atime|diratime|relatime|strictatime|lazytime|iversion)
    |sync|async|dirsync|nofail|nosymfollow|silent|loud|_netdev|_rnetdev|default_permissions
    |(x-|X-|uhelper=|helper=|comment=).*""",
    re.VERBOSE,
)
"""Options of mount(8), systemd.mount(5) and mount.fuse(8). They change nothing here: the mount is read-only and has
neither devices nor programs. mount(8) adds `rw` by default."""

_USAGE_ERROR, _FAILED = 1, 32
"""Exit codes of mount(8)."""


@click.command("mount.kinetics-fs", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("spec")
@click.argument("mountpoint")
@click.option("-o", "options", metavar="OPTIONS", multiple=True, help="Options, separated by commas.")
@click.option("-f", "fake", is_flag=True, help="Only check the options.")
@click.option("-v", "verbose", is_flag=True, help="Log progress too, not only warnings and errors.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-n", "_no_mtab", is_flag=True, help="Accepted for mount(8), without effect.")
@click.option("-t", "_type", metavar="TYPE", help="Accepted for mount(8), without effect.")
def command(
    spec: str,
    mountpoint: str,
    options: tuple[str, ...],
    fake: bool,
    verbose: bool,
    sloppy: bool,
    _no_mtab: bool,
    _type: str,
) -> int:
    """Mount SPEC on MOUNTPOINT: a release such as 600 or kinetics-700-2020, or kinetics-fs for the configured one.

    mount(8) calls this program. It accepts the options of `kinetics-fs mount`, and config=FILE.

    \b
    mount -t kinetics-fs 600 /mnt/kinetics -o split=train,cache-dir=/data/kinetics
    """
    before: list[str] = ["--verbose"] if verbose else []
    arguments = ["mount", "--fsname", spec]
    if spec not in _ANY_RELEASE:
        try:
            arguments += ["--release", find_release(spec).name]
        except CatalogError as error:
            raise click.UsageError(
                f"cannot use {spec!r} as a source: {error}; or give kinetics-fs for the configured release"
            ) from error
    known = {name: setting.about for name, setting in table().items()}
    for option in (option for text in options for option in split_options(text)):
        name, _, value = option.partition("=")
        name = name.replace("_", "-")
        if name == "config":
            before += ["--config", value]
        elif name in known or name.removeprefix("no-") in known:
            arguments += list(_as_flags(name, value, known.get(name), "=" in option))
        elif name == "remount":
            raise click.UsageError("cannot remount: that is not supported; run umount, then mount")
        elif not (sloppy or _GENERIC_OPTIONS.fullmatch(option)):
            raise click.UsageError(
                f"cannot use the option {option!r}: it is unknown; give options of kinetics-fs mount, or config=FILE"
            )
    if fake:
        return 0
    # At boot and from a shell of root alike, use the directories of the system, not of the user.
    if os.geteuid() == 0:
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            os.environ.pop(name, None)
    return {0: 0, 2: _USAGE_ERROR}.get(run([*before, *arguments, "--", mountpoint]), _FAILED)


def split_options(text: str) -> Iterator[str]:
    """Split options at commas, but not at commas in double quotes."""
    for option in re.findall(r'(?:"[^"]*"|[^,])+', text):
        yield option.replace('"', "")


def _as_flags(name: str, value: str, about: About | None, has_value: bool) -> Iterator[str]:
    """Yield the arguments of `kinetics-fs mount` for an option."""
    if about is None or about.kind == "switch":
        if has_value:
            raise click.UsageError(f"cannot use the option {name}: it takes no value; give {name} or no-{name}")
        yield f"--{name}"
        return
    if not has_value:
        raise click.UsageError(f"cannot use the option {name}: it needs a value; give {name}=VALUE")
    for one in value.split(LIST_SEPARATOR) if about.repeatable else [value]:
        yield f"--{name}={one}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program with the arguments of the process, and exit."""
    try:
        status = command.main(arguments, prog_name="mount.kinetics-fs", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"mount.kinetics-fs: {error.format_message()}", err=True)
        status = _USAGE_ERROR
    sys.exit(status)
