"""All commands: the sources of settings, errors about them, help, completion, and a closed pipe as output."""

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
from tests.support.command_line import ENVIRONMENT, run_command

Arguments = tuple[str | Path, ...]

LEAVES = [name for name, _ in walk_commands()]


def limit(*arguments: str | Path, config: Path = Path(os.devnull), **environment: Any) -> Any:
    """Return the cache limit that a command uses."""
    done = run_command("--config", config, "status", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["cache"]["limit"]


def labels(*arguments: str | Path, config: Path = Path(os.devnull), **environment: Any) -> dict[str, dict[str, int]]:
    """Return the clips that `classes` counts: label → split → number."""
    done = run_command("--config", config, "classes", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return {row["label"]: row["clips"] for row in json.loads(done.stdout)["classes"]}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


# Sources of settings


def test_size_comes_from_flag_environment_file_or_default(cache: Path, config: Path) -> None:
    store = ("--cache-dir", cache)
    config.write_text('cache-size = "3GB"\n')

    assert limit(*store) is None
    assert limit(*store, config=config) == 3 * 10**9
    assert limit(*store, config=config, KINETICS_FS_CACHE_SIZE="2GB") == 2 * 10**9
    assert limit(*store, "--cache-size", "1GB", config=config, KINETICS_FS_CACHE_SIZE="2GB") == 10**9


def test_path_comes_from_flag_environment_file_or_default(tmp_path: Path, config: Path) -> None:
    flag, variable, file = (tmp_path / name for name in ("flag", "variable", "file"))
    config.write_text(f"cache_dir = {json.dumps(str(file))}\n")

    cases: list[tuple[Path, Arguments, dict[str, Any]]] = [
        (file, (), {}),
        (variable, (), {"KINETICS_FS_CACHE_DIR": str(variable)}),
        (flag, ("--cache-dir", flag), {"KINETICS_FS_CACHE_DIR": str(variable)}),
    ]
    for folder, arguments, environment in cases:
        done = run_command("--config", config, "status", "--json", *arguments, **environment)
        assert json.loads(done.stdout)["cache"]["folder"] == str(folder)
    home = run_command("status", "--json", XDG_CACHE_HOME=str(tmp_path / "home"))
    assert json.loads(home.stdout)["cache"]["folder"] == str(tmp_path / "home/kinetics-fs")


def test_tilde_in_a_path_is_the_home(tmp_path: Path, config: Path) -> None:
    config.write_text('cache-dir = "~/file"\n')
    for flag, name in ((), "file"), (("--cache-dir=~/flag",), "flag"):
        done = run_command("--config", config, "status", "--json", *flag, HOME=str(tmp_path))
        assert json.loads(done.stdout)["cache"]["folder"] == str(tmp_path / name)
    home = Path("~").expanduser()
    settings = Settings(annotations=("~/a.csv",), folder=(Path("~/b"),), archive_url="~/c", cookies=Path("~/d"))
    assert settings.annotations == (str(home / "a.csv"),)
    assert (settings.folder, settings.archive_url, settings.cookies) == ((home / "b",), str(home / "c"), home / "d")
    assert Settings(cache_dir=Path("/~nobody-is-called-that/~")).cache_dir == Path("/~nobody-is-called-that/~")


def test_list_comes_from_flag_environment_or_file(chosen: Arguments, config: Path) -> None:
    surfing, massage, football = "surfing water", "massaging person's head", "passing American football (in game)"
    config.write_text(f'class = ["{surfing}", "{massage}"]\n')

    assert set(labels(*chosen)) == {surfing, massage, football}
    assert set(labels(*chosen, config=config)) == {surfing, massage}
    both = f"{massage};{football}"
    assert set(labels(*chosen, config=config, KINETICS_FS_CLASS=both)) == {massage, football}
    assert set(labels(*chosen, config=config, KINETICS_FS_CLASS=surfing)) == {surfing}
    given = ("--class", football, "--class", surfing)
    assert set(labels(*chosen, *given, config=config, KINETICS_FS_CLASS=massage)) == {football, surfing}
    # A single value need not be an array.
    config.write_text(f'class = "{massage}"\n')
    assert set(labels(*chosen, config=config)) == {massage}


def test_number_comes_from_flag_environment_or_file(chosen: Arguments, config: Path) -> None:
    config.write_text('max-samples = 2\nsplit = ["validation"]\n')

    def samples(*arguments: str, **environment: str) -> int:
        counts = labels(*chosen, *arguments, config=config, **environment)
        return sum(split["validation"] for split in counts.values())

    assert samples() == 2
    assert samples(KINETICS_FS_MAX_SAMPLES="1") == 1
    assert samples("--max-samples", "3", KINETICS_FS_MAX_SAMPLES="1") == 3


def test_switch_comes_from_flag_environment_or_file(chosen: Arguments, config: Path) -> None:
    # The classes of the selected clips show which clips a shuffle selects.
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
        ("12345B", 12345),
        ("12345 b", 12345),
        ("0.5g", 5 * 10**8),
    ],
)
def test_size_units(cache: Path, text: str, expected: int) -> None:
    assert limit("--cache-dir", cache, "--cache-size", text) == expected


@pytest.mark.parametrize("command", ["index list", "classes", "pin list", "failures list", "export"])
def test_commands_that_store_no_clip_take_no_limit_of_the_cache(command: str) -> None:
    done = run_command(*command.split(), "--cache-size", "1GB")
    assert (done.returncode, "No such option" in done.stderr) == (2, True), done.stderr


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a command without the usage before it; it must be a single line."""
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("Usage:", "Try "))]) == 1
    return lines[-1]


@pytest.mark.parametrize("text", ["much", "", " ", "-5GB", "1.2.3GB", "5 bananas", "GB", "5IB", "1e9", "nan"])
def test_invalid_size_is_refused_in_one_sentence(cache: Path, config: Path, text: str) -> None:
    done = run_command("status", "--cache-dir", cache, "--cache-size", text)
    assert done.returncode == 2
    assert "--cache-size" in one_sentence(done)

    config.write_text(f"cache-size = {json.dumps(text)}\n")
    done = run_command("--config", config, "status", "--cache-dir", cache)
    assert done.returncode == 2
    assert "cache-size" in one_sentence(done)


@pytest.mark.parametrize(
    "line", ["cache-size = -5", "cache-size = true", "cache-size = []", "cache-dir = 5", "min-free = [1, 2]"]
)
def test_wrong_type_in_the_file_is_refused_in_one_sentence(cache: Path, config: Path, line: str) -> None:
    config.write_text(line + "\n")
    rest = () if "cache-dir" in line else ("--cache-dir", cache)

    done = run_command("--config", config, "status", *rest, KINETICS_FS_MIN_FREE="")

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
def test_mistake_in_the_file_is_named_with_a_hint(config: Path, text: str, hint: str) -> None:
    config.write_text(text)

    done = run_command("--config", config, "status")

    assert done.returncode == 1
    assert hint in one_sentence(done)
    assert str(config) in one_sentence(done)


def test_binary_file_is_refused_in_one_sentence(config: Path) -> None:
    config.write_bytes(b"cache-dir = '\xff'\n")

    done = run_command("--config", config, "status")

    assert done.returncode == 1
    one_sentence(done)


def test_missing_file_is_refused_in_one_sentence(config: Path) -> None:
    done = run_command("--config", config, "status")

    assert done.returncode == 1
    assert str(config) in one_sentence(done)


def test_file_in_the_configuration_directory_is_read(tmp_path: Path, cache: Path) -> None:
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


# Output


def test_classes_lists_labels_indexes_and_clips(chosen: Arguments) -> None:
    done = run_command("classes", "--json", *chosen)
    assert json.loads(done.stdout)["classes"] == [
        {"label": "massaging person's head", "index": 0, "clips": {"validation": 1}},
        {"label": "passing American football (in game)", "index": 1, "clips": {"validation": 1}},
        {"label": "surfing water", "index": 2, "clips": {"train": 2, "validation": 2}},
    ]

    lines = [line.split() for line in run_command("classes", *chosen).stdout.splitlines()]
    assert lines[:8] == [
        ["index", "class", "train", "validation"],
        ["0", "massaging", "person's", "head", "0", "1"],
        ["1", "passing", "American", "football", "(in", "game)", "0", "1"],
        ["2", "surfing", "water", "2", "2"],
        ["3", "classes", "2", "4"],
        [],
        ["clips", "named", "by", "train", "validation", "test"],
        ["annotations.csv", "2", "4", "0"],
    ]


def test_classes_of_a_selection_keep_their_indexes(chosen: Arguments) -> None:
    [row] = json.loads(run_command("classes", "--json", *chosen, "--split", "train").stdout)["classes"]

    assert row == {"label": "surfing water", "index": 2, "clips": {"train": 2}}


def test_invalid_rows_of_annotations_are_counted_on_standard_error(chosen: Arguments, annotations: Path) -> None:
    with annotations.open("a") as file:
        file.write("surfing water,short,1,2,train\nsurfing water,demo_video4,9,8,train\n")

    done = run_command("classes", "--json", *chosen)

    assert len(json.loads(done.stdout)["classes"]) == 3
    assert "2 invalid rows" in done.stderr
    assert "line 8" in done.stderr


def test_status_of_an_empty_cache(cache: Path) -> None:
    done = run_command("status", "--cache-dir", cache, "--cache-size", "200GB")

    assert done.returncode == 0
    assert f"{cache}: 0 clips, 0 bytes (of 200.0 GB)" in done.stdout


def test_status_of_a_folder_that_is_not_a_mount_fails(tmp_path: Path) -> None:
    done = run_command("status", tmp_path)

    assert done.returncode == 1
    assert str(tmp_path) in one_sentence(done)


def test_a_folder_with_other_files_is_not_used_as_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    done = run_command("failures", "list", "--cache-dir", tmp_path)

    assert done.returncode == 1
    assert str(tmp_path) in one_sentence(done)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("arguments", [("nonsense",), ("status", "--nonsense"), ("prefetch", "--workers", "0")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = run_command(*arguments)

    assert done.returncode == 2
    one_sentence(done)


# Help


@pytest.mark.parametrize("command", LEAVES)
def test_help_has_an_example(command: str) -> None:
    done = run_command(*command.split(), "--help")

    assert done.returncode == 0
    usage, _, rest = done.stdout.partition("\n")
    assert usage.startswith(f"Usage: kinetics-fs {command}")
    assert re.search(rf"^ +kinetics-fs {command}\b", rest, re.MULTILINE)
    assert run_command(*command.split(), "-h").stdout == done.stdout


def test_help_lists_every_command() -> None:
    said = run_command("--help").stdout

    for text in (said, *(run_command(group, "--help").stdout for group in ("index", "failures", "pin"))):
        assert "..." not in text.partition("Commands:")[2], "a short help is cut off"
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
    done = run_command(_KINETICS_FS_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=current)

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
    usual, whole = (run_command("mount", option).stdout for option in ("--help", "--help-all"))

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


# A closed pipe as output


@pytest.mark.parametrize("arguments", [("classes",), ("classes", "--json"), ("status", "--json"), ("--help",)])
def test_a_closed_pipe_ends_a_command_silently(chosen: Arguments, arguments: tuple[str, ...]) -> None:
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


def test_a_pipe_closed_in_the_middle_ends_a_command_silently(chosen: Arguments, annotations: Path) -> None:
    # More than the capacity of a pipe: the reader ends before the writer.
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
