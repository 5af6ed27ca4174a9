"""Clips of the demo, settings, and results of fetches for tests of the fetcher."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from kinetics_fs.catalog import Clip
from kinetics_fs.demo.dataset import GONE
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.errors import FetchError
from kinetics_fs.fetch.fetcher import Fetcher
from kinetics_fs.store import Store
from tests.support.store import read_clip

CLIP = Clip("DEMOvideo-5", 0, 2)
OTHER = Clip("_demo_vid3_", 3, 5)
THIRD = Clip("demo-video2", 0, 2)
FOURTH = Clip("demo_video4", 1, 3)
DEAD = Clip(GONE, 5, 15)

TIMEOUT = 60.0
"""Seconds to wait for a fetch, which takes one or two."""

NO_SLEEP = {"extractor_retries": 0, "retries": 0}
"""Options of yt-dlp that turn off its retries, and thus its pauses."""

FetcherFactory = Callable[..., Fetcher]


def error_of(future: Future[None]) -> FetchError:
    """Wait for a fetch that must fail; return its error."""
    error = future.exception(TIMEOUT)
    assert isinstance(error, FetchError)
    return error


def cached_frames(store: Store, clip: Clip, folder: Path) -> list[int]:
    """Return the numbers on the frames of a cached clip, of which `folder` gets a copy."""
    data = read_clip(store, clip)
    assert data is not None
    copy = folder / "copy.mp4"
    copy.write_bytes(data)
    return frame_numbers(copy)
