"""Messages of yt-dlp, most of them beyond the reach of the fake YouTube, and the kind of failure that each becomes."""

from __future__ import annotations

import errno
import os

import pytest

from kinetics_fs.errors import FailureKind
from kinetics_fs.sources.youtube.errors import classify
from tests.support.youtube import assert_clean_reason

VIDEO = "-a_Video-01"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (FailureKind.CONFIG, "Cookies file must be Netscape formatted, not JSON. See https://example.org"),
        (FailureKind.CONFIG, "could not find firefox cookies database in '/root/.mozilla/firefox'"),
        (FailureKind.CONFIG, "m3u8 download detected but ffmpeg could not be found. Please install"),
        (FailureKind.CONFIG, "Postprocessing: ffmpeg not found. Please install or provide the path"),
        (FailureKind.TRANSIENT, "Unable to download API page: [Errno -2] Name or service not known"),
        (FailureKind.TRANSIENT, "Unable to download API page: [Errno -3] Temporary failure in name resolution"),
        (FailureKind.TRANSIENT, "Unable to download API page: [Errno 101] Network is unreachable"),
        (FailureKind.TRANSIENT, "Downloaded 912217 bytes, expected 1824434 bytes. Giving up after 3 retries"),
        (FailureKind.TRANSIENT, "Did not get any data blocks"),
        (FailureKind.TRANSIENT, "The downloaded file is empty"),
        (FailureKind.TRANSIENT, "Requested format is not available. Use --list-formats for a list"),
        (FailureKind.TRANSIENT, "something that nobody has seen before"),
        (FailureKind.GONE, "Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404>)"),
        (FailureKind.GONE, "Unable to download webpage: HTTP Error 410: Gone (caused by <HTTPError 410: Gone>)"),
        (FailureKind.GONE, "This video has been removed for violating YouTube's Community Guidelines"),
        (FailureKind.GONE, "Unsupported URL: http://127.0.0.1/watch/x"),
        (FailureKind.GONE, "This video is no longer available due to a copyright claim by Example Ltd."),
        # Met in a log of 2019, over 1,000 times: the age gate of the time.
        (FailureKind.CREDENTIALS, "Content Warning"),
        (
            FailureKind.GONE,
            "This video has been removed for violating YouTube's policy on hate speech. "
            "Learn more about combating hate speech in your country.",
        ),
        (FailureKind.GONE, "This video is no longer available because the uploader has closed their YouTube account."),
        (FailureKind.GONE, "This video is no longer available due to a privacy claim by a third party."),
        (FailureKind.CREDENTIALS, "This video contains content from Example. It is not available in your country."),
        (FailureKind.TRANSIENT, "An error occurred. Please try again later."),
        (FailureKind.TRANSIENT, "giving up after 10 fragment retries"),
        # These sentences contain names of claimants, which are data and not YouTube's words.
        (FailureKind.GONE, "This video contains content from Sabrina Music, who has blocked it on copyright grounds"),
        (FailureKind.GONE, "This video contains content from Blog Inc, who has blocked it on copyright grounds"),
    ],
)
def test_sentence_gives_the_kind(kind: FailureKind, text: str) -> None:
    error = classify(Exception(f"ERROR: [youtube] {VIDEO}: {text}"), [], "youtube")

    assert error.kind == kind
    assert_clean_reason(error.reason, VIDEO)


def test_warning_is_no_verdict_on_a_video() -> None:
    warnings = ["[youtube] Some formats are not available", "Falling back: the iOS player is unavailable, log in"]

    assert classify(Exception("KeyError('streams')"), warnings, "youtube").kind is FailureKind.TRANSIENT


def test_reason_has_no_colours_and_one_line() -> None:
    message = f"\x1b[0;31mERROR:\x1b[0m [youtube] {VIDEO}: Private video\x1b[0m\nand more\x07"

    error = classify(Exception(message), [], "youtube")

    assert error.reason == "Private video"
    assert error.kind is FailureKind.CREDENTIALS


def test_exception_without_text_has_a_reason() -> None:
    assert classify(Exception(), [], "youtube").reason == "Exception"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_fault_of_the_disk_is_found_behind_other_exceptions(number: int) -> None:
    outer = RuntimeError("ERROR: unable to write data; HTTP Error 404")
    outer.__context__ = ValueError("between")
    outer.__context__.__cause__ = OSError(number, os.strerror(number))

    error = classify(outer, ["HTTP Error 429"], "youtube")

    assert (error.kind, error.errno) == (FailureKind.LOCAL, number)
    assert_clean_reason(error.reason, VIDEO)
