"""Mistakes on the command line, in the environment and in the configuration file: each gets one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_pinning_everything_takes_a_flag(chosen: tuple[str | Path, ...]) -> None:
    whole = ("--cache-dir", chosen[3])
    variables = {"KINETICS_FS_ANNOTATIONS": str(chosen[1])}
    refused = run_command("pin", "add", "--cache-dir", chosen[3])
    assert refused.returncode == 2 and "or --all" in refused.stderr
    refused = run_command("pin", "add", *whole, "--all", "--split", "train", **variables)
    assert refused.returncode == 2 and "exclude each other" in refused.stderr
    done = run_command("pin", "add", *whole, "--all", "--json", KINETICS_FS_SPLIT="train", **variables)
    assert json.loads(done.stdout)["total"]["clips"] == 4
