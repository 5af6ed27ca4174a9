"""Filling a store from one archive: every clip, byte for byte, even after kills."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.catalog.compile import compile_catalog
from kinetics_fs.catalog.releases import find_release
from kinetics_fs.errors import ArchiveError, FailureKind, FetchError
from kinetics_fs.fill import archive_job as job_module
from kinetics_fs.fill.archive_job import ArchiveJob, Progress, fill_archive, pack_progress, unpack_progress
from kinetics_fs.fill.shared_indexes import version_tag
from kinetics_fs.media import VerifyLevel
from kinetics_fs.shared import AccessRefused, SharedStore, create_store
from kinetics_fs.shared.store import clip_key
from kinetics_fs.sources.archive import remote
from kinetics_fs.sources.archive.index import ArchiveIndex
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.sources.archive.layout import archive_address
from kinetics_fs.sources.archive.reader import open_archive
from kinetics_fs.sources.archive.scan import Checkpoint
from kinetics_fs.sources.archive.source import ArchiveSource
from kinetics_fs.store import CacheLayout, FillCheckpoints, Store
from tests.conftest import Dataset
from tests.support.annotations import csv_text
from tests.support.archive_site import ArchiveSite
from tests.support.archive_site import no_pauses as no_pauses
from tests.support.command_line import ENVIRONMENT
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, in_members, make_clips, make_tar
from tests.support.videos import run_ffmpeg

NAME = "600/val/pull ups.tar.gz"
CLIPS = make_clips(12)


@pytest.fixture(autouse=True)
def checkpoint_after_each_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "_CHECKPOINT_INTERVAL", 0.0)


@pytest.fixture
def archives() -> Iterator[ArchiveSite]:
    with ArchiveSite({NAME: by_zlib(make_tar(CLIPS))}) as archives:
        yield archives


@pytest.fixture
def job(archives: ArchiveSite, tmp_path: Path) -> ArchiveJob:
    return ArchiveJob(
        base=archives.url,
        archive=NAME,
        cache_dir=tmp_path / "cache",
        min_free=0,
        catalog_file=None,
        index=True,
        checkpoints=FillCheckpoints(tmp_path / "fills"),
        verify=VerifyLevel.NONE,
    )


def clips_in_store(job: ArchiveJob) -> dict[Clip, bytes]:
    """Return the clips in the store of a job, and check that it left no temporary files."""
    clips = cached_content(job.cache_dir)
    assert not list(CacheLayout(job.cache_dir).incoming.iterdir())
    return clips


def check_index(job: ArchiveJob, index: ArchiveIndex | None, folder: Path) -> None:
    """Check that every clip can be read by the index that the fill has built."""
    assert index is not None
    folder.mkdir()
    with ArchiveIndexDB(folder / "archives.sqlite") as index_db:
        index_db.add(index)
    source = ArchiveSource(job.base, folder / "archives.sqlite")
    for clip, content in CLIPS.items():
        (folder / clip.key).mkdir()
        media = source.fetch(clip, folder / clip.key)
        assert media is not None and media.path.read_bytes() == content


def test_all_clips_and_the_index(job: ArchiveJob, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []

    summary, index = fill_archive(job, lambda done, total: reports.append((done, total)))

    assert (summary.stored, summary.indexed, summary.resumed_at) == (len(CLIPS), len(CLIPS), 0)
    assert clips_in_store(job) == CLIPS
    assert reports[-1] == (summary.bytes, summary.bytes)
    assert not list(job.checkpoints.folder.iterdir())
    check_index(job, index, tmp_path / "jobs")


def test_what_is_here_is_passed_over(job: ArchiveJob) -> None:
    fill_archive(job)
    again = fill_archive(job).summary
    assert (again.stored, again.present) == (0, len(CLIPS))


def test_clips_that_others_are_fetching_are_left_to_them(job: ArchiveJob) -> None:
    with Store(job.cache_dir) as store:
        claim = store.claim(next(iter(CLIPS)))
        assert claim is not None
        with claim:
            summary = fill_archive(job).summary
    assert (summary.busy, summary.stored) == (1, len(CLIPS) - 1)


@pytest.mark.parametrize("members", [False, True])
def test_broken_off_anywhere_it_goes_on(
    job: ArchiveJob, archives: ArchiveSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: bool
) -> None:
    if members:
        archives.files[NAME] = in_members(make_tar(CLIPS), 40_000)
    monkeypatch.setattr(remote, "_SEGMENT", 30_000)
    job = replace(job, connections=1)
    chance = random.Random(4)
    begins = []
    for _ in range(100):
        archives.faults = [""] * chance.randint(3, 12) + ["404"] * 50
        try:
            summary, index = fill_archive(job)
        except FetchError as error:
            assert error.kind is FailureKind.CONFIG
        else:
            begins.append(summary.resumed_at)
            break
    assert begins and begins[0] > 0
    assert clips_in_store(job) == CLIPS
    assert summary.indexed == len(CLIPS)
    archives.faults = []
    check_index(job, index, tmp_path / "jobs")


CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from kinetics_fs.fill.archive_job import ArchiveJob, fill_archive
    from kinetics_fs.fill import archive_job as job
    from kinetics_fs.media import VerifyLevel
    from kinetics_fs.sources.archive import remote
    from kinetics_fs.store import FillCheckpoints
    job._CHECKPOINT_INTERVAL = 0.0
    remote._SEGMENT = 50_000
    base, folder, at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    level, catalog = VerifyLevel(sys.argv[4]), Path(sys.argv[5]) if sys.argv[5:] else None
    stream_clips = job.stream_clips
    def killed_on_the_way(*arguments, progress, **options):
        def report(done):
            if done >= at:
                os.kill(os.getpid(), signal.SIGKILL)
            progress(done)
        return stream_clips(*arguments, progress=report, **options)
    job.stream_clips = killed_on_the_way
    fill_archive(
        ArchiveJob(base, "600/val/pull ups.tar.gz", folder / "cache", 0, catalog, True,
            FillCheckpoints(folder / "fills"), level, 2),
    )
    """
)


def kill(job: ArchiveJob, folder: Path, at: int) -> None:
    """Run a job in another process, and kill it when it has got this far."""
    command = [sys.executable, "-c", CHILD, job.base, str(folder), str(at), job.verify]
    command += [str(job.catalog_file)] if job.catalog_file else []
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == -signal.SIGKILL


def test_killed_again_and_again(job: ArchiveJob, archives: ArchiveSite, tmp_path: Path) -> None:
    size = len(archives.files[NAME])
    for part in (0.3, 0.7):
        kill(job, tmp_path, int(size * part))
    archives.requests.clear()

    summary, index = fill_archive(job)

    assert summary.resumed_at > 0.5 * size
    assert sum(sent.bytes for sent in archives.requests) < 0.5 * size
    assert summary.stored == len(CLIPS)
    assert clips_in_store(job) == CLIPS
    assert summary.indexed == len(CLIPS)
    check_index(job, index, tmp_path / "jobs")


def test_the_summary_is_of_all_of_it_whoever_was_killed(
    job: ArchiveJob, archives: ArchiveSite, dataset: Dataset, tmp_path: Path
) -> None:
    video = min((path.read_bytes() for path in dataset.videos.glob("*.mp4")), key=len)
    # Of each sort some before and some after the kill.
    here, unwanted, invalid, empty = (set(list(CLIPS)[sort::6]) for sort in range(4))
    contents = {clip: b"" if clip in empty else video[:9_000] if clip in invalid else video for clip in CLIPS}
    wanted = [clip for clip in CLIPS if clip not in unwanted]
    rows = (f"label,{clip.youtube_id},{clip.start},{clip.end},train" for clip in wanted)
    annotations = tmp_path / "a.csv"
    annotations.write_text(csv_text(rows))
    catalog = compile_catalog([annotations], find_release("600"), tmp_path)
    archives.files[NAME] = by_zlib(make_tar(contents))
    job = replace(job, verify=VerifyLevel.CONTAINER, catalog_file=catalog)
    whole = replace(
        job,
        cache_dir=tmp_path / "other",
        checkpoints=FillCheckpoints(tmp_path / "other fills"),
    )
    for one in (job, whole):
        with Store(one.cache_dir) as store:
            for clip in here:
                claim = store.claim(clip)
                assert claim is not None
                with claim:
                    (claim.folder / clip.name).write_bytes(video)
                    claim.publish(claim.folder / clip.name, "test")
    kill(job, tmp_path, len(archives.files[NAME]) // 2)

    summary, expected = fill_archive(job).summary, fill_archive(whole).summary

    assert summary.resumed_at > 0 == expected.resumed_at
    assert (expected.stored, expected.present, expected.not_wanted) == (4, 2, 2)
    assert (expected.failed.total(), expected.refused) == (2, {"empty": 2})
    assert replace(summary, bytes=0, resumed_at=0) == replace(expected, bytes=0, resumed_at=0)


def break_off(job: ArchiveJob, archives: ArchiveSite, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leaves a job half done; its checkpoint."""
    monkeypatch.setattr(remote, "_SEGMENT", 30_000)
    archives.faults = [""] * 12 + ["404"]
    with pytest.raises(FetchError):
        fill_archive(replace(job, connections=1))
    archives.faults = []
    [checkpoint] = job.checkpoints.folder.iterdir()
    return checkpoint


def test_archive_that_changes_between_two_tries_is_begun_anew(
    job: ArchiveJob, archives: ArchiveSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(job, archives, monkeypatch)
    archives.files[NAME] = by_zlib(make_tar(CLIPS), 9)

    summary = fill_archive(job).summary

    assert summary.resumed_at == 0
    assert clips_in_store(job) == CLIPS


@pytest.mark.parametrize("damage", [b"", b"kinetics-fs fill 2\n", b"kinetics-fs fill 2\n\xff\xff\xff\x7f", b"x" * 500])
def test_archive_with_a_damaged_checkpoint_is_read_from_its_beginning(
    job: ArchiveJob, archives: ArchiveSite, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(job, archives, monkeypatch).write_bytes(damage)

    assert fill_archive(job).summary.resumed_at == 0
    assert clips_in_store(job) == CLIPS


def test_damaged_archive_is_begun_anew(job: ArchiveJob, archives: ArchiveSite) -> None:
    """A damaged clip may be in progress when a checkpoint is written."""
    whole = by_zlib(make_tar(CLIPS), 0)  # stored: only the checksum can tell
    archives.files[NAME] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(ArchiveError):
        fill_archive(job)
    assert not list(job.checkpoints.folder.iterdir())
    archives.files[NAME] = whole

    assert fill_archive(job).summary.indexed == len(CLIPS)


def test_fill_without_space_is_a_local_failure(job: ArchiveJob) -> None:
    with pytest.raises(FetchError) as caught:
        fill_archive(replace(job, min_free=1 << 60))
    assert caught.value.kind is FailureKind.LOCAL


@pytest.mark.parametrize("level", VerifyLevel)
def test_clips_that_are_none_are_not_published(
    job: ArchiveJob, archives: ArchiveSite, dataset: Dataset, level: VerifyLevel
) -> None:
    video = (dataset.videos / "DEMOvideo-5.mp4").read_bytes()
    scrambled = bytearray(video)
    scrambled[-len(video) // 2 :] = random.Random(1).randbytes(len(video) // 2)
    good, noise, cut, spoilt = list(CLIPS)[:4]
    contents = {good: video, noise: CLIPS[noise], cut: video[: len(video) // 2], spoilt: bytes(scrambled)}
    archives.files[NAME] = by_zlib(make_tar(contents))

    summary = fill_archive(replace(job, verify=level)).summary

    stored = {
        VerifyLevel.NONE: {good, noise, cut, spoilt},
        VerifyLevel.CONTAINER: {good, spoilt},
        VerifyLevel.DECODE: {good},
    }[level]
    assert set(clips_in_store(job)) == stored
    assert clips_in_store(job)[good] == video
    assert summary.failed.total() == 4 - len(stored)
    assert summary.indexed == 4


def test_odd_files_are_stored_or_refused_with_the_reason(
    job: ArchiveJob, archives: ArchiveSite, dataset: Dataset, tmp_path: Path
) -> None:
    video, matroska, trimmed, cover = (tmp_path / name for name in ("video.mp4", "a.mkv", "b.mp4", "c.png"))
    shutil.copy(dataset.videos / "DEMOvideo-5.mp4", video)
    run_ffmpeg("-t", 3, "-i", video, "-c", "copy", matroska)
    run_ffmpeg("-ss", "2.1", "-i", video, "-c", "copy", trimmed)
    run_ffmpeg("-i", video, "-frames:v", 1, cover)
    one, two, three, four, five = list(CLIPS)[:5]
    page = b"<html><title>Error 404</title></html>"
    contents = {
        one: cover.read_bytes(), two: matroska.read_bytes(), three: page, four: trimmed.read_bytes(), five: bytes(4)
    }  # fmt: skip
    archives.files[NAME] = by_zlib(make_tar(contents))

    summary = fill_archive(replace(job, verify=VerifyLevel.DECODE)).summary

    stored = clips_in_store(job)
    assert stored.keys() == {two, four}
    assert stored[four] == contents[four]
    assert stored[two][4:8] == b"ftyp"
    assert summary.stored == 2
    assert summary.failed["the file is a picture (PNG), not a video"] == 1
    assert summary.failed["the file is a web page (HTML), not a video"] == 1
    assert summary.failed.total() == 3


def test_members_that_are_no_clips_are_counted(job: ArchiveJob, archives: ArchiveSite) -> None:
    archives.files[NAME] = make_tar({**CLIPS, Clip("empty______", 0, 10): b""})

    summary = fill_archive(job).summary

    assert summary.refused == {"empty": 1}
    assert summary.stored == len(CLIPS)


def test_only_what_is_wanted(job: ArchiveJob, archives: ArchiveSite, dataset: Dataset, tmp_path: Path) -> None:
    rows = (f"label,{clip.youtube_id},{clip.start},{clip.end},train" for clip in list(CLIPS)[:5])
    annotations = tmp_path / "a.csv"
    annotations.write_text(csv_text(rows))
    catalog = compile_catalog([annotations], find_release("600"), tmp_path)
    summary, index = fill_archive(replace(job, catalog_file=catalog))
    assert (summary.stored, summary.not_wanted) == (5, len(CLIPS) - 5)
    assert index is not None and index.records.keys() == CLIPS.keys(), "the index is of all"


# With a shared store


@pytest.fixture
def shared(tmp_path: Path) -> SharedStore:
    return create_store(str(tmp_path / "shared"))[0]


@pytest.fixture
def shared_job(job: ArchiveJob, shared: SharedStore, monkeypatch: pytest.MonkeyPatch) -> ArchiveJob:
    monkeypatch.setattr(job_module, "_FIRST_SHARED_INTERVAL", 0.0)
    monkeypatch.setattr(job_module, "_MAX_SHARED_INTERVAL", 0.0)
    monkeypatch.setattr(remote, "_SEGMENT", 30_000)
    return replace(job, shared=shared.backend.address, coverage="all of it", connections=1)


def clips_in_shared_store(shared: SharedStore) -> dict[Clip, bytes]:
    found = {clip: shared.get_clip(clip, "source") for clip, _ in shared.clips("source")}
    return {clip: shared_clip.body for clip, shared_clip in found.items() if shared_clip}


def tag_of(archives: ArchiveSite) -> str:
    return version_tag(open_archive(archive_address(archives.url, NAME)).version())


def read_a_part(job: ArchiveJob, archives: ArchiveSite) -> None:
    """Do a job until the server fails in the middle of the archive."""
    archives.faults = [""] * 9 + ["404"] * 50
    with pytest.raises(FetchError):
        fill_archive(job)
    archives.faults = []


@pytest.mark.parametrize("local", [True, False])
def test_clips_go_into_the_shared_store(shared_job: ArchiveJob, shared: SharedStore, local: bool) -> None:
    summary, index = fill_archive(replace(shared_job, local=local))
    assert clips_in_shared_store(shared) == CLIPS
    assert clips_in_store(shared_job) == (CLIPS if local else {})
    assert (summary.stored, summary.uploaded, summary.in_shared) == (len(CLIPS),) * 3
    assert summary.in_shared_bytes == sum(map(len, CLIPS.values()))
    assert index is not None
    found = shared.get_clip(next(iter(CLIPS)), "source")
    assert found is not None and found.facts.source == "archive"


def test_a_clip_that_another_process_is_fetching_is_uploaded_nevertheless(
    shared_job: ArchiveJob, shared: SharedStore
) -> None:
    with Store(shared_job.cache_dir) as store:
        claim = store.claim(next(iter(CLIPS)))
        assert claim is not None
        with claim:
            summary, _ = fill_archive(shared_job)
    assert (summary.busy, summary.stored, summary.in_shared) == (1, len(CLIPS) - 1, len(CLIPS))
    assert clips_in_shared_store(shared) == CLIPS


def test_a_checkpoint_covers_only_clips_in_both_stores(
    shared_job: ArchiveJob, shared: SharedStore, archives: ArchiveSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read again for clips that are in both; a clip that was not uploaded has no checkpoint after it."""
    fails = next(islice(CLIPS, 5, None))
    put = SharedStore.put_clip

    def put_clip(store: SharedStore, clip: Clip, *arguments: Any) -> bool:
        if clip == fails:
            raise AccessRefused("the quota is used up")
        return put(store, clip, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(SharedStore, "put_clip", put_clip)
        with pytest.raises(FetchError, match="the quota is used up; run the same command again") as raised:
            fill_archive(shared_job)
    assert raised.value.kind is FailureKind.LOCAL
    packed = shared.get_progress(NAME, tag_of(archives), "all of it")
    progress = unpack_progress(packed or b"")
    assert progress is not None and fails not in progress.partial_index.records
    summary, _ = fill_archive(shared_job)
    assert summary.resumed_at > 0
    assert clips_in_shared_store(shared) == clips_in_store(shared_job) == CLIPS


def test_another_machine_continues_at_the_checkpoint(
    shared_job: ArchiveJob, shared: SharedStore, archives: ArchiveSite, tmp_path: Path
) -> None:
    read_a_part(shared_job, archives)
    other = replace(shared_job, cache_dir=tmp_path / "other", checkpoints=FillCheckpoints(tmp_path / "other fills"))

    summary, index = fill_archive(other)

    assert summary.taken_over and summary.resumed_at > 0
    assert (summary.in_shared, summary.indexed) == (len(CLIPS), len(CLIPS))
    assert clips_in_shared_store(shared) == CLIPS
    assert 0 < len(clips_in_store(other)) < len(CLIPS)
    check_index(other, index, tmp_path / "jobs")
    assert not list(shared.backend.scan("checkpoints/v1"))


def test_of_two_checkpoints_the_later_wins(
    shared_job: ArchiveJob, archives: ArchiveSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_a_part(shared_job, archives)
    monkeypatch.setattr(job_module, "_FIRST_SHARED_INTERVAL", 1000.0)
    archives.faults = [""] * 6 + ["404"] * 50
    with pytest.raises(FetchError):
        fill_archive(shared_job)
    archives.faults = []
    summary, _ = fill_archive(shared_job)
    assert not summary.taken_over, "its own checkpoint is later than that in the store"


@pytest.mark.parametrize(
    "damage", ["noise", "short", "other archive", "beyond the end", "window", "position", "summary"]
)
def test_a_hostile_checkpoint_does_no_harm(
    shared_job: ArchiveJob, shared: SharedStore, archives: ArchiveSite, tmp_path: Path, damage: str
) -> None:
    read_a_part(shared_job, archives)
    archive = NAME, tag_of(archives), "all of it"
    packed = shared.get_progress(*archive)
    assert packed is not None
    progress = unpack_progress(packed)
    assert progress is not None
    checkpoint, index, summary = progress
    if damage == "noise":
        packed = random.Random(1).randbytes(10_000)
    elif damage == "short":
        packed = packed[:-10]
    else:
        if damage == "other archive":
            index = replace(index, archive="600/val/other.tar.gz")
        elif damage == "beyond the end":
            checkpoint = replace_block(checkpoint, bit=8 * index.size + 8)
        elif damage == "window":
            checkpoint = replace_block(checkpoint, window=bytes(len(checkpoint.block.window)))
        elif damage == "position":
            checkpoint = replace_block(checkpoint, bit=checkpoint.block.bit + 801)
        else:
            summary = replace(summary, in_shared=-1)
        packed = pack_progress(Progress(checkpoint, index, summary))
    shared.put_progress(*archive, packed)
    other = replace(shared_job, cache_dir=tmp_path / "other", checkpoints=FillCheckpoints(tmp_path / "other fills"))

    result, built = fill_archive(other)

    assert not result.taken_over
    assert (result.stored + result.present, result.in_shared) == (len(CLIPS), len(CLIPS))
    assert clips_in_shared_store(shared) == clips_in_store(other) == CLIPS
    check_index(other, built, tmp_path / "jobs")


def replace_block(checkpoint: Checkpoint, **values: Any) -> Checkpoint:
    return checkpoint._replace(block=checkpoint.block._replace(**values))


def test_an_object_in_the_way_costs_its_clip_only(shared_job: ArchiveJob, shared: SharedStore) -> None:
    clip = next(iter(CLIPS))
    (Path(shared.backend.address) / clip_key(clip, "source")).mkdir(parents=True)
    summary, _ = fill_archive(shared_job)
    assert list(summary.corrupt) == [clip.key]
    assert summary.in_shared == len(CLIPS) - 1


@pytest.mark.parametrize("target", ["cache", "both", "shared"])
def test_damage_that_only_the_checksum_at_the_end_shows_costs_its_clip(
    job: ArchiveJob,
    shared_job: ArchiveJob,
    shared: SharedStore,
    archives: ArchiveSite,
    dataset: Dataset,
    tmp_path: Path,
    target: str,
) -> None:
    clips = dict(zip(CLIPS, dataset.clips, strict=False))
    damaged = list(clips)[2]
    packed = bytearray(by_zlib(make_tar(clips), 0))  # as media are packed: they do not get smaller
    name = packed.index(damaged.name.encode())  # in the header of its member
    at = name + len(clips[damaged]) // 2
    packed[at : at + 4000] = random.Random(1).randbytes(4000)
    archives.files[NAME] = bytes(packed)
    chosen = job if target == "cache" else replace(shared_job, local=target == "both")

    with pytest.raises(ArchiveError) as caught:
        fill_archive(replace(chosen, verify=VerifyLevel.CONTAINER))

    sound = {clip: content for clip, content in clips.items() if clip != damaged}
    if target != "shared":
        assert clips_in_store(job) == sound
    if target != "cache":
        assert clips_in_shared_store(shared) == sound
    summary = caught.value.summary  # type: ignore[attr-defined]
    assert set(summary.corrupt) == {damaged.key} and summary.stored == len(sound)
