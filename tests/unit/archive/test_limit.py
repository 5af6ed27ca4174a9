"""The note about --max-archive-download in a failure: exact for the program, readable for the user."""

from __future__ import annotations

import pytest

from kinetics_fs.sources.archive.limit import failed_below, limit_note


@pytest.mark.parametrize(
    ("limit", "text"),
    [(0, "0B"), (1, "1B"), (1_500, "1500B"), (2_000, "2kB"), (200 * 10**6, "200MB"), (3 * 10**9, "3GB")],
)
def test_note_states_the_limit_exactly(limit: int, text: str) -> None:
    note = limit_note("its class archive", 1_123_456_789, limit)
    assert note == f"its class archive (1.1 GB) exceeds --max-archive-download ({text})"
    reason = f"Video unavailable; {note}"
    assert [failed_below(reason, other) for other in (limit - 1, limit, limit + 1)] == [False, False, True]


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "Video unavailable",
        "exceeds --max-archive-download",
        "exceeds --max-archive-download (lots)",
        "exceeds --max-archive-download (-1B)",
        f"exceeds --max-archive-download ({10**30}B)",
    ],
)
def test_reason_without_a_valid_note_never_asks_for_another_try(reason: str) -> None:
    assert not failed_below(reason, 10**18)
