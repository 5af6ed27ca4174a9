"""`kinetics-fs export` to disks that take names of classes for one, or refuse them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog import Clip
from tests.support.command_line import run_command
from tests.support.demo_clips import as_csv
from tests.support.folding_filesystem import folding_filesystem

SURF, OTHER = Clip("-demo_video", 10, 12), Clip("demo-video2", 0, 2)
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with folding_filesystem(tmp_path / "disk", tmp_path / "mounted") as mountpoint:
        yield mountpoint


class Exporter:
    def __init__(self, folder: Path, fetched: Path) -> None:
        self.annotations, self.cache = folder / "rows.csv", folder / "cache"
        shutil.copytree(fetched, self.cache)

    def __call__(self, target: Path, first: str, second: str, *more: str) -> CompletedProcess[str]:
        rows = [(first, *SURF, "validate"), (second, *OTHER, "validate")]
        self.annotations.write_text(as_csv(rows))
        return run_command(
            "export", "--annotations", self.annotations, "--cache-dir", self.cache, target, "--json", *more
        )


@pytest.fixture
def export(tmp_path: Path, fetched: Path) -> Exporter:
    return Exporter(tmp_path, fetched)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("first", "second"),
    [("Surfing", "surfing"), ("STRASSE", "straße"), (COMPOSED, DECOMPOSED), ("surfing", "surfing.")],
)
def test_classes_that_a_disk_takes_for_one_are_never_mixed(
    export: Exporter, disk: Path, tmp_path: Path, first: str, second: str
) -> None:
    refused = export(disk / "out", first, second)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("kinetics-fs: cannot")]
    assert f'cannot export to {disk / "out"}: its disk takes the folders "' in line
    assert list((disk / "out").iterdir()) == []

    apart = [export(disk / f"{number}", first, second, "--class", name) for number, name in enumerate((first, second))]
    assert [json.loads(done.stdout)["written"] for done in apart] == [1, 1]
    assert json.loads(export(tmp_path / "out", first, second).stdout)["written"] == 2
    assert len(files(tmp_path / "out")) == 2


def test_classes_of_two_exports_are_never_mixed(export: Exporter, disk: Path) -> None:
    assert json.loads(export(disk, "Surfing", "massaging").stdout)["written"] == 2
    assert json.loads(export(disk, "Surfing", "massaging").stdout)["already_there"] == 2
    refused = export(disk, "surfing", "massaging")
    assert refused.returncode == 1
    assert 'takes the folders "Surfing" and "surfing" for one' in refused.stderr
    assert files(disk) == [f"validation/Surfing/{SURF.name}", f"validation/massaging/{OTHER.name}"]


def test_a_disk_that_changes_the_form_of_names_is_usable(export: Exporter, disk: Path) -> None:
    assert json.loads(export(disk, COMPOSED, "massaging").stdout)["written"] == 2
    assert json.loads(export(disk, DECOMPOSED, "massaging").stdout)["already_there"] == 2


def test_a_name_that_a_disk_refuses_is_an_error_before_anything_is_written(
    export: Exporter, disk: Path, tmp_path: Path
) -> None:
    refused = export(disk, "who: me?", "surfing")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert f'cannot export the class "who: me?" to {disk}: its disk refuses the name' in refused.stderr
    assert list(disk.iterdir()) == []
    assert json.loads(export(tmp_path / "out", "who: me?", "surfing").stdout)["written"] == 2
