"""`mount.kinetics-fs`, which mount(8) looks for: fstab, and with it systemd, mount by it.

``mount.kinetics-fs SPEC PLACE [-sfnv] [-o OPTIONS] [-t TYPE]``
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
"""A source that says nothing of the release: the configuration file does, or the default holds."""

_OF_MOUNT = re.compile(
    r"""defaults|ro|rw|(no)?(auto|user|users|owner|group|suid|dev|exec|atime|diratime|relatime|strictatime|lazytime|iversion)
    |sync|async|dirsync|nofail|nosymfollow|silent|loud|_netdev|_rnetdev|default_permissions
    |(x-|X-|uhelper=|helper=|comment=).*""",
    re.VERBOSE,
)
"""Of mount(8), systemd.mount(5) and mount.fuse(8), and of no concern to us: what we show is read-only, and has neither
devices nor programs. `rw` is what mount(8) says by default."""

_WRONG_USE, _FAILED = 1, 32
"""Exit codes of mount(8)."""


@click.command("mount.kinetics-fs", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("spec")
@click.argument("place")
@click.option("-o", "options", metavar="OPTIONS", multiple=True, help="Options, with commas between them.")
@click.option("-f", "fake", is_flag=True, help="Only check the options.")
@click.option("-v", "verbose", is_flag=True, help="Log what happens, not only what goes wrong.")
@click.option("-s", "sloppy", is_flag=True, help="Pass over options that are not known.")
@click.option("-n", "_no_mtab", is_flag=True, help="Taken, and without a meaning.")
@click.option("-t", "_type", metavar="TYPE", help="Taken, and without a meaning.")
def command(
    spec: str, place: str, options: tuple[str, ...], fake: bool, verbose: bool, sloppy: bool, _no_mtab: bool, _type: str
) -> int:
    """Mount SPEC, a release as 600 or kinetics-700-2020, or kinetics-fs for the configured one, on PLACE.

    Called by mount(8). Options are those of `kinetics-fs mount`, and config=FILE.

    \b
    mount -t kinetics-fs 600 /mnt/kinetics -o split=train,cache-dir=/data/kinetics
    """
    before: list[str] = ["--verbose"] if verbose else []
    arguments = ["mount", "--fsname", spec]
    if spec not in _ANY_RELEASE:
        try:
            arguments += ["--release", find_release(spec).name]
        except CatalogError as error:
            raise click.UsageError(f"{error}; or kinetics-fs, for the one that is configured") from error
    known = {name: setting.about for name, setting in table().items()}
    for option in (option for text in options for option in split_options(text)):
        name, _, value = option.partition("=")
        name = name.replace("_", "-")
        if name == "config":
            before += ["--config", value]
        elif name in known or name.removeprefix("no-") in known:
            arguments += list(_as_flags(name, value, known.get(name), "=" in option))
        elif name == "remount":
            raise click.UsageError("it cannot be remounted: umount it, and mount it again")
        elif not (sloppy or _OF_MOUNT.fullmatch(option)):
            raise click.UsageError(f"unknown option {option!r}: those of kinetics-fs mount are known, and config=FILE")
    if fake:
        return 0
    # The same whoever mounts it, the system when it starts or root in a shell: in the system's folders.
    if os.geteuid() == 0:
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            os.environ.pop(name, None)
    return {0: 0, 2: _WRONG_USE}.get(run([*before, *arguments, "--", place]), _FAILED)


def split_options(text: str) -> Iterator[str]:
    """Options with commas between them; in double quotes commas are their own."""
    for option in re.findall(r'(?:"[^"]*"|[^,])+', text):
        yield option.replace('"', "")


def _as_flags(name: str, value: str, about: About | None, has_value: bool) -> Iterator[str]:
    """The arguments of `kinetics-fs mount` that say the same."""
    if about is None or about.kind == "switch":
        if has_value:
            raise click.UsageError(f"option {name} takes no value: {name} or no-{name}")
        yield f"--{name}"
        return
    if not has_value:
        raise click.UsageError(f"option {name} lacks its value: {name}=…")
    for one in value.split(LIST_SEPARATOR) if about.repeatable else [value]:
        yield f"--{name}={one}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    try:
        status = command.main(arguments, prog_name="mount.kinetics-fs", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"mount.kinetics-fs: {error.format_message()}", err=True)
        status = _WRONG_USE
    sys.exit(status)
