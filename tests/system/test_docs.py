"""The documents name every command, and no option or file that does not exist; the reference is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kinetics_fs.cli import cli
from kinetics_fs.cli.reference import update, walk_commands
from kinetics_fs.config import Settings, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = dict(walk_commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help_with_an_example(name: str) -> None:
    assert re.search(rf"`(kinetics-fs )?{name}\b", README)
    assert f"kinetics-fs {name}" in (COMMANDS[name].help or "")


def test_the_generated_reference_is_current() -> None:
    for path, text in update(ROOT / "docs").items():
        assert path.read_text() == text, f"{path} is out of date; run: make docs"


def test_every_setting_has_a_flag_and_a_variable() -> None:
    options = {option.name: option for command in COMMANDS.values() for option in command.params}
    for name, setting in table().items():
        assert setting.field in Settings.__dataclass_fields__
        assert f"--{name}" in options[setting.field].opts
        assert getattr(options[setting.field], "envvar", None) == setting.variable


def test_no_other_parameter_has_the_name_of_a_setting() -> None:
    """The configuration file would set it."""
    fields = {setting.field: f"--{setting.name}" for setting in table().values()}
    for command in COMMANDS.values():
        for param in command.params:
            assert param.name not in fields or fields[param.name] in param.opts


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_that_documents_name_exist(document: Path) -> None:
    params = [param for command in (cli, *COMMANDS.values()) for param in command.params]
    known = {"--help", "--help-all"} | {option for param in params for option in (*param.opts, *param.secondary_opts)}
    for word in re.findall(r"`(?!(?:pip|sbatch|srun|dask) )(?:[a-z -]+ )?(--[a-z][a-z-]+)", document.read_text()):
        assert word in known, word
