"""AppArmor's profile of fusermount3: where it lets users mount, and how to allow another path.

Ubuntu 24.10 and newer confine fusermount3 by a profile that lists the mount points and the mount flags that it may use.
Any other mount fails with EACCES, even on a directory of the user. The profile includes a file for the rules of the
administrator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PROFILE = "/etc/apparmor.d/fusermount3"
LOCAL_RULES = "/etc/apparmor.d/local/fusermount3"

_ENABLED = "sys/module/apparmor/parameters/enabled"
_OFF = ("disable", "force-complain")
"""Folders of AppArmor in which a link with the name of a profile turns it off."""

_NOT_ENFORCED = re.compile(r"^\s*profile\s+fusermount3\b.*flags=\([^)]*\b(complain|unconfined)\b", re.MULTILINE)
_MOUNT_RULE = re.compile(
    r"^[ \t]*(?:audit[ \t]+)?(?:allow[ \t]+)?mount\b[^#\n]*?"
    r"""(?:->[ \t]*(?P<quote>"?)(?P<path>(?:\\.|[^"\\\n])+?)(?P=quote))?,[ \t]*(?:#.*)?$""",
    re.MULTILINE,
)
"""A rule on one line, as in apparmor.d(5). Without a path it allows every mount point."""

_HOMES = re.compile(r"^\s*@\{HOMEDIRS\}\s*\+?=(.*)$", re.MULTILINE)
_TOKEN = re.compile(r"\*\*|\\.|\[[^\]]*\]|[*?{},]|[^*?\\\[{},]+|.", re.DOTALL)


def is_enabled(root: Path = Path("/")) -> bool:
    """Return True if the kernel enforces AppArmor's profiles.

    Args:
        root: the directory below which the files of the system are.
    """
    return _read(root / _ENABLED).strip() == "Y"


def refuses(mountpoint: Path, root: Path = Path("/")) -> bool:
    """Return True if an enforced profile does not let fusermount3 mount on a path.

    Args:
        mountpoint: absolute path without symbolic links.
        root: the directory below which the files of the system are.
    """
    profile = root / PROFILE.lstrip("/")
    text = _read(profile)
    if not text or not is_enabled(root) or _NOT_ENFORCED.search(text):
        return False
    if any((profile.parent / folder / profile.name).is_symlink() for folder in _OFF):
        return False
    rules = text + "\n" + _read(root / LOCAL_RULES.lstrip("/"))
    variables = {
        "HOME": "{" + ",".join([*(f"{folder.rstrip('/')}/*" for folder in _home_folders(root)), "/root"]) + "}",
        "run": "{/run,/var/run}",
    }
    return not any(
        rule["path"] is None or _matches(rule["path"].strip(), f"{mountpoint}/", variables)
        for rule in _MOUNT_RULE.finditer(rules)
    )


def rules_for(mountpoint: Path, filesystem_type: str) -> tuple[str, str]:
    """Return the two rules that let fusermount3 mount and unmount a path."""
    path = re.sub(r'([*?\[\]{}^"\\])', r"\\\1", f"{mountpoint}/")
    return f'mount fstype={filesystem_type} options=(ro,nosuid,nodev) -> "{path}",', f'umount "{path}",'


def _home_folders(root: Path) -> Iterator[str]:
    """Yield the folders of home directories: /home, and those that the administrator has added."""
    yield "/home"
    tunables = root / "etc/apparmor.d/tunables/home.d"
    for path in sorted(tunables.glob("*")):
        for values in _HOMES.findall(_read(path)):
            yield from values.replace('"', "").split()


def _matches(pattern: str, path: str, variables: dict[str, str]) -> bool:
    # A variable with many values, such as @{uid}, matches anything: this must not warn of mounts that work.
    pattern = re.sub(r"@\{(\w+)\}", lambda name: variables.get(name[1], "**"), pattern)
    expression, depth = "", 0
    for token in _TOKEN.findall(pattern):
        depth += (token == "{") - (token == "}")
        match token:
            case "**":
                expression += ".*"
            case "*":
                expression += "[^/]*"
            case "?":
                expression += "[^/]"
            case "{":
                expression += "(?:"
            case "}":
                expression += ")"
            case "," if depth:
                expression += "|"
            case _ if token.startswith("[") and len(token) > 1:
                expression += token
            case _:
                expression += re.escape(token[1:] if token.startswith("\\") else token)
    try:
        return re.fullmatch(expression, path, re.DOTALL) is not None
    except re.error:
        return True


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
