"""The demo: a mount of the tiny Kinetics, served by a local video site, with every clip read twice and checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from kinetics_fs.config import ENVIRONMENT_PREFIX
from kinetics_fs.demo.dataset import GONE, ROWS, VIDEOS, Row, expected_frames, make_dataset
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.errors import KineticsError
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.mount import prepare_mountpoint, real_path

_POLL_INTERVAL = 0.02
"""Seconds between two looks at the log of the video site while it starts."""


class Demo:
    """A demo in a temporary folder. As a context, it takes the demo down if the block raises.

    Args:
        mountpoint: where to mount; None for a new folder inside the temporary one.
        step: called with the heading of each step.
        detail: called with each line that belongs to the current step.

    Attributes:
        folder: the temporary folder; contains the videos, the cache and the logs.
        mountpoint: the absolute path of the mount.
    """

    def __init__(self, mountpoint: Path | None, *, step: Callable[[str], None], detail: Callable[[str], None]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kinetics-demo-"))
        self.mountpoint = real_path(mountpoint or self.folder / "kinetics")
        self._step = step
        self._detail = detail
        self._mountpoint_is_new = not self.mountpoint.exists()
        self._videos = self.folder / "videos"
        self._request_log = self.folder / "requests.log"
        self._annotations = Path()
        self._site: subprocess.Popen[bytes] | None = None
        self._mounted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.take_down()

    def run(self) -> None:
        """Make the dataset, serve it, mount it, and read every clip twice.

        Raises:
            KineticsError: a step failed, or a clip did not have the expected frames.
        """
        prepare_mountpoint(self.mountpoint, allow_other=False)
        self._make_dataset()
        video_url = self._start_site()
        self._mount(video_url)
        paths = {row: self._path(row) for row in ROWS}
        self._read_first_time(paths)
        self._read_from_cache(paths)
        self._step("Requests to the site")
        for line in self._requests()[1:]:
            path, sent = line.split()
            self._detail(f"{path}  {int(sent):,} bytes")
        self._command("status", str(self.mountpoint))

    def take_down(self) -> None:
        """End the mount and the site, and remove all files."""
        if self._mounted:
            self._command("umount", str(self.mountpoint))
        if self._site is not None:
            self._site.terminate()
            self._site.wait()
        if self._mountpoint_is_new and self.mountpoint.is_dir():
            self.mountpoint.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_dataset(self) -> None:
        self._step(f"Making {len(VIDEOS)} videos with numbered frames, and annotations of {len(ROWS)} clips")
        self._videos.mkdir()
        self._annotations = make_dataset(self._videos, find_ffmpeg(), lambda video: self._detail(f"{video}.mp4"))

    def _start_site(self) -> str:
        """Start the site as a process that ends after the mount, and return its URL template."""
        with self._request_log.open("wb") as log:
            self._site = subprocess.Popen(
                [sys.executable, "-m", "kinetics_fs.demo.host", str(self._videos), str(self.mountpoint)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._requests():
            if self._site.poll() is not None:
                raise KineticsError(f"cannot start the video site of the demo: {self._request_log.read_text()}")
            time.sleep(_POLL_INTERVAL)
        video_url = self._requests()[0]
        self._step(f"Serving them at {video_url}")
        return video_url

    def _mount(self, video_url: str) -> None:
        self._step(f"kinetics-fs mount {self.mountpoint}")
        self._command(
            "mount",
            "--annotations", str(self._annotations),
            "--cache-dir", str(self.folder / "cache"),
            "--log-file", str(self.folder / "mount.log"),
            "--video-url", video_url,
            "--source", "youtube",
            "--min-free", "0",
            str(self.mountpoint),
        )  # fmt: skip
        self._mounted = True
        for path in sorted(self.mountpoint.rglob("*.mp4")):
            self._detail(str(path.relative_to(self.mountpoint)))

    def _read_first_time(self, paths: dict[Row, Path]) -> None:
        self._step("Reading each clip for the first time: fetched, cut, verified")
        for row, path in paths.items():
            started = time.perf_counter()
            try:
                size = len(path.read_bytes())
            except OSError as error:
                if row.clip.youtube_id != GONE:
                    raise KineticsError(f"cannot read {path}: {_reason(path)}") from error
                self._detail(
                    f"{row.clip.name}  {error.strerror}: {_reason(path)} (expected: the site has no such video)"
                )
                continue
            seconds = time.perf_counter() - started
            frames = frame_numbers(path)
            if frames != expected_frames(row.clip):
                raise KineticsError(f"cannot verify {path}: its frames are {frames[:3]} to {frames[-3:]}")
            self._detail(f"{row.clip.name}  {size:>9,} bytes in {seconds:5.2f} s, frames {frames[0]} to {frames[-1]}")

    def _read_from_cache(self, paths: dict[Row, Path]) -> None:
        requests = len(self._requests())
        self._step("Reading each clip again: from the cache")
        for row, path in paths.items():
            if row.clip.youtube_id == GONE:
                continue
            started = time.perf_counter()
            size = len(path.read_bytes())
            self._detail(f"{row.clip.name}  {size:>9,} bytes in {(time.perf_counter() - started) * 1000:5.1f} ms")
        if len(self._requests()) != requests:
            raise KineticsError("cannot verify the cache: the mount requested cached clips from the site again")

    def _path(self, row: Row) -> Path:
        split = {"validate": "validation"}.get(row.split, row.split)
        return self.mountpoint / split / row.label / row.clip.name

    def _requests(self) -> list[str]:
        """Return the output of the site: its URL template, then a line for each request."""
        return self._request_log.read_text().splitlines()

    def _command(self, *arguments: str) -> None:
        # Independent of the user's settings and proxy: the demo must be the same on every machine.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *arguments]
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            raise KineticsError(
                f"cannot complete the demo: `kinetics-fs {arguments[0]}` failed with exit status {status}"
            )


def _reason(path: Path) -> str:
    """Return the error that the mount reports for a clip."""
    try:
        return os.getxattr(path, "user.kinetics.error").decode()
    except OSError as error:
        return f"{error.strerror}"
