"""Rules for byte ranges: which answers are valid, when a request is repeated, and what is masked in messages."""

from __future__ import annotations

import pytest

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.util.http import Retries, UnexpectedResponse, check_range, content_length, refusal


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in seconds."""
    pauses: list[float] = []
    monkeypatch.setattr("kinetics_fs.util.http.time.sleep", pauses.append)
    return pauses


def transient(wait: float | None = None) -> FetchError:
    return FetchError(FailureKind.TRANSIENT, "busy", retry_after=wait)


def test_range_answer_gives_the_size_of_range_and_file() -> None:
    assert check_range(206, {"Content-Range": "bytes 5-9/100", "Content-Length": "5"}, 5, 10) == (5, 100)


def test_range_answer_may_end_with_the_file() -> None:
    assert check_range(206, {"Content-Range": "bytes 5-7/8"}, 5, 10) == (3, 8)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"Content-Range": "bytes 5-9/100"}),
        (206, {}),
        (206, {"Content-Range": "bytes 5-9/*"}),
        (206, {"Content-Range": "bytes 4-9/100"}),
        (206, {"Content-Range": "bytes 5-8/100"}),
        (206, {"Content-Range": "bytes 5-10/100"}),
        (206, {"Content-Range": "bytes 5-9/100", "Content-Length": "4"}),
        (206, {"Content-Range": "bytes 5-4/5"}),
        (206, {"Content-Range": "bytes 5-9/1" + 18 * "0"}),
    ],
)
def test_answer_for_another_range_is_refused(status: int, headers: dict[str, str]) -> None:
    with pytest.raises(UnexpectedResponse):
        check_range(status, headers, 5, 10)


@pytest.mark.parametrize("length", [None, "", "-1", "1e3", "9" * 19])
def test_answer_without_a_valid_length_is_refused(length: str | None) -> None:
    with pytest.raises(UnexpectedResponse):
        content_length({} if length is None else {"Content-Length": length})


def test_refusals_tell_rate_limits_from_faults() -> None:
    blocked, fault = refusal(429, {"Retry-After": "7"}, "host"), refusal(503, {"Retry-After": "tomorrow"}, "host")
    assert blocked is not None and (blocked.kind, blocked.retry_after) == (FailureKind.BLOCKED, 7)
    assert fault is not None and (fault.kind, fault.retry_after) == (FailureKind.TRANSIENT, None)
    assert refusal(404, {}, "host") is None


def test_pauses_double_until_the_tries_are_used_up(pauses: list[float]) -> None:
    retries = Retries(4)
    for _ in range(3):
        retries.wait(transient())
    with pytest.raises(FetchError, match="busy"):
        retries.wait(transient())
    assert [first <= pause <= 1.5 * first for first, pause in zip((0.25, 0.5, 1.0), pauses, strict=True)] == [True] * 3


def test_progress_gives_all_tries_back(pauses: list[float]) -> None:
    retries = Retries(2)
    for _ in range(5):
        retries.wait(transient())
        retries.progress()
    assert max(pauses) <= 1.5 * 0.25


def test_a_server_may_ask_for_a_longer_pause_but_not_for_any(pauses: list[float]) -> None:
    Retries(2).wait(transient(wait=7))
    assert pauses == [7]
    with pytest.raises(FetchError):
        Retries(2).wait(transient(wait=21))


def test_a_failure_of_another_kind_is_not_repeated(pauses: list[float]) -> None:
    with pytest.raises(FetchError):
        Retries(9).wait(FetchError(FailureKind.BLOCKED, "rate limit"))
    Retries(9, (FailureKind.BLOCKED,)).wait(FetchError(FailureKind.BLOCKED, "rate limit"))
    assert len(pauses) == 1
