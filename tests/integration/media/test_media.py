"""From media to a clip: cut to the frame, and never taken for whole when it is not."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import av
import pytest

from kinetics_fs.demo.media import frame_numbers, make_video
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.media import Media, VerifyLevel
from kinetics_fs.media.cut import MAX_BITS_PER_SECOND, cut
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.media.probe import Span, expected_span
from kinetics_fs.media.verify import check_container, verify_clip
from tests.conftest import Dataset, made_once
from tests.support.videos import check_file, run_ffmpeg

SECONDS = 24
"""Length of the videos made here."""


def clip_of(
    path: Path, start: float, duration: float, *, length: float | None = None, max_height: int = 360, ffmpeg: str = ""
) -> Path:
    """Cut and verify media as a worker does."""
    media = Media(path, start, length)
    target = path.with_name(f"clip of {path.name}.mp4")
    expected = expected_span(media, duration)
    cut(media, duration, target, ffmpeg=ffmpeg or find_ffmpeg(), max_height=max_height)
    verify_clip(target, expected)
    return target


def refused(path: Path, start: float, duration: float, length: float | None = None) -> FetchError:
    with pytest.raises(FetchError) as caught:
        clip_of(path, start, duration, length=length)
    return caught.value


def size(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.width, stream.codec_context.height


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 s at 25 frames a second, small, with few key frames."""

    def make(folder: Path) -> Path:
        make_video(folder / "plain.mp4", seconds=SECONDS, ffmpeg=find_ffmpeg(), width=160, height=120)
        return folder / "plain.mp4"

    return made_once("plain", tmp_path_factory, make)


Variant = Callable[..., Path]


@pytest.fixture
def variant(plain: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """Makes another file out of the plain one, by arguments of ffmpeg.

    Tests that want the same file get copies of one. Pictures are encoded fast, and sound is copied, unless the
    arguments say otherwise.
    """

    def make(*arguments: str, name: str = "variant.mp4", source: Path = plain) -> Path:
        path = tmp_path / name
        quick = () if "-i" in arguments else ("-preset", "superfast", "-c:a", "copy")  # they are of the output
        command = ("-i", source, *quick, *arguments)
        if any(str(tmp_path) in str(argument) for argument in command):
            run_ffmpeg(*command, path)
            return path

        def encode(folder: Path) -> Path:
            run_ffmpeg(*command, folder / name)
            return folder / name

        key = sha256(repr((name, arguments)).encode()).hexdigest()
        shutil.copyfile(made_once(f"variant {key[:16]}", tmp_path_factory, encode), path)
        return path

    return make


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.mp4"
    path.write_bytes(plain.read_bytes())
    return path


# Frames


@pytest.mark.parametrize("start", [0, 9, 14])
def test_exact_frames(copy: Path, start: int) -> None:
    assert frame_numbers(clip_of(copy, start, 10)) == list(range(start * 25, start * 25 + 250))


@pytest.mark.parametrize(("start", "duration"), [(0, 1), (23, 1), (0, 24)])
def test_exact_frames_of_any_length(copy: Path, start: int, duration: int) -> None:
    assert frame_numbers(clip_of(copy, start, duration)) == list(range(start * 25, (start + duration) * 25))


def test_key_frames_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "sparse.mp4"
    make_video(path, seconds=16, ffmpeg=find_ffmpeg(), width=160, height=120, gop=400)

    assert frame_numbers(clip_of(path, 5, 10)) == list(range(125, 375))


def test_index_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "index last.mp4"
    make_video(path, seconds=12, ffmpeg=find_ffmpeg(), width=160, height=120, faststart=False)

    assert frame_numbers(clip_of(path, 2, 10)) == list(range(50, 300))


@pytest.mark.parametrize("rate", [12, 60])
def test_other_frame_rates(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "rate.mp4"
    make_video(path, seconds=13, ffmpeg=find_ffmpeg(), rate=rate, width=160, height=120)

    assert frame_numbers(clip_of(path, 2, 10)) == list(range(2 * rate, 12 * rate))


def test_rate_of_television(tmp_path: Path) -> None:
    # 30 frames a second, slowed down to 30000/1001: frame n is shown at n · 1001 / 30000.
    faster, path = tmp_path / "30.mp4", tmp_path / "29.97.mp4"
    make_video(faster, seconds=21, ffmpeg=find_ffmpeg(), rate=30, width=160, height=120)
    run_ffmpeg("-itsscale", "1.001", "-i", faster, "-c", "copy", "-video_track_timescale", "30000", path)
    shown = [number for number in range(630) if 10 <= number * 1001 / 30000 < 20]

    assert frame_numbers(clip_of(path, 10, 10)) == shown


def test_few_frames_a_second(variant: Variant) -> None:
    # A slide show: a frame lasts longer than the tolerance of the check.
    path = variant("-vf", "select='not(mod(n,10))',setpts=N/2.5/TB", "-r", "2.5", "-an")

    assert frame_numbers(clip_of(path, 6, 10)) == list(range(150, 400, 10))


def test_variable_frame_rate(variant: Variant) -> None:
    # Every frame of the first half, every third of the second, at the times that they had.
    path = variant("-vf", "select='lt(n,300)+not(mod(n,3))'", "-fps_mode", "vfr")
    kept = [number for number in range(600) if number < 300 or number % 3 == 0]
    assert frame_numbers(path) == kept

    assert frame_numbers(clip_of(path, 8, 10)) == [number for number in kept if 200 <= number < 450]


def test_variable_frame_rate_at_the_end(variant: Variant) -> None:
    """The picture that the clip ends with may be shown for longer than the clip lasts."""
    path = variant("-vf", "select='not(mod(n,7))'", "-fps_mode", "vfr", "-c:v", "libx264", "-g", "60")

    assert frame_numbers(clip_of(path, 1, 1)) == [21, 28, 35, 42, 49]


def test_picture_of_the_moment_at_which_the_clip_ends(variant: Variant, plain: Path) -> None:
    """It is no longer part of the clip, also where the first picture comes late."""
    path = variant("-itsoffset", "1", "-i", str(plain), "-map", "0:a", "-map", "1:v", "-c", "copy")

    assert frame_numbers(clip_of(path, 0.5, 2.5)) == list(range(50))


def test_pictures_that_are_decoded_after_the_next_key_frame(variant: Variant) -> None:
    """With open groups and no edit list, the clip begins between the decoding and display times of a keyframe."""
    groups = "keyint=100:min-keyint=100:scenecut=0:open-gop=1:bframes=8"
    path = variant("-c:v", "libx264", "-x264-params", groups, "-use_editlist", "0")

    assert frame_numbers(clip_of(path, 12, 3)) == list(range(298, 373))


def shown_between(path: Path, start: float, end: float) -> list[int]:
    """Return the positions of the frames that a file shows in this time, counted from its beginning."""
    with av.open(str(path)) as container:
        begin = (container.start_time or 0) / av.time_base
        times = [frame.time - begin for frame in container.decode(video=0) if frame.time is not None]
    return [index for index, time in enumerate(times) if start <= time < end]


def test_matroska(variant: Variant) -> None:
    # Milliseconds for a clock, and a picture that begins a little after the sound.
    path = variant("-c", "copy", name="merged.mkv")

    assert frame_numbers(clip_of(path, 10, 10)) == shown_between(path, 10, 20)


def test_file_that_begins_late(variant: Variant) -> None:
    # Seconds of a video count from its beginning, whatever the clock of the file says.
    path = variant("-c", "copy", "-an", "-output_ts_offset", "7", name="late.mkv")

    assert frame_numbers(clip_of(path, 10, 10)) == list(range(250, 500))


def test_matroska_with_few_pictures(variant: Variant) -> None:
    """The first keyframe comes a little later than 0, and no other follows for long."""
    path = variant("-vf", "select='not(mod(n,17))'", "-fps_mode", "vfr", name="slow.mkv")

    assert frame_numbers(clip_of(path, 0, 10)) == list(range(0, 250, 17))


@pytest.mark.parametrize("start", [0, 5, 14])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["ts", "mpg", "flv", "mkv"])
def test_containers_without_an_index(variant: Variant, kind: str, exact: bool, start: int) -> None:
    codecs = ("-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2") if kind == "mpg" else ("-c", "copy")
    path = variant(*codecs, name=f"video.{kind}")
    expected = shown_between(path, start - 0.001, start + 4)
    media = Media(path, start, None)

    clip = clip_of(path, start, 4) if exact else path.with_name("clip.mp4")
    if not exact:
        cut(media, 4, clip, ffmpeg=find_ffmpeg(), max_height=360, exact=False)

    verify_clip(clip, expected_span(media, 4))
    if exact or kind in {"ts", "mpg"}:
        assert frame_numbers(clip) == expected


# Sound


def test_video_without_sound(variant: Variant) -> None:
    clip = clip_of(variant("-an", "-c", "copy"), 10, 10)

    assert frame_numbers(clip) == list(range(250, 500))
    with av.open(str(clip)) as container:
        assert not container.streams.audio


def test_sound_is_cut_with_the_picture(copy: Path) -> None:
    with av.open(str(clip_of(copy, 10, 10))) as container:
        [sound] = container.streams.audio
        lasts = sum(frame.samples / frame.sample_rate for frame in container.decode(sound))

    assert lasts == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(("longer", "told"), [(0.8, True), (6.0, False), (6.0, True)])
def test_sound_that_outlasts_the_picture(tmp_path: Path, plain: Path, longer: float, told: bool) -> None:
    path = tmp_path / "long sound.mp4"
    sound = f"sine=duration={SECONDS + longer}"
    run_ffmpeg("-i", plain, "-f", "lavfi", "-i", sound, "-map", "0:v", "-map", "1:a", "-c:v", "copy", path)
    length = SECONDS + longer if told else None

    assert frame_numbers(clip_of(path, 5, 10, length=length)) == list(range(125, 375))
    # The picture ends first: so does the clip, and that is no damage.
    assert frame_numbers(clip_of(path, 18, 10, length=length)) == list(range(450, 600))


def test_sound_that_ends_early(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "short sound.mp4"
    run_ffmpeg("-i", plain, "-f", "lavfi", "-i", "sine=duration=5", "-map", "0:v", "-map", "1:a", "-c:v", "copy", path)

    assert frame_numbers(clip_of(path, 10, 10)) == list(range(250, 500))


# The end of the video


@pytest.mark.parametrize(("start", "length"), [(15, None), (20, 24.0), (20, 25.0), (23, None), (23, 25.0)])
def test_clip_at_the_end(copy: Path, start: int, length: float | None) -> None:
    assert frame_numbers(clip_of(copy, start, 10, length=length)) == list(range(start * 25, 600))


def test_real_case_of_the_demo(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "source.mp4"
    path.write_bytes((dataset.videos / "DEMOvideo-5.mp4").read_bytes())

    assert frame_numbers(clip_of(path, 8, 10, length=15)) == list(range(200, 362))


@pytest.mark.parametrize("start", [24, 25, 1000])
def test_clip_after_the_end_is_gone(copy: Path, start: int) -> None:
    error = refused(copy, start, 10, length=24)

    assert error.kind is FailureKind.GONE
    assert "24.0 s" in error.reason


def test_video_that_should_be_longer_is_no_short_video(copy: Path) -> None:
    # The site speaks of 60 s, and the file has 24: it is not known to end where the clip does.
    assert refused(copy, 20, 10, length=60).kind is FailureKind.CORRUPT
    assert refused(copy, 30, 10, length=60).kind is FailureKind.CORRUPT


# Damage


def broken_off(path: Path, second: float, *, spare: int = 0) -> None:
    """Truncate a file (index in front) at the video frame of this second, or some bytes later."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        positions = [
            packet.pos
            for packet in container.demux(stream)
            if packet.pts is not None and packet.pos is not None and float(packet.pts * packet.time_base) >= second
        ]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: min(positions) + spare])


@pytest.mark.parametrize(
    ("start", "told", "spare"), [(5, None, 0), (5, 24.0, 50), (11.5, None, 50), (11.9, 24.0, 0), (14, None, 0)]
)
def test_broken_off_in_the_middle(copy: Path, start: float, told: float | None, spare: int) -> None:
    broken_off(copy, 12, spare=spare)

    assert refused(copy, start, 10, told).kind is FailureKind.CORRUPT


@pytest.mark.parametrize(("missing", "spare"), [(0.1, 0), (0.1, 20), (1.2, 0), (1.2, 20)])
def test_broken_off_near_the_end(copy: Path, missing: float, spare: int) -> None:
    broken_off(copy, SECONDS - missing, spare=spare)

    assert refused(copy, 14, 10, 24).kind is FailureKind.CORRUPT


def test_what_came_before_the_break_is_whole_or_refused(copy: Path) -> None:
    broken_off(copy, 16)
    try:
        clip = clip_of(copy, 2, 10)
    except FetchError as error:
        assert error.kind is FailureKind.CORRUPT
    else:
        assert frame_numbers(clip) == list(range(50, 300))


def test_index_that_never_came(tmp_path: Path) -> None:
    path = tmp_path / "index last.mp4"
    make_video(path, seconds=12, ffmpeg=find_ffmpeg(), width=160, height=120, faststart=False)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])

    assert refused(path, 0, 10).kind is FailureKind.CORRUPT


def test_noise_in_the_media(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(range(256)) * 78 + bytes(32)
    copy.write_bytes(data)

    assert refused(copy, 5, 15).kind is FailureKind.CORRUPT


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"<!DOCTYPE html><html><head><title>Sorry</title></head><body>" + b"<p>Sorry</p>" * 1000,
        b"#EXTM3U\n#EXT-X-VERSION:3\n",
        bytes(100_000),
        b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
    ],
    ids=["empty", "byte", "html", "playlist", "zeros", "ftyp"],
)
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "source.mp4"
    path.write_bytes(content)

    error = refused(path, 0, 10, 24)

    assert error.kind is FailureKind.CORRUPT
    assert error.reason.isprintable()


def test_playlist_that_names_other_files_is_not_followed(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "source.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:24\n#EXTINF:24,\n{plain}\n#EXT-X-ENDLIST\n")

    assert refused(path, 0, 10).kind is FailureKind.CORRUPT


def test_sound_alone(variant: Variant) -> None:
    assert refused(variant("-vn", "-c", "copy"), 0, 10).kind is FailureKind.CORRUPT


def test_finished_clip_is_checked_on_its_own(copy: Path, tmp_path: Path) -> None:
    clip = clip_of(copy, 10, 10)
    verify_clip(clip, Span(0, 10))

    short = tmp_path / "short.mp4"
    run_ffmpeg("-i", clip, "-t", "9", "-c", "copy", short)
    for wrong in (short, copy):
        with pytest.raises(FetchError) as caught:
            verify_clip(wrong, Span(0, 10))
        assert caught.value.kind is FailureKind.CORRUPT

    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(FetchError) as caught:
        verify_clip(clip, Span(0, 10))
    assert caught.value.kind is FailureKind.CORRUPT


# Frames that do not fall on the start


def shown(path: Path) -> list[tuple[float, int]]:
    """Return the time and number of each frame of a file."""
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0) if frame.time is not None]
    return list(zip(times, frame_numbers(path), strict=True))


def lasts(path: Path) -> float:
    """Return the time at which the pictures of a file end, as its header states it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None and stream.time_base is not None
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def first_of(every: list[int], start: float) -> int:
    """Return the frame on screen at the start, or the next one if that follows at once (25 frames a second)."""
    current = max(number for number in every if number / 25 <= start)
    following = min(number for number in every if number / 25 > start)
    return following if current / 25 < start and following / 25 - start <= 0.05 else current


@pytest.mark.parametrize("start", [5, 7, 11.3])
@pytest.mark.parametrize("kept", [f"not(mod(n,{n}))" for n in (9, 17, 50, 110)])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_clip_begins_with_the_frame_on_screen(variant: Variant, container: str, kept: str, start: float) -> None:
    path = variant("-vf", f"select='{kept}'", "-fps_mode", "vfr", "-an", name=f"slow.{container}")
    every = [number for _, number in shown(path)]
    first = first_of(every, start)

    clip = clip_of(path, start, 10)

    found = shown(clip)
    assert found[0] == (0, first)
    assert [number for _, number in found] == [n for n in every if first <= n and n / 25 < start + 10]
    assert [time for time, _ in found[1:]] == pytest.approx([n / 25 - start for _, n in found[1:]], abs=0.002)
    assert lasts(clip) == pytest.approx(10, abs=0.05)


@pytest.mark.parametrize("keyframes", ["10", "600"])
@pytest.mark.parametrize("start", [4, 8, 11, 14])
def test_gaps_of_seconds(variant: Variant, start: int, keyframes: str) -> None:
    path = variant("-vf", "select='lt(n,100)+between(n,280,300)+gt(n,500)'", "-fps_mode", "vfr", "-g", keyframes)
    every = [number for _, number in shown(path)]
    first = max(number for number in every if number <= start * 25)

    clip = clip_of(path, start, 4)

    assert [number for _, number in shown(clip)] == [n for n in every if first <= n < (start + 4) * 25]
    assert shown(clip)[0][0] == 0
    assert lasts(clip) == pytest.approx(4, abs=0.05)


def test_copy_that_cannot_begin_with_the_frame_on_screen(variant: Variant) -> None:
    path = variant("-vf", "select='not(mod(n,50))'", "-fps_mode", "vfr", "-an")
    target = path.with_name("clip.mp4")
    media = Media(path, 5, None)

    cut(media, 10, target, ffmpeg=find_ffmpeg(), max_height=360, exact=False)

    verify_clip(target, expected_span(media, 10))
    assert shown(target)[0] == (0, 100)


# Edit lists


def with_edits(path: Path, edits: list[tuple[float, float]]) -> None:
    """Replace the edit list of the pictures.

    Args:
        path: an mp4 file that ends with its index, and whose first track has the pictures.
        edits: duration and media time of each edit in seconds; a media time of -1 for an empty edit.
    """
    data = path.read_bytes()
    moov, edts = data.index(b"moov") - 4, data.index(b"edts") - 4
    trak = data.index(b"trak") - 4
    assert data.index(b"mdat") < moov < trak < edts
    [movie_scale] = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    [scale] = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    entries = b"".join(
        struct.pack(">IiI", round(lasts * movie_scale), -1 if time < 0 else round(time * scale), 0x10000)
        for lasts, time in edits
    )
    elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    new = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    [old_length] = struct.unpack_from(">I", data, edts)
    result = bytearray(data[:edts] + new + data[edts + old_length :])
    for box in (moov, trak):
        [length] = struct.unpack_from(">I", result, box)
        struct.pack_into(">I", result, box, length + len(new) - old_length)
    path.write_bytes(result)


@pytest.fixture
def edited(plain: Path, tmp_path: Path) -> Callable[[list[tuple[float, float]]], Path]:
    def make(edits: list[tuple[float, float]]) -> Path:
        path = tmp_path / "edited.mp4"
        run_ffmpeg("-i", plain, "-c", "copy", path)
        with_edits(path, edits)
        return path

    return make


_DELAY = 0.08
"""Media time of the first frame, because of B-frames."""


@pytest.mark.parametrize(
    ("edits", "frames"),
    [
        ([(12, _DELAY)], range(300)),
        ([(17, 7 + _DELAY)], range(175, 600)),
        ([(24, 7 + _DELAY)], range(175, 600)),
        ([(2, -1), (24, _DELAY)], range(600)),
        ([(0.04, 10 + _DELAY)], range(250, 251)),
        ([(5, 1 + _DELAY), (5, 11 + _DELAY)], [*range(25, 150), *range(275, 400)]),
    ],
)
def test_frames_that_an_edit_list_hides(
    edited: Callable[[list[tuple[float, float]]], Path], edits: list[tuple[float, float]], frames: list[int]
) -> None:
    path = edited(edits)
    assert frame_numbers(path) == list(frames)

    for level in VerifyLevel:
        check_file(path, level)
    assert path.read_bytes()[4:8] == b"ftyp"


def test_clip_is_cut_from_what_an_edit_list_shows(edited: Callable[[list[tuple[float, float]]], Path]) -> None:
    path = edited([(17, 7 + _DELAY)])

    assert frame_numbers(clip_of(path, 2, 5)) == list(range(225, 350))


def test_edit_list_does_not_hide_that_the_file_is_broken_off(variant: Variant) -> None:
    path = variant("-ss", "7.2", "-c", "copy", "-movflags", "+faststart")
    check_container(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])

    with pytest.raises(FetchError) as caught:
        check_container(path)
    assert caught.value.kind is FailureKind.CORRUPT


# Other streams


@pytest.fixture
def cover(plain: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = tmp_path / name
        run_ffmpeg("-i", plain, "-frames:v", 1, path)
        return path

    return make


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("order", [("0", "1"), ("1", "0")])
@pytest.mark.parametrize("picture", ["cover.jpg", "cover.png"])
@pytest.mark.parametrize("name", ["covered.mp4", "covered.mkv"])
def test_cover_picture(
    variant: Variant, cover: Callable[[str], Path], name: str, picture: str, order: tuple[str, str], marked: bool
) -> None:
    place = order.index("1")
    disposition = (f"-disposition:v:{place}", "attached_pic") if marked else ()
    maps = [argument for source in order for argument in ("-map", source)]
    path = variant("-i", str(cover(picture)), *maps, "-c", "copy", *disposition, name=name)

    check_file(path, VerifyLevel.DECODE)
    assert frame_numbers(clip_of(path, 10, 5)) == list(range(250, 375))
    target = path.with_name("copy.mp4")
    cut(Media(path, 10, None), 5, target, ffmpeg=find_ffmpeg(), max_height=360, exact=False)
    verify_clip(target, Span(0, 5))


def test_second_video_stream(variant: Variant) -> None:
    path = variant(
        *("-map", "0:v", "-map", "0:v", "-map", "0:a", "-c", "copy", "-c:v:1", "libx264", "-filter:v:1", "negate")
    )

    check_file(path, VerifyLevel.DECODE)
    assert frame_numbers(clip_of(path, 10, 5)) == list(range(250, 375))


def test_subtitles_and_timecode(variant: Variant, tmp_path: Path) -> None:
    subtitles = tmp_path / "text.srt"
    subtitles.write_text("1\n00:00:01,000 --> 00:00:20,000\nHello\n")
    path = variant(
        *("-i", str(subtitles), "-map", "1", "-map", "0", "-c", "copy", "-c:s", "mov_text", "-timecode", "01:00:00:00")
    )

    check_file(path, VerifyLevel.DECODE)
    clip = clip_of(path, 10, 5)
    assert frame_numbers(clip) == list(range(250, 375))
    with av.open(str(clip)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


# Files that are named as mp4


@pytest.mark.parametrize(
    ("kind", "codecs"),
    [
        ("mkv", ("-c", "copy")),
        ("ts", ("-c", "copy")),
        ("flv", ("-c", "copy")),
        ("avi", ("-c", "copy")),
        ("avi", ("-c:v", "mpeg4", "-bf", "2", "-q:v", "2", "-c:a", "mp3")),
        ("webm", ("-c:v", "libvpx", "-b:v", "1M", "-deadline", "realtime", "-cpu-used", "16", "-c:a", "libvorbis")),
        ("mpg", ("-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2")),
        ("wmv", ("-c:v", "mpeg4", "-q:v", "2", "-c:a", "wmav2")),
    ],
)
@pytest.mark.parametrize("level", [VerifyLevel.NONE, VerifyLevel.DECODE])
def test_other_containers_are_converted(
    variant: Variant, kind: str, codecs: tuple[str, ...], level: VerifyLevel
) -> None:
    four_seconds = variant("-t", "4", "-c:v", "libx264", "-preset", "superfast", "-c:a", "copy")
    other = variant(*codecs, name=f"other.{kind}", source=four_seconds)
    four_seconds.unlink()
    path = other.rename(other.with_name("clip.mp4"))
    link = other.with_name("user's.mp4")
    link.hardlink_to(path)
    before = link.read_bytes()

    check_file(path, level)

    assert frame_numbers(path) == list(range(100))
    with av.open(str(path)) as container:
        assert container.format.name.startswith("mov,mp4")
        assert container.duration is not None
        assert container.duration / av.time_base == pytest.approx(4, abs=0.15)
        assert len(container.streams.audio) == 1
    assert link.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, link.name}


@pytest.mark.parametrize("level", VerifyLevel)
@pytest.mark.parametrize("name", ["cover.png", "cover.jpg", "cover.gif", "cover.webp", "cover.bmp", "cover.tiff"])
def test_pictures_are_refused(cover: Callable[[str], Path], name: str, level: VerifyLevel) -> None:
    path = cover(name)

    with pytest.raises(FetchError) as caught:
        check_file(path.rename(path.with_name("clip.mp4")), level)

    assert caught.value.kind is FailureKind.CORRUPT
    assert "picture" in caught.value.reason


@pytest.mark.parametrize("level", VerifyLevel)
def test_web_page_is_refused(tmp_path: Path, level: VerifyLevel) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("<!DOCTYPE html>\n<html><title>403</title></html>")

    with pytest.raises(FetchError, match="web page") as caught:
        check_file(path, level)
    assert caught.value.kind is FailureKind.CORRUPT


@pytest.mark.parametrize("head", [b"", b"\0" * 1000, b"noise " * 100, b"G" + bytes(999), b"RIFF\0\0\0\0WAVE"])
def test_unverified_files_of_no_known_kind_stay_as_they_are(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(head)

    check_file(path, VerifyLevel.NONE)

    assert path.read_bytes() == head


@pytest.mark.parametrize("faststart", [True, False])
def test_what_follows_an_mp4_is_ignored(variant: Variant, faststart: bool) -> None:
    """Players read the first index, too."""
    path = variant("-t", "4", "-c", "copy", *(("-movflags", "+faststart") if faststart else ()))
    whole, numbers = path.read_bytes(), frame_numbers(path)
    for rest in (os.urandom(100_000), bytes(100_000), whole, whole[:1000], b"x"):
        path.write_bytes(whole + rest)

        check_file(path, VerifyLevel.DECODE)

        assert path.read_bytes() == whole + rest
        assert frame_numbers(path) == numbers


def test_one_frame(variant: Variant) -> None:
    path = variant("-frames:v", "1", "-an")

    check_file(path, VerifyLevel.DECODE)

    assert frame_numbers(path) == [0]


def test_no_frames(variant: Variant) -> None:
    path = variant("-movflags", "+frag_keyframe+empty_moov", "-c", "copy")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])

    with pytest.raises(FetchError, match="no frames") as caught:
        check_file(path, VerifyLevel.CONTAINER)
    assert caught.value.kind is FailureKind.CORRUPT


def test_no_frame_that_decodes(variant: Variant) -> None:
    path = variant("-c", "copy", "-an", "-bsf:v", "noise=drop=lt(n\\,1)", source=variant("-g", "1000", name="long.mp4"))

    with pytest.raises(FetchError, match="no frame of the clip decodes") as caught:
        check_file(path, VerifyLevel.DECODE)
    assert caught.value.kind is FailureKind.CORRUPT


@pytest.mark.parametrize("level", [VerifyLevel.CONTAINER, VerifyLevel.DECODE])
@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (("-t", "4"), 4.0),
        (("-frames:v", "1"), 0.04),
        (("-vf", "trim=end=4", "-af", "atrim=end=9", "-c:a", "aac"), 4.0),  # sound that goes on
        (("-t", "3", "-r", "2", "-c:v", "mpeg4"), 3.0),
        (("-t", "2", "-movflags", "+frag_keyframe+empty_moov"), 2.0),
        (("-t", "2", "-f", "matroska"), 2.0),
    ],
)
def test_duration_of_the_pictures(
    variant: Variant, level: VerifyLevel, arguments: tuple[str, ...], seconds: float
) -> None:
    assert check_file(variant(*arguments), level) == pytest.approx(seconds, abs=0.001)


# The picture


@pytest.mark.parametrize(("max_height", "expected"), [(360, (160, 120)), (120, (160, 120)), (91, (120, 90))])
def test_picture_is_never_enlarged(copy: Path, max_height: int, expected: tuple[int, int]) -> None:
    assert size(clip_of(copy, 0, 2, max_height=max_height)) == expected


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(427, 241, (426, 240)), (321, 180, (322, 180)), (301, 401, (270, 360))]
)
def test_odd_sizes(variant: Variant, width: int, height: int, expected: tuple[int, int]) -> None:
    path = variant("-t", "4", "-vf", f"scale={width}:{height},setsar=1", "-pix_fmt", "yuv444p", "-an")
    assert size(path) == (width, height)

    clip = clip_of(path, 2, 2)

    assert size(clip)[1] == expected[1]
    assert abs(size(clip)[0] - expected[0]) <= 2
    assert frame_numbers(clip) == list(range(50, 100))


def test_rotated_picture_is_turned_upright(copy: Path, tmp_path: Path) -> None:
    # As telephones do it: the pixels as the sensor has them, and a matrix in the header of the track.
    data = bytearray(copy.read_bytes())
    matrix = data.index(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 120 << 16, 0, 0x40000000)
    assert data[matrix : matrix + 4] == struct.pack(">i", 0x10000)
    data[matrix : matrix + 36] = turned
    copy.write_bytes(data)

    clip = clip_of(copy, 10, 10)

    assert size(clip) == (120, 160)
    back = tmp_path / "back.mp4"
    run_ffmpeg("-i", clip, "-vf", "transpose=cclock", "-an", back)
    assert frame_numbers(back) == list(range(250, 500))


def test_form_of_a_clip(variant: Variant) -> None:
    secret = "do-not-keep-this"
    path = variant(
        *("-t", "13", "-vf", "format=yuv444p", "-metadata", f"title={secret}", "-metadata", f"comment={secret}"),
        *("-metadata:s:v", f"title={secret}", "-metadata:s:a", f"handler_name={secret}", "-ac", "1"),
        name="tagged.mkv",
    )

    clip = clip_of(path, 2, 10)

    data = clip.read_bytes()
    boxes, at = [], 0
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        boxes.append(name)
        at += length
    assert boxes.index(b"moov") < boxes.index(b"mdat")
    assert secret.encode() not in data
    with av.open(str(clip)) as container:
        assert container.format.name.startswith("mov,mp4")
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (sound.codec_context.name, sound.codec_context.channels) == ("aac", 2)


def test_rate_has_a_cap(tmp_path: Path) -> None:
    # Noise is the worst case: the estimate for an unknown clip's size must hold for it too.
    path = tmp_path / "noise.mp4"
    run_ffmpeg(
        "-f", "lavfi", "-i", "nullsrc=s=320x180:d=4:r=30,geq=random(1)*255:128:128", "-preset", "ultrafast", path
    )

    assert clip_of(path, 0, 4).stat().st_size * 8 < MAX_BITS_PER_SECOND * 4 * 1.35


# The program


@pytest.fixture(params=["system", "static"])
def program(request: pytest.FixtureRequest) -> str:
    """Path of each ffmpeg that is installed; their versions differ."""
    import imageio_ffmpeg

    return find_ffmpeg() if request.param == "system" else str(imageio_ffmpeg.get_ffmpeg_exe())


@pytest.mark.parametrize("start", [8.0, 10.01])
@pytest.mark.parametrize(
    "kept",
    ["1", "not(mod(n,3))", "not(mod(n,17))", "lt(n,300)+not(mod(n,3))", "lt(n,210)+between(n,280,300)+gt(n,500)"],
)
def test_every_version_of_ffmpeg_presents_every_frame(variant: Variant, program: str, kept: str, start: float) -> None:
    path = variant("-vf", f"select='{kept}'", "-fps_mode", "vfr")
    every = [number for _, number in shown(path)]
    first = first_of(every, start)

    clip = clip_of(path, start, 4, ffmpeg=program)

    expected = [number for number in every if first <= number < (start + 4) * 25]
    times = [0, *(number / 25 - start for number in expected[1:])]
    assert [number for _, number in shown(clip)] == expected
    assert [time for time, _ in shown(clip)] == pytest.approx(times, abs=0.002)
    assert lasts(clip) == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("start", [0, 7.3])
def test_sound_is_in_step_with_the_picture(tmp_path: Path, plain: Path, program: str, start: float) -> None:
    path = tmp_path / "clicks.mp4"
    clicks = f"aevalsrc='lt(mod(t,1),0.02)*sin(2000*PI*t)':s=44100:d={SECONDS}"
    run_ffmpeg("-i", plain, "-f", "lavfi", "-i", clicks, "-map", "0:v", "-map", "1:a", "-c:v", "copy", path)

    clip = clip_of(path, start, 5, ffmpeg=program)

    found = onsets(clip)
    assert found == pytest.approx([time - start for time in onsets(path) if start <= time < start + 5], abs=0.003)
    assert len(found) == 5


def onsets(path: Path) -> list[float]:
    """Return the times at which sound begins after silence."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=44100)
        loud = [
            (frame.time or 0) + index / 44100
            for decoded in container.decode(audio=0)
            for frame in resampler.resample(decoded)
            for index, sample in enumerate(memoryview(frame.planes[0]).cast("h")[: frame.samples])
            if abs(sample) > 2000
        ]
    return [time for before, time in pairwise([-1.0, *loud]) if time - before > 0.5]


def test_odd_names(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "-i %d [a] 'b' http:"
    folder.mkdir()
    path = folder / "-y.mp4"
    path.write_bytes(plain.read_bytes())

    assert frame_numbers(clip_of(path, 0, 2)) == list(range(50))


def test_titles_in_another_encoding(copy: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.mp4"
    title = os.fsdecode(b"title=caf\xe9 \xff")
    run_ffmpeg("-i", copy, "-t", "2", "-c", "copy", "-metadata", title, "-metadata:s:v", f"handler_{title}", odd)
    assert b"caf\xe9 \xff" in odd.read_bytes()
    check_container(odd)
    verify_clip(odd, None)


def test_missing_program(copy: Path) -> None:
    with pytest.raises(FetchError) as caught:
        clip_of(copy, 0, 2, ffmpeg="/nowhere/ffmpeg")

    assert caught.value.kind is FailureKind.CONFIG


def test_full_disk(copy: Path) -> None:
    copy.with_name(f"clip of {copy.name}.mp4").symlink_to("/dev/full")

    error = refused(copy, 0, 10)

    assert error.kind is FailureKind.LOCAL
