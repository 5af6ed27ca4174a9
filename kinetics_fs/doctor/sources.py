"""Checks of the sources of clips, and of the programs and files that fetches need."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rich import filesize

from kinetics_fs.config import Settings
from kinetics_fs.doctor.findings import WRONG_CLOCK, Finding, State, sentence
from kinetics_fs.errors import ArchiveError, FetchError, StoreError, root_cause
from kinetics_fs.mount.probe import probe_path
from kinetics_fs.sources.cookies import CookieError, read_cookies
from kinetics_fs.sources.folder_files import DANGLING, LINK_AGAIN, survey
from kinetics_fs.sources.settings import PUBLIC_ARCHIVES, is_youtube
from kinetics_fs.store import CacheLayout
from kinetics_fs.store.check import summarize_cache
from kinetics_fs.util.deadline import Deadline, within
from kinetics_fs.util.text import count

_PIP_INSTALL = f"{shlex.quote(sys.executable)} -m pip install"
"""Installs into the environment of this interpreter. Plain `pip` is the system's, which Debian blocks (PEP 668)."""

_OLD = timedelta(days=60)
"""Age after which yt-dlp is likely to fail: YouTube changes about every month."""
_TIMEOUT = 8.0
"""Time limit in seconds for the response of a server."""

_SURVEY_TIME = 10.0
"""Seconds for the names in all folders of clips."""
_GROUPS_SHOWN = 10
_NAMES = "Names are ID_START_END.mp4, or ID.mp4 for videos with one clip."

_UNWILLING = {429, 500, 502, 503, 504}
"""HTTP statuses of a server that is reachable but refuses the request for now."""

_IMPORTING = threading.Lock()


# On this machine


def ytdlp(settings: Settings) -> Iterator[Finding]:
    """Check the age of yt-dlp."""
    update = f"Update it: {_PIP_INSTALL} --upgrade yt-dlp yt-dlp-ejs."
    try:
        version: str = _import_ytdlp().version.__version__
    except ImportError as error:
        yield Finding("yt-dlp", State.PROBLEM, f"cannot load yt-dlp: {error}", update)
        return
    try:
        made = date(*(int(part) for part in version.split(".")[:3]))
    except (TypeError, ValueError):
        yield Finding("yt-dlp", State.WARNING, f"{version}, unknown release date", update)
        return
    age = datetime.now(UTC).date() - made
    if age > _OLD:
        found = f"{version} is {count(age.days, 'day')} old; YouTube changes about every month"
        yield Finding("yt-dlp", State.WARNING, found, update)
    else:
        yield Finding("yt-dlp", State.OK, version)


def javascript(settings: Settings) -> Iterator[Finding]:
    """Check the JavaScript runtime for YouTube's challenges, as yt-dlp finds it, and the solver scripts."""
    if "youtube" not in settings.source or not is_youtube(settings.video_url):
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
        fix = f"Enable it for yt-dlp in the configuration file: [youtube.ytdlp] js_runtimes = {{ {other} = {{}} }}."
        yield Finding(name, State.WARNING, f"{other} is installed, but yt-dlp is only allowed to use: {enabled}", fix)
    else:
        found = f"no runtime (yt-dlp may use: {enabled}): some formats and videos of YouTube are unavailable"
        yield Finding(name, State.WARNING, found, install)
    wanted = _wanted_ejs()
    fix = f"Install it: {_PIP_INSTALL} yt-dlp-ejs{f'=={wanted}' if wanted else ''}."
    if yt_dlp_ejs is None:
        yield Finding(
            "yt-dlp-ejs", State.WARNING, "not installed: yt-dlp cannot use a JavaScript runtime without it", fix
        )
    elif wanted not in ("", yt_dlp_ejs.version):
        found = f"{yt_dlp_ejs.version}, but this yt-dlp needs {wanted}: it may not use a JavaScript runtime"
        yield Finding("yt-dlp-ejs", State.WARNING, found, fix)
    else:
        yield Finding("yt-dlp-ejs", State.OK, yt_dlp_ejs.version)


def _wanted_ejs() -> str:
    """Return the version of the solver scripts that the installed yt-dlp requires in its extras; else nothing."""
    try:
        required = metadata.requires("yt-dlp") or []
    except metadata.PackageNotFoundError:  # installed in another way than by a package manager of Python
        return ""
    versions = (re.match(r"yt-dlp-ejs==([0-9][0-9.]*)", requirement) for requirement in required)
    return next((version[1] for version in versions if version), "")


def _other_runtime(enabled: dict[str, Any]) -> str:
    """Return the name of an installed runtime that yt-dlp is not allowed to use; an empty string if there is none."""
    from yt_dlp.globals import supported_js_runtimes

    for name, runtime in supported_js_runtimes.value.items():
        if name not in enabled and (info := runtime().info) is not None and info.supported:
            return str(name)
    return ""


def cookies(settings: Settings) -> Iterator[Finding]:
    """Check the cookie file. No finding shows its content."""
    path = settings.cookies
    if path is None:
        return
    try:
        cookies = read_cookies(path)
    except CookieError as error:
        fix = f"{error.cure[0].upper()}{error.cure[1:]}."
        yield Finding("cookies", State.PROBLEM, f"cannot use {path}: {error.cause}", fix)
        return
    found = f"{path}: {cookies.valid:,} valid, {cookies.expired:,} expired"
    warnings = cookies.warnings(path, on_youtube=is_youtube(settings.video_url))
    for warning in warnings:
        cause, _, cure = warning.rpartition("; ")
        yield Finding("cookies", State.WARNING, f"{found}; {cause}", f"{cure[0].upper()}{cure[1:]}.")
    if not warnings:
        yield Finding("cookies", State.OK, found)


def folders(settings: Settings) -> Iterator[Finding]:
    """Check the folders of clips, and list the files in them that are not used, by the pattern of their names."""
    if "folder" not in settings.source:
        return
    for path in settings.folder:
        yield from _folder(path, _SURVEY_TIME / len(settings.folder))


def _folder(path: Path, seconds: float) -> Iterator[Finding]:
    name = "folder"
    if probe_path(path) is None:
        yield Finding(name, State.PROBLEM, f"{path} does not answer", "Mount its disk, or leave out the --folder.")
        return
    found = survey([path], seconds=seconds)
    groups = found.unused.groups()
    usable = f"{path}: {count(found.usable, 'file')} with the name of a clip or video"
    if not found.complete:
        usable += f" among the first that were listed in {seconds:.0f} s"
    if found.usable:
        yield Finding(name, State.OK, usable)
    else:
        yield Finding(name, State.WARNING, usable, f"Give a folder that has clips. {_NAMES}")
    for reason in found.unreadable:
        yield Finding(name, State.WARNING, reason, "Check its permissions and its disk.")
    notable = [group for group in groups if group.notable]
    for group in notable[:_GROUPS_SHOWN]:
        links = group.reason in (DANGLING, LINK_AGAIN)
        fix = "Repair or remove the links." if links else f"Rename the files if they are good clips. {_NAMES}"
        yield Finding(name, State.WARNING, str(group), fix)
    if rest := sum(group.files for group in notable[_GROUPS_SHOWN:]):
        yield Finding(name, State.WARNING, f"{count(rest, 'file')} with other names not used", _NAMES)


CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "yt-dlp": ytdlp,
    "JavaScript": javascript,
    "cookies": cookies,
    "folders": folders,
}


# In the cache


def blocks(settings: Settings) -> Iterator[Finding]:
    """Report the sources that block this address."""
    try:
        seen = summarize_cache(settings.cache_dir)
    except StoreError:  # reported by the check of the databases
        return
    for source in seen.sources if seen else ():
        if source.blocked_until is not None:
            wait = max(0.0, source.blocked_until - time.time())
            until = f"for another {timedelta(seconds=round(wait))}" if wait else "until the next clip tests it"
            fix = "Wait. After a change of address or cookies, run: kinetics-fs failures clear --kind blocked"
            yield Finding(source.name, State.WARNING, f"blocked {until}: {source.reason}", fix)
        else:
            yield Finding(
                source.name, State.OK, f"{count(source.fetches_last_hour, 'clip')} requested in the last hour"
            )


def indexes(settings: Settings) -> Iterator[Finding]:
    """Check the indexes with which clips are read out of archives."""
    from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
    from kinetics_fs.sources.settings import is_remote

    name, path = "archive indexes", CacheLayout(settings.cache_dir).archive_indexes
    if not path.exists():
        limit = settings.max_archive_download if is_remote(settings.archive_url) else None
        if settings.source == ("archive",) and limit == 0:
            fix = "Build or import one (kinetics-fs index), or add another --source."
            yield Finding(name, State.PROBLEM, "none, and archives are the only source", fix)
        else:
            size = "" if limit is None else f" up to {filesize.decimal(limit)}"
            instead = "archives are not used" if limit == 0 else f"archives{size} are read as a whole"
            yield Finding(name, State.OK, f"none: {instead}")
        return
    try:
        with ArchiveIndexDB(path) as index_db:
            archives_indexed = index_db.archives()
    except ArchiveError as error:
        problem, _, remedy = str(error).rpartition("; ")
        yield Finding(name, State.PROBLEM, problem, sentence(remedy))
        return
    clips = sum(one.clips for one in archives_indexed)
    yield Finding(name, State.OK, f"{count(len(archives_indexed), 'archive')} with {count(clips, 'clip')}")


# On the network


class _Response(NamedTuple):
    status: int
    date: str | None
    seconds: float


def youtube(settings: Settings) -> Iterator[Finding]:
    """Check that the host of the video pages answers, over the same path that fetches use."""
    if "youtube" not in settings.source:
        return
    _import_ytdlp()
    from yt_dlp.networking import HEADRequest
    from yt_dlp.networking.exceptions import HTTPError, ProxyError, RequestError

    address = urlsplit(settings.video_url)
    by = " through the proxy" if settings.proxy else ""

    def ask() -> _Response:
        begun = time.monotonic()
        with _youtube_dl(settings) as youtube_dl:
            try:
                response = youtube_dl.urlopen(HEADRequest(f"{address.scheme}://{address.netloc}/"))
            except HTTPError as error:
                response = error.response
            response.close()
            return _Response(response.status, response.headers.get("Date"), time.monotonic() - begun)

    try:
        measured = within(_TIMEOUT, ask)
    except ProxyError as error:
        fix = "Check that the proxy of --proxy runs and accepts your connections."
        yield Finding(
            "youtube", State.PROBLEM, f"cannot reach {address.hostname} through the proxy: {_reason(error)}", fix
        )
    except (RequestError, TimeoutError) as error:
        fix = "Check the network, DNS, the firewall and --proxy." if not by else "Check the proxy of --proxy."
        yield Finding("youtube", State.PROBLEM, f"cannot reach {address.hostname}{by}: {_reason(error)}", fix)
    else:
        yield from _reached("youtube", f"{address.hostname}{by}", measured)


def archives(settings: Settings, *, indexed: bool) -> Iterator[Finding]:
    """Check that the archives can be reached.

    Args:
        settings: the settings of sources.
        indexed: True if the cache has archive indexes. Without any, clips usually have another source, so an
            unreachable archive is only a warning.
    """
    if "archive" not in settings.source:
        return
    needed = indexed or settings.archive_url != PUBLIC_ARCHIVES or "youtube" not in settings.source
    bad = State.PROBLEM if needed else State.WARNING
    if "://" not in settings.archive_url:
        yield _folder_of_archives(Path(settings.archive_url), bad)
        return
    from kinetics_fs.sources.archive.reader import open_archive
    from kinetics_fs.sources.archive.remote import RemoteArchive
    from kinetics_fs.util.session import Session

    try:
        archive = open_archive(f"{settings.archive_url.rstrip('/')}/")
    except FetchError as error:
        yield Finding("archives", bad, str(error), "Set AWS_PROFILE to a profile whose credentials work.")
        return
    assert isinstance(archive, RemoteArchive)
    address = archive.url
    host = urlsplit(address).hostname
    begun = time.monotonic()
    try:
        response = Session().request("HEAD", address, Deadline(_TIMEOUT), allow_redirects=False)
    except OSError as error:
        fix = "Check the network, DNS and the firewall, or set another --archive-url."
        yield Finding("archives", bad, f"cannot reach {host}: {root_cause(error)}", fix)
    else:
        yield from _reached(
            "archives",
            str(host),
            _Response(response.status_code, response.headers.get("Date"), time.monotonic() - begun),
        )


def _folder_of_archives(path: Path, bad: State) -> Finding:
    from kinetics_fs.sources.archive.location import locate, missing_note

    probe = probe_path(path)
    fix = "Set --archive-url to the folder of the archives, or mount its disk."
    if probe is None:
        return Finding("archives", bad, f"{path} does not answer", fix)
    if not probe.exists or probe.errno or (probe.empty is not False and not path.is_file()):
        reason = os.strerror(probe.errno) if probe.errno else "it does not exist, or is empty"
        return Finding("archives", bad, f"{path} has no archives: {reason}", fix)
    try:
        location = locate(str(path))
    except FetchError as error:
        return Finding("archives", bad, str(error), fix)
    if location.archive is None and (note := missing_note(location.base)):
        return Finding("archives", bad, note, fix)
    return Finding("archives", State.OK, f"{location.base}" + (f": {location.archive}" if location.archive else ""))


def _reached(name: str, host: str, response: _Response) -> Iterator[Finding]:
    found = f"{host} answers within {response.seconds * 1000:.0f} ms (HTTP {response.status})"
    if response.status == 407:
        yield Finding(name, State.PROBLEM, found, "Add the user and password of the proxy to --proxy.")
    elif response.status in _UNWILLING:
        yield Finding(name, State.WARNING, found, "Try again later: the server refuses requests for now.")
    else:
        yield Finding(name, State.OK, found)
    try:
        theirs = parsedate_to_datetime(response.date or "").timestamp()
    except ValueError:
        return
    ahead = time.time() - theirs
    if abs(ahead) > WRONG_CLOCK:
        way = "ahead of" if ahead > 0 else "behind"
        found = f"{timedelta(minutes=round(abs(ahead) / 60))} {way} the clock of {host}"
        yield Finding(
            "clock", State.WARNING, found, "Set the clock, or synchronize it with NTP (timedatectl set-ntp true)."
        )
    else:
        yield Finding("clock", State.OK, f"agrees with {host}")


def _reason(error: Exception) -> str:
    """Return the text of a connection error without the representations of Python objects in it."""
    inner = error.args[0] if error.args else error
    text = str(getattr(inner, "reason", inner))
    return re.sub(r"^(<[^>]*>|\w*HTTPS?Connection\w*\([^)]*\)): ", "", text).partition(" (caused by")[0]


def _import_ytdlp() -> Any:
    """Import yt-dlp in one thread at a time: its modules import each other in a cycle."""
    with _IMPORTING:
        return importlib.import_module("yt_dlp")


def _youtube_dl(settings: Settings) -> Any:
    """Return a YoutubeDL that connects as a worker does, but logs nothing, caches nothing and sends no cookies."""
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
