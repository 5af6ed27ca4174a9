"""Checks of where clips come from, and of what asks for them."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import shlex
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rich import filesize

from kinetics_fs.config import Settings
from kinetics_fs.doctor.findings import Finding, State
from kinetics_fs.errors import ArchiveError, StoreError
from kinetics_fs.mount.probe import look_at
from kinetics_fs.sources.settings import ARCHIVE_INDEXES, ARCHIVES, PUBLIC_ARCHIVES, YOUTUBE_URL
from kinetics_fs.store.health import summarize_cache

_PIP_INSTALL = f"{shlex.quote(sys.executable)} -m pip install"
"""Into the environment that we run in: `pip` alone is the system's, which Debian allows nobody."""

_OLD = timedelta(days=60)
"""When a yt-dlp is likely to fail: YouTube changes monthly."""
_TIMEOUT = 5.0
"""Seconds for a connection, and for an answer."""
_WRONG_CLOCK = 300.0
"""Seconds: with more the certificates of servers and the times to try again are in doubt."""
_NETSCAPE = re.compile(r"#( Netscape)? HTTP Cookie File")
"""The first line of a cookie file, as Python's own `http.cookiejar` wants it."""
_LARGEST_COOKIES = 10**7

_UNWILLING = {429, 500, 502, 503, 504}
"""HTTP statuses of a server that answers, but not now."""

_IMPORTING = threading.Lock()


# On this machine


def ytdlp(settings: Settings) -> Iterator[Finding]:
    """How old it is."""
    update = f"Update it: {_PIP_INSTALL} --upgrade yt-dlp."
    try:
        version: str = _import_ytdlp().version.__version__
    except ImportError as error:
        yield Finding("yt-dlp", State.PROBLEM, f"it cannot be loaded: {error}", update)
        return
    try:
        made = date(*(int(part) for part in version.split(".")[:3]))
    except (TypeError, ValueError):
        yield Finding("yt-dlp", State.WARNING, f"{version}, of unknown date", update)
        return
    age = datetime.now(UTC).date() - made
    if age > _OLD:
        found = f"{version} is {age.days} days old; YouTube changes monthly"
        yield Finding("yt-dlp", State.WARNING, found, update)
    else:
        yield Finding("yt-dlp", State.OK, version)


def javascript(settings: Settings) -> Iterator[Finding]:
    """The runtime for YouTube's challenges, as yt-dlp itself finds it, and the scripts that it runs there."""
    if "youtube" not in settings.source or not settings.video_url.startswith(YOUTUBE_URL.partition("{")[0]):
        return
    _import_ytdlp()
    from yt_dlp.dependencies import yt_dlp_ejs

    name, install = "JavaScript", f"Install one: {_PIP_INSTALL} deno."
    with _youtube_dl(settings) as youtube_dl:
        runtimes = {known: one.info for known, one in youtube_dl._js_runtimes.items() if one is not None}
    enabled = ", ".join(runtimes) or "none"
    usable = [info for info in runtimes.values() if info is not None and info.supported]
    too_old = [info for info in runtimes.values() if info is not None and not info.supported]
    if usable:
        yield Finding(name, State.OK, ", ".join(f"{info.name} {info.version} ({info.path})" for info in usable))
    elif too_old:
        yield Finding(name, State.WARNING, f"{too_old[0].name} {too_old[0].version} is too old for yt-dlp", install)
    elif other := _other_runtime(runtimes):
        fix = f"Let yt-dlp use it, in the configuration file: [youtube.ytdlp] js_runtimes = {{ {other} = {{}} }}."
        yield Finding(name, State.WARNING, f"yt-dlp may use {enabled} alone, which is not here, but {other} is", fix)
    else:
        found = f"no runtime (yt-dlp may use: {enabled}): some formats and videos of YouTube cannot be had"
        yield Finding(name, State.WARNING, found, install)
    if yt_dlp_ejs is None:
        fix = f"Install it: {_PIP_INSTALL} yt-dlp-ejs, of the version that this yt-dlp wants."
        yield Finding("yt-dlp-ejs", State.WARNING, "not installed: a runtime is of no use without it", fix)
    else:
        yield Finding("yt-dlp-ejs", State.OK, yt_dlp_ejs.version)


def _other_runtime(enabled: dict[str, Any]) -> str:
    """A runtime that is here, but that yt-dlp was not told to use; empty if there is none."""
    from yt_dlp.globals import supported_js_runtimes

    for name, runtime in supported_js_runtimes.value.items():
        if name not in enabled and (info := runtime().info) is not None and info.supported:
            return str(name)
    return ""


def cookies(settings: Settings) -> Iterator[Finding]:
    """Their file. What is in it is never shown."""
    path = settings.cookies
    if path is None:
        return
    export = "Export them again from a browser, in Netscape format."
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = io.StringIO(file.read(_LARGEST_COOKIES).decode()).readlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        yield Finding("cookies", State.PROBLEM, f"{path} cannot be read: {reason}", export)
        return
    if not lines or not _NETSCAPE.match(lines[0]):
        fix = f"{export[:-1]}; its first line is `# Netscape HTTP Cookie File`."
        yield Finding("cookies", State.PROBLEM, f"{path} is no Netscape cookie file", fix)
        return
    ends = [fields[4] for line in lines if len(fields := line.removeprefix("#HttpOnly_").split("\t")) == 7]
    now = time.time()
    # 0 or nothing: until the browser is closed, which does not matter here.
    valid = sum(not end or end == "0" or (end.isdecimal() and float(end) > now) for end in ends)
    found = f"{path}: {valid:,} that are valid, {len(ends) - valid:,} that are not any more"
    if mode & 0o007:
        fix = f"Whoever has them is you, to YouTube: chmod 600 {path}."
        yield Finding("cookies", State.WARNING, f"{found}; everybody may read it (mode {mode:04o})", fix)
    elif not valid:
        yield Finding("cookies", State.WARNING, found, export)
    else:
        yield Finding("cookies", State.OK, found)


CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "yt-dlp": ytdlp,
    "JavaScript": javascript,
    "cookies": cookies,
}


# In the cache


def blocks(settings: Settings) -> Iterator[Finding]:
    """Sources that want to be left alone."""
    try:
        seen = summarize_cache(settings.cache_dir)
    except StoreError:  # told by the check of the databases
        return
    for origin in seen.origins if seen else ():
        if origin.blocked_until is not None:
            wait = max(0.0, origin.blocked_until - time.time())
            until = f"for another {timedelta(seconds=round(wait))}" if wait else "until the next clip is tried"
            fix = "Wait; or, after a change of address or cookies: kinetics-fs failures clear --kind blocked"
            yield Finding(origin.name, State.WARNING, f"left alone {until}: {origin.reason}", fix)
        else:
            yield Finding(origin.name, State.OK, f"asked for {origin.fetches_last_hour:,} clips in the last hour")


def indexes(settings: Settings) -> Iterator[Finding]:
    """The archives that clips can be read out of."""
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB

    name, path = "archive indexes", settings.cache_dir / ARCHIVE_INDEXES
    if not path.exists():
        limit = settings.archive_stream_limit
        if settings.source == ("archive",) and not limit:
            fix = "Make or import one (kinetics-fs index), or give another --source."
            yield Finding(name, State.PROBLEM, "none, and clips shall come from archives alone", fix)
        else:
            instead = f"archives up to {filesize.decimal(limit)} are read whole" if limit else "archives are not asked"
            yield Finding(name, State.OK, f"none: {instead}")
        return
    try:
        with ArchiveIndexDB(path) as index_db:
            there = index_db.archives()
    except ArchiveError as error:
        fix = f"Remove {path}*, and make the indexes again or import them (kinetics-fs index)."
        yield Finding(name, State.PROBLEM, str(error), fix)
        return
    clips = sum(one.clips for one in there)
    yield Finding(name, State.OK, f"{len(there):,} archives with {clips:,} clips")


# On the network


class _Answer(NamedTuple):
    status: int
    date: str | None
    seconds: float


def youtube(settings: Settings) -> Iterator[Finding]:
    """Whether the host of the videos' pages answers, by the way that fetches take."""
    if "youtube" not in settings.source:
        return
    _import_ytdlp()
    from yt_dlp.networking import HEADRequest
    from yt_dlp.networking.exceptions import HTTPError, ProxyError, RequestError

    address = urlsplit(settings.video_url)
    by = " through the proxy" if settings.proxy else ""
    begun = time.monotonic()
    try:
        with _youtube_dl(settings) as youtube_dl:
            try:
                response = youtube_dl.urlopen(HEADRequest(f"{address.scheme}://{address.netloc}/"))
            except HTTPError as error:
                response = error.response
            answer = _Answer(response.status, response.headers.get("Date"), time.monotonic() - begun)
            response.close()
    except ProxyError as error:
        fix = "See that the proxy of --proxy runs, and lets you."
        yield Finding(
            "youtube", State.PROBLEM, f"the proxy does not let us to {address.hostname}: {_reason(error)}", fix
        )
    except RequestError as error:
        fix = "See to network, name service, firewall and --proxy." if not by else "See to the proxy of --proxy."
        yield Finding("youtube", State.PROBLEM, f"{address.hostname} is not reached{by}: {_reason(error)}", fix)
    else:
        yield from _answered("youtube", f"{address.hostname}{by}", answer)


def archives(settings: Settings, *, indexed: bool) -> Iterator[Finding]:
    """Whether the place of the archives is there. Unless some are `indexed`, there mostly is another way to a clip."""
    if ARCHIVES.isdisjoint(settings.source):
        return
    needed = indexed or settings.archive_url != PUBLIC_ARCHIVES or "youtube" not in settings.source
    bad = State.PROBLEM if needed else State.WARNING
    if "://" not in settings.archive_url:
        yield _folder_of_archives(Path(settings.archive_url), bad)
        return
    import requests

    from kinetics_fs.sources.archive.reader import open_archive
    from kinetics_fs.sources.archive.remote import RemoteArchive

    archive = open_archive(f"{settings.archive_url.rstrip('/')}/")
    assert isinstance(archive, RemoteArchive)
    address = archive.url
    host = urlsplit(address).hostname
    begun = time.monotonic()
    try:
        response = requests.head(address, timeout=_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        fix = "See to network, name service and firewall, or give another --archive-url."
        yield Finding("archives", bad, f"{host} is not reached: {_reason(error)}", fix)
    else:
        yield from _answered(
            "archives", str(host), _Answer(response.status_code, response.headers.get("Date"), time.monotonic() - begun)
        )


def _folder_of_archives(path: Path, bad: State) -> Finding:
    looked = look_at(path)
    fix = "Give the folder of archives as --archive-url, or mount its disk."
    if looked is None:
        return Finding("archives", bad, f"{path} does not answer", fix)
    if not looked.exists or looked.errno or looked.empty is not False:
        reason = os.strerror(looked.errno) if looked.errno else "it is no folder with anything in it"
        return Finding("archives", bad, f"{path} has no archives: {reason}", fix)
    return Finding("archives", State.OK, str(path))


def _answered(name: str, host: str, answer: _Answer) -> Iterator[Finding]:
    found = f"{host} answers within {answer.seconds * 1000:.0f} ms (HTTP {answer.status})"
    if answer.status == 407:
        yield Finding(name, State.PROBLEM, found, "Give the proxy's user and password in --proxy.")
    elif answer.status in _UNWILLING:
        yield Finding(name, State.WARNING, found, "Try again later: it does not want to answer at the moment.")
    else:
        yield Finding(name, State.OK, found)
    try:
        theirs = parsedate_to_datetime(answer.date or "").timestamp()
    except ValueError:
        return
    ahead = time.time() - theirs
    if abs(ahead) > _WRONG_CLOCK:
        way = "ahead of" if ahead > 0 else "behind"
        found = f"{timedelta(minutes=round(abs(ahead) / 60))} {way} that of {host}"
        yield Finding(
            "clock", State.WARNING, found, "Set the clock, or keep it right by NTP (timedatectl set-ntp true)."
        )
    else:
        yield Finding("clock", State.OK, f"as that of {host}")


def _reason(error: Exception) -> str:
    """What an error of a connection says, without the objects that it was about."""
    inner = error.args[0] if error.args else error
    text = str(getattr(inner, "reason", inner))
    return re.sub(r"^(<[^>]*>|\w*HTTPS?Connection\w*\([^)]*\)): ", "", text).partition(" (caused by")[0]


def _import_ytdlp() -> Any:
    """One thread at a time: its modules import each other in a circle."""
    with _IMPORTING:
        return importlib.import_module("yt_dlp")


def _youtube_dl(settings: Settings) -> Any:
    """A yt-dlp that asks as that of a worker does, but says nothing, keeps nothing, and knows no cookies."""
    from yt_dlp import YoutubeDL

    silent = logging.getLogger(f"{__name__}.yt-dlp")
    silent.setLevel(logging.CRITICAL + 1)
    return YoutubeDL(
        {
            "quiet": True,
            "proxy": settings.proxy or None,
            "source_address": settings.source_address or None,
            "socket_timeout": _TIMEOUT,
            **settings.ytdlp,
            "logger": silent,
            "cachedir": False,
            "cookiefile": None,
            "cookiesfrombrowser": None,
        }
    )
