"""Classification of yt-dlp's errors as kinds of failure.

yt-dlp has no error classes that distinguish a removed video from a blocked address. Only the message does, or a warning
if the page loads but the player interface refuses. This module therefore matches patterns against both, in a fixed
order: those about the client or the network come before those about the video, because YouTube tells a blocked client
"Video unavailable" too.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.util import http

_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}

_SUSPECT = r"not a bot|captcha|ip is likely being blocked|player responses are invalid"
_SESSION = r"rate-limited|content isn't available, try again later"
_BLOCKS: tuple[tuple[str, float, str], ...] = (
    # Pattern, seconds of the first wait, advice.
    (_SUSPECT, 3 * 3600.0, "give --cookies, use another address (--proxy, --source-address), or wait"),
    (_SESSION, 3600.0, "give --cookies or a lower --max-fetches-per-hour to avoid this"),
)

_RULES: tuple[tuple[FailureKind, str], ...] = (
    (
        FailureKind.CONFIG,
        r"ffmpeg (is )?not (installed|found)|ffmpeg could not be found|n challenge solving failed"
        r"|impersonate target|cookies file must be|could not find .* cookies database|cookies are no longer valid"
        r"|certificate.?verify.?failed|no suitable extractor",
    ),
    (
        FailureKind.BLOCKED,
        rf"{_SUSPECT}|{_SESSION}|http error 429|too many requests",
    ),
    (
        FailureKind.TRANSIENT,
        r"unable to download video data|timed out|transporterror|remote end closed|incompleteread"
        r"|connection (reset|refused|aborted|broken)|name resolution|name or service not known|failed to establish"
        r"|more expected|bytes, expected|did not get any data blocks|http error (403|5\d\d)|failed to parse json",
    ),
    (
        FailureKind.TRANSIENT,  # YouTube has changed or runs an experiment: a newer yt-dlp or a later try helps
        r"page needs to be reloaded|not available on this app|no video formats found|player response"
        r"|requested format is not available|\bsabr\b",
    ),
    # Before the country rule, because some of these messages name a country too.
    (FailureKind.GONE, r"(has been|was) removed|account\b.*\bterminated\b"),
    (
        FailureKind.CREDENTIALS,
        r"confirm your age|age-restricted|members-only|this channel's members|requires payment|drm protected"
        r"|in your country|geo.?restrict|\blog ?in\b|private video|content warning",
    ),
    (FailureKind.TRANSIENT, r"will begin in|premieres in|processing this video"),
    (
        FailureKind.GONE,
        r"unavailable|removed|\bterminated\b|no longer available|not available|copyright|violating|blocked it"
        r"|does not exist|http error (404|410)|unsupported url",
    ),
)

_VERDICTS = {FailureKind.GONE, FailureKind.CREDENTIALS}
"""Kinds that are a verdict on the video. Only the error itself may give one: a warning may call a format or a client
unavailable."""


def classify(error: Exception, warnings: Sequence[str], source: str) -> FetchError:
    """Return the failure for an exception of yt-dlp and the warnings of the same call."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRNOS:
            return FetchError(FailureKind.LOCAL, _line(cause), source=source, errno=cause.errno)
    message = str(error).lower().replace("’", "'")
    message = re.sub(r"content from .*?, who", "content from somebody, who", message)  # a name can have any word
    text = "\n".join([message, *warnings]).lower().replace("’", "'")
    kind = next(
        (kind for kind, pattern in _RULES if re.search(pattern, message if kind in _VERDICTS else text)),
        FailureKind.TRANSIENT,
    )
    reason, wait = _line(error), _retry_after(error)
    if kind is FailureKind.BLOCKED:
        for pattern, seconds, advice in _BLOCKS:
            if re.search(pattern, text):
                reason, wait = f"{reason} ({advice})", max(wait or 0.0, seconds)
                break
    return FetchError(
        kind,
        reason,
        source=source,
        errno=errno.ETIMEDOUT if kind is FailureKind.TRANSIENT and "timed out" in text else None,
        retry_after=wait,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and all its causes; yt-dlp also keeps the original in `exc_info` and `cause`."""
    seen: list[BaseException] = []
    pending = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        exc_info = getattr(one, "exc_info", None)
        pending += [one.__cause__, one.__context__, getattr(one, "cause", None)]
        if isinstance(exc_info, tuple) and len(exc_info) == 3:
            pending.append(exc_info[1])


def _retry_after(error: Exception) -> float | None:
    """Return the seconds that a server asked to wait, according to the answers that an error carries."""
    for cause in _chain(error):
        wait = http.retry_after(getattr(getattr(cause, "response", None), "headers", {}))
        if wait is not None:
            return wait
    return None


def _line(error: BaseException) -> str:
    """Return the first line of a message without colours, the word ERROR, and advice for yt-dlp's own command line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"[ \r]+", " ", text).strip()
    text = text.splitlines()[0] if text else type(error).__name__
    text = re.sub(r"^ERROR: (\[[^\]]+\] [^:]+: )?", "", text)
    text = re.sub(r"^\[download\] ", "", text)
    text = http.without_secrets(text)
    return re.split(r"; please report this issue| Use --cookies| It is recommended to use", text)[0][:300]
