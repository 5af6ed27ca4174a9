"""What holds for all commands: where settings come from, what wrong ones say, help, and what is loaded for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from kinetics_fs.cli import COMMANDS, cli
from kinetics_fs.cli.reference import walk_commands
from kinetics_fs.config import Settings, table
from tests.support.command_line import ENVIRONMENT, kinetics_fs

Arguments = tuple[str | Path, ...]

LEAVES = [name for name, _ in walk_commands()]


def limit(*arguments: str | Path, config: Path = Path(os.devnull), **environment: Any) -> Any:
    """The limit of the cache that a command comes to."""
    done = kinetics_fs("--config", config, "status", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["cache"]["limit"]


def labels(*arguments: str | Path, config: Path = Path(os.devnull), **environment: Any) -> dict[str, dict[str, int]]:
    """Class → split → number of clips."""
    done = kinetics_fs("--config", config, "classes", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return {row["label"]: row["clips"] for row in json.loads(done.stdout)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


# Where a setting comes from


def test_size(cache: Path, config: Path) -> None:
    store = ("--cache-dir", cache)
    config.write_text('cache-size = "3GB"\n')

    assert limit(*store) is None
    assert limit(*store, config=config) == 3 * 10**9
    assert limit(*store, config=config, KINETICS_FS_CACHE_SIZE="2GB") == 2 * 10**9
    assert limit(*store, "--cache-size", "1GB", config=config, KINETICS_FS_CACHE_SIZE="2GB") == 10**9


def test_path(tmp_path: Path, config: Path) -> None:
    flag, variable, file = (tmp_path / name for name in ("flag", "variable", "file"))
    config.write_text(f"cache_dir = {json.dumps(str(file))}\n")

    cases: list[tuple[Path, Arguments, dict[str, Any]]] = [
        (file, (), {}),
        (variable, (), {"KINETICS_FS_CACHE_DIR": str(variable)}),
        (flag, ("--cache-dir", flag), {"KINETICS_FS_CACHE_DIR": str(variable)}),
    ]
    for folder, arguments, environment in cases:
        done = kinetics_fs("--config", config, "status", "--json", *arguments, **environment)
        assert json.loads(done.stdout)["cache"]["folder"] == str(folder)
    home = kinetics_fs("status", "--json", XDG_CACHE_HOME=str(tmp_path / "home"))
    assert json.loads(home.stdout)["cache"]["folder"] == str(tmp_path / "home/kinetics-fs")


def test_home_in_a_path(tmp_path: Path, config: Path) -> None:
    config.write_text('cache-dir = "~/file"\n')
    for flag, name in ((), "file"), (("--cache-dir=~/flag",), "flag"):
        done = kinetics_fs("--config", config, "status", "--json", *flag, HOME=str(tmp_path))
        assert json.loads(done.stdout)["cache"]["folder"] == str(tmp_path / name)
    home = Path("~").expanduser()
    settings = Settings(annotations=("~/a.csv",), folder=(Path("~/b"),), archive_url="~/c", cookies=Path("~/d"))
    assert settings.annotations == (str(home / "a.csv"),)
    assert (settings.folder, settings.archive_url, settings.cookies) == ((home / "b",), str(home / "c"), home / "d")
    assert Settings(cache_dir=Path("/~nobody-is-called-that/~")).cache_dir == Path("/~nobody-is-called-that/~")


def test_list(chosen: Arguments, config: Path) -> None:
    surfing, massage, football = "surfing water", "massaging person's head", "passing American football (in game)"
    config.write_text(f'class = ["{surfing}", "{massage}"]\n')

    assert set(labels(*chosen)) == {surfing, massage, football}
    assert set(labels(*chosen, config=config)) == {surfing, massage}
    both = f"{massage};{football}"
    assert set(labels(*chosen, config=config, KINETICS_FS_CLASS=both)) == {massage, football}
    assert set(labels(*chosen, config=config, KINETICS_FS_CLASS=surfing)) == {surfing}
    given = ("--class", football, "--class", surfing)
    assert set(labels(*chosen, *given, config=config, KINETICS_FS_CLASS=massage)) == {football, surfing}
    # One value needs no brackets.
    config.write_text(f'class = "{massage}"\n')
    assert set(labels(*chosen, config=config)) == {massage}


def test_number(chosen: Arguments, config: Path) -> None:
    config.write_text('max-samples = 2\nsplit = ["validation"]\n')

    def samples(*arguments: str, **environment: str) -> int:
        counts = labels(*chosen, *arguments, config=config, **environment)
        return sum(split["validation"] for split in counts.values())

    assert samples() == 2
    assert samples(KINETICS_FS_MAX_SAMPLES="1") == 1
    assert samples("--max-samples", "3", KINETICS_FS_MAX_SAMPLES="1") == 3


def test_switch(chosen: Arguments, config: Path) -> None:
    # Which clips a shuffle takes shows in the classes that are left.
    config.write_text("shuffle = true\nseed = 3\nmax-samples = 2\nsplit = 'validation'\n")
    shuffled = labels(*chosen, config=config)
    plain = labels(*chosen, "--split", "validation", "--max-samples", "2")

    seeds = {str(seed): labels(*chosen, config=config, KINETICS_FS_SEED=str(seed)) for seed in range(4)}
    assert seeds["3"] == shuffled
    assert any(taken != plain for taken in seeds.values())
    assert labels(*chosen, config=config, KINETICS_FS_SHUFFLE="no") == plain
    assert labels(*chosen, "--no-shuffle", config=config, KINETICS_FS_SHUFFLE="yes") == plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200GB", 200 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("500 MiB", 500 * 2**20),
        ("7k", 7000),
        ("12345", 12345),
        ("0.5g", 5 * 10**8),
    ],
)
def test_sizes(cache: Path, text: str, expected: int) -> None:
    assert limit("--cache-dir", cache, "--cache-size", text) == expected


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The complaint of a command, without the usage that goes before it."""
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("Usage:", "Try "))]) == 1
    return lines[-1]


@pytest.mark.parametrize("text", ["much", "", " ", "-5GB", "1.2.3GB", "5 bananas", "GB", "5IB", "1e9", "nan"])
def test_nonsense_for_a_size(cache: Path, config: Path, text: str) -> None:
    done = kinetics_fs("status", "--cache-dir", cache, "--cache-size", text)
    assert done.returncode == 2
    assert "--cache-size" in one_sentence(done)

    config.write_text(f"cache-size = {json.dumps(text)}\n")
    done = kinetics_fs("--config", config, "status", "--cache-dir", cache)
    assert done.returncode == 2
    assert "cache-size" in one_sentence(done)


@pytest.mark.parametrize(
    "line", ["cache-size = -5", "cache-size = true", "cache-size = []", "cache-dir = 5", "min-free = [1, 2]"]
)
def test_wrong_type_in_the_file(cache: Path, config: Path, line: str) -> None:
    config.write_text(line + "\n")
    rest = () if "cache-dir" in line else ("--cache-dir", cache)

    done = kinetics_fs("--config", config, "status", *rest)

    assert done.returncode in (1, 2)
    one_sentence(done)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cach-size = 5\n", "'cache-size'"),
        ("max_sample = 5\n", "'max-samples'"),
        ("xyzzy = 1\n", "'xyzzy'"),
        ("klass = 'x'\n", "'class'"),
        ("[youtube]\ncookies = 'x'\n", "[youtube.ytdlp]"),
        ("youtube = 5\n", "[youtube.ytdlp]"),
        ("cache-size 5\n", "TOML"),
        ("\x00", "TOML"),
    ],
)
def test_file_with_a_mistake(config: Path, text: str, hint: str) -> None:
    config.write_text(text)

    done = kinetics_fs("--config", config, "status")

    assert done.returncode == 1
    assert hint in one_sentence(done)
    assert str(config) in one_sentence(done)


def test_file_that_is_no_text(config: Path) -> None:
    config.write_bytes(b"cache-dir = '\xff'\n")

    done = kinetics_fs("--config", config, "status")

    assert done.returncode == 1
    one_sentence(done)


def test_file_that_is_not_there(config: Path) -> None:
    done = kinetics_fs("--config", config, "status")

    assert done.returncode == 1
    assert str(config) in one_sentence(done)


def test_file_of_the_user(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "config/kinetics-fs"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("cache-size = '4GB'\n")

    done = subprocess.run(
        [sys.executable, "-m", "kinetics_fs", "status", "--json", "--cache-dir", cache],
        env={**ENVIRONMENT, "XDG_CONFIG_HOME": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout)["cache"]["limit"] == 4 * 10**9


# What they print


def test_classes(chosen: Arguments) -> None:
    done = kinetics_fs("classes", "--json", *chosen)
    assert json.loads(done.stdout) == [
        {"label": "massaging person's head", "index": 0, "clips": {"validation": 1}},
        {"label": "passing American football (in game)", "index": 1, "clips": {"validation": 1}},
        {"label": "surfing water", "index": 2, "clips": {"train": 2, "validation": 2}},
    ]

    lines = [line.split() for line in kinetics_fs("classes", *chosen).stdout.splitlines()]
    assert lines == [
        ["index", "class", "train", "validation"],
        ["0", "massaging", "person's", "head", "0", "1"],
        ["1", "passing", "American", "football", "(in", "game)", "0", "1"],
        ["2", "surfing", "water", "2", "2"],
        ["3", "classes", "2", "4"],
    ]


def test_classes_of_a_selection_keep_their_numbers(chosen: Arguments) -> None:
    [row] = json.loads(kinetics_fs("classes", "--json", *chosen, "--split", "train").stdout)

    assert row == {"label": "surfing water", "index": 2, "clips": {"train": 2}}


def test_refused_rows_are_told(chosen: Arguments, annotations: Path) -> None:
    with annotations.open("a") as file:
        file.write("surfing water,short,1,2,train\nsurfing water,demo_video4,9,8,train\n")

    done = kinetics_fs("classes", "--json", *chosen)

    assert len(json.loads(done.stdout)) == 3
    assert "2 invalid rows" in done.stderr
    assert "line 8" in done.stderr


def test_status_of_an_empty_cache(cache: Path) -> None:
    done = kinetics_fs("status", "--cache-dir", cache, "--cache-size", "200GB")

    assert done.returncode == 0
    assert f"{cache}: 0 clips, 0 bytes (of 200.0 GB)" in done.stdout


def test_status_of_what_is_no_mount(tmp_path: Path) -> None:
    done = kinetics_fs("status", tmp_path)

    assert done.returncode == 1
    assert str(tmp_path) in one_sentence(done)


def test_foreign_folder_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    done = kinetics_fs("failures", "list", "--cache-dir", tmp_path)

    assert done.returncode == 1
    assert str(tmp_path) in one_sentence(done)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("arguments", [("nonsense",), ("status", "--nonsense"), ("prefetch", "--workers", "0")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = kinetics_fs(*arguments)

    assert done.returncode == 2
    one_sentence(done)


# Help


@pytest.mark.parametrize("command", LEAVES)
def test_help_has_an_example(command: str) -> None:
    done = kinetics_fs(*command.split(), "--help")

    assert done.returncode == 0
    usage, _, rest = done.stdout.partition("\n")
    assert usage.startswith(f"Usage: kinetics-fs {command}")
    assert re.search(rf"^ +kinetics-fs {command}\b", rest, re.MULTILINE)
    assert kinetics_fs(*command.split(), "-h").stdout == done.stdout


def test_help_lists_every_command() -> None:
    said = kinetics_fs("--help").stdout

    for text in (said, *(kinetics_fs(group, "--help").stdout for group in ("index", "failures", "pin"))):
        assert "..." not in text.partition("Commands:")[2], "what a command does is cut off"
    assert {leaf.split()[0] for leaf in LEAVES} == set(re.findall(r"^  ([a-z]+)  ", said, re.MULTILINE))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fa",), {"failures"}),
        (("pin", ""), {"add", "remove", "list"}),
        (("mount", "--only", ""), {"all", "cached"}),
        (("mount", "--fsn"), {"--fsname"}),  # a rare option, too
    ],
)
def test_completion(shell: str, words: tuple[str, ...], expected: set[str]) -> None:
    line = " ".join(("kinetics-fs", *words))
    current = str(len(words)) if shell != "fish" else words[-1]
    done = kinetics_fs(_KINETICS_FS_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=current)

    # bash: type,value per line; fish: type,value<tab>help; zsh: type, value and help on a line each
    lines = done.stdout.splitlines()
    values = lines[1::3] if shell == "zsh" else [line.partition(",")[2].partition("\t")[0] for line in lines]
    assert set(values) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_short_help_of_each(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(limit=200) == COMMANDS[name]


def test_help_all_shows_rare_options_too() -> None:
    usual, whole = (kinetics_fs("mount", option).stdout for option in ("--help", "--help-all"))

    rare = {f"--{name}" for name, setting in table().items() if setting.about.rare}
    assert rare, "or nothing is tested"
    assert not [option for option in rare if f"{option} " in usual.partition("Rarely used")[0]]
    assert rare <= {word for line in whole.splitlines() for word in line.replace("[no-]", "").split()[:1]}
    for section in ("Selection", "Cache", "Sources", "Network", "Mount", "Logging"):
        assert f"\n{section}:\n" in usual


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        *((name, "--help") for name in ("prefetch", "mount", "fill", "index", "import", "export", "doctor", "verify")),
    ],
)
def test_help_loads_little(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kinetics_fs", "--config", os.devnull, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in loaded
    heavy = {"yt_dlp", "requests", "av", "numpy", "fuse", "diskcache", "imageio_ffmpeg", "rich.progress"}
    assert loaded.isdisjoint(heavy)


# The reader of the output goes away


@pytest.mark.parametrize("arguments", [("classes",), ("classes", "--json"), ("status", "--json"), ("--help",)])
def test_nobody_reads(chosen: Arguments, arguments: tuple[str, ...]) -> None:
    more = {"classes": chosen, "status": chosen[2:4]}.get(arguments[0], ())
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *arguments, *map(str, more)],
            env=ENVIRONMENT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (1, "")


def test_head(chosen: Arguments, annotations: Path) -> None:
    # More than a pipe holds, so that the writer is still at it when its reader has had enough.
    with annotations.open("a") as file:
        file.writelines(
            f"{'a long label ' * 8}{number},demo_video4,{number},{number + 1},train\n" for number in range(3000)
        )
    command = 'set -o pipefail; "$0" -m kinetics_fs --config /dev/null classes "$@" | head -1'

    done = subprocess.run(
        ["bash", "-c", command, sys.executable, *map(str, chosen)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split()[:2] == ["index", "class"]
    assert (done.returncode, done.stderr) == (1, "")
