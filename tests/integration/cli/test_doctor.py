"""Tests of `kinetics-fs doctor`: each fault that a test causes is found and named, and nothing else is reported."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.config import Settings
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.doctor import Finding, State, fuse, sources, system
from kinetics_fs.doctor import cache as cache_checks
from kinetics_fs.doctor.findings import examine
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.mount import find_mounts, fusermount
from kinetics_fs.mount.probe import PathProbe, probe_path
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import MountFactory
from tests.support.command_line import has_ended, run_command
from tests.support.liars import HTTP_LIARS, Talk, ends_in_time, lying_server
from tests.support.store import SmallDisk
from tests.support.store_fixtures import small_disk as small_disk
from tests.support.store_fixtures import without_privileges as without_privileges

SECRET = "hunter2"
HERE = PathProbe("/", exists=True, errno=0)

Said = dict[str, list[dict[str, str]]]


def doctor(*arguments: str | Path, status: int) -> Said:
    """Run `kinetics-fs doctor --json`, check its exit status and return the findings by name."""
    done = run_command("doctor", "--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr == ""
    assert SECRET not in done.stdout
    report = json.loads(done.stdout)
    found: Said = {}
    for finding in report["findings"]:
        found.setdefault(finding["name"], []).append(finding)
        assert bool(finding["fix"]) == (finding["state"] != "ok") or "check failed" in finding["found"]
    assert report["problems"] == sum(one["state"] == "problem" for all in found.values() for one in all)
    assert report["warnings"] == sum(one["state"] == "warning" for all in found.values() for one in all)
    return found


def one(findings: Iterator[Finding], state: State, *words: str) -> None:
    """Assert that there is exactly one finding, with this state, whose text contains these words."""
    [finding] = findings
    assert finding.state is state, finding
    for word in words:
        assert word in f"{finding.found} {finding.fix}", finding


@pytest.fixture
def settings(cache: Path) -> Settings:
    return Settings(cache_dir=cache, min_free=0, allow_other=False)


@pytest.fixture
def nobody(without_privileges: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Drop the effective user of this process to `nobody`."""
    with without_privileges():
        yield


@contextmanager
def server(*, days: float = 0, status: int = 200) -> Iterator[str]:
    """Run a server that answers every request with `status`, and whose clock is wrong by `days`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + days * 86400, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as site:
        threading.Thread(target=partial(site.serve_forever, poll_interval=0.02), daemon=True).start()
        yield f"http://127.0.0.1:{site.server_address[1]}"
        site.shutdown()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# All together


def test_doctor_finds_no_problem_and_changes_nothing(cache: Path, tmp_path: Path, site: VideoSite) -> None:
    (tmp_path / "archives/600/val").mkdir(parents=True)
    (tmp_path / "archives/600/val/surfing water.tar.gz").touch()
    everywhere = "--cache-dir", cache, "--min-free", "0", "--video-url", site.url_template
    found = doctor(*everywhere, "--archive-url", tmp_path / "archives", tmp_path / "mnt", status=0)

    expected = {
        *(
            "python",
            "ffmpeg",
            "open files",
            "sandbox",
            "/dev/fuse",
            "right to mount",
            "kernel",
            "passthrough",
            "request timeout",
        ),
        *("cache directory", "cache disk", "cache space", "archive indexes", "yt-dlp", "youtube", "clock", "archives"),
        "mount",
    }
    assert expected <= set(found)
    assert {one["state"] for one in found["youtube"] + found["clock"] + found["archives"] + found["mount"]} == {"ok"}
    # Looking changes nothing.
    assert not cache.exists()
    assert not (tmp_path / "mnt").exists()
    assert [path for path, _ in site.requests] == ["/"]

    text = run_command("doctor", *everywhere, "--offline", tmp_path / "mnt").stdout.splitlines()
    assert {line[9:25].strip() for line in text[:-1]} - {""} == {
        name for name in found if name not in {"youtube", "clock", "archives"}
    }
    assert "\x1b" not in "".join(text)
    assert [path for path, _ in site.requests] == ["/"]


def test_a_failing_or_hanging_check_affects_no_other() -> None:
    stop = threading.Event()

    def broken() -> Iterator[Finding]:
        yield Finding("a", State.OK, "half of it")
        raise ValueError(f"a defect at http://you:{SECRET}@host/")

    def hanging() -> Iterator[Finding]:
        stop.wait(60)
        yield Finding("b", State.OK, "late")

    def good() -> Iterator[Finding]:
        yield Finding("c", State.OK, "fine\x1b[2J")

    found = list(examine([("a", broken), ("b", hanging), ("c", good)], timeout=0.3))
    stop.set()

    assert [(one.name, one.state) for one in found] == [
        ("a", State.OK),
        ("a", State.PROBLEM),
        ("b", State.PROBLEM),
        ("c", State.OK),
    ]
    assert found[1].found == "check failed: ValueError: a defect at http://…@host/"
    assert "no answer" in found[2].found
    assert "\x1b" not in found[3].found


# Programs and rights


def test_doctor_reports_an_unusable_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_ffmpeg()
    one(system.ffmpeg(), State.OK, real, "libx264")

    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    fake = script(folder / "ffmpeg", f'case "$*" in *libx264*) exit 1;; esac; exec "{real}" "$@"')
    one(system.ffmpeg(), State.PROBLEM, str(fake), "cannot encode with libx264")
    script(folder / "ffmpeg", "exit 127")
    one(system.ffmpeg(), State.PROBLEM, "does not run")
    # The system has none: then it is that of the package.
    fake.unlink()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    one(system.ffmpeg(), State.OK, "imageio_ffmpeg")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    one(system.ffmpeg(), State.PROBLEM, "Install")


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.ENOENT, "modprobe fuse"), (errno.EPERM, "--device"), (errno.EACCES, "chmod 666")]
)
def test_doctor_reports_an_inaccessible_fuse_device(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    one(fuse.device(settings), State.OK)

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    one(fuse.device(settings), State.PROBLEM, os.strerror(number), fix)


def test_doctor_reports_a_missing_right_to_mount(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    helper = script(tmp_path / "bin/fusermount3", "")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    if os.geteuid() == 0:
        one(fuse.rights(settings), State.OK, "CAP_SYS_ADMIN")
    else:
        one(fuse.rights(settings), State.PROBLEM)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(fusermount, "find_fusermount", lambda: None)
    request.getfixturevalue("nobody")
    one(fuse.rights(settings), State.PROBLEM, "fusermount3", "fuse3")
    one(fuse.passthrough(settings, HERE), State.OK, "no", "it needs root")
    for module in (fuse, fusermount):
        monkeypatch.setattr(module, "find_fusermount", lambda: str(helper))
    monkeypatch.setattr(Path, "stat", lambda _: os.stat_result((0o100755, *[0] * 9)))
    one(fuse.rights(settings), State.PROBLEM, "not setuid")
    monkeypatch.setattr(Path, "stat", lambda _: os.stat_result((0o104755, *[0] * 9)))
    one(fuse.rights(settings), State.OK, str(helper))


def test_doctor_reports_a_missing_user_allow_other(
    settings: Settings, nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Settings(cache_dir=settings.cache_dir, allow_other=True)
    for allowed, asked, state in (
        (False, settings, State.OK),
        (False, shared, State.PROBLEM),
        (True, shared, State.OK),
    ):
        monkeypatch.setattr(fuse, "allows_other", lambda allowed=allowed: allowed)
        one(fuse.other_users(asked), state, "user_allow_other" if state is State.PROBLEM else "set")


def test_doctor_reports_old_kernels_and_request_timeouts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.8.0-generic")
    one(fuse.kernel(settings), State.OK, "6.8.0")
    one(fuse.passthrough(settings, HERE), State.OK, "no", "6.9")
    one(fuse.passthrough(Settings(passthrough=False), HERE), State.OK, "no", "turned off")
    monkeypatch.setattr("platform.release", lambda: "4.19.0")
    one(fuse.kernel(settings), State.PROBLEM, "4.19.0", "5.4")

    monkeypatch.setattr("kinetics_fs.mount.native.device.request_timeout", lambda: 120)
    one(fuse.request_timeout(settings), State.WARNING, "120", "--timeout")
    one(fuse.request_timeout(Settings(timeout=60)), State.OK, "120")


# The cache


def test_doctor_reports_a_full_disk(small_disk: SmallDisk, settings: Settings) -> None:
    disk = small_disk(8 * 10**6)
    cache = "--cache-dir", disk / "cache", "--min-free", "1GB"
    found = doctor("--offline", *cache, "--source", "youtube", status=1)
    assert [one["state"] for one in found["cache space"] + found["cache disk"]] == ["problem", "warning"]
    assert "tmpfs" in found["cache disk"][0]["found"]

    looked = probe_path(disk)
    assert looked is not None
    large = Settings(cache_dir=disk, min_free=0, cache_size=10**9)
    one(cache_checks.space(large, looked), State.WARNING, "1.0 GB", "8.0 MB")
    one(
        cache_checks.space(Settings(cache_dir=disk, min_free=0, cache_size=4 * 10**6, small_cache=True), looked),
        State.OK,
    )
    one(
        cache_checks.space(Settings(cache_dir=disk, min_free=0, cache_size=1000, small_cache=True), looked),
        State.PROBLEM,
        "--cache-size",
    )


def test_doctor_warns_about_a_network_filesystem(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked = probe_path(tmp_path)
    assert looked is not None
    one(cache_checks.disk(looked), State.OK)
    monkeypatch.setattr(cache_checks, "filesystem_type", lambda _: "fuse.sshfs")
    one(cache_checks.disk(looked), State.WARNING, "fuse.sshfs", "SQLite")


def test_doctor_reports_a_cache_directory_that_cannot_be_used(tmp_path: Path, cache: Path) -> None:
    def folder(path: Path) -> Iterator[Finding]:
        return cache_checks.folder(Settings(cache_dir=path), probe_path(path))

    theirs = tmp_path / "thesis"
    theirs.mkdir(mode=0o755)
    one(folder(theirs), State.WARNING, "chmod 700", "0755")
    (theirs / "thesis.tex").write_text("years of work")
    one(folder(theirs), State.PROBLEM, "other files")
    one(folder(theirs / "thesis.tex"), State.PROBLEM, "not a folder")
    one(folder(theirs / "thesis.tex/cache"), State.PROBLEM)
    assert theirs.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in theirs.iterdir()] == ["thesis.tex"]
    (tmp_path / "link").symlink_to("nowhere")
    one(folder(tmp_path / "link"), State.PROBLEM)
    one(folder(tmp_path / "new/cache"), State.OK, "can be created")
    Store(cache).close()
    one(folder(cache), State.OK)
    if os.geteuid() == 0:
        os.chown(cache, 65534, 65534)
        one(folder(cache), State.PROBLEM, "another user")


@pytest.mark.parametrize("name", ["state.sqlite", "clips/cache.db", "archives.sqlite"])
def test_doctor_reports_a_damaged_database(cache: Path, name: str) -> None:
    Store(cache).close()
    with (cache / name).open("r+b" if (cache / name).exists() else "wb") as file:
        file.write(b"spilt coffee" * 500)

    found = doctor("--offline", "--cache-dir", cache, "--min-free", "0", status=1)

    bad = [one for one in found["databases"] if one["state"] == "problem"]
    assert len(bad) == 1
    assert name in bad[0]["found"]
    assert {one["state"] for one in found["cache directory"] + found["cache space"]} == {"ok"}
    others = {"state.sqlite", "clips/cache.db"} - {name}
    assert all(other in found["databases"][-1]["found"] for other in others)


def test_doctor_reports_a_damaged_page_of_a_database(settings: Settings, cache: Path) -> None:
    with Store(cache) as store:
        for number in range(500):
            clip = Clip(f"a{number:010d}", 0, 10)
            store.failures.remember(clip, FetchError(FailureKind.GONE, "gone " * 50))
    one(cache_checks.databases(settings), State.OK, "state.sqlite")
    with CacheLayout(cache).state_database.open("r+b") as file:
        file.seek(4096 * 20 + 8)
        file.write(b"\xff" * 2000)
    [finding] = [one for one in cache_checks.databases(settings) if one.state is State.PROBLEM]
    assert "state.sqlite" in finding.found


def test_doctor_reports_a_blocked_source(settings: Settings, cache: Path) -> None:
    assert list(sources.blocks(settings)) == []
    with Store(cache) as store:
        permit = store.throttle.acquire("youtube", max_per_hour=None, urgent=True)
        one(sources.blocks(settings), State.OK, "1 clip requested")
        store.throttle.record(permit, FetchError(FailureKind.BLOCKED, "HTTP Error 429", retry_after=1000))
        one(sources.blocks(settings), State.WARNING, "HTTP Error 429", "0:16:", "failures clear")


def test_doctor_reports_missing_indexes(settings: Settings, cache: Path) -> None:
    one(sources.indexes(settings), State.OK, "none", "200.0 MB")
    alone = Settings(cache_dir=cache, source=("archive",), max_archive_download=0)
    one(sources.indexes(alone), State.PROBLEM, "kinetics-fs index")


# Sources


def test_doctor_reports_an_unreachable_proxy_without_its_password(cache: Path, tmp_path: Path) -> None:
    proxy = f"http://you:{SECRET}@127.0.0.1:{closed_port()}"
    where = "--cache-dir", cache, "--min-free", "0", "--source", "youtube", "--video-url", "http://videos.invalid/{id}"

    found = doctor(*where, "--proxy", proxy, status=1)

    [finding] = found["youtube"]
    assert finding["state"] == "problem"
    assert "proxy" in finding["found"]
    assert "clock" not in found


def test_doctor_reports_unreachable_servers(settings: Settings) -> None:
    there = f"http://127.0.0.1:{closed_port()}"
    asked = Settings(cache_dir=settings.cache_dir, video_url=f"{there}/{{id}}", archive_url=there)
    one(sources.youtube(asked), State.PROBLEM, "cannot reach 127.0.0.1", "refused")
    one(sources.archives(asked, indexed=False), State.PROBLEM, "cannot reach 127.0.0.1", "refused")
    one(sources.archives(Settings(archive_url="/nowhere/archives"), indexed=False), State.PROBLEM, "/nowhere")


def test_doctor_says_where_the_archives_are(tmp_path: Path) -> None:
    archive = tmp_path / "kinetics" / "600" / "val" / "zumba.tar.gz"
    (tmp_path / "readme.txt").touch()
    asked = partial(sources.archives, indexed=False)
    expected = "expected 600/val/*.tar.gz, val/*.tar.gz or *.tar.gz, found readme.txt"
    one(asked(Settings(archive_url=str(tmp_path))), State.PROBLEM, expected)
    archive.parent.mkdir(parents=True)
    archive.touch()
    for given in (tmp_path, archive.parent, archive):
        one(asked(Settings(archive_url=str(given))), State.OK, str(tmp_path / "kinetics"))


@pytest.mark.parametrize("talk", HTTP_LIARS[:4], ids=lambda talk: talk.__name__)
def test_doctor_reports_servers_that_do_not_come_to_an_end(
    settings: Settings, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_TIMEOUT", 0.5)
    with lying_server(talk) as address:
        there = f"http://{address}"
        asked = Settings(cache_dir=settings.cache_dir, video_url=f"{there}/{{id}}", archive_url=there)
        with ends_in_time(0.5):
            one(sources.youtube(asked), State.PROBLEM, "cannot reach 127.0.0.1: ")
        with ends_in_time(0.5):
            one(sources.archives(asked, indexed=False), State.PROBLEM, "cannot reach 127.0.0.1: it takes longer")


@pytest.mark.parametrize("ask", [sources.youtube, partial(sources.archives, indexed=True)])
def test_doctor_compares_the_clock_and_reports_the_http_status(
    settings: Settings, ask: Callable[[Settings], Iterator[Finding]]
) -> None:
    for days, status, state, clock, words in (
        (0, 404, State.OK, State.OK, ("agrees with",)),
        (1, 200, State.OK, State.WARNING, ("behind",)),
        (-1, 200, State.OK, State.WARNING, ("1 day, 0:00:00 ahead",)),
        (0, 429, State.WARNING, State.OK, ()),
        (0, 503, State.WARNING, State.OK, ()),
    ):
        with server(days=days, status=status) as there:
            answer, time_told = ask(
                Settings(cache_dir=settings.cache_dir, video_url=f"{there}/{{id}}", archive_url=there)
            )
        assert (answer.state, time_told.state) == (state, clock)
        assert f"HTTP {status}" in answer.found
        assert all(word in time_told.found for word in words), time_told


def test_a_wrong_clock_is_only_a_warning(cache: Path, tmp_path: Path) -> None:
    with server(days=1) as there:
        where = "--cache-dir", cache, "--min-free", "0", "--source", "youtube", "--video-url", f"{there}/{{id}}"
        found = doctor(*where, tmp_path / "mnt", status=0)
    assert [one["state"] for one in found["clock"]] == ["warning"]


def test_doctor_checks_the_cookie_file_without_showing_it(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "cookies.txt"
    asked = Settings(cookies=path)
    line = f".youtube.com\tTRUE\t/\tTRUE\t{{}}\tSID\t{SECRET}\n"

    assert list(sources.cookies(settings)) == []
    one(sources.cookies(asked), State.PROBLEM, "cannot be read", "No such file")
    path.write_text("# Netscape HTTP Cookie File\n\n" + line.format(0) + line.format(10**10) + line.format(1000))
    path.chmod(0o600)
    one(sources.cookies(asked), State.OK, "2 valid, 1 expired")
    path.chmod(0o644)
    one(sources.cookies(asked), State.WARNING, "0644", "chmod 600")
    where = "--cache-dir", tmp_path / "cache", "--min-free", "0", tmp_path / "mnt"
    found = doctor("--offline", "--cookies", path, *where, status=0)
    assert found["cookies"][0]["state"] == "warning"
    path.chmod(0o600)
    path.write_text("# Netscape HTTP Cookie File\n" + line.format(1000))
    one(sources.cookies(asked), State.WARNING, "0 valid")
    path.write_text(json.dumps([{"name": "SID", "value": SECRET}]))
    [finding] = sources.cookies(asked)
    assert finding.state is State.PROBLEM
    assert SECRET not in finding.found
    path.write_bytes(b"\xff\xfe" * 100)
    one(sources.cookies(asked), State.PROBLEM, "UTF-16")


def test_doctor_warns_about_an_old_ytdlp(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import yt_dlp.version

    for age, state in ((59, State.OK), (61, State.WARNING), (1000, State.WARNING)):
        version = time.strftime("%Y.%m.%d", time.gmtime(time.time() - age * 86400))
        monkeypatch.setattr(yt_dlp.version, "__version__", f"{version}.1")
        one(sources.ytdlp(settings), state, version)
    monkeypatch.setattr(yt_dlp.version, "__version__", "unknown")
    one(sources.ytdlp(settings), State.WARNING, "unknown")


def test_doctor_warns_about_a_missing_javascript_runtime(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(**runtimes: Path) -> list[Finding]:
        options = {"js_runtimes": {name: {"path": str(path)} for name, path in runtimes.items()}}
        return list(sources.javascript(Settings(cache_dir=settings.cache_dir, ytdlp=options)))

    deno = script(tmp_path / "deno", "echo deno 2.5.1")
    runtime, scripts = asked(deno=deno)
    assert (runtime.state, scripts.state) == (State.OK, State.OK)
    assert "deno 2.5.1" in runtime.found
    script(deno, "echo deno 1.0.0")
    assert (asked(deno=deno)[0].state, "too old" in asked(deno=deno)[0].found) == (State.WARNING, True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "bin"))
    assert "no runtime" in asked(deno=tmp_path / "none")[0].found
    assert asked(deno=tmp_path / "none")[0].fix == f"Install one: {sys.executable} -m pip install deno."
    script(tmp_path / "bin/node", "echo v24.1.0")
    assert "js_runtimes = { node = {} }" in asked(deno=tmp_path / "none")[0].fix
    monkeypatch.setattr("yt_dlp.dependencies.yt_dlp_ejs", SimpleNamespace(version="0.1.0"))
    other = asked(deno=deno)[1]
    needed = re.search(r"0\.1\.0, but this yt-dlp needs ([\d.]+):", other.found)
    assert other.state is State.WARNING and needed is not None
    assert f"-m pip install yt-dlp-ejs=={needed[1]}" in other.fix
    monkeypatch.setattr("yt_dlp.dependencies.yt_dlp_ejs", None)
    assert asked(deno=deno)[1].state is State.WARNING
    # Elsewhere no challenges are to be solved.
    assert list(sources.javascript(Settings(video_url="http://127.0.0.1/{id}"))) == []


# Mounts


def test_doctor_reports_hanging_and_dead_mounts(mount: MountFactory, cache: Path, tmp_path: Path) -> None:
    mounted = mount()
    where = "--offline", "--cache-dir", cache, "--min-free", "0", mounted.root
    [finding] = doctor(*where, status=0)["mount"]
    assert finding["state"] == "ok"
    assert str(mounted.pid) in finding["found"]

    # The mount hangs, and so would any access to a cache below it.
    os.kill(mounted.pid, signal.SIGSTOP)
    try:
        one(fuse.mount(mounted.root, find_mounts(), timeout=0.5), State.PROBLEM, "does not answer", "umount --lazy")
        below = mounted.root / "cache"
        one(cache_checks.folder(Settings(cache_dir=below), probe_path(below, 0.5)), State.PROBLEM, "does not answer")
        found = doctor("--offline", "--cache-dir", below, mounted.root, status=1)
        assert "does not answer" in found["mount"][0]["found"]
        assert "does not answer" in found["cache directory"][0]["found"]
    finally:
        os.kill(mounted.pid, signal.SIGCONT)

    # It is dead.
    os.kill(mounted.pid, signal.SIGKILL)
    assert has_ended(mounted.pid, within=20)
    one(cache_checks.folder(Settings(cache_dir=below), probe_path(below)), State.PROBLEM, "not connected")
    [finding] = doctor(*where, status=1)["mount"]
    assert finding["state"] == "problem"
    assert "is dead" in finding["found"]
    assert finding["fix"] == f"Remove it: kinetics-fs umount '{mounted.root}'"
    assert run_command("umount", mounted.root).returncode == 0
    [finding] = doctor(*where, status=0)["mount"]
    assert finding["found"] == f"nothing is mounted on {mounted.root}; it can be used"


def test_doctor_checks_a_mount_point_before_mounting(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    for path, state, word in (
        (tmp_path / "new", State.OK, "can be used"),
        (tmp_path / "new/below", State.PROBLEM, "mkdir -p"),
        (tmp_path / "full", State.PROBLEM, "not empty"),
        (tmp_path / "full/file", State.PROBLEM, "not a readable folder"),
    ):
        one(fuse.mount(path, ()), state, word)


def test_doctor_ignores_a_mount_that_ends_during_the_check(tmp_path: Path) -> None:
    assert list(fuse.mount(tmp_path, {tmp_path})) == []
