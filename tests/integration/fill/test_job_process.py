"""A job in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fill.archive_job import ArchiveJob, Summary, UnfinishedArchive, Unlisted
from kinetics_fs.fill.job_process import JobProcess, failure_answer, read_answer
from kinetics_fs.media import VerifyLevel
from kinetics_fs.media.profile import CutProfile
from kinetics_fs.store import FillCheckpoints
from tests.support.store import cached_content
from tests.support.tarballs import by_zlib, make_clips, make_tar

CLIPS = make_clips(3)


@pytest.fixture
def job(tmp_path: Path) -> ArchiveJob:
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "a.tar.gz").write_bytes(by_zlib(make_tar(CLIPS)))
    return ArchiveJob(
        base=str(tmp_path / "archives"),
        archive="a.tar.gz",
        cache_dir=tmp_path / "cache",
        min_free=0,
        catalog_file=None,
        index=True,
        checkpoints=FillCheckpoints(tmp_path / "fills"),
        verify=VerifyLevel.NONE,
    )


def ignore(done: int, total: int) -> None:
    """Ignore the progress."""


@pytest.mark.parametrize("name", ["cache", "the cache\n'é", os.fsdecode(b"\xff")])
def test_a_job_is_one_line_of_ascii(name: str) -> None:
    path = Path("/") / name
    job = ArchiveJob(
        *(str(path), f"{name}.tar.gz", path, 10**9, path, True, FillCheckpoints(path), VerifyLevel.DECODE, 2, False),
        unlisted=Unlisted(path, "train", "surfing water"),
        profile=CutProfile(240, False, '{"format": "best"}'),
        shared="s3://bucket/kinetics",
        local=False,
        coverage="0123",
    )
    line = job.pack()
    assert line.isascii() and "\n" not in line
    assert ArchiveJob.unpack(line) == job


def test_the_process_answers_with_the_summary_and_the_index(job: ArchiveJob) -> None:
    reports: list[tuple[int, int]] = []
    answer = JobProcess(job).run(lambda done, total: reports.append((done, total)))
    outcome = read_answer(answer)
    assert answer.isascii()
    assert outcome.summary.stored == len(CLIPS)
    assert outcome.archive_index is not None and outcome.archive_index.records.keys() == CLIPS.keys()
    assert cached_content(job.cache_dir) == CLIPS
    assert reports[-1][0] == reports[-1][1] > 0


def test_an_unusable_cache_is_a_failure_of_the_machine(job: ArchiveJob) -> None:
    job.cache_dir.mkdir()
    (job.cache_dir / "mine.txt").write_text("another program's")
    with pytest.raises(FetchError, match="contains other files") as caught:
        read_answer(JobProcess(job).run(ignore))
    assert caught.value.kind is FailureKind.LOCAL


def test_a_job_that_was_ended_does_not_begin(job: ArchiveJob) -> None:
    process = JobProcess(job)
    process.end()
    with pytest.raises(FetchError, match="ended before it began"):
        process.run(ignore)
    assert not job.cache_dir.exists()


def test_failures_come_back_as_they_were() -> None:
    failure = FetchError(FailureKind.LOCAL, "the disk is full", source="archive", cause_errno=28)
    with pytest.raises(FetchError) as caught:
        read_answer(failure_answer(failure))
    assert caught.value.as_json() == failure.as_json()

    summary = Summary(stored=3, corrupt={Clip("-a1B2c3D4e5", 0, 10).key: "not a video"})
    with pytest.raises(UnfinishedArchive, match="cut short") as unfinished:
        read_answer(failure_answer(UnfinishedArchive("cut short", summary, incomplete=True)))
    assert (unfinished.value.summary, unfinished.value.incomplete) == (summary, True)


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"summary": 1, "index": ""}', '{"error": {}}', "[" * 100_000])
def test_an_invalid_answer_is_a_failure(answer: str) -> None:
    with pytest.raises(FetchError, match="invalid answer"):
        read_answer(answer)
