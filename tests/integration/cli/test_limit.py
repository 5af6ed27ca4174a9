"""`--cache-size` and other sizes: units, minimums, the limit that the cache keeps, and `--shrink`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs import Library
from kinetics_fs.config import Settings
from kinetics_fs.errors import SettingError, StoreError
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset
from tests.integration.cli.conftest import Prefetch
from tests.support.annotated_archives import AnnotatedArchives
from tests.support.command_line import json_output, run_command
from tests.support.store import query

Arguments = tuple[str | Path, ...]
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def full(fetched: Path, cache: Path) -> Path:
    """A cache with three clips."""
    shutil.copytree(fetched, cache)
    return cache


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def clips_in(cache: Path) -> dict[str, int]:
    """Return the cached clips and their sizes, the least recently opened first."""
    return dict(query(CacheLayout(cache).state_database, "SELECT key, size FROM clip WHERE cached ORDER BY opened_at"))


def status(cache: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    done = run_command("status", "--json", "--cache-dir", cache, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    cached = json_output(done)["cache"]
    assert isinstance(cached, dict)
    return cached


def error_of(done: Done) -> str:
    """Return the error of a command, which must be one sentence."""
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1, done.stderr
    return lines[0]


# Units and minimums


@pytest.mark.parametrize(
    "flag", ["--cache-size", "--min-free", "--max-archive-download", "--max-bandwidth", "--max-fetch-bytes"]
)
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("200", "write 200GB or 200MB; 200B if you mean bytes"),
        ("1.5", "write 1.5GB or 1.5MB; 1.5B if you mean bytes"),
        ("200000000000", "write 200GB or 200MB; 200000000000B if you mean bytes"),
    ],
)
def test_a_size_without_a_unit_is_refused(tmp_path: Path, config: Path, flag: str, text: str, hint: str) -> None:
    name = flag.removeprefix("--")
    mount = "mount", "--cache-dir", tmp_path / "cache", tmp_path / "mnt"
    config.write_text(f"{name} = {text}\n")
    variable = f"KINETICS_FS_{name.upper().replace('-', '_')}"
    for done, origin in (
        (run_command(*mount, flag, text), flag),
        (run_command(*mount, **{variable: text}), variable),
        (run_command("--config", config, *mount, KINETICS_FS_MIN_FREE=""), f"{name} in {config}"),
    ):
        assert origin in error_of(done)
        assert hint in error_of(done)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["0", "0B", "0GB"])
def test_zero_needs_no_unit_where_it_has_a_meaning(cache: Path, text: str) -> None:
    everywhere = "--min-free", text, "--max-archive-download", text, "--max-bandwidth", text
    done = run_command("verify", "--cache-dir", cache, *everywhere)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "said"), [("20MB", "20.0 MB"), ("99.9MB", "99.9 MB"), ("200B", "200 bytes"), ("0", "0 bytes")]
)
def test_a_small_cache_is_refused_unless_it_is_forced(full: Path, config: Path, text: str, said: str) -> None:
    before = clips_in(full)
    config.write_text(f'cache-size = "{text}"\n')
    common = "status", "--cache-dir", full
    for done, origin in (
        (run_command(*common, "--cache-size", text, "--shrink", KINETICS_FS_SMALL_CACHE=""), ""),
        (run_command(*common, KINETICS_FS_CACHE_SIZE=text, KINETICS_FS_SMALL_CACHE=""), "KINETICS_FS_CACHE_SIZE"),
        (run_command("--config", config, *common, KINETICS_FS_SMALL_CACHE=""), str(config)),
    ):
        assert f"cannot use --cache-size {said}: the minimum is 100.0 MB; give more, none" in error_of(done)
        assert "--small-cache" in error_of(done)
        assert origin in error_of(done)
    assert clips_in(full) == before
    assert status(full)["limit"] is None

    assert status(full, "--cache-size", "100MB", KINETICS_FS_SMALL_CACHE="")["limit"] == 10**8
    forced = status(full, "--cache-size", "20MB", "--small-cache", KINETICS_FS_SMALL_CACHE="")
    assert forced["limit"] == 20 * 10**6
    # Other commands obey it and need no force.
    assert status(full, KINETICS_FS_SMALL_CACHE="")["limit"] == 20 * 10**6


@pytest.mark.parametrize("text", ["5B", "9.9kB", "1B/s"])
def test_an_absurdly_small_bandwidth_is_refused(cache: Path, text: str) -> None:
    done = run_command("verify", "--cache-dir", cache, "--max-bandwidth", text)
    assert "the minimum is 10.0 kB per second" in error_of(done)


@pytest.mark.parametrize("text", ["5MB", "5MB/s", "500 KiB / s", "10kB"])
def test_a_bandwidth_may_say_that_it_is_per_second(cache: Path, text: str) -> None:
    done = run_command("verify", "--cache-dir", cache, "--max-bandwidth", text)
    assert done.returncode == 0, done.stderr


def test_settings_in_python_have_the_same_minimums(cache: Path) -> None:
    with pytest.raises(SettingError, match="--small-cache"):
        Library(cache_dir=cache, cache_size=200)
    with pytest.raises(SettingError, match="--max-bandwidth"):
        Settings(max_bandwidth=5)
    with pytest.raises(SettingError, match="200GB"):
        Library(cache_dir=cache, cache_size="200GB")


# The limit of the cache


def test_the_cache_keeps_its_limit_until_another_is_given(cache: Path, config: Path) -> None:
    assert status(cache)["limit"] is None
    assert status(cache, "--cache-size", "300GB")["limit"] == 300 * 10**9
    assert status(cache)["limit"] == 300 * 10**9
    with Library(cache_dir=cache, min_free=0) as library:
        assert library.status().cache.limit == 300 * 10**9

    changed = run_command("status", "--cache-dir", cache, KINETICS_FS_CACHE_SIZE="200GB")
    assert "was changed from 300.0 GB to 200.0 GB" in changed.stderr
    assert "(of 200.0 GB)" in changed.stdout
    same = run_command("status", "--cache-dir", cache, "--cache-size", "200GB")
    assert same.stderr == ""

    config.write_text('cache-size = "none"\n')
    removed = run_command("--config", config, "status", "--cache-dir", cache)
    assert "was changed from 200.0 GB to no limit" in removed.stderr
    assert status(cache)["limit"] is None
    assert status(cache, "--cache-size", "NONE")["limit"] is None


def test_a_smaller_limit_wants_shrink_wherever_it_comes_from(full: Path, chosen: Arguments, config: Path) -> None:
    before = clips_in(full)
    _, middle, newest = before.values()
    limit = f"{newest + middle // 2}B"
    config.write_text(f'cache-size = "{limit}"\n')
    common = "prefetch", *chosen
    for done, origin in (
        (run_command(*common, "--cache-size", limit), "--cache-size"),
        (run_command(*common, KINETICS_FS_CACHE_SIZE=limit), "KINETICS_FS_CACHE_SIZE"),
        (run_command("--config", config, *common), str(config)),
    ):
        assert done.returncode == 1
        assert "so that 2 clips (" in error_of(done)
        assert "give --shrink" in error_of(done)
        assert origin in error_of(done)
    assert clips_in(full) == before
    assert status(full)["limit"] is None

    done = run_command("--config", config, "status", "--cache-dir", full, "--shrink")
    assert done.returncode == 0
    assert "evicted 2 clips (" in done.stderr
    assert list(clips_in(full).values()) == [newest]


def test_commands_that_store_no_clips_work_with_a_limit_that_is_refused(
    full: Path, chosen: Arguments, config: Path
) -> None:
    before = clips_in(full)
    config.write_text('cache-size = "10kB"\n')
    cache = "--cache-dir", full
    for command in (
        ("status", *cache),
        ("status", "--coverage", *chosen),
        ("verify", *cache),
        ("report", *chosen, "--output", full.with_name("report.html")),
        ("failures", "list", *cache),
        ("pin", "list", *chosen),
        ("export", *chosen, full.with_name("out")),
    ):
        done = run_command("--config", config, *command)
        assert done.returncode in (0, 3), done.stderr
        # The others take no limit.
        assert ("give --shrink" in done.stderr) == (command[0] in ("status", "verify", "report"))
    assert clips_in(full) == before
    assert "give --shrink" in error_of(run_command("--config", config, "verify", "--repair", *cache))


def test_a_mount_that_would_shrink_the_cache_is_refused_before_it_starts(
    full: Path, chosen: Arguments, tmp_path: Path
) -> None:
    before = clips_in(full)
    done = run_command("mount", "--foreground", *chosen, "--cache-size", "100KB", tmp_path / "mnt")
    assert "give --shrink" in error_of(done)
    assert clips_in(full) == before


def test_a_limit_in_python_wants_shrink(full: Path) -> None:
    with (
        Library(cache_dir=full, cache_size=10_000, small_cache=True) as library,
        pytest.raises(StoreError, match="--shrink"),
    ):
        assert library.status().cache.bytes > 10_000
        library.prefetch([], whole_cache=True)
    with Library(cache_dir=full, cache_size=10_000, small_cache=True, shrink=True) as library:
        assert library.status().cache.bytes <= 10_000


def test_doctor_knows_the_limit_of_the_cache(full: Path) -> None:
    with Store(full) as store:
        size = store.usage().bytes
    for given, word in ((f"{size + 10**7}B", "--cache-size"), ("10kB", "--shrink")):
        done = run_command("doctor", "--offline", "--json", "--cache-dir", full, "--cache-size", given)
        assert word in json.dumps([one for one in json.loads(done.stdout)["findings"] if one["name"] == "cache space"])
    status(full, "--cache-size", f"{size}B")
    done = run_command("doctor", "--offline", "--json", "--cache-dir", full)
    assert "--cache-size" in json.dumps(
        [one for one in json.loads(done.stdout)["findings"] if one["name"] == "cache space"]
    )


def test_prefetch_obeys_the_limit_of_the_cache(full: Path, prefetch: Prefetch) -> None:
    before = clips_in(full)
    size = sum(before.values())
    status(full, "--cache-size", f"{size}B")
    done = prefetch("--source", "youtube")
    assert done.returncode == 1
    assert "; raise --cache-size or lower --min-free" in done.stderr
    assert "the environment variable KINETICS_FS_MIN_FREE" in done.stderr
    assert clips_in(full) == before, "a prefetch evicts no clip of its own selection"

    status(full, "--cache-size", f"{size + 10**6}B")
    prefetch("--source", "youtube")
    assert size < sum(clips_in(full).values()) <= size + 10**6


def test_fill_and_import_obey_the_limit_of_the_cache(annotated: AnnotatedArchives, tmp_path: Path) -> None:
    assert annotated.fill().returncode == 0
    exported = run_command("export", *annotated.arguments, tmp_path / "out")
    assert exported.returncode == 0, exported.stderr
    small = tmp_path / "small"
    assert status(small, "--cache-size", "1kB")["limit"] == 1000
    for command, argument in ("fill", f"--archive-url={annotated.folder}"), ("import", tmp_path / "out"):
        done = run_command(command, *annotated.arguments, "--cache-dir", small, argument)
        assert "the limit of the cache is 1.0 kB; give a larger --cache-size" in error_of(done)
    assert clips_in(small) == {}
