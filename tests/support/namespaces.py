"""Commands that run without a right of root's, or in a mount namespace where a script has changed what they see."""

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


NO_SYS_ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
"""Words before a command that run it as in a container without the right to mount."""
