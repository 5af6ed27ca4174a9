"""Telling a service manager how a mount is doing, as sd_notify(3) has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Sends states to who started this process as a service; to nobody if nobody asked for it.

    Args:
        address: of a datagram socket, by path, or abstract if it begins with `@`; empty for nobody.
        watchdog: seconds within which a sign of life is wanted again and again; 0 for never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog if address else 0.0

    @classmethod
    def from_environment(cls) -> Notifier:
        """As the environment says; and takes it out of there, for what this process starts has nothing to tell."""
        environment = {name: os.environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
        return cls(environment["NOTIFY_SOCKET"], _watchdog(environment))

    def __bool__(self) -> bool:
        return bool(self._address)

    def send(self, **states: str) -> None:
        """Sends some states: `send(READY="1", STATUS="8 clips")`. A manager that is not there costs nothing."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in states.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1)
            channel.sendto(message.encode(), self._address)


def _watchdog(environment: Mapping[str, str]) -> float:
    if environment["WATCHDOG_PID"] not in ("", str(os.getpid())):
        return 0.0
    try:
        return max(0.0, int(environment["WATCHDOG_USEC"] or 0) / 1_000_000)
    except ValueError:
        return 0.0
