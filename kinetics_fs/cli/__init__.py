"""The command line: `kinetics-fs`.

A module per command, imported when the command is asked for; what takes long to import is imported inside them.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 130 interrupted.
"""

from __future__ import annotations

import importlib
import keyword
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kinetics_fs._version import __version__
from kinetics_fs.errors import KineticsError, SettingError
from kinetics_fs.util import logs

_COMMANDS = (
    *("mount", "umount", "prefetch", "fill", "index", "import", "export", "status", "top", "verify", "doctor"),
    *("classes", "failures", "report", "pin", "unpin", "demo"),
)

DONE_IN_PART = 3


class _Commands(click.Group):
    """Finds a command in the module of its name; `import_` for a word of Python's own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = importlib.import_module(f"kinetics_fs.cli.{module}").command
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings can also stand in the environment (KINETICS_FS_CACHE_DIR=…) and in the configuration file.",
)
@click.version_option(__version__, prog_name="kinetics-fs")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="KINETICS_FS_CONFIG",
    help="Configuration file (TOML).  [default: the user's config.toml, if it is there]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, not only what goes wrong.")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, verbose: bool) -> None:
    """All of the Kinetics video datasets as plain files.

    A clip is fetched when it is opened, verified, and kept.

    \b
    kinetics-fs mount /mnt/kinetics
    kinetics-fs mount --split validation --class "surfing water" ~/kinetics
    kinetics-fs prefetch --split validation --class "surfing water" --max-samples 10
    kinetics-fs umount /mnt/kinetics
    """
    from kinetics_fs.config import default_config_file, read_config

    logs.set_up(logging.INFO if verbose else logging.WARNING)
    if config is not None:
        ctx.obj = read_config(config)
    elif os.access(default_config_file(), os.R_OK):
        ctx.obj = read_config(default_config_file())


def main() -> None:
    """Entry point."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and turns what it raises into one sentence and an exit code.

    Args:
        arguments: of the program; None for those that it was started with.
    """
    try:
        status = cli.main(arguments, prog_name="kinetics-fs", standalone_mode=False)
    except SettingError as error:
        click.UsageError(str(error)).show()
        status = click.UsageError.exit_code
    except (KineticsError, OSError) as error:  # the latter: a full disk under our output, above all
        click.echo(logs.marked_for_journal(f"kinetics-fs: {error}", logging.ERROR), err=True)
        status = 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kinetics-fs: interrupted", err=True)
        status = 130
    return status if isinstance(status, int) else 0
