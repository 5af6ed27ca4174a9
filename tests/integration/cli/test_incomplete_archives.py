"""Archives that are incomplete: their clips are stored, and nothing is concluded from what they lack."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics_fs.catalog import Clip
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset, MountFactory
from tests.support.annotated_archives import HEADS, SURFING, TRAIN, AnnotatedArchives
from tests.support.command_line import json_output, run_command
from tests.support.tarballs import by_zlib, flat, in_members, make_tar

pytestmark = pytest.mark.server

ABSENT = Clip("absent_____", 0, 10)


@pytest.fixture
def annotated(dataset: Dataset, tmp_path: Path) -> AnnotatedArchives:
    return AnnotatedArchives(dataset, tmp_path)


def members(tar: bytes, count: int) -> bytes:
    """Return a tar up to the end of a number of clips."""
    ends, at = [], 512  # the folder
    while tar[at] != 0:
        at += 512 + -(-int(tar[at + 124 : at + 135], 8) // 512) * 512
        ends.append(at)
    return tar[: ends[count - 1]]


def zeros_from_the_middle(tar: bytes) -> bytes:
    return tar[: len(tar) // 2] + bytes(len(tar) - len(tar) // 2)


def hole(tar: bytes) -> bytes:
    third = len(tar) // 3
    return tar[:third] + bytes(third) + tar[2 * third :]


INCOMPLETE: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "ends between two members": (lambda tar: members(tar, 2), 2),
    "ends after the last member": (lambda tar: members(tar, 4), 4),
    "ends in a member": (lambda tar: members(tar, 3)[:-1_000], 2),
    "compressed, ends between two members": (lambda tar: by_zlib(members(tar, 2)), 2),
    "compressed, without the trailer": (lambda tar: by_zlib(tar)[:-8], 4),
    "gzip members, one missing": (lambda tar: in_members(tar, len(tar) // 2 + 1)[: -len(tar) // 3], 1),
    "empty": (lambda tar: b"", 0),
    "zeros": (lambda tar: bytes(len(tar)), 0),
    "a few zeros": (lambda tar: bytes(512), 0),
    "zeros from the middle": (zeros_from_the_middle, 1),
    "a hole": (hole, 1),
    "compressed, zeros from the middle": (lambda tar: zeros_from_the_middle(by_zlib(tar)), 1),
    "a page": (lambda tar: b"<html><title>404 Not Found</title></html>" * 100, 0),
    "junk of macOS": (
        lambda tar: by_zlib(make_tar({Clip("junk_______", 0, 10): b"x"}, lambda clip: f"._{clip.name}")),
        0,
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_nothing_is_concluded_from_an_incomplete_archive(annotated: AnnotatedArchives, case: str) -> None:
    spoil, whole_clips = INCOMPLETE[case]
    whole = make_tar(annotated.clips[SURFING], flat)
    annotated.annotate([*annotated.of(SURFING, HEADS), ABSENT])
    annotated.write(SURFING, spoil(whole))

    done = annotated.fill("--split", "validation", "--class", "surfing water", "--json")

    assert done.returncode == 3, done
    told = json_output(done)
    reason = "incomplete: the file is not an archive: it is a web page" if case == "a page" else "incomplete: "
    assert told["archives"]["failed"][SURFING].startswith(reason)
    assert told["archives"]["read"] == []
    stored = annotated.cached()
    assert stored.items() <= annotated.of(SURFING).items()
    assert len(stored) >= whole_clips
    assert told["stored"] == len(stored)
    assert run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout.strip() == "[]"
    with ArchiveIndexDB(CacheLayout(annotated.cache).archive_indexes) as index_db:
        assert index_db.version(SURFING) is None
    assert not list(annotated.cache.glob("fills/*/*.done"))

    shown = annotated.fill("--split", "validation", "--class", "surfing water")
    assert shown.returncode == 3
    assert f"failed: {SURFING}: {reason}" in shown.stdout

    annotated.write(SURFING, by_zlib(whole))
    again = annotated.fill("--split", "validation", "--class", "surfing water", "--json")
    assert (again.returncode, json_output(again)["archives"]["read"]) == (3, [SURFING])
    assert annotated.cached() == annotated.of(SURFING)
    [gone] = json.loads(run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout)
    assert gone["key"] == ABSENT.key


@pytest.mark.parametrize("case", ["ends between two members", "empty", "zeros from the middle"])
def test_an_incomplete_archive_is_not_indexed(annotated: AnnotatedArchives, case: str) -> None:
    annotated.write(SURFING, INCOMPLETE[case][0](make_tar(annotated.clips[SURFING], flat)))
    with annotated.site() as site:
        arguments = (*annotated.arguments, "--archive-url", site.url, "--split", "validation")
        done = run_command("index", "build", *arguments, "--archive", SURFING, "--json")
        assert done.returncode == 3, done
        assert json_output(done)["archives"]["failed"][SURFING].startswith("incomplete: ")
        with ArchiveIndexDB(CacheLayout(annotated.cache).archive_indexes) as index_db:
            assert index_db.version(SURFING) is None


def test_an_incomplete_archive_proves_nothing_about_others(annotated: AnnotatedArchives) -> None:
    absent = Clip("absentheads", 0, 10)
    annotated.clips[HEADS][absent] = b""
    annotated.annotate([*annotated.of(SURFING, HEADS), ABSENT])
    del annotated.clips[HEADS][absent]
    annotated.write(SURFING, members(make_tar(annotated.clips[SURFING], flat), 2))

    done = annotated.fill("--split", "validation", "--json")

    assert done.returncode == 3
    assert json_output(done)["in_no_archive"] == 4
    failures = json.loads(run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout)
    assert [failure["key"] for failure in failures] == [absent.key], "its own archive is complete"


def test_a_folder_with_some_of_the_archives_proves_nothing(annotated: AnnotatedArchives) -> None:
    """Archives that mix classes: only the published list says which there are."""
    annotated.annotate([*annotated.of(TRAIN), ABSENT])
    rows = annotated.annotations.read_text().replace(",validate", ",train")
    annotated.annotations.write_text(rows)
    annotated.write("400/train/part_0.tar.gz", by_zlib(make_tar(annotated.clips[TRAIN])))
    arguments = ("--release", "400", "--split", "train", "--json")

    def gone() -> list[str]:
        done = annotated.fill(*arguments)
        assert (done.returncode, json_output(done)["in_no_archive"]) == (3, 1)
        failures = json.loads(run_command("failures", "list", "--json", "--cache-dir", annotated.cache).stdout)
        return [failure["key"] for failure in failures]

    assert gone() == []
    names = [f"https://example.org/400/train/part_{number}.tar.gz" for number in range(3)]
    annotated.write("400/train/k400_train_path.txt", "\n".join(names).encode())
    assert gone() == []
    other = {Clip(f"other_____{number}", 0, 10): next(iter(annotated.of(TRAIN).values())) for number in range(3)}
    for number, (clip, content) in enumerate(other.items()):
        if number:
            annotated.write(f"400/train/part_{number}.tar.gz", by_zlib(make_tar({clip: content})))
    assert gone() == [], "the replacements may have it"
    annotated.write("400/replacement_for_corrupted_k400.tgz", by_zlib(make_tar(dict([other.popitem()]))))
    assert gone() == [ABSENT.key]


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_list_of_archives_is_an_error(annotated: AnnotatedArchives, content: bytes) -> None:
    with annotated.site() as site:
        site.files["600/val/k600_val_path.txt"] = content
        done = annotated.fill("--split", "validation", base=site.url)
    assert done.returncode == 1
    assert "list of archives" in done.stderr or "cannot read" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Clips that are in the archives more than once


@pytest.fixture
def broken(dataset: Dataset) -> dict[str, bytes]:
    video = max((path.read_bytes() for path in dataset.videos.glob("*.mp4")), key=len)
    moov = video.index(b"moov")
    return {
        "cut short": video[: len(video) // 2],
        "without moov": video[:moov] + b"lost" + video[moov + 4 :],
        "noise": bytes(range(256)) * 200,
        "a page": b"<html><title>Error</title></html>",
    }


@pytest.mark.parametrize("case", ["cut short", "without moov", "noise", "a page"])
@pytest.mark.parametrize("broken_first", [True, False])
def test_the_whole_copy_of_a_clip_is_taken(
    annotated: AnnotatedArchives, broken: dict[str, bytes], case: str, broken_first: bool
) -> None:
    clips = annotated.clips[SURFING]
    clip = next(iter(clips))
    contents = (broken[case], clips[clip]) if broken_first else (clips[clip], broken[case])
    tar = b"".join(members(make_tar({clip: content}, flat), 1) for content in contents)
    annotated.write(SURFING, by_zlib(tar + make_tar(clips | {clip: contents[-1]}, flat)))

    done = annotated.fill("--split", "validation", "--class", "surfing water", "--json")

    assert (done.returncode, json_output(done)["corrupt"]) == (0, {}), done
    assert annotated.cached() == annotated.of(SURFING)
    with ArchiveIndexDB(CacheLayout(annotated.cache).archive_indexes) as index_db:
        assert index_db.sizes([clip.key]) == {clip.key: len(clips[clip])}


@pytest.mark.parametrize("broken_first", [True, False])
def test_the_index_is_of_the_whole_copy(
    annotated: AnnotatedArchives, broken: dict[str, bytes], broken_first: bool
) -> None:
    clips = annotated.clips[SURFING]
    clip = next(iter(clips))
    contents = [broken["cut short"], clips[clip]]
    tars = [make_tar({clip: content}, flat) for content in (contents if broken_first else reversed(contents))]
    annotated.write(SURFING, by_zlib(b"".join(tars)))
    arguments = (*annotated.arguments, "--archive-url", annotated.folder)

    done = run_command("index", "build", *arguments, "--archive", SURFING, "--json")

    assert done.returncode == 0, done
    fetched = run_command(
        "prefetch", *arguments, "--source", "archive", "--split", "validation", "--class", "surfing water"
    )
    assert fetched.returncode == 3, "the others are missing"
    assert annotated.cached() == {clip: clips[clip]}


def test_the_original_is_taken_if_its_replacement_is_broken(
    annotated: AnnotatedArchives, broken: dict[str, bytes]
) -> None:
    [(clip, original)] = annotated.clips[TRAIN].items()
    annotated.write("400/replacement_for_corrupted_k400.tgz", by_zlib(make_tar({clip: broken["cut short"]})))
    annotated.write("400/train/part_0.tar.gz", by_zlib(make_tar({clip: original})))
    arguments = ("--release", "400", "--split", "train")

    done = annotated.fill(*arguments, "--json")

    assert (done.returncode, json_output(done)["corrupt"]) == (0, {}), done
    assert annotated.cached() == {clip: original}

    other = annotated.cache.with_name("other cache")
    rest = (*annotated.arguments[:2], "--cache-dir", other, "--archive-url", annotated.folder)
    assert run_command("index", "build", *arguments, *rest).returncode == 0
    fetched = run_command("prefetch", *arguments, *rest, "--source", "archive")
    assert fetched.returncode == 0, fetched


@pytest.mark.parametrize("kind", ["empty", "link"])
def test_a_clip_of_which_an_archive_has_only_an_unusable_file_is_not_gone(
    annotated: AnnotatedArchives, dataset: Dataset, mount: MountFactory, kind: str
) -> None:
    """The archive does not lack it: another copy of the archive may be better."""
    unusable = Clip("unusable___", 0, 10)
    annotated.annotate([*annotated.of(SURFING), unusable, ABSENT])
    member = tarfile.TarInfo(unusable.name)
    if kind == "link":
        member.type, member.linkname = tarfile.LNKTYPE, "elsewhere"
    content = make_tar(annotated.clips[SURFING], flat)
    annotated.write(SURFING, by_zlib(member.tobuf() + content))

    for read_before in (0, 1):
        assert annotated.fill("--class", "surfing water", "--split", "validation").returncode == 3
        told = annotated.report()
        assert len(told["archives"]["read_before"]) == read_before
        assert told["clips_not_stored"] == [unusable.key]
        assert told["clips_in_no_archive"] == [ABSENT.key]

    where = "--annotations", annotated.annotations, "--archive-url", annotated.folder
    other = annotated.cache.with_name("other")
    for cache in (annotated.cache, other):  # by the index, and by reading the whole archive
        shown = mount("--source", "archive", *where, cache=cache)
        with pytest.raises(OSError):
            (shown.root / "validation" / "surfing water" / unusable.name).read_bytes()
        listed = run_command("failures", "list", "--json", "--cache-dir", cache).stdout
        failures = {failure["key"]: failure["kind"] for failure in json.loads(listed)}
        assert failures[unusable.key] == "corrupt"
