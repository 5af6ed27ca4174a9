"""`kinetics-fs failures` and `status --coverage`: list, count, retry, forget, export and import failures."""

from __future__ import annotations

import csv
import io
import json
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.store import Store
from tests.integration.cli.conftest import Prefetch
from tests.support.command_line import run_command

Arguments = tuple[str | Path, ...]
Done = subprocess.CompletedProcess[str]

SURF, MASSAGE, FOOTBALL = Clip("-demo_video", 10, 12), Clip("demo-video2", 0, 2), Clip(GONE, 5, 15)
TRAIN = Clip("demo_video4", 0, 2)
ELSEWHERE = Clip("elsewhere-1", 0, 10)
"""A clip that no annotations contain."""

FAILURES = {
    ELSEWHERE: FetchError(FailureKind.GONE, "elsewhere-1: Video unavailable", source="youtube"),
    FOOTBALL: FetchError(FailureKind.GONE, f"{GONE}: Video unavailable", source="youtube"),
    MASSAGE: FetchError(FailureKind.CREDENTIALS, 'Private video, "sorry"', source="youtube"),
    TRAIN: FetchError(FailureKind.LOCAL, "no room for 1,500 bytes"),
    SURF: FetchError(FailureKind.BLOCKED, "not a\nbot? \x1b[2J", source="youtube"),
}
"""In chronological order."""


@pytest.fixture
def failed(cache: Path) -> Arguments:
    """A cache that remembers `FAILURES`; the arguments that make a command use it."""
    with Store(cache) as store:
        for clip, error in FAILURES.items():
            store.failures.remember(clip, error)
    return ("--cache-dir", cache)


def failures(*arguments: str | Path, code: int = 0, **more: Any) -> Done:
    done = run_command("failures", *arguments, **more)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def coverage(*arguments: str | Path, code: int = 0) -> Done:
    done = run_command("status", "--coverage", *arguments)
    assert done.returncode == code, done.stderr
    return done


def keys(*arguments: str | Path, **more: Any) -> list[str]:
    return [failure["key"] for failure in json.loads(failures("list", "--json", *arguments, **more).stdout)]


def parse_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# List


def test_list_prints_a_table(failed: Arguments) -> None:
    header, *lines = failures("list", *failed).stdout.splitlines()

    assert [line[:25] for line in lines] == [clip.key for clip in reversed(FAILURES)]
    reason = header.index("reason")
    assert [line[reason:] for line in lines] == [
        "youtube: not a bot? \\x1b[2J",
        "no room for 1,500 bytes",
        'youtube: Private video, "sorry"',
        f"youtube: {GONE}: Video unavailable",
        "youtube: elsewhere-1: Video unavailable",
    ]
    assert [line[header.index("kind") :].split()[:2] for line in lines][:2] == [["blocked", "1"], ["local", "1"]]
    assert [line[header.index("next retry") :].startswith("when opened") for line in lines].index(True) == 1


def test_list_prints_the_same_as_csv_and_json(failed: Arguments) -> None:
    table = parse_csv(failures("list", "--csv", *failed).stdout)
    objects = json.loads(failures("list", "--json", *failed).stdout)

    assert list(table[0]) == ["clip", "kind", "reason", "source", "attempts", "first", "last", "retry_after"]
    names = {"clip": "key", "kind": "kind", "reason": "reason", "source": "source", "attempts": "attempts"}
    assert [[row[name] for name in names] for row in table] == [
        [str(one[name]) for name in names.values()] for one in objects
    ]
    assert table[2]["reason"] == 'Private video, "sorry"'
    assert table[0]["last"].endswith("+00:00")


def test_list_filters_by_kind(failed: Arguments) -> None:
    assert keys(*failed, "--kind", "gone", "--kind", "local") == [TRAIN.key, FOOTBALL.key, ELSEWHERE.key]
    none = failures("list", *failed, "--kind", "corrupt")
    assert none.stdout == "No such failures are remembered.\n"
    assert failures("list", *failed, "--kind", "corrupt", "--csv").stdout.count("\n") == 1
    failures("list", *failed, "--kind", "dead", code=2)
    failures("list", *failed, "--json", "--csv", code=2)


def test_list_filters_by_selection(failed: Arguments, annotations: Path, tmp_path: Path) -> None:
    ours = (*failed, "--annotations", annotations)
    assert keys(*ours) == [SURF.key, TRAIN.key, MASSAGE.key, FOOTBALL.key]
    assert keys(*ours, "--split", "validation", "--class", "surfing water") == [SURF.key]
    assert keys(*ours, "--kind", "gone") == [FOOTBALL.key]
    assert keys(*ours, KINETICS_FS_SPLIT="train") == [TRAIN.key]
    # A selection in the configuration file counts as given.
    config = tmp_path / "config.toml"
    config.write_text(f"annotations = {json.dumps(str(annotations))}\nsplit = 'train'\n")
    done = run_command("--config", config, "failures", "list", "--json", *failed)
    assert [failure["key"] for failure in json.loads(done.stdout)] == [TRAIN.key]
    wrong = failures("list", *ours, "--class", "surfing watr", code=1)
    assert "surfing water" in wrong.stderr


def test_list_summary_counts_failures_by_reason(failed: Arguments, annotations: Path) -> None:
    summary = json.loads(failures("list", "--summary", "--json", *failed).stdout)
    assert summary["clips"] == 5
    assert summary["kinds"]["gone"] == {"clips": 2, "reasons": {"…: Video unavailable": 2}}
    assert summary["kinds"]["local"] == {"clips": 1, "reasons": {"no room for … bytes": 1}}

    of_selection = failures("list", "--summary", *failed, "--annotations", annotations, "--kind", "gone")
    assert [line.split() for line in of_selection.stdout.splitlines()] == [
        ["1", "gone"],
        ["1", "…:", "Video", "unavailable"],
    ]
    assert "No such" in failures("list", "--summary", *failed, "--kind", "corrupt").stdout
    assert "--summary and --csv" in failures("list", "--summary", "--csv", *failed, code=2).stderr


# Coverage


def test_coverage_of_a_selection(prefetch: Prefetch, chosen: Arguments, cache: Path, failed: Arguments) -> None:
    assert (
        prefetch("--class", "surfing water", "--split", "train", "--class", "massaging person's head").returncode == 0
    )
    with Store(cache) as store:
        store.remove(TRAIN)  # evicted
        store.failures.remember(Clip("DEMOvideo-5", 8, 10), FetchError(FailureKind.GONE, "no more"))  # but it is cached

    told = json.loads(coverage("--json", *chosen).stdout)

    assert told["origins"] == [{"kind": "list", "name": "annotations.csv", "clips": {"train": 2, "validation": 4}}]
    assert {"source": "CVDF", "clips": {"train": 427_549, "validation": 29_793, "test": 72_924}} in told["published"]
    assert {
        name: value for name, value in told.items() if name not in ("kinds", "classes", "origins", "published")
    } == {
        "release": "600",
        "clips": 6,
        "cached": 1,
        "short": 0,
        "evicted": 1,
        "untried": 1,
        "unavailable": 3,
        "due": 0,
    }
    assert {kind: of_kind["clips"] for kind, of_kind in told["kinds"].items()} == {
        "gone": 1,
        "credentials": 1,
        "blocked": 1,
    }
    assert told["classes"] == [
        {
            "split": split,
            "label": label,
            **dict(zip(("clips", "cached", "evicted", "unavailable", "untried"), numbers, strict=True)),
            "short": 0,
        }
        for split, label, *numbers in [
            ("train", "surfing water", 2, 1, 1, 0, 0),
            ("validation", "massaging person's head", 1, 0, 0, 1, 0),
            ("validation", "passing American football (in game)", 1, 0, 0, 1, 0),
            ("validation", "surfing water", 2, 0, 0, 1, 1),
        ]
    ]
    lines = [line.split() for line in coverage(*chosen).stdout.splitlines()]
    assert ["Kinetics-600,", "6", "clips:"] in lines
    assert ["1", "cached"] in lines
    assert ["1", "untried"] in lines
    assert ["3", "unavailable"] in lines
    assert ["annotations.csv", "2", "4", "0"] in lines
    assert ["validation", "surfing", "water", "2", "0", "0.0%", "0", "1"] in lines

    table = parse_csv(coverage("--csv", *chosen).stdout)
    assert {row["path"]: (row["label"], row["kind"]) for row in table} == {
        f"validation/surfing water/{SURF.name}": ("surfing water", "blocked"),
        f"validation/massaging person's head/{MASSAGE.name}": ("massaging person's head", "credentials"),
        f"validation/passing American football (in game)/{FOOTBALL.name}": (
            "passing American football (in game)",
            "gone",
        ),
    }


def test_coverage_of_a_part(chosen: Arguments, failed: Arguments) -> None:
    told = json.loads(coverage("--json", *chosen, "--split", "train").stdout)
    assert (told["clips"], told["unavailable"], told["due"], told["untried"]) == (2, 1, 1, 1)
    said = coverage(*chosen, "--split", "train").stdout
    assert "1 of them are retried at the next open" in said
    nothing = coverage(*chosen, "--split", "train", "--max-samples", "1", "--class", "surfing water")
    assert "unavailable" in nothing.stdout


# Retry and forget


def test_retry_fetches_named_selected_or_all_clips(
    prefetch: Prefetch, site: VideoSite, chosen: Arguments, cache: Path
) -> None:
    football = ("--class", "passing American football (in game)")
    site.fail["demo-video2"] = 404
    assert prefetch("--split", "validation").returncode == 3
    site.fail.clear()
    before = {video: site.video_fetches(video) for video in (GONE, "demo-video2", "-demo_video")}
    to_site = (*chosen[2:], "--video-url", site.url_template)

    def more() -> dict[str, int]:
        return {video: site.video_fetches(video) - count for video, count in before.items()}

    # No clips are chosen, or both all and one.
    failures("retry", *to_site, code=2)
    failures("retry", *to_site, "--all", GONE, code=2)
    named = failures("retry", *to_site, "--json", "--", f"{MASSAGE.name}")
    result = json.loads(named.stdout)
    assert result.pop("bytes") > 0
    assert result == {
        "clips": 1,
        "fetched": 1,
        "already_cached": 0,
        "failed": 0,
        "failures": {},
        "interrupted": False,
    }
    assert keys("--cache-dir", cache) == [FOOTBALL.key]
    assert more() == {GONE: 0, "demo-video2": 1, "-demo_video": 0}

    part = failures("retry", *to_site, *chosen[:2], *football, code=3)
    assert part.stdout.startswith("0 fetched, 0 already cached, 1 unavailable\n  1 gone\n")
    [failure] = json.loads(failures("list", "--json", "--cache-dir", cache).stdout)
    assert failure["attempts"] == 2
    assert failure["retry_at"] - failure["last_at"] == pytest.approx(14 * 86_400)
    assert more()[GONE] == 1

    assert json.loads(failures("retry", *to_site, "--kind", "blocked", "--json").stdout)["clips"] == 0
    failures("retry", *to_site, "--all", code=3)
    assert more() == {GONE: 2, "demo-video2": 1, "-demo_video": 0}


def test_clear_filters_by_kind(failed: Arguments) -> None:
    failures("clear", *failed, code=2)
    assert failures("clear", *failed, "--kind", "gone", "--", SURF.key).stdout == "0 failures forgotten\n"
    assert failures("clear", *failed, "--kind", "gone", "--kind", "blocked").stdout == "3 failures forgotten\n"
    assert keys(*failed) == [TRAIN.key, MASSAGE.key]
    assert failures("clear", *failed, "--all").stdout == "2 failures forgotten\n"


# Export and import


def test_an_exported_list_is_believed_by_another_cache(
    failed: Arguments, tmp_path: Path, prefetch: Prefetch, site: VideoSite
) -> None:
    shared, other = tmp_path / "dead clips.jsonl", ("--cache-dir", tmp_path / "other")
    done = failures("export", *failed, shared)
    assert (done.stdout, done.stderr) == ("", "2 failures written\n")
    lines = [json.loads(line) for line in shared.read_text().splitlines()]
    assert [line["key"] for line in lines] == [FOOTBALL.key, ELSEWHERE.key]
    assert failures("export", *failed, "-").stdout == shared.read_text()

    first = failures("import", *other, shared, "--json")
    assert json.loads(first.stdout) == {"imported": 2, "known": 0, "cached": 0, "other_kind": 0, "invalid": 0}
    again = failures("import", *other, shared)
    assert again.stdout.startswith("0 imported; skipped: 2 already known, ")
    told = json.loads(failures("list", "--json", *other).stdout)
    assert {failure["source"] for failure in told} == {"imported youtube"}
    assert [failure["last_at"] for failure in told] == [line["last_at"] for line in lines]

    # The other cache does not request the clip.
    part = prefetch(*other, "--class", "passing American football (in game)", "--json")
    assert part.returncode == 3
    assert json.loads(part.stdout)["failures"] == {"gone": 1}
    assert site.video_fetches(GONE) == 0


def test_other_kinds_are_shared_only_if_named(failed: Arguments, tmp_path: Path) -> None:
    shared, other = tmp_path / "dead clips.jsonl", ("--cache-dir", tmp_path / "other")
    failures("export", *failed, "--kind", "gone", "--kind", "credentials", shared)
    assert len(shared.read_text().splitlines()) == 3
    for kind in ("blocked", "transient", "config", "local"):
        failures("export", *failed, "--kind", kind, "-", code=2)
        failures("import", *failed, "--kind", kind, "-", code=2)

    assert json.loads(failures("import", *other, shared, "--json").stdout)["other_kind"] == 1
    assert keys(*other, "--kind", "credentials") == []
    asked = failures("import", *other, shared, "--json", "--kind", "credentials")
    assert json.loads(asked.stdout) == {"imported": 1, "known": 0, "cached": 0, "other_kind": 2, "invalid": 0}
    assert keys(*other, "--kind", "credentials") == [MASSAGE.key]


def test_import_skips_invalid_lines(cache: Path, tmp_path: Path) -> None:
    good = {"key": GONE + "_000005_000015", "kind": "gone", "last_at": time.time() + 1e6}
    bad = [{**good, "key": "../../x"}, {**good, "kind": "blocked"}, {**good, "last_at": "today"}, {**good, "reason": 5}]
    lines = [json.dumps(bad[0]), json.dumps(good), *map(json.dumps, bad[1:])]
    path = tmp_path / "list"
    path.write_text("\n".join(lines))

    done = failures("import", "--cache-dir", cache, path, code=3)

    assert done.stdout.startswith("1 imported; ")
    assert done.stdout.endswith(" 4 invalid\n")
    said = done.stderr.splitlines()
    assert "4 invalid lines" in said[0]
    assert [line.split(":")[0].strip() for line in said[1:]] == ["line 1", "line 3", "line 4"]
    [failure] = json.loads(failures("list", "--json", "--cache-dir", cache).stdout)
    assert failure["first_at"] <= failure["last_at"] <= time.time()


def test_import_of_a_missing_list_is_wrong_usage(cache: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        done = failures("import", "--cache-dir", cache, path, code=2)
        assert str(path) in done.stderr


def test_clips_that_archives_lack_are_not_exported(chosen: Arguments, cache: Path, tmp_path: Path) -> None:
    with Store(cache) as store:
        for number, source in enumerate(("archive", "imported archive", "youtube")):
            error = FetchError(FailureKind.GONE, "not in archives", source=source)
            store.failures.remember(Clip(f"elsewhere_{number}", 0, 10), error)
    failures("export", "--cache-dir", cache, tmp_path / "shared")
    [line] = (tmp_path / "shared").read_text().splitlines()
    assert "elsewhere_2_000000_000010" in line


def test_an_export_replaces_a_file_at_once_and_never_a_device(failed: Arguments, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    path, link = folder / "list", tmp_path / "link"
    path.write_text("the list of before")
    link.symlink_to(path)
    with path.open() as before:
        failures("export", *failed, link)
        assert before.read() == "the list of before"
    assert len(path.read_text().splitlines()) == 2
    assert link.is_symlink()
    assert list(folder.iterdir()) == [path]

    failures("export", *failed, "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    for path in (folder, tmp_path / "nowhere/list"):
        assert str(path) in failures("export", *failed, path, code=1).stderr
