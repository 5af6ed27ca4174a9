"""Commands that run without a right of root's, in a mount namespace that a script has changed, or behind a link."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence

_links = itertools.count()


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


class NetworkLink:
    """A link to a network namespace, in which processes reach this machine at one address and nothing else.

    Attributes:
        host: the address of this machine on the link.
        wrapper: words before a command that run it in the namespace.
    """

    def __init__(self) -> None:
        number = next(_links)
        self._name = f"kfs{os.getpid()}-{number}"[-15:]
        self._network = f"10.203.{os.getpid() % 250}.{number * 4 % 250}"
        prefix, last = self._network.rsplit(".", 1)
        self.host, self._guest = f"{prefix}.{int(last) + 1}", f"{prefix}.{int(last) + 2}"
        self.wrapper = ("nsenter", f"--net=/run/netns/{self._name}", "--")

    def __enter__(self) -> NetworkLink:
        self._ip("netns", "add", self._name)
        self._ip("link", "add", self._name, "type", "veth", "peer", "name", "peer", "netns", self._name)
        self._ip("addr", "add", f"{self.host}/30", "dev", self._name)
        self._ip("-n", self._name, "addr", "add", f"{self._guest}/30", "dev", "peer")
        self._ip("-n", self._name, "link", "set", "lo", "up")
        self._ip("-n", self._name, "link", "set", "peer", "up")
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._ip("link", "del", self._name)
        self._ip("netns", "del", self._name)

    def connect(self) -> None:
        """Let packets pass."""
        self._ip("link", "set", self._name, "up")

    def cut(self) -> None:
        """Lose all packets from now on."""
        self._ip("link", "set", self._name, "down")

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)
