"""Uploads of whole caches and folders into a shared store, by commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.demo.dataset import VIDEOS
from kinetics_fs.media.profile import CutProfile
from kinetics_fs.shared import ClipFacts, SharedStore, UploadQueue, create_store
from kinetics_fs.shared.store import clip_key
from kinetics_fs.shared.upload_queue import Upload
from kinetics_fs.store import CacheLayout, Store
from tests.conftest import Dataset
from tests.support.command_line import json_output, run_command
from tests.support.demo_clips import ROWS, as_csv
from tests.support.demo_clips import fetched as fetched

CUT = CutProfile().name
FETCHED = {Clip(str(row[1]), int(str(row[2])), int(str(row[3]))) for row in ROWS[:3]}
FROM_ARCHIVE = Clip("demo_video4", 0, 2)

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    return create_store(str(tmp_path / "store"))[0]


@pytest.fixture
def cache(fetched: Path, tmp_path: Path) -> Path:
    """A cache with three clips that were cut, and one as an archive has it."""
    folder = tmp_path / "cache"
    shutil.copytree(fetched, folder)
    with Store(folder) as cache:
        opened = cache.open(next(iter(FETCHED)))
        assert opened is not None
        with open(opened.fd, "rb") as file, cache.claim(FROM_ARCHIVE) as claim:  # type: ignore[union-attr]  # noqa: PTH123
            (claim.folder / "clip").write_bytes(file.read())
            claim.publish(claim.folder / "clip", "archive", duration=2.0)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `kinetics-fs` on the store and the cache of the test; `--annotations` gets its value."""
    annotations = tmp_path / "annotations.csv"
    annotations.write_text(as_csv(ROWS))
    settings = {"KINETICS_FS_CACHE_DIR": str(tmp_path / "cache"), "KINETICS_FS_SHARED": str(tmp_path / "store")}

    def run(*arguments: str | Path) -> CompletedProcess[str]:
        given = [part for one in arguments for part in ((one, annotations) if one == "--annotations" else (one,))]
        return run_command(*given, **settings)

    return run


@pytest.fixture
def run_with_annotations(run: Run) -> Run:
    """Runs a command of `kinetics-fs` in the same way."""
    return lambda command, *arguments: run(command, "--annotations", *arguments)


def stored(store: SharedStore) -> set[tuple[Clip, str]]:
    return {(one.clip, one.profile) for one in store.listing()}


def test_sync_uploads_what_the_store_lacks_and_nothing_twice(store: SharedStore, cache: Path, run: Run) -> None:
    dry = run("shared", "sync", "--dry-run", "--json")
    assert (json_output(dry)["to_upload"], stored(store)) == (4, set())
    first = run("shared", "sync", "--json")
    assert first.returncode == 0, first.stderr
    assert json_output(first)["uploaded"] == 4
    assert stored(store) == {(clip, CUT) for clip in FETCHED} | {(FROM_ARCHIVE, "source")}
    with Store(cache) as local:
        for clip, profile in stored(store):
            found, opened = store.get_clip(clip, profile), local.peek(clip, profile)
            assert found is not None and opened is not None
            assert found.facts.sha256 == opened.record.sha256 and found.facts.source == opened.record.source
            assert found.facts.duration == pytest.approx(opened.record.duration)
    again = json_output(run("shared", "sync", "--json"))
    assert (again["uploaded"], again["already_stored"]) == (0, 4)
    assert run("shared", "verify", "--all").returncode == 0


def test_sync_of_a_selection_uploads_only_that(store: SharedStore, cache: Path, run: Run) -> None:
    done = run("shared", "sync", "--annotations", "--class", "massaging person's head")
    assert done.returncode == 0 and "1 clip uploaded" in done.stdout, done.stderr
    assert stored(store) == {(Clip("demo-video2", 0, 2), CUT)}


def test_sync_obeys_what_may_be_uploaded(store: SharedStore, cache: Path, run: Run) -> None:
    refused = run("shared", "sync", "--shared-write", "none")
    assert refused.returncode == 2 and "--shared-write is none" in refused.stderr
    assert run("shared", "sync", "--shared-write", "youtube").returncode == 0
    assert stored(store) == {(clip, CUT) for clip in FETCHED}


def test_sync_leaves_clips_that_were_cut_with_other_settings(store: SharedStore, cache: Path, run: Run) -> None:
    assert run("shared", "sync", "--max-height", "240").returncode == 0
    assert stored(store) == {(FROM_ARCHIVE, "source")}


def test_sync_empties_the_queue(store: SharedStore, cache: Path, run: Run) -> None:
    evicted = Clip("evicted____", 0, 10)
    queue = UploadQueue(CacheLayout(cache).uploads)
    queue.add([Upload(clip, CUT) for clip in FETCHED] + [Upload(evicted, "source")], urgent=False)
    assert run("shared", "sync").returncode == 0
    assert (queue.status().clips, queue.status().evicted, queue.status().dropped) == (0, 1, 0)
    queue.close()


def test_sync_reports_a_damaged_cached_clip(store: SharedStore, cache: Path, run: Run) -> None:
    with Store(cache) as local:
        opened = local.peek(FROM_ARCHIVE)
        assert opened is not None
        path = CacheLayout(cache).clips / opened.filename
        path.chmod(0o600)
        path.write_bytes(bytes(opened.size))
    done = run("shared", "sync", "--json")
    assert done.returncode == 3 and json_output(done)["refused"] == 1 and "is damaged" in done.stderr
    assert (FROM_ARCHIVE, "source") not in stored(store)


def test_sync_ends_at_a_fault_of_the_store_and_resumes(store: SharedStore, cache: Path, run: Run) -> None:
    blocked = Path(store.backend.address) / clip_key(FROM_ARCHIVE, "source")
    blocked.parent.parent.mkdir(parents=True)
    blocked.parent.symlink_to("/nonexistent")
    done = run("shared", "sync")
    assert done.returncode in (1, 3) and "Traceback" not in done.stderr and done.stderr
    blocked.parent.unlink()
    assert run("shared", "sync").returncode == 0
    assert len(stored(store)) == 4


# Import


@pytest.fixture
def clips(dataset: Dataset, tmp_path: Path) -> Path:
    """A folder with good and bad files of annotated clips, and one that is not annotated."""
    folder = tmp_path / "clips of\nsomeone"
    good = (dataset.videos / f"{next(iter(VIDEOS))}.mp4").read_bytes()
    for name, content in {
        "surfing water/-demo_video_000010_000012.mp4": good,
        "_demo_vid3__3_5.mp4": good,
        "demo-video2_000000_000002.mp4": good[:-5000],
        "demo_video4_000000_000002.mp4": b"<!DOCTYPE html>",
        "unknown_____000000_000002.mp4": good,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_import_uploads_the_good_clips_of_a_folder_and_caches_nothing(
    store: SharedStore, clips: Path, run: Run, tmp_path: Path
) -> None:
    done = run("shared", "import", "--annotations", "--json", clips)
    assert done.returncode == 3, done.stderr
    result = json_output(done)
    assert (result["imported"], result["not_in_annotations"], sum(result["corrupt"].values())) == (2, 1, 2)
    assert {clip for clip, profile in stored(store) if profile == "source"} == {
        Clip("-demo_video", 10, 12),
        Clip("_demo_vid3_", 3, 5),
    }
    found = store.get_clip(Clip("_demo_vid3_", 3, 5), "source")
    assert found is not None and found.facts.source == "folder" and found.facts.duration
    assert found.body == (clips / "_demo_vid3__3_5.mp4").read_bytes()
    with Store(tmp_path / "cache") as cache:
        assert list(cache.cached_clips()) == []
        assert not list(cache.layout.scratch.glob("*/*"))
    again = json_output(run("shared", "import", "--annotations", "--json", clips))
    assert (again["imported"], again["already_cached"]) == (0, 2)


def test_import_cuts_clips_out_of_whole_videos(store: SharedStore, dataset: Dataset, run: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    clip = Clip("DEMOvideo-5", 8, 10)
    shutil.copy(dataset.videos / f"{clip.youtube_id}.mp4", tmp_path / "videos")
    done = run("shared", "import", "--annotations", "--json", tmp_path / "videos")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stored(store) == {(clip, CUT)}
    found = store.get_clip(clip, CUT)
    assert found is not None and found.facts.duration == pytest.approx(2, abs=0.2)
    assert json_output(run("shared", "import", "--annotations", "--json", tmp_path / "videos"))["already_cached"] == 1


def test_import_uploads_a_cache_of_any_settings(store: SharedStore, cache: Path, run: Run, tmp_path: Path) -> None:
    elsewhere = cache.rename(tmp_path / "scratch")
    done = run("shared", "import", "--max-height", "240", elsewhere)
    assert done.returncode == 0 and "4 clips uploaded" in done.stdout, done.stderr
    assert stored(store) == {(clip, CUT) for clip in FETCHED} | {(FROM_ARCHIVE, "source")}
    assert "0 clips uploaded" in run("shared", "import", elsewhere).stdout


def test_import_of_several_folders_goes_on_after_one(store: SharedStore, cache: Path, clips: Path, run: Run) -> None:
    done = run("shared", "import", "--annotations", clips, cache)
    assert done.returncode == 3, done.stderr
    assert "2 clips uploaded" in done.stdout and "4 clips uploaded" in done.stdout


def test_import_refuses_a_shared_store(store: SharedStore, run: Run, run_with_annotations: Run, tmp_path: Path) -> None:
    other, _ = create_store(str(tmp_path / "other"))
    assert "it is a shared store" in run("shared", "import", "--annotations", other.backend.address).stderr
    assert "it is a shared store" in run_with_annotations("import", other.backend.address).stderr


# The commands of the cache, with a shared store


def test_import_into_the_cache_uploads_what_the_store_lacks(
    store: SharedStore, clips: Path, run_with_annotations: Run, run: Run
) -> None:
    alone = json_output(run_with_annotations("import", "--json", "--shared-write", "none", clips))
    assert alone["imported"] == 2 and "uploads" not in alone and stored(store) == set()
    again = run_with_annotations("import", "--json", clips)
    assert json_output(again)["uploads"]["uploaded"] == 2
    assert {profile for _, profile in stored(store)} == {"source"} and len(stored(store)) == 2
    text = run_with_annotations("import", clips)
    assert "0 clips uploaded" in text.stdout and text.returncode == 3


def test_import_into_the_cache_ends_at_once_without_the_store(
    clips: Path, run_with_annotations: Run, tmp_path: Path
) -> None:
    done = run_with_annotations("import", clips)
    assert done.returncode == 1 and "cannot use" in done.stderr
    with Store(tmp_path / "cache") as cache:
        assert list(cache.cached_clips()) == []


def test_export_takes_clips_that_are_not_cached_from_the_store(
    store: SharedStore, cache: Path, run_with_annotations: Run, run: Run, tmp_path: Path
) -> None:
    assert run("shared", "sync").returncode == 0
    store.backend.delete(clip_key(Clip("demo-video2", 0, 2), CUT))
    with Store(cache) as local:
        for clip in FETCHED:
            local.remove(clip)
    put_bad = Clip("DEMOvideo-5", 8, 10)
    store.put_clip(put_bad, "source", b"no video" * 100, ClipFacts.of(b"no video" * 100, "archive", 2.0))
    target = tmp_path / "exported"
    done = run_with_annotations("export", "--json", target)
    assert done.returncode == 3, done.stderr
    result = json_output(done)
    assert (result["written"], result["from_shared"], result["missing"]) == (3, 2, 3)
    for clip in FETCHED - {Clip("demo-video2", 0, 2)}:
        found = store.get_clip(clip, CUT)
        assert found is not None
        assert (target / "validation" / "surfing water" / clip.name).read_bytes() == found.body
    assert not list(target.rglob(".*")) and "DEMOvideo-5" in done.stderr
    again = json_output(run_with_annotations("export", "--json", target))
    assert (again["written"], again["already_there"]) == (0, 3)
    with Store(cache) as local:
        assert [clip for clip, _ in local.cached_clips()] == [FROM_ARCHIVE]


def test_export_of_cached_clips_sends_no_request_for_them(
    store: SharedStore, cache: Path, run_with_annotations: Run, tmp_path: Path
) -> None:
    done = run_with_annotations("export", "--json", "--class", "massaging person's head", tmp_path / "exported")
    assert done.returncode == 0 and json_output(done)["from_shared"] == 0


def test_verify_repairs_a_clip_from_the_store(store: SharedStore, cache: Path, run: Run) -> None:
    assert run("shared", "sync").returncode == 0
    clip = next(iter(FETCHED))
    with Store(cache) as local:
        opened = local.peek(clip)
        assert opened is not None
        path = CacheLayout(cache).clips / opened.filename
        content = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(content[:-1] + b"!")
    nowhere = "--source", "youtube", "--video-url", "http://127.0.0.1:9/{id}"
    assert run("verify", *nowhere).returncode == 3
    done = run("verify", "--repair", "--json", *nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    with Store(cache) as local:
        opened = local.peek(clip)
        assert opened is not None and (CacheLayout(cache).clips / opened.filename).read_bytes() == content
