"""The table `[youtube]` of the configuration file: parameters with which yt-dlp could run programs as root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kinetics_fs.config import read_config
from kinetics_fs.errors import KineticsError

RISKY = [
    'postprocessors = [{key = "Exec", exec_cmd = "touch /tmp/x"}]',
    'external_downloader = "/tmp/x"',
    'plugin_dirs = ["/tmp/x"]',
    "enable_file_urls = true",
    'ffmpeg_location = "/tmp/x"',
    'netrc_cmd = "/tmp/x"',
    'js_runtimes = {node = {path = "/tmp/x"}}',
    'extractor_args = {youtubepot-bgutilscript = {script_path = ["/tmp/x"]}}',
    'a_parameter_of_a_later_version = "/tmp/x"',
]


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def config(path: Path, parameter: str, *, programs: str = "") -> Path:
    path.write_text(f"[youtube]\n{programs}\n[youtube.ytdlp]\n{parameter}\n")
    path.chmod(0o644)
    return path


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("parameter", RISKY)
def test_root_does_not_give_ytdlp_parameters_that_run_programs(tmp_path: Path, parameter: str) -> None:
    path = config(tmp_path / "config.toml", parameter)
    name = parameter.partition(" ")[0]
    with pytest.raises(KineticsError, match=rf"root must not give yt-dlp {name}, which can run programs"):
        read_config(path)


@pytest.mark.usefixtures("as_root")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can own a file as root")
@pytest.mark.parametrize("parameter", RISKY)
def test_root_allows_them_in_a_file_of_its_own(tmp_path: Path, parameter: str) -> None:
    path = config(tmp_path / "config.toml", parameter, programs="programs = true")
    assert parameter.partition(" ")[0] in read_config(path)["ytdlp"]
    for owner, mode in ((0, 0o666), (65534, 0o644)):
        os.chown(path, owner, 0)
        path.chmod(mode)
        with pytest.raises(KineticsError, match="make the file writable by root alone"):
            read_config(path)


@pytest.mark.parametrize("parameter", RISKY)
def test_other_users_may_run_what_they_like(tmp_path: Path, parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert parameter.partition(" ")[0] in read_config(config(tmp_path / "config.toml", parameter))["ytdlp"]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "parameter",
    [
        'format = "18"',
        "js_runtimes = {node = {}}",
        'extractor_args = {youtube = {player_client = ["tv"]}}',
        "retries = 3",
    ],
)
def test_harmless_parameters_need_no_permission(tmp_path: Path, parameter: str) -> None:
    assert parameter.partition(" ")[0] in read_config(config(tmp_path / "config.toml", parameter))["ytdlp"]


@pytest.mark.parametrize(
    "table", ["youtube = 7", "[youtube]\nytdlp = 7", "[youtube]\nother = 1", "[[youtube]]\nytdlp = {}"]
)
def test_other_tables_are_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"{table}\n")
    with pytest.raises(KineticsError, match=r"\[youtube\] may contain only"):
        read_config(path)


@pytest.mark.parametrize("content", [b"a = " + b"[" * 100_000, b"a = \xff", b"[youtube"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(KineticsError, match="it is not valid TOML"):
        read_config(path)
