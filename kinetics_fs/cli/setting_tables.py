"""The settings as Markdown tables, for the reference documents."""

from __future__ import annotations

from kinetics_fs.config import SECTIONS, About, Setting, table


def settings_reference() -> str:
    """Return the settings as Markdown: a heading and a table for each section."""
    lines: list[str] = []
    for section in dict.fromkeys(SECTIONS.values()):
        chosen = [setting for setting in table().values() if SECTIONS[setting.about.group] == section]
        lines += [f"### {section}", "", "| flag, variable, key | type | default | description |", "|---|---|---|---|"]
        lines += [_setting_row(setting) for setting in chosen]
        lines.append("")
    return "\n".join(lines)


def escape_cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _setting_row(setting: Setting) -> str:
    about = setting.about
    flag = f"--[no-]{setting.name}" if about.kind == "switch" else f"--{setting.name} {about.metavar}"
    if about.default_text is not None:
        default = about.default_text
    elif about.kind == "switch":
        default = "on" if setting.default else "off"
    else:
        default = f"`{setting.default}`"
    names = f"`{flag}`<br>`{setting.variable}`<br>`{setting.name}`"
    return (
        f"| {escape_cell(names)} | {escape_cell(_type(about))} | {escape_cell(default)} | {escape_cell(about.help)} |"
    )


def _type(about: About) -> str:
    match about.kind:
        case "integer" if about.maximum is not None:
            name = f"integer from {about.minimum} to {about.maximum}"
        case "integer" if about.minimum is not None:
            name = f"integer, at least {about.minimum}"
        case "seconds":
            name = "number of seconds"
        case "size":
            name = "size: `500MB`, `1.5TiB`"
        case "limit":
            name = "size: `500GB`, `1.5TiB`; or `none`"
        case "rate":
            name = "size per second: `5MB`, `500KiB/s`"
        case "hourly":
            name = "number per hour: `300/h`"
        case "switch":
            name = "on or off"
        case "choice":
            *others, last = (f"`{choice}`" for choice in about.choices)
            name = f"{', '.join(others)} or {last}"
        case "order":
            name = "names, separated by commas"
        case kind:
            name = kind
    return "list" if about.repeatable else name
