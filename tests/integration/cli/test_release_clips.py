"""The clips of a release whose lists and archives disagree, on stand-ins for the public servers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import SPLITS, UNLABELED, Clip
from tests.conftest import Dataset
from tests.support.annotations import csv_text
from tests.support.command_line import Mounted, json_output, run_command
from tests.support.public_site import PublicSite
from tests.support.tarballs import by_zlib, flat, make_tar

pytestmark = pytest.mark.server

LISTS = "kinetics/600/annotations"
DEEPMIND = "deepmind-media/Datasets/kinetics600.tar.gz"
SURFING, ZUMBA, HEADS = (
    "600/train/surfing water.tar.gz",
    "600/train/zumba.tar.gz",
    "600/val/massaging person's head.tar.gz",
)
NO_LABEL = "youtube_id,time_start,time_end,split"
CRAWLER = "label,youtube_id,time_start,time_end,split"


def clip(name: str) -> Clip:
    return Clip(f"-{name:_<10}", 0, 10)


def row(label: str, name: str, split: str) -> str:
    return f"{label},{clip(name).youtube_id},0,10,{split}"


def unlabeled(name: str, split: str) -> str:
    return f"{clip(name).youtube_id},0,10,{split}"


def tar_of_lists(lists: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, text in lists.items():
            member = tarfile.TarInfo(f"kinetics600/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()


@pytest.fixture
def public(dataset: Dataset) -> Iterator[PublicSite]:
    """Lists and archives of a small Kinetics-600 that disagree in each way that is known."""
    videos = dataset.clips

    def archive(*names: str) -> bytes:
        return by_zlib(make_tar({clip(name): videos[number] for number, name in enumerate(names)}, flat))

    heads = "massaging person's head"
    files = {
        DEEPMIND: tar_of_lists(
            {
                "train.csv": csv_text(
                    [row("surfing water", name, "train") for name in ("both", "lost", "recut")]
                    + [row("zumba", "inzumba", "train")]
                ),
                "validate.csv": csv_text([row(heads, "head", "validate")]),
                "test.csv": csv_text([row("zumba", "tested", "test")]),
            }
        ),
        # The second edition has another label for one clip, and a clip that the first has lost.
        f"{LISTS}/train.csv": csv_text([row("zumba", "recut", "train"), row("zumba", "cvdf", "train")]).encode(),
        f"{LISTS}/val.csv": csv_text([row(heads, "head", "val")]).encode(),
        f"{LISTS}/test.csv": csv_text([unlabeled(name, "test") for name in ("tested", "nolabel")], NO_LABEL).encode(),
        f"{LISTS}/kinetics600_holdout_test.csv": csv_text([unlabeled("holdout", "holdout_test")], NO_LABEL).encode(),
        f"{LISTS}/train.txt": csv_text([unlabeled("onlytxt", "train"), unlabeled("both", "train")], NO_LABEL).encode(),
        f"{LISTS}/val.txt": b"nobody knows\nwhat this is\n",
        # Not in any list: onlytar. Listed without a label: onlytxt. In another split's list: tested. Not in it: lost.
        f"kinetics/{SURFING}": archive("both", "recut", "onlytar", "onlytxt", "tested"),
        f"kinetics/{ZUMBA}": archive("inzumba", "cvdf", "both"),
        f"kinetics/{HEADS}": archive("head", "onlyval"),
        "kinetics/600/test/part_0.tar.gz": archive("tested", "nolabel", "holdout", "nolist"),
    }
    for split in ("train", "val", "test"):
        names = [name for name in files if name.startswith(f"kinetics/600/{split}/")]
        files[f"kinetics/600/{split}/k600_{split}_path.txt"] = "".join(
            f"https://s3.amazonaws.com/{name}\n" for name in names
        ).encode()
    with PublicSite(files) as site:
        yield site


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run(public: PublicSite, command: str, cache: Path, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run a command of the cache whose archives are those of the public site, and return what it prints."""
    variables = {**public.environment, "KINETICS_FS_ARCHIVE_URL": "https://s3.amazonaws.com/kinetics"}
    done = run_command(*command.split(), "--cache-dir", cache, "--json", *arguments, **variables)
    assert done.returncode == code, done.stderr
    return json_output(done)


LISTED = {
    *("train/surfing water/both", "train/surfing water/lost", "train/surfing water/recut"),
    *("train/zumba/inzumba", "train/zumba/cvdf", f"train/{UNLABELED}/onlytxt"),
    "validation/massaging person's head/head",
    *("test/zumba/tested", f"test/{UNLABELED}/nolabel", f"test/{UNLABELED}/holdout"),
}
ONLY_IN_A_TEST_ARCHIVE = f"test/{UNLABELED}/nolist"
WITH_ARCHIVES = LISTED - {f"train/{UNLABELED}/onlytxt"} | {
    *("train/surfing water/onlytar", "train/surfing water/onlytxt", "train/surfing water/tested"),
    "validation/massaging person's head/onlyval",
}


def shown(mountpoint: Path) -> set[str]:
    """Return the clips of a mount as split/class/name."""
    return {
        f"{path.parent.relative_to(mountpoint)}/{path.name[1:11].rstrip('_')}"
        for split in SPLITS
        for path in (mountpoint / split).glob("*/*.mp4")
    }


def mounted(cache: Path, mountpoint: Path, *arguments: str) -> Mounted:
    return Mounted(mountpoint, "--cache-dir", cache, "--source", "archive", *arguments)


def test_a_release_has_the_clips_of_all_lists(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    told = run(public, "classes", cache)
    assert [(origin["name"], origin["clips"]) for origin in told["origins"]] == [
        ("kinetics600.tar.gz", {"train": 4, "validation": 1, "test": 1}),
        ("train.csv", {"train": 1}),
        ("test.csv", {"test": 1}),
        ("kinetics600_holdout_test.csv", {"test": 1}),
        ("train.txt", {"train": 1}),
    ]
    assert {"source": "CVDF", "clips": {"train": 427_549, "validation": 29_793, "test": 72_924}} in told["published"]
    assert [one["label"] for one in told["classes"] if one["index"] >= 0] == [
        *("massaging person's head", "surfing water", "zumba"),
    ]
    with mounted(cache, tmp_path / "mount") as mount:
        assert shown(mount.root) == LISTED


def test_lists_that_cannot_be_had_cost_only_their_clips(public: PublicSite, cache: Path) -> None:
    del public.site.files[f"{LISTS}/train.csv"], public.site.files[f"{LISTS}/test.csv"]
    done = run_command("classes", "--cache-dir", cache, "--json", **public.environment)
    assert done.returncode == 0
    for name in ("train.csv: the server answers 404", "test.csv: the server answers 404", "cannot read val.txt"):
        assert name in done.stderr
    assert done.stderr.count("clips that no other list names are left out") == 3
    names = [origin["name"] for origin in json_output(done)["origins"]]
    assert names == ["kinetics600.tar.gz", "kinetics600_holdout_test.csv", "train.txt"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><title>Log in</title>", "train.csv: the server answers with a web page"),
        (b"PK\3\4 and so on", "cannot read train.csv: it is a zip archive or a spreadsheet"),
        (b"", "cannot read train.csv: it has no usable row"),
        (by_zlib(csv_text([row("zumba", "cvdf", "train")]).encode())[:-9], "it is damaged or incomplete"),
        (b"label,youtube_id\nzumba,x\n", "cannot read train.csv: its header has no time_start"),
    ],
    ids=["page", "zip", "empty", "damaged", "header"],
)
def test_lists_that_are_none_cost_only_their_clips(
    public: PublicSite, cache: Path, content: bytes, reason: str
) -> None:
    whole = public.site.files[f"{LISTS}/train.csv"]
    public.site.files[f"{LISTS}/train.csv"] = content
    done = run_command("classes", "--cache-dir", cache, "--json", **public.environment)
    assert done.returncode == 0, done.stderr
    assert reason in done.stderr and "clips that no other list names are left out" in done.stderr
    names = [origin["name"] for origin in json_output(done)["origins"]]
    assert names == ["kinetics600.tar.gz", "test.csv", "kinetics600_holdout_test.csv", "train.txt"]
    if "web page" in reason:
        public.site.files[f"{LISTS}/train.csv"] = whole
        assert "train.csv" in [origin["name"] for origin in run(public, "classes", cache)["origins"]]


def test_lists_none_of_which_can_be_read_are_an_error(public: PublicSite, cache: Path) -> None:
    public.site.files.update(dict.fromkeys(public.site.files, b"nothing"))
    done = run_command("classes", "--cache-dir", cache, **public.environment)
    assert done.returncode == 1
    assert "cannot read kinetics600.tar.gz" in done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (clip("extra").key, f"train/{UNLABELED}/extra"),
        (clip("extra").name, f"train/{UNLABELED}/extra"),
        (f"surfing_water/{clip('extra').name}", "train/surfing water/extra"),
        (f"train/Surfing/{clip('extra').name}", f"train/{UNLABELED}/extra"),
    ],
)
def test_lists_of_unknown_format_are_read_as_keys_or_paths(
    public: PublicSite, cache: Path, tmp_path: Path, line: str, expected: str
) -> None:
    public.site.files[f"{LISTS}/train.txt"] = f"{line}\n".encode()
    assert [one["index"] for one in run(public, "classes", cache)["classes"]].count(-1) == 1
    with mounted(cache, tmp_path / "mount") as mount:
        assert shown(mount.root) == LISTED - {f"train/{UNLABELED}/onlytxt"} | {expected}


def test_no_list_at_all_is_an_error(public: PublicSite, cache: Path) -> None:
    public.site.files.clear()
    done = run_command("classes", "--cache-dir", cache, **public.environment)
    assert done.returncode == 1
    assert "cannot download https://storage.googleapis.com/" in done.stderr


def test_fill_stores_what_the_archives_have(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    run(public, "classes", cache)
    with mounted(cache, tmp_path / "before") as mount:
        before = {str(path.relative_to(mount.root)): path.stat().st_ino for path in mount.root.rglob("*")}

    # One clip is in two archives: read at the same time, one pass could leave it to the other and not be finished.
    told = run(public, "fill", cache, "--split", "train", "--jobs", "1", code=3)
    assert (told["stored"], told["named_by_archives"], told["not_in_annotations"]) == (7, 2, 0)
    assert told["in_no_archive"] == 1, "only the clip that the archives lost"

    with mounted(cache, tmp_path / "mount") as mount:
        assert shown(mount.root) == WITH_ARCHIVES - {"validation/massaging person's head/onlyval"}
        for name in ("onlytar", "onlytxt", "tested"):
            content = (mount.root / "train/surfing water" / clip(name).name).read_bytes()
            assert content[4:8] == b"ftyp"
        after = {str(path.relative_to(mount.root)): path.stat().st_ino for path in mount.root.rglob("*")}
        moved = {path for path in before if path not in after}
        assert moved == {f"train/{UNLABELED}", f"train/{UNLABELED}/{clip('onlytxt').name}"}
        assert all(after[path] == ino for path, ino in before.items() if path in after)
        catalog = json.loads((mount.root / ".kinetics/catalog.json").read_text())
        classes = (mount.root / ".kinetics/classes.txt").read_text()
    assert catalog["digest"] != catalog["annotations_digest"]
    assert {"kind": "archive", "name": SURFING, "clips": {"train": 3}} in catalog["origins"]
    assert classes.split("\n")[:3] == ["massaging person's head", "surfing water", "zumba"]

    again = run(public, "fill", cache, "--split", "train", code=3)
    assert (again["archives"]["read"], again["bytes_read"]) == ([], 0), "nothing is read twice"

    coverage = run(public, "status --coverage", cache, "--split", "train")
    assert coverage["cached"] == 7 and coverage["clips"] == 8
    text = run_command("status", "--coverage", "--cache-dir", cache, "--split", "train", **public.environment).stdout
    assert "only in archives (1)" in text and "published: CVDF" in text


def test_a_fill_of_a_part_of_another_reads_nothing_again(public: PublicSite, cache: Path) -> None:
    run(public, "fill", cache, "--split", "train", "--jobs", "1", code=3)
    told = run(public, "fill", cache, "--split", "train", "--class", "surfing water", code=3)
    assert (told["archives"]["read_before"], told["bytes_read"]) == ([SURFING], 0)
    assert told["in_no_archive"] == 1


def test_a_fill_of_a_class_takes_its_archives_only(public: PublicSite, cache: Path) -> None:
    told = run(public, "fill", cache, "--class", "massaging person's head")
    assert (told["stored"], told["named_by_archives"]) == (2, 1)
    told = run(public, "fill", cache, "--class", "zumba", "--split", "train")
    assert (told["stored"], told["named_by_archives"], told["not_in_annotations"]) == (2, 0, 1)


def test_clips_of_archives_that_mix_classes_have_no_label(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    told = run(public, "fill", cache, "--split", "test")
    assert (told["stored"], told["named_by_archives"]) == (4, 1)
    with mounted(cache, tmp_path / "mount") as mount:
        assert shown(mount.root) == LISTED | {ONLY_IN_A_TEST_ARCHIVE}


def test_annotations_only_and_samples_leave_them_out(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    told = run(public, "fill", cache, "--split", "train", "--annotations-only", code=3)
    assert (told["stored"], told["named_by_archives"], told["not_in_annotations"]) == (5, 0, 2)
    with mounted(cache, tmp_path / "mount", "--annotations-only") as mount:
        assert shown(mount.root) == LISTED
    samples = run(public, "fill", tmp_path / "samples", "--split", "train", "--max-samples", "3", "--jobs", "1")
    assert samples["named_by_archives"] == 0

    told = run(public, "fill", cache, "--split", "train", code=3)
    assert told["stored"] == 2


def test_lists_of_ones_own_are_kept_to(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.csv"
    own.write_text(csv_text([row("surfing water", "both", "train")]))
    mine = ("--annotations", own)
    assert run(public, "fill", cache, *mine)["stored"] == 1
    with mounted(cache, tmp_path / "mount", *map(str, mine)) as mount:
        assert shown(mount.root) == {"train/surfing water/both"}

    told = run(public, "fill", cache, *mine, "--archive-clips")
    assert (told["stored"], told["already_cached"]) == (4, 1)
    with mounted(cache, tmp_path / "mount", *map(str, mine), "--archive-clips") as mount:
        assert len(shown(mount.root)) == 5

    done = run_command("classes", *mine, "--archive-clips", "--annotations-only", "--cache-dir", cache)
    assert done.returncode == 2 and "--archive-clips with --annotations-only" in done.stderr


def test_indexes_bring_their_clips_to_another_machine(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    run(public, "index build", cache)
    indexes, other = tmp_path / "indexes", tmp_path / "other"
    assert run_command("index", "export", "--cache-dir", cache, indexes).returncode == 0
    assert run_command("index", "import", "--cache-dir", other, indexes).returncode == 0

    digests = []
    for number, folder in enumerate((cache, other)):
        run(public, "classes", folder)
        with mounted(folder, tmp_path / f"mount{number}") as mount:
            assert shown(mount.root) == WITH_ARCHIVES | {ONLY_IN_A_TEST_ARCHIVE}
            digests.append(json.loads((mount.root / ".kinetics/catalog.json").read_text())["digest"])
    assert digests[0] == digests[1]


def test_a_clip_that_only_an_archive_has_is_fetched_on_demand(public: PublicSite, cache: Path, tmp_path: Path) -> None:
    run(public, "index build", cache, "--split", "train")
    folder = tmp_path / "archives"
    for name in (SURFING, ZUMBA):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(public.site.files[f"kinetics/{name}"])
    with mounted(cache, tmp_path / "mount", "--archive-url", str(folder)) as mount:
        content = (mount.root / "train/surfing water" / clip("onlytar").name).read_bytes()
    assert content[4:8] == b"ftyp"
