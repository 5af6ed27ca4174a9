"""Words for people."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural except for 1: `1 clip`, `0 clips`, `1,200 fetches`."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith(('s', 'sh', 'ch', 'x')) else 's'}"
