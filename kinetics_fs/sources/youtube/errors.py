"""From what yt-dlp says to the class of failure.

yt-dlp has no error classes that tell a dead video from a blocked address: the sentence does, and where the page was
answered but the player interface refused, only a warning. Hence a list of patterns over both, in a fixed order: what
says something about us or the network goes before what says something about the video, for a blocked address is also
told "Video unavailable".
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.util import http

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}

_SUSPECT = r"not a bot|captcha|ip is likely being blocked|player responses are invalid"
_SESSION = r"rate-limited|content isn't available, try again later"
_BLOCKS: tuple[tuple[str, float, str], ...] = (
    # Pattern, seconds to wait at first, what can be done.
    (_SUSPECT, 3 * 3600.0, "give --cookies, use another address (--proxy, --source-address), or wait"),
    (_SESSION, 3600.0, "a lower --max-fetches-per-hour, or --cookies, would have been safe"),
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
        FailureKind.TRANSIENT,  # YouTube changed, or has an experiment on: a newer yt-dlp or another hour
        r"page needs to be reloaded|not available on this app|no video formats found|player response"
        r"|requested format is not available|\bsabr\b",
    ),
    # Names another reason than the country in which it stands, too.
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
"""Of the video: only the error itself may pass one. What a warning calls unavailable may be a format or a client."""


def classify(error: Exception, warnings: Sequence[str], source: str) -> FetchError:
    """The failure that an exception of yt-dlp's, and the warnings of the same call, amount to."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return FetchError(FailureKind.LOCAL, _line(cause), source=source, errno=cause.errno)
    said = str(error).lower().replace("’", "'")
    said = re.sub(r"content from .*?, who", "content from somebody, who", said)  # a name may hold any word
    text = "\n".join([said, *warnings]).lower().replace("’", "'")
    kind = next(
        (kind for kind, pattern in _RULES if re.search(pattern, said if kind in _VERDICTS else text)),
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
    """The exception and all behind it; yt-dlp keeps the original in `exc_info` and `cause`, too."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        exc_info = getattr(one, "exc_info", None)
        waiting += [one.__cause__, one.__context__, getattr(one, "cause", None)]
        if isinstance(exc_info, tuple) and len(exc_info) == 3:
            waiting.append(exc_info[1])


def _retry_after(error: Exception) -> float | None:
    """Return the seconds that a server asked to wait, according to the answers that an error carries."""
    for cause in _chain(error):
        wait = http.retry_after(getattr(getattr(cause, "response", None), "headers", {}))
        if wait is not None:
            return wait
    return None


def _line(error: BaseException) -> str:
    """The first line of what was said, without colours, the word ERROR and advice for yt-dlp's own command line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"[ \r]+", " ", text).strip()
    text = text.splitlines()[0] if text else type(error).__name__
    text = re.sub(r"^ERROR: (\[[^\]]+\] [^:]+: )?", "", text)
    text = re.sub(r"^\[download\] ", "", text)
    text = http.without_secrets(text)
    return re.split(r"; please report this issue| Use --cookies| It is recommended to use", text)[0][:300]
