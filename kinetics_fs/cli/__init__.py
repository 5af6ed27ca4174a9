"""The command line: `kinetics-fs`.

Each command has a module, which is imported when the command runs; the list of commands comes from a table, so that
`kinetics-fs --help` imports none of them. Commands import slow modules inside their functions.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done, 130 interrupted.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from kinetics_fs._version import __version__
from kinetics_fs.cli.command import CONFIG_FILE, QUIET, Option
from kinetics_fs.errors import KineticsError, SettingError

COMMANDS = {
    "mount": "Show the clips of a release as files under MOUNTPOINT.",
    "umount": "End the mount at MOUNTPOINT.",
    "prefetch": "Fetch the clips of a selection into the cache.",
    "jobs": "List, wait for or cancel the prefetch jobs of a mount.",
    "fill": "Fill the cache from archives.",
    "index": "Build, list, verify or share indexes of archives.",
    "import": "Import the clips in a folder into the cache.",
    "export": "Write clips of the cache as plain files.",
    "shared": "Create, check and fill a store of clips that several machines use.",
    "status": "Show the status of mounts and of the cache.",
    "verify": "Verify the cached clips, and repair damaged ones.",
    "doctor": "Check this machine, the cache, the sources and the mounts.",
    "classes": "List the classes of a release with their numbers of clips.",
    "failures": "List, retry, forget or share the failures of clips.",
    "report": "Write an HTML page that shows which clips are cached.",
    "pin": "Exempt clips from eviction.",
    "demo": "Mount a tiny Kinetics that is made and served on this machine.",
}
"""Command → its one-line help, which its module states too."""

DONE_IN_PART = 3


class _Commands(click.Group):
    """The commands of the table. The module of `import` is `import_`, because the name is a Python keyword."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = importlib.import_module(f"kinetics_fs.cli.{module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings can also be given in the environment (KINETICS_FS_CACHE_DIR=/data) and in the configuration file.",
)
@click.version_option(__version__, prog_name="kinetics-fs")
@click.option(
    "--config",
    cls=Option,
    type=click.Path(path_type=Path),
    envvar="KINETICS_FS_CONFIG",
    metavar="PATH",
    help="Configuration file (TOML).  [default: config.toml in the user's configuration directory, if it exists]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log progress too, not only warnings and errors.")
@click.option("-q", "--quiet", cls=Option, is_flag=True, envvar="KINETICS_FS_QUIET", help="Show no progress.")
@click.option("--debug", is_flag=True, help="Also log each FUSE operation and each step of a fetch, with its duration.")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, verbose: bool, quiet: bool, debug: bool) -> None:
    """All of the Kinetics video datasets as plain files.

    A clip is fetched and verified when a program opens its file, and cached.

    \b
    kinetics-fs mount /mnt/kinetics
    kinetics-fs mount --split validation --class "surfing water" ~/kinetics
    kinetics-fs prefetch --split validation --class "surfing water" --max-samples 10
    kinetics-fs umount /mnt/kinetics
    """
    import logging

    from kinetics_fs.config import default_config_file, read_config, unknown_variables
    from kinetics_fs.util import logs

    logs.set_up(logging.INFO if verbose or debug else logging.WARNING, debug=debug)
    ctx.meta[QUIET] = quiet
    for warning in unknown_variables(os.environ):
        click.echo(f"kinetics-fs: {warning}", err=True)
    if config is None and os.access(default_config_file(), os.R_OK):
        config = default_config_file()
    if config is not None:
        ctx.default_map = read_config(config)
        ctx.meta[CONFIG_FILE] = config


def main() -> None:
    """Run the program with the arguments of the process, and exit."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; print expected errors as one sentence.

    Args:
        arguments: of the program; None for those of the process.

    Returns:
        The exit code.
    """
    try:
        status = cli.main(arguments, prog_name="kinetics-fs", standalone_mode=False)
    except SettingError as error:
        click.UsageError(str(error)).show()
        status = click.UsageError.exit_code
    except (KineticsError, OSError) as error:  # OSError: above all a full disk or a closed pipe under the output
        import logging

        from kinetics_fs.util import logs

        click.echo(logs.marked_for_journal(f"kinetics-fs: {error}", logging.ERROR), err=True)
        status = 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kinetics-fs: interrupted", err=True)
        status = 130
    return status if isinstance(status, int) else 0
