"""All settings, in one table: flags, environment, configuration file and documentation are made from it.

A setting `cache-dir` is the flag `--cache-dir`, the variable `KINETICS_FS_CACHE_DIR` and the key `cache-dir` (or
`cache_dir`) in the configuration file. A flag goes before the environment, that before the file, that before the
default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import platformdirs

from kinetics_fs.catalog.naming import ClassNames
from kinetics_fs.errors import KineticsError
from kinetics_fs.sources.settings import PUBLIC_ARCHIVES, SOURCES, YOUTUBE_URL
from kinetics_fs.util import logs

ENVIRONMENT_PREFIX = "KINETICS_FS_"
LIST_SEPARATOR = ";"
"""Between the values of a list in an environment variable: labels hold spaces and may hold commas."""


@dataclass(frozen=True, slots=True)
class About:
    """What the table says of a setting, besides its default.

    Args:
        group: commands take whole groups.
        help: one line.
        metavar: what stands for the value in help texts; empty for a switch.
        kind: how text becomes a value: `text`, `count` (from 1), `number of clips` (from 0), `number`, `size`, `rate`,
            `height`, `port`, `path`, `switch`, `choice`, or `order` of choices.
        many: may be given more than once.
        choices: of a `choice`.
        shown_default: what help texts say where the default itself says little.
    """

    group: str
    help: str
    metavar: str = ""
    kind: str = "text"
    many: bool = False
    choices: tuple[str, ...] = ()
    shown_default: str | None = None


def _setting(default: Any, group: str, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"about": About(group, help, **rest)})


@dataclass(frozen=True, slots=True)
class Settings:
    """The values, whatever they came from."""

    release: str = _setting("600", "selection", "Release: 400, 600, 700 or 700-2020.", metavar="NAME")
    annotations: tuple[str, ...] = _setting(
        (),
        "selection",
        "Annotation file (CSV, JSON, gzip or tar) to use instead of the release's own.",
        metavar="PATH|URL",
        many=True,
        shown_default="the release's own, downloaded",
    )
    split: tuple[str, ...] = _setting(
        (), "selection", "Only this split: train, validation or test.", metavar="NAME", many=True, shown_default="all"
    )
    klass: tuple[str, ...] = _setting(
        (), "selection", "Only this class.", metavar="LABEL", many=True, shown_default="all"
    )
    max_samples: int | None = _setting(
        None,
        "selection",
        "At most so many clips of each split, taken evenly from the classes.",
        metavar="N",
        kind="count",
    )
    shuffle: bool = _setting(False, "selection", "With --max-samples: take clips at random.", kind="switch")
    seed: int | None = _setting(
        None, "selection", "With --shuffle: the same seed takes the same clips.", metavar="N", kind="integer"
    )

    cache_dir: Path = _setting(
        None,
        "store",
        "Folder of the clips that are here.",
        metavar="PATH",
        kind="path",
        shown_default="the user's cache folder",
    )
    cache_size: int | None = _setting(
        None, "store", "Most bytes of clips to keep, as 200GB.", metavar="SIZE", kind="size", shown_default="no limit"
    )
    min_free: int = _setting(
        10**9, "store", "Bytes of the disk to leave free.", metavar="SIZE", kind="size", shown_default="1GB"
    )

    workers: int = _setting(4, "fetch", "Clips to fetch at the same time.", metavar="N", kind="count")
    timeout: float = _setting(300.0, "fetch", "Seconds that the fetch of a clip may take.", metavar="S", kind="number")
    source: tuple[str, ...] = _setting(
        SOURCES,
        "fetch",
        "Where clips come from, in the order in which it is asked: archive (indexed, or that of a small class), folder"
        " (those that --folder names), youtube, and whole-archive (that of a class, however large).",
        metavar="NAMES",
        kind="order",
        choices=SOURCES,
        shown_default=",".join(SOURCES),
    )
    folder: tuple[Path, ...] = _setting(
        (),
        "fetch",
        "Folder of clips that are here already, as other tools leave them.",
        metavar="PATH",
        kind="path",
        many=True,
        shown_default="none",
    )
    archive_url: str = _setting(
        PUBLIC_ARCHIVES,
        "archive",
        "Where the archives of clips are: an http, https or s3 address, or a folder.",
        metavar="URL|PATH",
    )
    archive_stream_limit: int = _setting(
        200 * 10**6,
        "fetch",
        "Size up to which the archive of a class is read whole for the first clip of it, if no index is here.",
        metavar="SIZE",
        kind="size",
        shown_default="200MB",
    )
    rate: int | None = _setting(
        None,
        "fetch",
        "Most clips to ask for in any hour, over all mounts of the cache; 0 for no limit.",
        metavar="N/h",
        kind="rate",
        shown_default="300/h of YouTube itself, no limit elsewhere",
    )
    limit_rate: int | None = _setting(
        None,
        "fetch",
        "Most bytes a second to receive, as 5MB; shared out evenly among the workers.",
        metavar="SIZE",
        kind="size",
        shown_default="no limit",
    )
    cookies: Path | None = _setting(
        None,
        "fetch",
        "Cookies of a YouTube account, in a Netscape cookie file; read, never written.",
        metavar="PATH",
        kind="path",
        shown_default="none",
    )
    proxy: str | None = _setting(
        None, "fetch", "Proxy for YouTube: http, https or socks5.", metavar="URL", shown_default="none"
    )
    source_address: str | None = _setting(
        None, "fetch", "Local address to ask YouTube from.", metavar="IP", shown_default="the system's choice"
    )
    trim: str = _setting(
        "exact",
        "fetch",
        "How clips are cut: to the frame, by encoding anew, or quickly, as a copy that begins at a keyframe.",
        metavar="HOW",
        kind="choice",
        choices=("exact", "copy"),
    )
    max_height: int = _setting(360, "fetch", "Most lines of picture of a fetched clip.", metavar="N", kind="height")
    video_url: str = _setting(
        YOUTUBE_URL, "fetch", "Address of a video's page; {id} stands for its YouTube id.", metavar="TEMPLATE"
    )

    class_names: str = _setting(
        "raw",
        "names",
        "Names of class folders: the label, with _ for spaces, or as torchvision has them.",
        metavar="STYLE",
        kind="choice",
        choices=tuple(style.value for style in ClassNames),
    )
    hide_unavailable: bool = _setting(
        False, "view", "Leave out clips that are known to be gone, until they are due for another try.", kind="switch"
    )
    only: str = _setting(
        "all",
        "view",
        "What to show: all clips, or only those that are in the cache when it is mounted; then nothing is fetched.",
        metavar="WHAT",
        kind="choice",
        choices=("all", "cached"),
    )
    max_fetches: int | None = _setting(
        None,
        "view",
        "Most fetches that opens may begin, over the life of the mount; then they fail.",
        metavar="N",
        kind="count",
        shown_default="no limit",
    )
    max_fetch_bytes: int | None = _setting(
        None,
        "view",
        "Bytes that opens may fetch, over the life of the mount; then they fail.",
        metavar="SIZE",
        kind="size",
        shown_default="no limit",
    )
    readahead: int = _setting(
        0,
        "view",
        "Fetch so many clips ahead for who opens the clips of a folder in their order.",
        metavar="N",
        kind="number of clips",
        shown_default="0: none",
    )
    frontend: str = _setting(
        "auto",
        "view",
        "Who speaks to the kernel: we ourselves (kernel: Linux alone, and the default there) or libfuse 2 (fusepy).",
        metavar="NAME",
        kind="choice",
        choices=("auto", "kernel", "fusepy"),
    )
    passthrough: bool = _setting(
        True, "view", "Let the kernel read cached files itself, where it can (Linux 6.9, as root).", kind="switch"
    )
    allow_other: bool = _setting(
        os.geteuid() == 0, "view", "Let other users read the mount.", kind="switch", shown_default="on for root"
    )
    metrics_port: int | None = _setting(
        None,
        "view",
        "Tell metrics to Prometheus on this port of the loopback address; 0 takes a free one.",
        metavar="PORT",
        kind="port",
        shown_default="none",
    )
    log_file: Path | None = _setting(
        None,
        "view",
        "Log of a mount in the background.",
        metavar="PATH",
        kind="path",
        shown_default="a file in the user's log folder",
    )

    fsname: str = _setting("kinetics", "view", "What lists of mounts show as the source of this one.", metavar="NAME")
    log_format: str = _setting(
        "text",
        "log",
        "Lines of the log as text, or each as a JSON object.",
        metavar="FORMAT",
        kind="choice",
        choices=logs.FORMATS,
    )

    ytdlp: Mapping[str, Any] = field(default_factory=dict)
    """Parameters for `yt_dlp.YoutubeDL`; only from the table `[youtube.ytdlp]` of the configuration file."""

    def __post_init__(self) -> None:
        # Absolute, for a mount in the background is in another folder.
        object.__setattr__(self, "cache_dir", _absolute(self.cache_dir or default_cache_dir()))
        object.__setattr__(self, "annotations", tuple(map(_at_home, self.annotations)))
        object.__setattr__(self, "folder", tuple(map(_absolute, self.folder)))
        if "://" not in self.archive_url:
            object.__setattr__(self, "archive_url", str(_absolute(self.archive_url)))
        for name in "cookies", "log_file":
            if path := getattr(self, name):
                object.__setattr__(self, name, _absolute(path))

    def with_values(self, **values: Any) -> Settings:
        """The same but for these: by the names of their flags with `_` for `-`, or `classes` for `--class`.

        Raises:
            TypeError: there is no setting of that name.
        """
        lists = {item.name for item in fields(self) if isinstance(item.default, tuple)}
        given = {{"classes": "klass"}.get(name, name): value for name, value in values.items()}
        for name in lists & given.keys():
            value = given[name]
            given[name] = (value,) if isinstance(value, str | Path) else tuple(value)
        return replace(self, **given)


def _at_home(path: str | Path) -> str:
    """With a home for the `~` that no shell has looked at: in a file, in quotes, after `=`."""
    return os.path.expanduser(str(path))  # noqa: PTH111  # pathlib's raises where there is no such home


def _absolute(path: str | Path) -> Path:
    return Path(_at_home(path)).absolute()


def setting_name(field_name: str) -> str:
    """How a field of `Settings` is called outside: `class` and `cache-dir`."""
    return {"klass": "class"}.get(field_name, field_name.replace("_", "-"))


def table() -> dict[str, tuple[str, About, Any]]:
    """Name → (field of `Settings`, what it is, default), of all settings that have a flag."""
    return {
        setting_name(item.name): (item.name, item.metadata["about"], item.default)
        for item in fields(Settings)
        if "about" in item.metadata
    }


def default_cache_dir() -> Path:
    """The user's cache folder for us; the system's, for what the system starts."""
    return Path("/var/cache/kinetics-fs") if _is_the_systems() else platformdirs.user_cache_path("kinetics-fs")


def default_log_dir() -> Path:
    """The same for logs."""
    return Path("/var/log/kinetics-fs") if _is_the_systems() else platformdirs.user_log_path("kinetics-fs")


def default_config_file() -> Path:
    """Where the configuration file is looked for."""
    folder = Path("/etc/kinetics-fs") if _is_the_systems() else platformdirs.user_config_path("kinetics-fs")
    return folder / "config.toml"


def _is_the_systems() -> bool:
    """Whether this process is root's, and without a home: a service, or mounted from fstab."""
    return os.geteuid() == 0 and not {"HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"} & set(os.environ)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file: setting name → value as written, and `ytdlp` → a table.

    Raises:
        KineticsError: it cannot be read, is not TOML, or has a key that we do not know.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise KineticsError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except ValueError as error:
        raise KineticsError(f"the configuration file {path} is not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    youtube = document.pop("youtube", {})
    if not isinstance(youtube, dict) or set(youtube) - {"ytdlp"} or not isinstance(youtube.get("ytdlp", {}), dict):
        raise KineticsError(f"{path}: of [youtube] only the table [youtube.ytdlp] is known")
    values["ytdlp"] = youtube.get("ytdlp", {})
    known = table()
    for key, value in document.items():
        name = key.replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise KineticsError(f"{path}: unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        values[name] = value
    return values
