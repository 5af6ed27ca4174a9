"""Click commands whose help has sections, and options that know their section.

Settings of the configuration file reach the options as click's `default_map`. The file has one flat table of settings
for all commands, so every command inherits the whole map of its parent.
"""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from kinetics_fs.config import SECTIONS

SECTION_ORDER = ("Options", *dict.fromkeys(SECTIONS.values()), "Output", "Help")

_SHOW_ALL = "kinetics_fs.help_all"
CONFIG_FILE = "kinetics_fs.config_file"
"""Key in `click.Context.meta` of the path of the configuration file."""
QUIET = "kinetics_fs.quiet"
"""Key in `click.Context.meta` of whether no progress is shown."""


class Option(click.Option):
    """An option in a section of the help.

    Args:
        section: heading under which the help shows the option.
        rare: only `--help-all` and the reference show the option.
    """

    def __init__(self, *declarations: Any, section: str = "Options", rare: bool = False, **rest: Any) -> None:
        super().__init__(*declarations, **rest)
        self.section = section
        self.rare = rare

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return what an error message calls this option: the variable or the file if the value comes from there."""
        return (ctx and origin_of(self, ctx)) or super().get_error_hint(ctx)


def origin_of(option: click.Option, ctx: click.Context) -> str:
    """Return the environment variable, or the key and the configuration file, that set an option; else nothing."""
    match ctx.get_parameter_source(option.name or ""):
        case ParameterSource.ENVIRONMENT:
            return f"the environment variable {option.envvar}"
        case ParameterSource.DEFAULT_MAP:
            return f"{option.opts[0].removeprefix('--')} in {ctx.meta.get(CONFIG_FILE)}"
    return ""


def help_record(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """Return the flags of an option, and its help with the default in plain words: `off` for a switch, no ranges."""
    flags, _ = option.get_help_record(ctx) or ("", "")
    if option.secondary_opts:
        flags = f"--[no-]{option.opts[0].removeprefix('--')}"
    default = _default_text(option, ctx)
    return flags, f"{option.help or ''}{f'  [default: {default}]' if default else ''}"


def _default_text(option: click.Option, ctx: click.Context) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.get_default(ctx, call=False)
    if option.secondary_opts:
        return "on" if default else "off"
    return str(default) if option.show_default else ""


class _InheritsDefaults(click.Command):
    """A command that takes the whole default map of its parent."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None:
            extra.setdefault("default_map", parent.default_map)
        return super().make_context(info_name, args, parent, **extra)


class Command(_InheritsDefaults):
    """A command whose help groups its options by section, and shows rare options only with `--help-all`."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        if any(isinstance(param, Option) and param.rare for param in self.params):
            self.params.append(
                Option(
                    ["--help-all"],
                    section="Help",
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_print_whole_help,
                    help="Show this message with all options, and exit.",
                )
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        left_out = 0
        for param in self.get_params(ctx):
            if not isinstance(param, click.Option) or param.hidden:
                continue
            if isinstance(param, Option) and param.rare and not ctx.meta.get(_SHOW_ALL):
                left_out += 1
                continue
            section = param.section if isinstance(param, Option) else "Options"
            if param is self.get_help_option(ctx):
                section = "Help"
            sections.setdefault(section, []).append(help_record(param, ctx))
        for section in sorted(sections, key=SECTION_ORDER.index):
            with formatter.section(section):
                formatter.write_dl(sections[section])
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"Rarely used options not shown here ({left_out}): {ctx.command_path} --help-all")


class Group(_InheritsDefaults, click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


def _print_whole_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_SHOW_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
