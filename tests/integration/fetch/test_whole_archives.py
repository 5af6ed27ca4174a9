"""Archives of classes that nobody has indexed: read once, for all clips that are in them and all who wait for one."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich import filesize

from kinetics_fs.catalog import Clip, Selection, find_release, open_catalog
from kinetics_fs.control.status import PrefetchState
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.site import VideoSite
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.fetch.fetcher import Fetcher, FetchSettings, Priority
from kinetics_fs.fetch.prefetch import Prefetch
from kinetics_fs.sources import SourceSettings
from kinetics_fs.sources.archive.index_db import ArchiveIndexDB
from kinetics_fs.store import Store
from tests.conftest import Dataset
from tests.support.annotations import csv_text
from tests.support.archive_site import ArchiveSite
from tests.support.fetching import NO_SLEEP, TIMEOUT, error_of
from tests.support.mounts import wait_until
from tests.support.store import read_clip
from tests.support.tarballs import by_zlib, make_tar

LABEL = "massaging person's head (not really)"
ARCHIVE = f"600/val/{LABEL}.tar.gz"
CLIPS = [Clip(f"-vid_{number:06d}", number, number + 10) for number in range(12)]
BROKEN = Clip("broken_clip", 0, 10)
ABSENT = Clip(GONE, 5, 15)
"""Annotated, and in no archive; the site has no video of it either."""
ELSEWHERE = Clip("demo-video2", 0, 2)
"""The same; the site has it."""

SEGMENT = 8 * 1024 * 1024
"""Bytes of one request for an archive that is read whole."""


def make_archive(videos: Sequence[bytes], padding: int = 0) -> bytes:
    """All clips of the class but two, one of them broken; after the first, so much that is no clip."""
    file = io.BytesIO()
    members = [(clip.name, videos[number % len(videos)]) for number, clip in enumerate(CLIPS)]
    members[1:1] = [("noise.bin", random.Random(1).randbytes(padding)), (BROKEN.name, b"no video" * 900)]
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return by_zlib(file.getvalue(), 1)


@pytest.fixture
def videos(dataset: Dataset) -> Sequence[bytes]:
    return dataset.clips


@pytest.fixture
def archives(videos: Sequence[bytes]) -> Iterator[ArchiveSite]:
    with ArchiveSite({ARCHIVE: make_archive(videos)}) as site:
        yield site


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    clips = [*CLIPS, BROKEN, ABSENT, ELSEWHERE]
    annotations = tmp_path / "annotations.csv"
    annotations.write_text(csv_text(f"{LABEL},{clip.youtube_id},{clip.start},{clip.end},val" for clip in clips))
    with open_catalog(
        find_release("600"), [str(annotations)], Selection(), tmp_path / "catalog", downloads=tmp_path
    ) as catalog:
        return catalog.path


Make = Callable[..., Fetcher]


@pytest.fixture
def fetcher(store: Store, site: VideoSite, archives: ArchiveSite, catalog: Path, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as opened:

        def make(
            *order: str, limit: int = 10**9, into: Store = store, workers: int = 3, base: str = archives.url
        ) -> Fetcher:
            sources = SourceSettings(
                order=order or ("archive",),
                video_url=site.url_template,
                ytdlp=NO_SLEEP,
                archive_url=base,
                archive_index=str(tmp_path / "archives.sqlite"),
                archive_lock=str(tmp_path / "archives.sqlite.reading"),
                max_archive_download=limit,
                catalog=str(catalog),
            )
            made = Fetcher(into, FetchSettings(workers=workers, timeout=TIMEOUT, sources=sources))
            opened.callback(made.close)
            return made

        yield make


def read_whole(archives: ArchiveSite) -> float:
    """How often the archive was sent."""
    return sum(sent.bytes for sent in archives.requests if sent.status == 206) / len(archives.files[ARCHIVE])


def test_an_archive_is_read_once_for_all_waiting_requests(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    made = fetcher()
    waiting = [made.request(clip) for clip in CLIPS]
    for future in waiting:
        future.result(TIMEOUT)

    for number, clip in enumerate(CLIPS):
        assert read_clip(store, clip) == videos[number % len(videos)], clip
    assert read_whole(archives) < 1.01
    assert error_of(made.request(BROKEN)).kind is FailureKind.CORRUPT


def test_siblings_are_stored_and_the_archive_is_indexed(fetcher: Make, store: Store, archives: ArchiveSite) -> None:
    made = fetcher()
    made.request(CLIPS[5]).result(TIMEOUT)
    wait_until(lambda: all(store.is_cached(clip) for clip in CLIPS))
    wait_until(lambda: not list(store.layout.incoming.iterdir()))
    assert not store.failures.get(BROKEN), "nobody asked for it"
    assert made.stats.fetched == len(CLIPS)

    store.remove(CLIPS[3])
    archives.requests.clear()
    made.request(CLIPS[3]).result(TIMEOUT)
    assert read_whole(archives) < 0.2


def test_each_request_is_answered_when_its_clip_arrives(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    archives.files[ARCHIVE] = make_archive(videos, padding=2 * SEGMENT)
    archives.hold = SEGMENT, threading.Event()
    made = fetcher(workers=2)
    try:
        last, first = made.request(CLIPS[-1]), made.request(CLIPS[0])
        first.result(TIMEOUT)
        assert not last.done()
        assert store.is_cached(CLIPS[0])
        # Opening the store again does not remove fetches in progress.
        Store(store.folder).close()
    finally:
        archives.hold[1].set()
    last.result(TIMEOUT)
    assert read_whole(archives) < 1.01


def test_two_processes_read_an_archive_once(fetcher: Make, store: Store, archives: ArchiveSite) -> None:
    with Store(store.folder) as other:
        one, two = fetcher(), fetcher(into=other)
        waiting = [(one, two)[number % 2].request(clip) for number, clip in enumerate(CLIPS)]
        for future in waiting:
            future.result(TIMEOUT)
    # The other process may read any number of its clips by index, when the archive has just been read.
    first_segment = f"bytes=0-{min(SEGMENT, len(archives.files[ARCHIVE])) - 1}"
    assert [sent.range for sent in archives.requests].count(first_segment) == 1


# The limit on what one open may download


def below(archives: ArchiveSite) -> int:
    """Return a limit that the archive exceeds by one byte."""
    return len(archives.files[ARCHIVE]) - 1


def test_an_archive_above_the_limit_is_left_to_the_next_source(
    fetcher: Make, store: Store, archives: ArchiveSite
) -> None:
    fetcher("archive", "youtube", limit=below(archives)).request(ELSEWHERE).result(TIMEOUT)
    assert store.record(ELSEWHERE).source == "youtube"  # type: ignore[union-attr]
    assert [sent.bytes for sent in archives.requests] == [1], "only its size was requested"


def test_an_archive_of_exactly_the_limit_is_read(fetcher: Make, store: Store, archives: ArchiveSite) -> None:
    fetcher("archive", "youtube", limit=below(archives) + 1).request(CLIPS[7]).result(TIMEOUT)
    assert store.record(CLIPS[7]).source == "archive"  # type: ignore[union-attr]
    assert read_whole(archives) < 1.01


def test_an_archive_in_a_local_folder_has_no_limit(
    fetcher: Make, store: Store, archives: ArchiveSite, tmp_path: Path
) -> None:
    path = tmp_path / "copies" / ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(archives.files[ARCHIVE])
    base = str(tmp_path / "copies")
    fetcher("archive", limit=0, base=base).request(CLIPS[7]).result(TIMEOUT)
    assert store.record(CLIPS[7]).source == "archive"  # type: ignore[union-attr]
    store.remove(CLIPS[7])  # the index that was built on the way has no limit either
    fetcher("archive", limit=0, base=base).request(CLIPS[7]).result(TIMEOUT)
    assert archives.requests == []


def test_a_local_copy_of_the_archives_is_tried_after_a_failure_above_the_limit(
    fetcher: Make, store: Store, archives: ArchiveSite, tmp_path: Path
) -> None:
    error_of(fetcher("archive", "youtube", limit=below(archives)).request(CLIPS[7]))
    path = tmp_path / "copies" / ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(archives.files[ARCHIVE])
    fetcher("archive", "youtube", limit=0, base=str(tmp_path / "copies")).request(CLIPS[7]).result(TIMEOUT)
    assert store.record(CLIPS[7]).source == "archive"  # type: ignore[union-attr]


def test_the_failure_names_the_option_and_the_size(fetcher: Make, archives: ArchiveSite) -> None:
    limit = below(archives)
    error = error_of(fetcher("archive", "youtube", limit=limit).request(CLIPS[7]))
    assert (error.kind, error.source) == (FailureKind.GONE, "youtube")
    size = filesize.decimal(limit + 1)
    assert error.reason.endswith(f"; its class archive ({size}) exceeds --max-archive-download ({limit}B)")


def test_round_limits_are_shown_with_their_unit(fetcher: Make, archives: ArchiveSite, videos: Sequence[bytes]) -> None:
    archives.files[ARCHIVE] = make_archive(videos, padding=3 * 10**6)
    error = error_of(fetcher("archive", limit=3 * 10**6).request(CLIPS[7]))
    assert error.reason.endswith("exceeds --max-archive-download (3MB)")


def test_youtube_is_not_asked_again_while_the_limit_stays(
    fetcher: Make, site: VideoSite, archives: ArchiveSite
) -> None:
    limit = below(archives)
    first = error_of(fetcher("archive", "youtube", limit=limit).request(CLIPS[7]))
    for lower in (limit, limit - 1):
        assert error_of(fetcher("archive", "youtube", limit=lower).request(CLIPS[7])).reason == first.reason
    # Without the archives a higher limit makes no difference.
    assert error_of(fetcher("youtube", limit=10**9).request(CLIPS[7])).reason == first.reason
    assert site.video_fetches(CLIPS[7].youtube_id) == 1


def test_a_raised_limit_tries_the_archive_at_the_next_open(
    fetcher: Make, store: Store, site: VideoSite, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    error_of(fetcher("archive", "youtube", limit=below(archives)).request(CLIPS[7]))
    fetcher("archive", "youtube", limit=below(archives) + 1).request(CLIPS[7]).result(TIMEOUT)
    assert read_clip(store, CLIPS[7]) == videos[7 % len(videos)]
    assert site.video_fetches(CLIPS[7].youtube_id) == 1
    assert store.failures.get(CLIPS[7]) is None


def test_a_raised_limit_shows_clips_again_that_were_hidden_as_gone(
    fetcher: Make, store: Store, archives: ArchiveSite
) -> None:
    limit = below(archives)
    error_of(fetcher("archive", "youtube", limit=limit).request(CLIPS[7]))
    error_of(fetcher("youtube").request(CLIPS[8]))
    for order, raised in ((("archive", "youtube"), limit), (("youtube",), limit + 1)):
        fetcher(*order, limit=raised)
        assert set(store.failures.unavailable()) == {CLIPS[7].key, CLIPS[8].key}
    fetcher("archive", "youtube", limit=limit + 1)
    assert set(store.failures.unavailable()) == {CLIPS[8].key}


def test_a_limit_that_is_raised_too_little_asks_youtube_once_more(
    fetcher: Make, site: VideoSite, archives: ArchiveSite
) -> None:
    for limit in (below(archives) - 1, below(archives), below(archives)):
        error = error_of(fetcher("archive", "youtube", limit=limit).request(CLIPS[7]))
        assert f"({limit}B)" in error.reason
    assert site.video_fetches(CLIPS[7].youtube_id) == 2


def test_without_another_source_the_next_open_tries_again(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    limit = below(archives)
    error = error_of(fetcher("archive", limit=limit).request(CLIPS[7]))
    assert error.kind is FailureKind.CONFIG
    assert f"exceeds --max-archive-download ({limit}B)" in error.reason
    assert not error.source, "the next clip may be in a smaller archive"
    fetcher("archive", limit=limit + 1).request(CLIPS[7]).result(TIMEOUT)
    assert read_clip(store, CLIPS[7]) == videos[7 % len(videos)]


@pytest.mark.parametrize("order", [("archive",), ("archive", "youtube")])
def test_an_archive_above_the_limit_does_not_stop_a_prefetch(
    fetcher: Make, store: Store, archives: ArchiveSite, order: tuple[str, ...]
) -> None:
    made = fetcher(*order, limit=below(archives))
    clips = [*CLIPS[:8], ELSEWHERE]  # more that are gone in a row would make the source suspect
    prefetch = Prefetch(made, store, clips, len(clips), window=2)
    prefetch.run()
    assert (prefetch.state, prefetch.problem) == (PrefetchState.DONE, None)
    assert (prefetch.fetched, prefetch.failed) == ((1, 8) if "youtube" in order else (0, len(clips)))


def test_a_range_above_the_limit_is_not_read(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    """The limit holds for reads by index, too."""
    made = fetcher()
    made.request(CLIPS[5]).result(TIMEOUT)
    wait_until(lambda: not list((store.folder / "incoming").iterdir()))
    store.remove(CLIPS[5])
    archives.requests.clear()
    limit = len(videos[5 % len(videos)]) // 2
    error = error_of(fetcher("archive", limit=limit).request(CLIPS[5]))
    assert f"in {ARCHIVE} (" in error.reason
    assert f"exceeds --max-archive-download ({limit}B)" in error.reason
    assert sum(sent.bytes for sent in archives.requests) <= 1


def test_a_changed_archive_above_the_limit_is_left_to_the_next_source(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    fetcher().request(CLIPS[0]).result(TIMEOUT)
    wait_until(lambda: not list((store.folder / "incoming").iterdir()))
    store.remove(CLIPS[4])
    archives.files[ARCHIVE] = make_archive([*videos[1:], videos[0]], padding=9)
    error = error_of(fetcher("archive", "youtube", limit=below(archives)).request(CLIPS[4]))
    assert (error.kind, error.source) == (FailureKind.GONE, "youtube")
    assert "exceeds --max-archive-download" in error.reason


# Clips that the archive lacks


def test_a_clip_that_the_archive_lacks_is_gone(fetcher: Make, store: Store, archives: ArchiveSite) -> None:
    made = fetcher()
    error = error_of(made.request(ABSENT))
    assert (error.kind, error.source) == (FailureKind.GONE, "archive")
    assert "not in the archives" in error.reason
    archives.requests.clear()

    other = fetcher("archive", "youtube")
    other.request(ELSEWHERE).result(TIMEOUT)
    assert read_whole(archives) < 0.01, "the index lacks the clip"
    # If there are other sources, they are asked, too, and their failure counts.
    assert error_of(other.request(ABSENT)).source == "youtube"
    assert error_of(fetcher().request(ABSENT)).source == "youtube", "and the failure is remembered"


def test_a_missing_archive_is_left_to_the_next_source(fetcher: Make, store: Store, archives: ArchiveSite) -> None:
    archives.files.clear()
    made = fetcher("archive", "youtube", workers=1)
    made.request(ELSEWHERE).result(TIMEOUT)
    assert error_of(made.request(ABSENT)).source == "youtube"
    assert len(archives.requests) == 1, "asked for once"


def test_an_unreachable_server_is_a_transient_failure(fetcher: Make, store: Store, archives: ArchiveSite) -> None:
    """It is asked once by each worker, and then not again for a while: others are at hand."""
    archives.faults = ["500"] * 4
    made = fetcher("archive", "youtube", workers=1)
    made.request(ELSEWHERE).result(TIMEOUT)
    assert len(archives.requests) == 2
    error = error_of(made.request(ABSENT))
    assert (error.kind, error.source) == (FailureKind.TRANSIENT, "archive"), "it may be there: nobody knows"
    assert len(archives.requests) == 2


def test_siblings_evict_nothing(
    fetcher: Make, site: VideoSite, archives: ArchiveSite, dataset: Dataset, tmp_path: Path
) -> None:
    videos = [path.read_bytes() for path in sorted(dataset.videos.glob("*.mp4"))]
    archives.files[ARCHIVE] = make_archive(videos)
    limit = len(videos[0]) + 2 * 1024**2  # as much as a clip of unknown size is taken to need
    assert sum(map(len, videos)) > limit
    with Store(tmp_path / "small", limit=limit) as small:
        kept = Clip("kept_always", 0, 10)
        with small.claim(kept) or pytest.fail() as claim:
            path = claim.folder / "clip"
            path.write_bytes(videos[0])
            claim.publish(path, "test")
        made = fetcher(into=small)
        made.request(CLIPS[1], Priority.BACKGROUND).result(TIMEOUT)
        wait_until(lambda: ArchiveIndexDB(tmp_path / "archives.sqlite").version(ARCHIVE))
        assert read_clip(small, kept) == videos[0]
        assert read_clip(small, CLIPS[1]) == videos[1]


@pytest.mark.parametrize("fault", ["503", "reset", "other-range"])
def test_a_fault_of_the_server_still_delivers_the_clip(
    fetcher: Make, archives: ArchiveSite, videos: Sequence[bytes], fault: str
) -> None:
    archives.files[ARCHIVE] = make_archive(videos, padding=SEGMENT)
    archives.faults = ["", fault, fault]  # the first request asks for the version
    made = fetcher(workers=1)
    for future in [made.request(clip) for clip in CLIPS]:
        future.result(TIMEOUT)


def test_a_truncated_archive_leaves_nothing_unfinished(
    fetcher: Make, store: Store, archives: ArchiveSite, tmp_path: Path
) -> None:
    """The clip that is wanted was had before: it is kept, and of the archive there is no index."""
    archives.files[ARCHIVE] = archives.files[ARCHIVE][:-5_000]
    made = fetcher()
    made.request(CLIPS[0]).result(TIMEOUT)
    wait_until(lambda: not made.status().pending and not list(store.layout.incoming.iterdir()))
    assert ArchiveIndexDB(tmp_path / "archives.sqlite").version(ARCHIVE) is None
    error = error_of(made.request(CLIPS[-1]))
    assert (error.kind, error.source) == (FailureKind.TRANSIENT, "archive")
    assert error.reason.startswith(f"{ARCHIVE} is incomplete: ")


def test_an_incomplete_archive_proves_nothing_about_the_clips_that_it_lacks(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes], tmp_path: Path
) -> None:
    tar = gzip.decompress(archives.files[ARCHIVE])
    archives.files[ARCHIVE] = tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % 512)
    made = fetcher("archive", "youtube", workers=1)

    made.request(ELSEWHERE).result(TIMEOUT)

    assert store.record(ELSEWHERE).source == "youtube"  # type: ignore[union-attr]
    assert all(read_clip(store, clip) == videos[number % len(videos)] for number, clip in enumerate(CLIPS))
    assert ArchiveIndexDB(tmp_path / "archives.sqlite").version(ARCHIVE) is None
    archives.requests.clear()
    assert error_of(made.request(ABSENT)).kind is FailureKind.TRANSIENT, "the archive may have it"
    assert read_whole(archives) == 0, "it is not read again for each clip that it lacks"
    store.remove(CLIPS[3])
    made.request(CLIPS[3]).result(TIMEOUT)
    assert read_clip(store, CLIPS[3]) == videos[3]


def test_the_whole_copy_of_a_clip_is_taken(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes], tmp_path: Path
) -> None:
    clip = CLIPS[2]
    copies = [make_tar({clip: content}) for content in (videos[0][:5_000], videos[0], videos[1][:4_000])]
    archives.files[ARCHIVE] = by_zlib(b"".join(copies))
    made = fetcher(workers=1)

    made.request(clip).result(TIMEOUT)
    assert read_clip(store, clip) == videos[0]
    wait_until(lambda: not list(store.layout.incoming.iterdir()))
    store.remove(clip)
    archives.requests.clear()
    made.request(clip).result(TIMEOUT)
    assert read_clip(store, clip) == videos[0]
    assert len(archives.requests) == 1, "by the index"


def test_a_name_in_long_form_can_be_read_by_the_index(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes]
) -> None:
    archives.files[ARCHIVE] = by_zlib(make_tar({CLIPS[1]: videos[1]}, lambda clip: "long/" * 60 + clip.name))
    made = fetcher(workers=1)
    made.request(CLIPS[1]).result(TIMEOUT)
    wait_until(lambda: not list(store.layout.incoming.iterdir()))
    store.remove(CLIPS[1])
    archives.requests.clear()
    made.request(CLIPS[1]).result(TIMEOUT)
    assert read_clip(store, CLIPS[1]) == videos[1]
    assert len(archives.requests) == 1


def test_a_new_version_of_an_archive_is_indexed_again(
    fetcher: Make, store: Store, archives: ArchiveSite, videos: Sequence[bytes], tmp_path: Path
) -> None:
    fetcher().request(CLIPS[0]).result(TIMEOUT)
    index_db = ArchiveIndexDB(tmp_path / "archives.sqlite")
    wait_until(lambda: index_db.version(ARCHIVE))
    wait_until(lambda: not list(store.layout.incoming.iterdir()))
    before = index_db.version(ARCHIVE)
    for clip in CLIPS:
        store.remove(clip)
    archives.files[ARCHIVE] = make_archive([*videos[1:], videos[0]])
    archives.requests.clear()

    made = fetcher()
    made.request(CLIPS[4]).result(TIMEOUT)
    assert read_clip(store, CLIPS[4]) == videos[0]
    wait_until(lambda: index_db.version(ARCHIVE) != before)
    assert read_whole(archives) < 1.2


def test_a_local_failure_ends_the_reading(fetcher: Make, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no space for the clip: later answers of the worker do not reach the next clip."""

    def publish(self: object, path: Path, source: str, **rest: object) -> None:
        raise FetchError(FailureKind.LOCAL, "disk full")

    made = fetcher(workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("kinetics_fs.store.store.Claim.publish", publish)
        assert error_of(made.request(CLIPS[2])).kind is FailureKind.LOCAL
    made.request(CLIPS[3]).result(TIMEOUT)
