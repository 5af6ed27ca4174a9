"""The documentation names every command, option, variable and default, and nothing that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kinetics_fs.cli import cli
from kinetics_fs.config import ENVIRONMENT_PREFIX, Settings, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield " ".join((*prefix, name)), command


COMMANDS = dict(commands())
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `--([a-z-]+)` \|.*$", CONFIGURATION, re.MULTILINE)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help_with_an_example(name: str) -> None:
    assert re.search(rf"`(kinetics-fs )?{name}\b", README)
    assert f"kinetics-fs {name}" in (COMMANDS[name].help or "")


def test_every_setting_has_its_row_and_every_row_its_setting() -> None:
    assert set(ROWS) == set(table())


@pytest.mark.parametrize("name", table())
def test_a_row_names_the_commands_that_take_the_setting(name: str) -> None:
    takers = {
        command for command, found in COMMANDS.items() if any(f"--{name}" in option.opts for option in found.params)
    }
    cell = ROWS[name].split("|")[2].strip()
    words = set(cell.removeprefix("all but ").replace(",", "").split())
    top = {command.split()[0] for command in takers}
    assert words == ({command.split()[0] for command in COMMANDS} - top if cell.startswith("all but ") else top)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_other_option_is_documented(name: str) -> None:
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and option.opts[0].removeprefix("--") not in table():
            assert any(f"`{name} {word}`" in CONFIGURATION or f"`{word}`" in CONFIGURATION for word in option.opts), (
                option.opts
            )


def test_every_setting_is_a_field_and_has_a_variable() -> None:
    options = {option.name: option for command in COMMANDS.values() for option in command.params}
    for name, setting in table().items():
        assert setting.field in Settings.__dataclass_fields__
        assert getattr(options[setting.field], "envvar", None) == ENVIRONMENT_PREFIX + name.upper().replace("-", "_")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_that_documents_name_exist(document: Path) -> None:
    params = [param for command in (cli, *COMMANDS.values()) for param in command.params]
    known = {"--help"} | {option for param in params for option in (*param.opts, *param.secondary_opts)}
    for word in re.findall(r"`(?:[a-z -]+ )?(--[a-z][a-z-]+)", document.read_text()):
        assert word in known, word
