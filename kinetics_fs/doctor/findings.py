"""The result of a check, and the concurrent execution of checks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from kinetics_fs.errors import masked
from kinetics_fs.store import one_line

TIMEOUT = 30.0
"""Time limit in seconds for all checks together; they run concurrently."""

WRONG_CLOCK = 300.0
"""Seconds of clock error above which certificates and retry times can no longer be trusted."""


class State(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not as well as it could, or not for long."""
    PROBLEM = "problem"
    """Does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of a check.

    Attributes:
        name: the name of the check.
        state: its severity.
        found: the fact, one line.
        fix: one sentence that says what to do; empty if there is nothing to fix.
    """

    name: str
    state: State
    found: str
    fix: str = ""


Check = Callable[[], Iterable[Finding]]


def examine(checks: Iterable[tuple[str, Check]], timeout: float = TIMEOUT) -> Iterator[Finding]:
    """Run checks concurrently and yield their findings in the order of the checks.

    A check that raises, or does not end in time, yields a finding with the state `PROBLEM`. Users and passwords in
    URLs are masked in every finding.

    Args:
        checks: pairs of a name and a check.
        timeout: time limit in seconds for all checks together.
    """
    deadline = time.monotonic() + timeout
    running = [_Running(name, run) for name, run in checks]
    for check in running:
        check.thread.join(max(0.0, deadline - time.monotonic()))
        found = list(check.found)
        if check.thread.is_alive():
            found.append(Finding(check.name, State.PROBLEM, f"check failed: no answer within {timeout:.0f} s"))
        for finding in found:
            yield Finding(finding.name, finding.state, _mask(finding.found), _mask(finding.fix))


class _Running:
    """A check that runs in a daemon thread, so that it cannot delay the end of the process."""

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
            message = f"check failed: {type(error).__name__}: {error}"
            self.found.append(Finding(self.name, State.PROBLEM, message))


def sentence(clause: str) -> str:
    """Return a clause, such as the remedy of an error, as a sentence."""
    return f"{clause[0].upper()}{clause[1:]}."


def _mask(text: str) -> str:
    return one_line(masked(text))
