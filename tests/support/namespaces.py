"""Commands that run in a mount namespace of their own, where a script has changed what they see."""

from __future__ import annotations

from collections.abc import Sequence


def in_namespace(script: str, *arguments: object) -> Sequence[str]:
    """Return the words before a command that run it in a new mount namespace.

    Args:
        script: lines of a shell that run there before, as root.
        arguments: the arguments of the script, `$1` and so on.
    """
    body = f'set -e\n{script}\nshift {len(arguments)}\nexec "$@"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", body, "sh"]
    return [*words, *map(str, arguments)]
