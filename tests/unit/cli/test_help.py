"""The help of every command."""

from __future__ import annotations

import click
import pytest

from kinetics_fs.cli.reference import walk_commands

COMMANDS = dict(walk_commands())


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_every_command_shows_its_help(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    if option == "--help-all" and option not in [word for param in command.params for word in param.opts]:
        pytest.skip("no rare options")
    with pytest.raises(click.exceptions.Exit):
        command.make_context(name, [option])
    assert "Help:" in capsys.readouterr().out
