"""What a check says, and how checks are run."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from kinetics_fs.store import one_line

PATIENCE = 30.0
"""Seconds for all checks together, which are made at the same time."""

_LOGIN = re.compile(r"(?<=://)[^/\s]*@")
"""User and password in an address."""


class State(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could, or not for long."""
    PROBLEM = "problem"
    """It does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. `fix` is one sentence, empty if there is nothing to mend."""

    name: str
    state: State
    found: str
    fix: str = ""


Check = Callable[[], Iterable[Finding]]


def examine(checks: Iterable[tuple[str, Check]], patience: float = PATIENCE) -> Iterator[Finding]:
    """Makes checks, all at the same time; yields what they find, in their order.

    A check that raises, or does not end, is a problem of its own. No finding shows a user or password in an address.

    Args:
        checks: each with its name.
        patience: seconds for all of them together.
    """
    deadline = time.monotonic() + patience
    running = [_Running(name, check) for name, check in checks]
    for one in running:
        one.thread.join(max(0.0, deadline - time.monotonic()))
        found = list(one.found)
        if one.thread.is_alive():
            found.append(Finding(one.name, State.PROBLEM, f"check failed: no answer within {patience:.0f} s"))
        for finding in found:
            yield Finding(finding.name, finding.state, _shown(finding.found), _shown(finding.fix))


class _Running:
    """A check in a thread that nobody waits for at the end of the process."""

    def __init__(self, name: str, check: Check) -> None:
        self.name = name
        self.found: list[Finding] = []
        self._check = check
        self.thread = threading.Thread(target=self._run, name=f"check of {name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for finding in self._check():
                self.found.append(finding)
        except Exception as error:
            said = f"check failed: {type(error).__name__}: {error}"
            self.found.append(Finding(self.name, State.PROBLEM, said))


def _shown(text: str) -> str:
    return one_line(_LOGIN.sub("…@", text))
