"""All settings in one table: flags, environment variables, configuration file and reference are made from it.

The setting `cache-dir` is the flag `--cache-dir`, the variable `KINETICS_FS_CACHE_DIR` and the key `cache-dir` (or
`cache_dir`) of the configuration file. A flag overrides the environment, the environment overrides the file, and the
file overrides the default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import platformdirs
from rich import filesize

from kinetics_fs.catalog.naming import ClassNames
from kinetics_fs.errors import KineticsError, SettingError, printable
from kinetics_fs.sources.settings import MAX_ARCHIVE_DOWNLOAD, PUBLIC_ARCHIVES, SOURCES, YOUTUBE_URL
from kinetics_fs.util import logs

ENVIRONMENT_PREFIX = "KINETICS_FS_"
LIST_SEPARATOR = ";"
"""Separates the values of a list in an environment variable: class labels contain spaces and may contain commas."""

SECTIONS = {
    "selection": "Selection",
    "cache": "Cache",
    "limits": "Cache",
    "shared": "Shared store",
    "cut": "Sources",
    "sources": "Sources",
    "archive": "Sources",
    "network": "Network",
    "names": "Names",
    "mount": "Mount",
    "log": "Logging",
}
"""Group of settings → heading in help texts and in the reference. A command takes whole groups."""

Kind = Literal["text", "integer", "seconds", "size", "limit", "rate", "hourly", "path", "switch", "choice", "order"]
"""How text becomes a value: `limit` is a size or `none`, `rate` a size per second, `hourly` a number per hour, `order`
a comma-separated list of distinct choices."""

_MIN_CACHE = 100 * 10**6
_MIN_BANDWIDTH = 10 * 10**3
"""Bytes per second. At less, a clip of the mean size takes more than two minutes."""


@dataclass(frozen=True, slots=True)
class About:
    """Description of a setting in the table.

    Args:
        group: key of `SECTIONS`.
        help: one or two sentences, with limit and unit.
        metavar: placeholder for the value in help texts; empty for a switch.
        kind: how text becomes a value.
        minimum: least value of an `integer`; None for no bound.
        maximum: greatest value of an `integer`; None for no bound.
        repeatable: the value is a list, and the flag may be given more than once.
        choices: valid values of a `choice` or an `order`.
        default_text: what help texts show as the default, where the default itself says little.
        rare: help texts leave it out; `--help-all` and the reference show it.
    """

    group: str
    help: str
    metavar: str = ""
    kind: Kind = "text"
    minimum: int | None = None
    maximum: int | None = None
    repeatable: bool = False
    choices: tuple[str, ...] = ()
    default_text: str | None = None
    rare: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table.

    Attributes:
        name: name of the flag, without its dashes: `cache-dir`.
        field: attribute of `Settings`: `cache_dir`.
        default: value where none is given.
        about: description.
    """

    name: str
    field: str
    default: Any
    about: About

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper().replace("-", "_")


_HARMLESS_FOR_ROOT = frozenset(
    {
        *(
            "check_formats",
            "extractor_retries",
            "force_ipv4",
            "force_ipv6",
            "format",
            "format_sort",
            "format_sort_force",
        ),
        *("fragment_retries", "geo_bypass", "geo_bypass_country", "geo_bypass_ip_block", "geo_verification_proxy"),
        *("http_chunk_size", "http_headers", "impersonate", "legacyserverconnect", "nocheckcertificate", "noprogress"),
        *("prefer_insecure", "proxy", "quiet", "ratelimit", "retries", "sleep_interval", "sleep_interval_requests"),
        *("max_sleep_interval", "socket_timeout", "source_address", "throttledratelimit", "verbose", "no_warnings"),
    }
)
"""Parameters of `yt_dlp.YoutubeDL` with which it can neither run a program nor read or write a file."""


def _setting(default: Any, group: str, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"about": About(group, help, **rest)})


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of all settings, wherever they came from."""

    release: str = _setting("600", "selection", "Release to use: 400, 600, 700 or 700-2020.", metavar="NAME")
    annotations: tuple[str, ...] = _setting(
        (),
        "selection",
        "Annotation file (CSV, JSON, list of paths, gzip or tar) to use instead of the release's own. Repeatable.",
        metavar="PATH|URL",
        repeatable=True,
        default_text="the release's own, downloaded once",
    )
    annotations_only: bool = _setting(
        False,
        "selection",
        "Leave out the clips that indexed archives have and no list of the release names.",
        kind="switch",
        rare=True,
    )
    archive_clips: bool = _setting(
        False,
        "selection",
        "With --annotations: include the clips that indexed archives have and the files do not name.",
        kind="switch",
        rare=True,
    )
    split: tuple[str, ...] = _setting(
        (),
        "selection",
        "Split to include: train, validation or test. Repeatable.",
        metavar="NAME",
        repeatable=True,
        default_text="all splits",
    )
    klass: tuple[str, ...] = _setting(
        (),
        "selection",
        "Class to include, by its label. Repeatable.",
        metavar="LABEL",
        repeatable=True,
        default_text="all classes",
    )
    max_samples: int | None = _setting(
        None,
        "selection",
        "Maximum number of clips per split, taken evenly from the classes.",
        metavar="N",
        kind="integer",
        minimum=1,
        default_text="no limit",
    )
    shuffle: bool = _setting(False, "selection", "With --max-samples: select clips at random.", kind="switch")
    seed: int | None = _setting(
        None,
        "selection",
        "With --shuffle: seed of the random selection. The same seed selects the same clips on every machine.",
        metavar="N",
        kind="integer",
        default_text="a new seed each time",
    )

    available: bool = _setting(
        False,
        "selection",
        "Leave out clips that are known to be unavailable (gone, credentials or corrupt), so that --max-samples counts"
        " available clips.",
        kind="switch",
    )

    cache_dir: Path = _setting(
        None,
        "cache",
        "Directory of the cache. Only its owner can access it.",
        metavar="PATH",
        kind="path",
        default_text="the user's cache directory, on Linux ~/.cache/kinetics-fs",
    )
    cache_size: int | Literal["none"] | None = _setting(
        None,
        "limits",
        "Maximum size of the cache, for example 200GB, or none for no limit. The cache keeps it: all mounts and"
        " commands obey it until another one is given. The least recently opened clips are evicted first.",
        metavar="SIZE",
        kind="limit",
        default_text="the limit that the cache has; a new cache has none",
    )
    shrink: bool = _setting(
        False,
        "limits",
        "With a --cache-size that is less than the cache has now: evict clips at once.",
        kind="switch",
    )
    small_cache: bool = _setting(
        False,
        "limits",
        "Allow a --cache-size of less than 100MB, for tests and demonstrations.",
        kind="switch",
        rare=True,
    )
    min_free: int = _setting(
        10**9,
        "limits",
        "Space to leave free on the disk of the cache, whatever --cache-size allows.",
        metavar="SIZE",
        kind="size",
        default_text="1GB",
        rare=True,
    )

    shared: str | None = _setting(
        None,
        "shared",
        "Store that several machines use: s3://BUCKET/PREFIX, gs:// or az:// (extra shared), or a folder on a shared"
        " filesystem. Clips are read from it before any source is asked. kinetics-fs shared init creates it.",
        metavar="URL|PATH",
        default_text="none",
    )
    shared_write: str = _setting(
        "all",
        "shared",
        "Clips to upload to the shared store: all that this machine fetches, youtube (only those from YouTube), or"
        " none.",
        metavar="WHICH",
        kind="choice",
        choices=("all", "youtube", "none"),
    )
    rate_group: str = _setting(
        "default",
        "shared",
        "Name of the machines that share one public address. They share one --max-fetches-per-hour for each source, and"
        " stop together if the source blocks the address.",
        metavar="NAME",
        default_text="default, one for all machines of the store",
        rare=True,
    )

    source: tuple[str, ...] = _setting(
        SOURCES,
        "sources",
        "Sources of clips, in the order in which they are tried: archive (see --max-archive-download), folder (see"
        " --folder) and youtube.",
        metavar="NAMES",
        kind="order",
        choices=SOURCES,
        default_text=",".join(SOURCES),
    )
    folder: tuple[Path, ...] = _setting(
        (),
        "sources",
        "Folder of clips that you already have, in the layout of any download tool. Repeatable.",
        metavar="PATH",
        kind="path",
        repeatable=True,
        default_text="none",
    )
    archive_url: str = _setting(
        PUBLIC_ARCHIVES,
        "archive",
        "Location of the archives of clips: an http, https or s3 URL, a folder, or one archive.",
        metavar="URL|PATH",
    )
    max_archive_download: int = _setting(
        MAX_ARCHIVE_DOWNLOAD,
        "sources",
        "Maximum number of bytes that opening one clip may download from archives. A class archive without an index is"
        " read whole only if it is not larger. Archives in a local folder have no limit.",
        metavar="SIZE",
        kind="size",
        default_text="200MB",
    )
    trim: str = _setting(
        "exact",
        "cut",
        "How clips are cut: exact (to the frame, by re-encoding) or copy (fast; the clip starts at a keyframe, and an"
        " edit list, which many readers ignore, hides the frames before the annotated time).",
        metavar="HOW",
        kind="choice",
        choices=("exact", "copy"),
        rare=True,
    )
    max_height: int = _setting(
        360,
        "cut",
        "Maximum height of a clip that is cut out of a longer video, in pixels. The cache keeps clips apart that were"
        " cut with other settings.",
        metavar="PIXELS",
        kind="integer",
        minimum=2,
    )
    short_clips: str = _setting(
        "accept",
        "sources",
        "What to do with a clip from an archive or a folder that has less than 90 % of its annotated time: accept (use"
        " it), or youtube (before it is used, ask YouTube once for a longer one, and use the longer of the two).",
        metavar="HOW",
        kind="choice",
        choices=("accept", "youtube"),
        rare=True,
    )
    video_url: str = _setting(
        YOUTUBE_URL,
        "sources",
        "URL of a video's page; {id} is replaced by the YouTube id.",
        metavar="TEMPLATE",
        rare=True,
    )

    workers: int = _setting(
        4, "network", "Number of clips to fetch at the same time.", metavar="N", kind="integer", minimum=1, maximum=256
    )
    timeout: float = _setting(
        300.0,
        "network",
        "Maximum time to fetch one clip, in seconds.",
        metavar="SECONDS",
        kind="seconds",
        default_text="300",
        rare=True,
    )
    max_fetches_per_hour: int | None = _setting(
        None,
        "network",
        "Maximum number of clips to request from YouTube in any hour, for example 300/h, shared by all mounts and"
        " commands that use the cache; 0 for no limit.",
        metavar="N",
        kind="hourly",
        default_text="300/h from YouTube, no limit elsewhere",
    )
    max_bandwidth: int | None = _setting(
        None,
        "network",
        "Maximum number of bytes to receive per second, for example 5MB, divided evenly among the workers; 0 for no"
        " limit.",
        metavar="SIZE",
        kind="rate",
        default_text="no limit",
    )
    cookies: Path | None = _setting(
        None,
        "network",
        "Cookies of a YouTube account, as a Netscape cookie file. The file is read and never written.",
        metavar="PATH",
        kind="path",
        default_text="none",
    )
    proxy: str | None = _setting(
        None,
        "network",
        "Proxy for YouTube: an http, https or socks5 URL. Other users can see the command line, so put a password into"
        " the configuration file or the environment.",
        metavar="URL",
        default_text="none",
    )
    source_address: str | None = _setting(
        None,
        "network",
        "Local IP address to connect to YouTube from.",
        metavar="IP",
        default_text="the system's choice",
        rare=True,
    )

    class_names: str = _setting(
        "raw",
        "names",
        "Names of class directories: raw (the label), underscore (spaces become _) or torchvision (as torchvision's"
        " Kinetics dataset names them).",
        metavar="STYLE",
        kind="choice",
        choices=tuple(style.value for style in ClassNames),
    )

    hide_unavailable: bool = _setting(
        False,
        "mount",
        "Hide clips that are known to be unavailable (gone, credentials or corrupt), until their next retry is due.",
        kind="switch",
    )
    only: str = _setting(
        "all",
        "mount",
        "Clips to show: all, or cached (those in the cache at the time of mounting; nothing is fetched).",
        metavar="WHICH",
        kind="choice",
        choices=("all", "cached"),
    )
    max_fetches: int | None = _setting(
        None,
        "mount",
        "Maximum number of fetches that opens may start during the life of the mount. Further opens fail with EDQUOT.",
        metavar="N",
        kind="integer",
        minimum=1,
        default_text="no limit",
    )
    max_fetch_bytes: int | None = _setting(
        None,
        "mount",
        "Maximum number of bytes that opens may fetch during the life of the mount. Further opens fail with EDQUOT.",
        metavar="SIZE",
        kind="size",
        default_text="no limit",
    )
    readahead: int = _setting(
        0,
        "mount",
        "Number of clips to prefetch when a process reads a class directory in order.",
        metavar="N",
        kind="integer",
        minimum=0,
        default_text="0, no prefetch",
    )
    frontend: str = _setting(
        "auto",
        "mount",
        "How the mount talks to the kernel: native (the FUSE protocol directly, Linux only), fusepy (libfuse 2), or"
        " auto (native on Linux, else fusepy).",
        metavar="NAME",
        kind="choice",
        choices=("auto", "native", "fusepy"),
        rare=True,
    )
    passthrough: bool = _setting(
        True,
        "mount",
        "Let the kernel read cached files directly. This requires Linux 6.9 or newer, root and the native front end.",
        kind="switch",
        rare=True,
    )
    allow_other: bool = _setting(
        os.geteuid() == 0,
        "mount",
        "Let other users read the mount. Without root, this requires the line user_allow_other in /etc/fuse.conf.",
        kind="switch",
        default_text="on for root, off for others",
    )
    metrics_port: int | None = _setting(
        None,
        "mount",
        "Serve Prometheus metrics on this port of the loopback address; 0 selects a free port.",
        metavar="PORT",
        kind="integer",
        minimum=0,
        maximum=65535,
        default_text="no metrics server",
    )
    log_file: Path | None = _setting(
        None,
        "mount",
        "Log file of a mount that runs in the background. SIGHUP reopens it.",
        metavar="PATH",
        kind="path",
        default_text="a file in the user's log directory",
    )
    fsname: str = _setting(
        "kinetics", "mount", "Source of the mount, as lists of mounts show it.", metavar="NAME", rare=True
    )

    log_format: str = _setting(
        "text",
        "log",
        "Format of log lines: text, or json (one object per line).",
        metavar="FORMAT",
        kind="choice",
        choices=logs.FORMATS,
    )

    ytdlp: Mapping[str, Any] = field(default_factory=dict)
    """Parameters for `yt_dlp.YoutubeDL`; only from the table `[youtube.ytdlp]` of the configuration file."""

    def __post_init__(self) -> None:
        # A mount in the background changes its working directory.
        object.__setattr__(self, "cache_dir", _absolute(self.cache_dir or default_cache_dir()))
        object.__setattr__(self, "annotations", tuple(map(_expand_home, self.annotations)))
        words = (word.strip() for text in self.split for word in text.split(","))
        object.__setattr__(self, "split", tuple(word for word in words if word))
        object.__setattr__(self, "folder", tuple(map(_absolute, self.folder)))
        if "://" not in self.archive_url:
            object.__setattr__(self, "archive_url", str(_absolute(self.archive_url)))
        if self.shared is not None and "://" not in self.shared:
            object.__setattr__(self, "shared", str(_absolute(self.shared)))
        for name in "cookies", "log_file":
            if path := getattr(self, name):
                object.__setattr__(self, name, _absolute(path))
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuse sizes that are hardly meant.

        Raises:
            SettingError: the cache or the bandwidth is too small.
        """
        size, rate = self.cache_size, self.max_bandwidth
        if isinstance(size, str) and size != "none":
            raise SettingError(
                f"cannot use --cache-size {size!r}: it is not a number of bytes; write 200 * 10**9 for 200GB, or none"
            )
        if isinstance(size, int) and size < _MIN_CACHE and not self.small_cache:
            raise SettingError(
                f"cannot use --cache-size {filesize.decimal(size)}: the minimum is {filesize.decimal(_MIN_CACHE)};"
                " give more, none for no limit, or --small-cache if you mean it"
            )
        if rate and rate < _MIN_BANDWIDTH:
            raise SettingError(
                f"cannot use --max-bandwidth {filesize.decimal(rate)}: the minimum is"
                f" {filesize.decimal(_MIN_BANDWIDTH)} per second; give more, or 0 for no limit"
            )

    def with_values(self, **values: Any) -> Settings:
        """Return a copy with other values for some settings.

        Args:
            values: by the names of the flags, with `_` instead of `-`, and `classes` instead of `--class`. A
                repeatable setting takes a list, a tuple or a single value.

        Raises:
            TypeError: a name is not that of a setting.
        """
        lists = {item.name for item in fields(self) if isinstance(item.default, tuple)}
        given = {{"classes": "klass"}.get(name, name): value for name, value in values.items()}
        for name in lists & given.keys():
            value = given[name]
            given[name] = (value,) if isinstance(value, str | Path) else tuple(value)
        return replace(self, **given)


def _expand_home(path: str | Path) -> str:
    """Expand a leading `~`, which a shell leaves alone in a file, in quotes and after `=`."""
    return os.path.expanduser(str(path))  # noqa: PTH111  # Path.expanduser raises if the user does not exist


def _absolute(path: str | Path) -> Path:
    return Path(_expand_home(path)).absolute()


def table() -> dict[str, Setting]:
    """Return all settings that have a flag, by their names."""
    rows = (
        Setting({"klass": "class"}.get(item.name, item.name.replace("_", "-")), item.name, item.default, about)
        for item in fields(Settings)
        if (about := item.metadata.get("about")) is not None
    )
    return {row.name: row for row in rows}


def default_cache_dir() -> Path:
    """Return the default cache directory: the user's, or the system's for a process that the system starts."""
    return Path("/var/cache/kinetics-fs") if _is_system_process() else platformdirs.user_cache_path("kinetics-fs")


def default_log_dir() -> Path:
    """Return the default directory of log files, of the user or of the system."""
    return Path("/var/log/kinetics-fs") if _is_system_process() else platformdirs.user_log_path("kinetics-fs")


def default_config_file() -> Path:
    """Return the path of the configuration file that is read if none is named; it may not exist."""
    folder = Path("/etc/kinetics-fs") if _is_system_process() else platformdirs.user_config_path("kinetics-fs")
    return folder / "config.toml"


def _is_system_process() -> bool:
    """Return whether this process belongs to root and has no home: a service, or a mount from fstab."""
    return os.geteuid() == 0 and not {"HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"} & set(os.environ)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a setting and is none."""
    known = {setting.variable for setting in table().values()} | set(logs.VARIABLES)
    known |= {f"{ENVIRONMENT_PREFIX}CONFIG", f"{ENVIRONMENT_PREFIX}QUIET"}
    warnings = []
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"the environment variable {printable(name)} is ignored: there is no such setting{hint}")
    return warnings


def _ytdlp_parameters(path: Path, status: os.stat_result, youtube: Any) -> dict[str, Any]:
    """Return the parameters for yt-dlp in the table `[youtube]` of a configuration file.

    Some parameters make yt-dlp run programs or load code, with the rights of this process.

    Raises:
        KineticsError: the table is invalid; or this process is root, and the file does not allow such parameters.
    """
    parameters = youtube.get("ytdlp", {}) if isinstance(youtube, dict) else None
    if not isinstance(parameters, dict) or set(youtube) - {"ytdlp", "programs"}:
        raise KineticsError(
            f"cannot read the configuration file {path}: [youtube] may contain only programs = true and the table"
            " [youtube.ytdlp]"
        )
    risky = sorted(name for name, value in parameters.items() if not _is_harmless(name, value))
    is_private = status.st_uid == 0 and not status.st_mode & 0o022
    if risky and os.geteuid() == 0 and not (is_private and youtube.get("programs") is True):
        raise KineticsError(
            f"cannot use the configuration file {path}: root must not give yt-dlp {', '.join(risky)}, which can run"
            " programs; remove that, or make the file writable by root alone and set programs = true in [youtube]"
        )
    return parameters


def _is_harmless(name: str, value: Any) -> bool:
    """Return whether a parameter of yt-dlp can neither run a program nor read or write a file."""
    if name == "js_runtimes":
        return isinstance(value, dict) and not any(value.values())  # without paths
    if name == "extractor_args":
        return isinstance(value, dict) and set(value) <= {"youtube", "youtubetab"}  # others belong to plugins
    return name in _HARMLESS_FOR_ROOT


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Returns:
        Field of `Settings` → value as written, which `click` takes as a `default_map`: it converts and checks the
        values like those of flags.

    Raises:
        KineticsError: the file cannot be read, is not TOML, or has an unknown key.
    """
    try:
        with path.open("rb") as file:
            document, status = tomllib.loads(file.read().decode()), os.fstat(file.fileno())
    except OSError as error:
        raise KineticsError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise KineticsError(f"cannot read the configuration file {path}: it is not valid TOML: {error}") from error
    values: dict[str, Any] = {"ytdlp": _ytdlp_parameters(path, status, document.pop("youtube", {}))}
    known = table()
    for key, value in document.items():
        setting = known.get(key.replace("_", "-"))
        if setting is None:
            near = difflib.get_close_matches(key.replace("_", "-"), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "kinetics-fs mount --help-all lists most settings"
            raise KineticsError(f"cannot read the configuration file {path}: unknown setting {key!r}; {hint}")
        values[setting.field] = [value] if setting.about.repeatable and not isinstance(value, list) else value
    return values
