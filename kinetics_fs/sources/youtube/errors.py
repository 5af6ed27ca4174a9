"""Classification of yt-dlp's errors as kinds of failure.

yt-dlp has no error classes that distinguish a removed video from a blocked address. Only the message does, or a warning
if the page loads but the player interface refuses. This module therefore matches patterns against both, in a fixed
order: those about the client, the account, the address or the network come before those about the video, because
YouTube tells a blocked client "Video unavailable" too. Words that no pattern knows are never a verdict on a video.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from yt_dlp.utils import GeoRestrictedError

from kinetics_fs.errors import FailureKind, FetchError, masked
from kinetics_fs.util import http
from kinetics_fs.util.processes import NO_MEMORY

_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}

_HOUR = 3600.0
_DAY = 24 * _HOUR

LATER = 6 * _HOUR
"""Seconds until a live stream, a premiere or a recording that is still processed is tried again."""


class _Rule(NamedTuple):
    """A pattern in what yt-dlp says, and the failure that it is evidence of.

    Attributes:
        kind: class of the failure.
        pattern: regular expression, in lower case.
        in_warnings: look for it in the warnings too. They are no evidence about the video: a warning may call a format
            or a client unavailable.
        wait: seconds until the next request, at least; None for the usual delay of the kind.
        advice: addition to the reason.
    """

    kind: FailureKind
    pattern: str
    in_warnings: bool = False
    wait: float | None = None
    advice: str = ""


_OTHER_CLIENT = "give --cookies, use another address (--proxy, --source-address), or wait"
_OTHER_ACCOUNT = "give --cookies of another account, or wait"
_SLOWER = "give --cookies or a lower --max-fetches-per-hour to avoid this"

_RULES = (
    # This installation
    _Rule(
        FailureKind.CONFIG,
        r"ffmpeg (is )?not (installed|found)|ffmpeg could not be found|n challenge solving failed"
        r"|impersonate target|cookies file must be|could not find .* cookies database|cookies are no longer valid"
        r"|certificate.?verify.?failed|no suitable extractor|login with oauth|no player clients|unsupported language"
        r"|http error 407|proxy authentication|cannot assign requested address"
        r"|netscape format cookies",
        in_warnings=True,
    ),
    # This client, account or address
    _Rule(
        FailureKind.BLOCKED,
        r"not a (ro)?bot|captcha|ip is likely being blocked|player responses are invalid|unusual traffic"
        r"|automated (queries|requests|traffic)|suspicious (activity|traffic)",
        in_warnings=True,
        wait=3 * _HOUR,
        advice=_OTHER_CLIENT,
    ),
    _Rule(
        FailureKind.BLOCKED,
        r"rate[- ]?limit(ed)?\b|content ?(isn'?t|is not|is un) ?available[,.:;]? (please )?try again",
        in_warnings=True,
        wait=_HOUR,
        advice=_SLOWER,
    ),
    _Rule(FailureKind.BLOCKED, r"http error 429|too many (requests|videos)", in_warnings=True),
    # The network
    _Rule(
        FailureKind.TRANSIENT,
        r"unable to download video data|timed out|transporterror|remote end closed|incompleteread|incomplete data"
        r"|connection (reset|refused|aborted|broken)|name resolution|name or service not known|failed to establish"
        r"|more expected|bytes, expected|did not get any data blocks|http error (403|408|5\d\d)|failed to parse json"
        r"|network is (unreachable|down)|no route to host|broken pipe|handshake|\bssl\b|proxyerror|service unavailable",
        in_warnings=True,
    ),
    # The client again: YouTube has changed or runs an experiment, so a newer yt-dlp or a later try helps
    _Rule(FailureKind.TRANSIENT, r"\bsabr\b|\bexperiment|skipping player responses", in_warnings=True),
    _Rule(
        FailureKind.TRANSIENT,
        r"page needs to be reloaded|no video formats found|player response|requested format is not available"
        r"|youtube said|please report this issue|unsupported url|unknown error|not a valid url"
        r"|(on|in|by|with|for) (this|your|the current) (app|application|device|browser|platform|client|website|site)\b"
        r"|(other|certain|some|third.party) (websites|sites|applications|apps)\b|latest version of youtube"
        r"|your (app|browser)\b|video player configuration|embedd(ed|ing)",
    ),
    _Rule(
        FailureKind.TRANSIENT,
        r"restricted mode|administrator|your (school|organi[sz]ation|network)",
        wait=_DAY,
        advice="the network or the account filters videos",
    ),
    # Live streams
    _Rule(
        FailureKind.GONE,
        r"(live (event|stream|broadcast)|livestream|broadcast|premiere|stream|event) (has |is |was |has been )?"
        r"(ended|over|finished|cancell?ed)\b|recording (is |was )?(not|un|no longer) ?available",
    ),
    _Rule(
        FailureKind.TRANSIENT,
        r"will begin|premier(e|ing)|processing (this|the|your) video|being processed|check back later|stand by"
        r"|(live|stream|event|broadcast|channel) is (currently )?(offline|live|running)|not currently live"
        r"|offline\.?$|(has not|hasn't) (started|begun)|starts? in\b|scheduled",
        wait=LATER,
    ),
    # The account again, which the next rules would take for that of the uploader
    _Rule(
        FailureKind.BLOCKED,
        r"\byour (google |youtube )?account (has|was|is|does|doesn't|can't|cannot)\b",
        wait=_HOUR,
        advice=_OTHER_ACCOUNT,
    ),
    # The video. Before the country rule, because some of these messages name a country too.
    _Rule(FailureKind.GONE, r"(has been|was) removed|account\b.*\b(terminated|closed|suspended)\b"),
    _Rule(
        FailureKind.CREDENTIALS,
        r"confirm your age|\bage[- ](restrict|verif|limit)|verify your age|inappropriate|viewer discretion"
        r"|content warning|self[- ]harm|members?[- ]only|this channel's members|join this channel|\bpremium\b"
        r"|require[sd]? (a )?(payment|purchase|subscription|rental)|\b(purchase|rent)\b|drm protected"
        r"|in your (country|region|location|area)|country domain|(from|in|to) your location|geo.?restrict"
        r"|http error 451|private video|video is private|granted access",
    ),
    # The account or the address: what YouTube says about every video
    _Rule(
        FailureKind.BLOCKED,
        r"\b(sign|log)(ged)?[- ]?in\b|registered users|\blogin\b|authenticat(e|ion)\b",
        wait=_HOUR,
        advice=_OTHER_CLIENT,
    ),
    _Rule(
        FailureKind.BLOCKED,
        r"content ?(isn'?t|is not|is un|un|is no longer) ?available",
        wait=_HOUR,
        advice=_OTHER_ACCOUNT,
    ),
    _Rule(FailureKind.TRANSIENT, r"try again|(temporarily|currently) (unavailable|not available)|right now"),
    _Rule(
        FailureKind.GONE,
        r"\bvideo (is |has been |was |is currently )?(made )?(unavailable|removed|deleted|taken down|terminated)"
        r"|\bvideo (is not|isn't|is no longer|no longer) available|no longer available|been deleted"
        r"|copyright|trademark|privacy (claim|complaint)|legal (complaint|request)|court order|violat(es|ed|ing|ion)"
        r"|blocked it|(does not|doesn't|no longer) exists?|http error (404|410)",
    ),
)

_APOSTROPHES = dict.fromkeys(map(ord, "‘’‚‛′ʹʼˈ´`＇"), "'")
_HYPHENS = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")

_NAMES = (
    # Names of claimants and membership levels can have any words.
    (r"content from .*, (who|one or more of whom) ", "content from a claimant, who "),
    (r"content from .*?\. ", "content from a claimant. "),
    (r"(claim|complaint|request) (by|from) .*", r"\1 by a claimant"),
    (r"on level: .*", "on some level"),
    (r"account [\"“].*[\"”]", "account of a claimant"),
)


def classify(error: Exception, warnings: Sequence[str], source: str) -> FetchError:
    """Return the failure for an exception of yt-dlp and the warnings of the same call."""
    causes = list(_chain(error))
    if any(isinstance(cause, MemoryError) for cause in causes):
        return FetchError(FailureKind.TRANSIENT, NO_MEMORY, source=source)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRNOS:
            return FetchError(FailureKind.LOCAL, _line(cause), source=source, cause_errno=cause.errno)
    message = _normalize(str(error))
    for pattern, replacement in _NAMES:
        message = re.sub(pattern, replacement, message)
    if any(isinstance(cause, GeoRestrictedError) for cause in causes):
        message += "\ngeo restricted"
    text = "\n".join([message, *map(_normalize, warnings)])
    rule = next(
        (rule for rule in _RULES if re.search(rule.pattern, text if rule.in_warnings else message, re.MULTILINE)),
        _Rule(FailureKind.TRANSIENT, ""),
    )
    wait = _retry_after(error)
    return FetchError(
        rule.kind,
        f"{_line(error)} ({rule.advice})" if rule.advice else _line(error),
        source=source,
        cause_errno=errno.ETIMEDOUT if rule.kind is FailureKind.TRANSIENT and "timed out" in text else None,
        retry_after=wait if rule.wait is None else max(wait or 0.0, rule.wait),
    )


def _normalize(text: str) -> str:
    """Return a message in lower case with ASCII punctuation, without the id of the video, addresses and advice."""
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES | _HYPHENS).lower()
    text = re.sub(r"\[[a-z0-9:_+-]+\] ([a-z0-9_-]{11}: )?", "", text)
    text = re.split(r" use --cookies", text)[0]
    return re.sub(r"https?://\S+", "", text)


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
    text = masked(re.sub(r"^\[download\] ", "", text))
    return re.split(r"; please report this issue| Use --cookies| It is recommended to use", text)[0][:300]
