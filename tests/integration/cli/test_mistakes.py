"""Mistakes on the command line, in the environment and in the configuration file: each gets one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs import Library
from kinetics_fs.errors import SettingError
from tests.support.command_line import run_command


@pytest.fixture
def chosen(tmp_path: Path) -> tuple[str | Path, ...]:
    """Arguments that select from four clips in two splits."""
    annotations = tmp_path / "annotations.csv"
    annotations.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "surfing,aaaaaaaaaaa,0,10,train\nsurfing,bbbbbbbbbbb,0,10,validate\n"
        "diving,ccccccccccc,0,10,train\ndiving,ddddddddddd,0,10,test\n"
    )
    return ("--annotations", annotations, "--cache-dir", tmp_path / "cache")


@pytest.mark.parametrize(("written", "meant"), [("verfy", "verify"), ("moutn", "mount"), ("statsu", "status")])
def test_misspelt_command_is_answered_with_the_nearest(written: str, meant: str) -> None:
    done = run_command(written)
    assert done.returncode == 2
    assert f"No such command '{written}'" in done.stderr and meant in done.stderr.partition("Did you mean")[2]


@pytest.mark.parametrize("command", ["pin ad", "index biuld", "failures lst", "jobs waite"])
def test_misspelt_subcommand_is_answered_with_the_nearest(command: str) -> None:
    done = run_command(*command.split())
    assert done.returncode == 2
    assert "Did you mean" in done.stderr


@pytest.mark.parametrize("words", [("train,val",), ("train, validation",), ("train", "val"), ("train,", "val")])
def test_several_splits_may_be_separated_by_commas(chosen: tuple[str | Path, ...], words: tuple[str, ...]) -> None:
    flags = [item for word in words for item in ("--split", word)]
    done = run_command("classes", "--json", *chosen, *flags)
    assert done.returncode == 0, done.stderr
    assert {row["label"]: row["clips"] for row in json.loads(done.stdout)["classes"]} == {
        "surfing": {"train": 1, "validation": 1},
        "diving": {"train": 1},
    }


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--seed", "7"), "cannot use --seed: it has no effect without --shuffle; give both or none"),
        (("--seed", "7", "--max-samples", "2"), "cannot use --seed: it has no effect without --shuffle"),
        (("--shuffle",), "cannot use --shuffle: it has no effect without --max-samples; give both or none"),
        (("--shuffle", "--seed", "7"), "cannot use --shuffle: it has no effect without --max-samples"),
    ],
)
def test_flags_without_effect_are_refused(
    chosen: tuple[str | Path, ...], flags: tuple[str, ...], sentence: str
) -> None:
    done = run_command("classes", *chosen, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in " ".join(done.stderr.split())


def test_flags_with_effect_are_accepted(chosen: tuple[str | Path, ...]) -> None:
    for flags in (("--shuffle", "--max-samples", "1", "--seed", "0"), ("--no-shuffle",)):
        done = run_command("classes", *chosen, *flags)
        assert done.returncode == 0, done.stderr


def test_unknown_variable_is_named_with_the_nearest(chosen: tuple[str | Path, ...]) -> None:
    done = run_command("classes", *chosen, KINETICS_FS_CACHE_SIZ="1GB", KINETICS_FS_CONFIG="/dev/null")
    assert done.returncode == 0
    assert done.stderr == (
        "kinetics-fs: the environment variable KINETICS_FS_CACHE_SIZ is ignored: there is no such setting;"
        " did you mean KINETICS_FS_CACHE_SIZE?\n"
    )


def test_invalid_value_is_blamed_on_its_variable(chosen: tuple[str | Path, ...]) -> None:
    done = run_command("status", KINETICS_FS_CACHE_SIZE="much")
    assert done.returncode == 2
    assert "the environment variable KINETICS_FS_CACHE_SIZE: 'much' is not a size" in " ".join(done.stderr.split())


def test_invalid_value_is_blamed_on_its_file(chosen: tuple[str | Path, ...], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('cache-size = "much"\n')
    done = run_command("--config", config, "status")
    assert done.returncode == 2
    assert f"cache-size in {config}: 'much' is not a size" in " ".join(done.stderr.split())


def test_error_about_a_setting_says_where_it_comes_from(chosen: tuple[str | Path, ...], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('proxy = "nonsense"\n')
    by_file = run_command("--config", config, "prefetch", *chosen)
    by_variable = run_command("prefetch", *chosen, KINETICS_FS_PROXY="nonsense")
    by_flag = run_command("prefetch", *chosen, "--proxy", "nonsense")
    assert [done.returncode for done in (by_file, by_variable, by_flag)] == [2, 2, 2]
    assert f"(--proxy comes from proxy in {config})" in " ".join(by_file.stderr.split())
    assert "(--proxy comes from the environment variable KINETICS_FS_PROXY)" in " ".join(by_variable.stderr.split())
    assert "comes from" not in by_flag.stderr


@pytest.mark.parametrize(
    ("flag", "value", "cause"),
    [
        ("--proxy", "ftp://127.0.0.1:21", "its scheme is 'ftp'; use one of http, https, socks4"),
        ("--proxy", "127.0.0.1:8080", "it has no scheme; begin it with one of http, https, socks4"),
        ("--proxy", "socks5://", "it is not a URL such as socks5://127.0.0.1:1080"),
        ("--proxy", "http://127.0.0.1:99999", "it is not a URL such as"),
        ("--source-address", "192.0.2.1", "this machine does not have that address"),
        ("--source-address", "2001:db8::1", "addresses of this machine"),
        ("--source-address", "localhost", "it is not an IP address"),
        ("--source-address", "eth0", "it is not an IP address"),
        ("--cookies", "no/such/file", "it cannot be read: No such file or directory"),
        ("--cookies", "/dev/null", "it is not a regular file"),
        ("--cookies", "json", "it is JSON; export the cookies of the browser in Netscape format"),
    ],
)
@pytest.mark.parametrize("command", ["prefetch", "mount"])
def test_mistakes_about_the_connection_are_found_at_the_start(
    chosen: tuple[str | Path, ...], tmp_path: Path, command: str, flag: str, value: str, cause: str
) -> None:
    if value == "json":
        (tmp_path / value).write_text("[]")
        value = str(tmp_path / value)
    done = run_command(command, *chosen, flag, value, *([tmp_path / "mount"] if command == "mount" else []))
    assert (done.returncode, done.stdout) == (2, "")
    said = " ".join(done.stderr.split())
    assert f"cannot use {flag}" in said and cause in said
    settings: dict[str, Any] = {flag[2:].replace("-", "_"): Path(value) if flag == "--cookies" else value}
    with (
        Library(annotations=[str(chosen[1])], cache_dir=tmp_path / "cache", **settings) as library,
        pytest.raises(SettingError, match=flag),
    ):
        library.prefetch()


def test_the_connection_of_the_ytdlp_table_is_checked_too(chosen: tuple[str | Path, ...], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    for name, value, cause in (
        ("proxy", "ftp://x", "its scheme is 'ftp'"),
        ("source_address", "x", "not an IP address"),
    ):
        config.write_text(f'[youtube.ytdlp]\n{name} = "{value}"\n')
        done = run_command("--config", config, "prefetch", *chosen)
        said = " ".join(done.stderr.split())
        assert done.returncode == 2 and f"cannot use {name} in [youtube.ytdlp]" in said and cause in said


def test_cookies_that_do_no_good_are_a_warning(chosen: tuple[str | Path, ...], tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n.example.org\tTRUE\t/\tTRUE\t0\tSID\tx\n")
    cookies.chmod(0o644)
    done = run_command(
        "prefetch",
        *chosen,
        "--cookies",
        cookies,
        "--video-url",
        "https://www.youtube.com/watch?v={id}",
        "--source",
        "youtube",
        "--proxy",
        "http://127.0.0.1:1",
        "--max-samples",
        "1",
    )
    assert "every user can read the cookies" in done.stderr
    assert done.stderr.count(f"{cookies} has no valid cookie for youtube.com") == 1
    unused = run_command("prefetch", *chosen, "--cookies", tmp_path, "--source", "folder", "--folder", tmp_path)
    assert "--cookies" not in unused.stderr, "no source needs them"


def test_pinning_everything_takes_a_flag(chosen: tuple[str | Path, ...]) -> None:
    whole = ("--cache-dir", chosen[3])
    variables = {"KINETICS_FS_ANNOTATIONS": str(chosen[1])}
    for which in ([], ["--annotations", chosen[1]], ["--release", "400"]):
        for verb in ("add", "remove"):
            refused = run_command("pin", verb, "--cache-dir", chosen[3], *which)
            assert refused.returncode == 2 and "or --all" in refused.stderr
    refused = run_command("pin", "add", *whole, "--all", "--split", "train", **variables)
    assert refused.returncode == 2 and "exclude each other" in refused.stderr
    done = run_command("pin", "add", *whole, "--all", "--json", KINETICS_FS_SPLIT="train", **variables)
    assert json.loads(done.stdout)["total"]["clips"] == 4


def test_clearing_blocks_says_whether_there_was_one(chosen: tuple[str | Path, ...]) -> None:
    done = run_command("failures", "clear", "--kind", "blocked", "--cache-dir", chosen[3])
    assert (done.returncode, done.stdout) == (0, "No source is blocked.\n")
    done = run_command("failures", "clear", "--all", "--cache-dir", chosen[3])
    assert (done.returncode, done.stdout) == (0, "0 failures forgotten\n")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e9", "five", ""])
def test_times_are_finite_numbers(chosen: tuple[str | Path, ...], value: str) -> None:
    done = run_command("prefetch", *chosen, f"--timeout={value}")
    assert done.returncode == 2
    assert "Invalid value for '--timeout'" in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "100000", "1e1", "many"])
def test_workers_are_a_small_number(chosen: tuple[str | Path, ...], value: str) -> None:
    done = run_command("prefetch", *chosen, f"--workers={value}")
    assert done.returncode == 2
    assert "Invalid value for '--workers'" in done.stderr


def test_an_invalid_variable_of_the_program_is_named() -> None:
    done = run_command("status", KINETICS_FS_QUIET="banana")
    assert done.returncode == 2
    assert "the environment variable KINETICS_FS_QUIET" in done.stderr
