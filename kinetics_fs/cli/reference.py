"""The reference documents, generated from the settings table and the commands.

``python -m kinetics_fs.cli.reference docs/`` writes `commands.md`, and the part of `configuration.md` between its two
markers.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from kinetics_fs.cli import cli
from kinetics_fs.cli.command import Option, help_record
from kinetics_fs.cli.setting_tables import escape_cell, settings_reference
from kinetics_fs.config import SECTIONS, table

BEGIN = "<!-- The settings below are generated: make docs -->"
END = "<!-- end of the generated settings -->"

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "wrong usage: an option, an argument or a setting is invalid",
    3: "partly done: some clips, archives, files or lines failed or were skipped",
    130: "interrupted",
}


def commands_reference() -> str:
    """Return all commands as Markdown: usage, help, examples and options."""
    lines = [
        "# Commands",
        "",
        "<!-- This file is generated: make docs -->",
        "",
        _wrap(
            "`kinetics-fs COMMAND --help` shows the options of a command; `--help-all` also shows rare ones. You can"
            " give the options that are settings in the environment and in the configuration file, too:"
            " [configuration.md](configuration.md) describes them."
        ),
        "",
        *_options(cli),
    ]
    for name, command in walk_commands():
        lines += [f"## kinetics-fs {name}", "", *_command(name, command)]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


def walk_commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that is not a group, with the words that call it, such as `index build`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def update(folder: Path) -> dict[Path, str]:
    """Return the reference documents of a folder as they should be: path → text.

    Args:
        folder: contains `configuration.md`, with the markers.

    Raises:
        ValueError: `configuration.md` lacks a marker.
    """
    configuration = folder / "configuration.md"
    before, _, rest = configuration.read_text().partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{configuration} lacks a marker: {BEGIN} or {END}")
    return {
        configuration: f"{before}{BEGIN}\n\n{settings_reference()}\n{END}{after}",
        folder / "commands.md": commands_reference(),
    }


def _command(name: str, command: click.Command) -> Iterator[str]:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    words = " ".join(
        ("kinetics-fs", name, "[OPTIONS]", *(argument.make_metavar(_context(command)) for argument in arguments))
    )
    yield from ("```", words, "```", "")
    for paragraph in re.split(r"\n\n+", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b"):
            yield from ("```sh", *paragraph.splitlines()[1:], "```", "")
        else:
            yield from (_wrap(paragraph), "")
    yield from _options(command)
    yield from _settings_of(command)


def _options(command: click.Command) -> Iterator[str]:
    """Yield a table of the options that are not settings."""
    fields = {setting.field for setting in table().values()}
    options = [
        param
        for param in command.params
        if isinstance(param, click.Option) and param.name not in fields and not param.is_eager and param.expose_value
    ]
    if not options:
        return
    yield from ("| option | description |", "|---|---|")
    for option in options:
        flags, text = help_record(option, _context(command))
        yield f"| `{escape_cell(flags)}` | {escape_cell(text)} |"
    yield ""


def _settings_of(command: click.Command) -> Iterator[str]:
    """Yield one line that names the settings of a command, by section where it takes the whole section."""
    taken = {param.name for param in command.params if isinstance(param, Option)}
    words = []
    for section in dict.fromkeys(SECTIONS.values()):
        of_section = [setting for setting in table().values() if SECTIONS[setting.about.group] == section]
        found = [setting for setting in of_section if setting.field in taken]
        link = f"[{section}](configuration.md#{section.lower().replace(' ', '-')})"
        if found and len(found) == len(of_section):
            words.append(link)
        elif found:
            words.append(f"{', '.join(f'`--{setting.name}`' for setting in found)} ({link})")
    if words:
        yield from (f"Settings: {' · '.join(words)}", "")


def _wrap(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _context(command: click.Command) -> click.Context:
    return click.Context(command)


if __name__ == "__main__":
    for path, text in update(Path(sys.argv[1])).items():
        path.write_text(text)
