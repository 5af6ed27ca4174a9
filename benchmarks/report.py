"""Rows of a benchmark's table: a measurement, a peer measured in the same run, and a target."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Target:
    """A bound on the measurement, or on its ratio to the peer."""

    of: Literal["ours", "ratio"]
    sense: Literal["<=", ">="]
    value: float

    def __str__(self) -> str:
        return f"{self.of} {self.sense} {self.value:g}"

    def met(self, row: Row) -> bool:
        """Return whether `row` meets the target; a ratio without a peer does not."""
        measured = row.ours if self.of == "ours" else row.ratio
        if measured is None:
            return False
        return measured <= self.value if self.sense == "<=" else measured >= self.value


@dataclass(frozen=True)
class Row:
    """One measurement of kinetics-fs. The name states what was measured and the unit.

    `ours` is None if this machine cannot make the measurement.
    """

    name: str
    ours: float | None
    peer: float | None = None
    peer_name: str = ""
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """The measurement divided by that of the peer."""
        return self.ours / self.peer if self.peer and self.ours is not None else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as an object of `--json`."""
        return {
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            "target": str(self.target) if self.target else None,
            "met": self.target.met(self) if self.target else None,
        }


def machine() -> dict[str, Any]:
    """Describe the machine that the numbers are from."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in text, with a verdict on each target."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"

    lines = [("", "ours", "peer", "", "ratio", "target", "")]
    for row in rows:
        verdict = "" if row.target is None else "met" if row.target.met(row) else "MISSED"
        if row.ours is None:
            verdict = "not measured"
        target = str(row.target) if row.target else ""
        lines.append((row.name, number(row.ours), number(row.peer), row.peer_name, number(row.ratio), target, verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = (False, True, True, False, True, False, False)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
