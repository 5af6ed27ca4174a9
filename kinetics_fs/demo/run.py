"""The demo: the tiny Kinetics, served by a local video site and mounted, with every clip read twice and checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from kinetics_fs.api import Library
from kinetics_fs.config import ENVIRONMENT_PREFIX
from kinetics_fs.demo.dataset import GONE, ROWS, VIDEOS, Row, expected_frames, make_dataset
from kinetics_fs.demo.media import frame_numbers
from kinetics_fs.errors import FetchError, KineticsError
from kinetics_fs.media.ffmpeg import find_ffmpeg
from kinetics_fs.mount import prepare_mountpoint, real_path
from kinetics_fs.mount.fusermount import CannotMountAnywhereError
from kinetics_fs.mount.native.device import try_to_mount

_POLL_INTERVAL = 0.02
"""Seconds between two looks at the log of the video site while it starts."""


_NO_PROXY = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


class Demo:
    """A demo in a temporary folder. As a context, it takes the demo down if the block raises.

    Args:
        mountpoint: where to mount; None for a new folder inside the temporary one.
        step: called with the heading of each step.
        detail: called with each line that belongs to the current step.

    Attributes:
        folder: the temporary folder; contains the videos, the cache and the logs.
        mountpoint: the absolute path of the mount.
        is_mounted: whether the demo could mount.
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
        self.is_mounted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.take_down()

    def run(self) -> None:
        """Make the dataset, serve it, mount it, and read every clip twice; without a mount if there is no right to one.

        Raises:
            KineticsError: a step failed, or a clip did not have the expected frames.
        """
        obstacle = self._find_obstacle()
        self._make_dataset()
        video_url = self._start_site()
        if obstacle is None:
            self._mount(video_url)
            self._read_all(self._read_in_mount)
        else:
            self._step("This machine cannot mount, so the demo continues with the Library of Python")
            self._detail(str(obstacle))
            self._detail("left out: files under a mount point, extended attributes, and the commands mount and umount")
            self._remove_mountpoint()
            with self._open_library(video_url) as library:
                self._read_all(partial(_read_by_library, library))
                self._export(library)
        self._step("Requests to the site")
        for line in self._requests()[1:]:
            path, sent = line.split()
            self._detail(f"{path}  {int(sent):,} bytes")
        if obstacle is None:
            self._command("status", str(self.mountpoint))

    def _find_obstacle(self) -> CannotMountAnywhereError | None:
        """Return why nothing can be mounted on this machine; None if something can.

        Raises:
            MountError: the mount point cannot be used.
        """
        try:
            prepare_mountpoint(self.mountpoint, allow_other=False)
            if sys.platform == "linux":
                try_to_mount(self.mountpoint)
        except CannotMountAnywhereError as error:
            return error
        return None

    def take_down(self) -> None:
        """End the mount and the site, and remove all files."""
        if self.is_mounted:
            self._command("umount", str(self.mountpoint))
        self.end_site()
        self._remove_mountpoint()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_mountpoint(self) -> None:
        if self._mountpoint_is_new and self.mountpoint.is_dir():
            self.mountpoint.rmdir()

    def end_site(self) -> None:
        """End the video site, which otherwise ends after the mount."""
        if self._site is not None:
            self._site.terminate()
            self._site.wait()

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
        self.is_mounted = True
        for path in sorted(self.mountpoint.rglob("*.mp4")):
            self._detail(str(path.relative_to(self.mountpoint)))

    def _open_library(self, video_url: str) -> Library:
        os.environ |= _NO_PROXY  # the worker processes inherit it
        return Library(
            annotations=str(self._annotations),
            cache_dir=self.folder / "cache",
            video_url=video_url,
            source="youtube",
            min_free=0,
        )

    def _export(self, library: Library) -> None:
        self._step(f"kinetics-fs export {self.folder / 'clips'}")
        library.export(self.folder / "clips")
        for path in sorted((self.folder / "clips").rglob("*.mp4")):
            self._detail(str(path.relative_to(self.folder)))

    def _read_all(self, read: Callable[[Row], bytes]) -> None:
        """Read every clip twice, and check its frames.

        Args:
            read: returns the content of the clip of a row; raises `_ReadError`.
        """
        self._step("Reading each clip for the first time: fetched, cut, verified")
        for row in ROWS:
            started = time.perf_counter()
            try:
                content = read(row)
            except _ReadError as error:
                if row.clip.youtube_id != GONE:
                    raise KineticsError(f"cannot read {row.clip.name}: {error}") from error
                self._detail(f"{row.clip.name}  {error} (expected: the site has no such video)")
                continue
            seconds = time.perf_counter() - started
            copy = self.folder / "copy.mp4"
            copy.write_bytes(content)
            frames = frame_numbers(copy)
            if frames != expected_frames(row.clip):
                raise KineticsError(f"cannot verify {row.clip.name}: its frames are {frames[:3]} to {frames[-3:]}")
            size = f"{len(content):>9,} bytes in {seconds:5.2f} s"
            self._detail(f"{row.clip.name}  {size}, frames {frames[0]} to {frames[-1]}")
        requests = len(self._requests())
        self._step("Reading each clip again: from the cache")
        for row in ROWS:
            if row.clip.youtube_id == GONE:
                continue
            started = time.perf_counter()
            size = f"{len(read(row)):>9,} bytes"
            self._detail(f"{row.clip.name}  {size} in {(time.perf_counter() - started) * 1000:5.1f} ms")
        if len(self._requests()) != requests:
            raise KineticsError("cannot verify the cache: cached clips were requested from the site again")

    def _read_in_mount(self, row: Row) -> bytes:
        split = {"validate": "validation"}.get(row.split, row.split)
        path = self.mountpoint / split / row.label / row.clip.name
        try:
            return path.read_bytes()
        except OSError as error:
            raise _ReadError(f"{error.strerror}: {_reason(path)}") from error

    def _requests(self) -> list[str]:
        """Return the output of the site: its URL template, then a line for each request."""
        return self._request_log.read_text().splitlines()

    def _command(self, *arguments: str) -> None:
        # Independent of the user's settings and proxy: the demo must be the same on every machine.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        environment |= _NO_PROXY
        command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *arguments]
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            raise KineticsError(
                f"cannot complete the demo: `kinetics-fs {arguments[0]}` failed with exit status {status}"
            )


class _ReadError(Exception):
    """A clip cannot be read; the text is the reason."""


def _read_by_library(library: Library, row: Row) -> bytes:
    try:
        with library.open(row.clip) as file:
            return file.read()
    except FetchError as error:
        raise _ReadError(f"{error.kind}: {error.reason}") from error


def _reason(path: Path) -> str:
    """Return the error that the mount reports for a clip."""
    try:
        return os.getxattr(path, "user.kinetics.error").decode()
    except OSError as error:
        return f"{error.strerror}"
