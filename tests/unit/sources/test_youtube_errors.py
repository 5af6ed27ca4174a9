"""Messages of yt-dlp, most of them beyond the reach of the fake YouTube, and the kind of failure that each becomes."""

from __future__ import annotations

import errno
import os

import pytest
from yt_dlp.utils import GeoRestrictedError

from kinetics_fs.errors import FailureKind
from kinetics_fs.sources.youtube.errors import classify
from tests.support.youtube import assert_clean_reason

VIDEO = "-a_Video-01"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (FailureKind.CONFIG, "Cookies file must be Netscape formatted, not JSON. See https://example.org"),
        (FailureKind.CONFIG, "'/a/cookies' does not look like a Netscape format cookies file"),
        (FailureKind.CONFIG, "[Errno 99] Cannot assign requested address"),
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
        (FailureKind.TRANSIENT, "Unsupported URL: http://127.0.0.1/watch/x"),
        # About the account, the address or the session, whatever the punctuation.
        (FailureKind.BLOCKED, "Video unavailable. This content isn't available."),
        (FailureKind.BLOCKED, "Video unavailable. This content isn’t available."),
        (FailureKind.BLOCKED, "Video unavailable. This content isn`t available"),
        (FailureKind.BLOCKED, "Video unavailable. This content isn‘t available, try again later."),
        (FailureKind.BLOCKED, "Video unavailable. This content is not available, try again later"),
        (FailureKind.BLOCKED, "This content is no longer available."),
        (FailureKind.BLOCKED, "The current session has been rate‑limited by YouTube for up to an hour."),
        (FailureKind.BLOCKED, "Your account has been rate limited by YouTube"),
        (FailureKind.BLOCKED, "Your account has been terminated for violating the Terms of Service"),
        (FailureKind.BLOCKED, "Your Google Account was suspended. Video unavailable"),
        (FailureKind.BLOCKED, "Please sign in. Use --cookies-from-browser or --cookies for the authentication. See …"),
        (FailureKind.BLOCKED, "Sign in to continue"),
        (FailureKind.BLOCKED, "Please log in to watch this video"),
        (FailureKind.BLOCKED, "This video is only available for registered users."),
        (FailureKind.BLOCKED, "Login details are needed to download this content. "),
        (FailureKind.BLOCKED, "Sign in to confirm that you‘re not a robot"),
        (FailureKind.BLOCKED, "Our systems have detected unusual traffic from your computer network"),
        (FailureKind.CONFIG, "Login with OAuth is no longer supported. Use --cookies for the authentication"),
        (FailureKind.CONFIG, "No player clients have been requested"),
        # About the client, the network or an experiment.
        (FailureKind.TRANSIENT, "This video is not available on this device."),
        (FailureKind.TRANSIENT, "Video unavailable. This video is unavailable on this app"),
        (FailureKind.TRANSIENT, "Video unavailable. Playback on other websites has been disabled by the video owner"),
        (
            FailureKind.TRANSIENT,
            "This video contains content from SME, who has blocked it from display on this website or application",
        ),
        (FailureKind.TRANSIENT, "This video is unavailable with Restricted Mode enabled."),
        (FailureKind.TRANSIENT, "This video is restricted. Please check the Google Workspace administrator"),
        (FailureKind.TRANSIENT, "YouTube said: This video does not exist"),
        (FailureKind.TRANSIENT, "This video is temporarily unavailable. Please try again later"),
        (FailureKind.TRANSIENT, "Video unavailable. This video isn’t available right now. Try again later"),
        (FailureKind.TRANSIENT, "Unable to extract video data; please report this issue on https://example.org"),
        (FailureKind.TRANSIENT, "Dieses Video ist nicht verfügbar"),
        (FailureKind.TRANSIENT, "Vidéo non disponible. Cette vidéo a été supprimée"),
        # Live streams.
        (FailureKind.TRANSIENT, "This live event will begin in a few moments."),
        (FailureKind.TRANSIENT, "Premiere will begin shortly"),
        (FailureKind.TRANSIENT, "Premieres in 3 days"),
        (FailureKind.TRANSIENT, "This live stream is currently offline."),
        (FailureKind.TRANSIENT, "Offline."),
        (FailureKind.GONE, "This live event has ended."),
        (FailureKind.GONE, "This live stream recording is not available."),
        (FailureKind.GONE, "This live event was cancelled."),
        # About the video and its audience.
        (FailureKind.CREDENTIALS, "This video is only available to Music Premium members"),
        (FailureKind.CREDENTIALS, "This video requires a YouTube Premium subscription"),
        (FailureKind.CREDENTIALS, "This video is age-restricted and only available on YouTube"),
        (FailureKind.CREDENTIALS, "Sign in to confirm your age. This video may be inappropriate for some users."),
        (FailureKind.CREDENTIALS, "Private video. Sign in if you've been granted access to this video"),
        (FailureKind.CREDENTIALS, "This video is private. If the owner has granted you access, please sign in"),
        (FailureKind.CREDENTIALS, "This content is not available on this country domain due to a court order"),
        (FailureKind.CREDENTIALS, "The following content may contain self-harm topics."),
        (
            FailureKind.CREDENTIALS,
            "This video contains content from Sony, one or more of whom have blocked it in your country",
        ),
        (FailureKind.GONE, "Video unavailable"),
        (FailureKind.GONE, "This video isn't available anymore"),
        (FailureKind.GONE, "Video unavailable. This video has been removed by the uploader"),
        (FailureKind.GONE, "This video is no longer available due to a trademark claim by Captcha Premium Inc."),
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


DRM_EXPERIMENT = (
    "Some tv client https formats have been skipped as they are DRM protected. The current session may have an"
    " experiment that applies DRM to all videos on the tv client."
)


def test_drm_of_an_experiment_is_no_verdict_on_a_video() -> None:
    protected = Exception(f"ERROR: [youtube] {VIDEO}: This video is DRM protected")

    assert classify(protected, [f"[youtube] {VIDEO}: {DRM_EXPERIMENT}"], "youtube").kind is FailureKind.TRANSIENT
    assert classify(protected, [], "youtube").kind is FailureKind.CREDENTIALS


@pytest.mark.parametrize("video_id", ["captcha-bot", "-sabr-sabr-", "rate-limit-", "experiment-", "log-in-now0"])
def test_id_of_the_video_is_no_evidence(video_id: str) -> None:
    error = Exception(f"ERROR: [youtube] {video_id}: Video unavailable")

    kind = classify(error, [f"[youtube] {video_id}: No title found in player responses"], "youtube").kind

    assert kind is FailureKind.GONE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("Premieres in 3 days", 3600), ("This video is unavailable with Restricted Mode enabled.", 80_000)],
)
def test_what_takes_long_is_not_tried_each_hour(text: str, seconds: float) -> None:
    assert (classify(Exception(text), [], "youtube").retry_after or 0) > seconds


def test_refused_country_is_known_without_its_words() -> None:
    error = Exception("ERROR: Der Uploader hat dieses Video nicht freigegeben")
    error.__cause__ = GeoRestrictedError("…", countries=["DE"])

    assert classify(error, [], "youtube").kind is FailureKind.CREDENTIALS


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

    assert (error.kind, error.cause_errno) == (FailureKind.LOCAL, number)
    assert_clean_reason(error.reason, VIDEO)
