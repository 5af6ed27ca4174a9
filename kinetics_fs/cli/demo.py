"""`kinetics-fs demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from kinetics_fs.cli.command import Command
from kinetics_fs.config import ENVIRONMENT_PREFIX
from kinetics_fs.errors import KineticsError


@click.command("demo", cls=Command, short_help="Play the whole of it on this machine, with a tiny Kinetics.")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--once", is_flag=True, help="Check each step, then take everything down again.")
def command(mountpoint: Path | None, once: bool) -> None:
    """Play the whole of it on this machine: a tiny Kinetics, a site that hosts its videos, a mount, clips.

    Nothing is asked of the internet. The mount stays up, on MOUNTPOINT or a new folder, until
    `kinetics-fs umount`, which ends the site, too.

    \b
    kinetics-fs demo
    kinetics-fs demo --once
    """
    from kinetics_fs.mount import real_place

    folder = Path(tempfile.mkdtemp(prefix="kinetics-demo-"))
    place = real_place(mountpoint or folder / "kinetics")
    demo = _Demo(folder, place)
    try:
        demo.make()
        demo.host()
        demo.mount()
        demo.open_clips()
    except BaseException:
        demo.take_down()
        raise
    if once:
        demo.take_down()
        click.echo("\nAll of it worked, and nothing is left behind.")
    else:
        click.echo(f"\nThe mount stays up: look around in {place}")
        program = "kinetics-fs" if shutil.which("kinetics-fs") else sys.argv[0]
        click.echo(f"To end it: {program} umount {place} && rm -r {folder}")


class _Demo:
    def __init__(self, folder: Path, place: Path) -> None:
        self._folder = folder
        self._place = place
        self._made_place = not place.exists()
        self._mounted = False
        self._videos = folder / "videos"
        self._requests = folder / "requests.log"
        self._host: subprocess.Popen[bytes] | None = None
        self._video_url = ""

    def make(self) -> None:
        """The dataset, once it is clear that it can be mounted."""
        from kinetics_fs.demo.dataset import ROWS, VIDEOS, make_dataset
        from kinetics_fs.media.ffmpeg import find_ffmpeg
        from kinetics_fs.mount import prepare_mountpoint

        prepare_mountpoint(self._place, allow_other=False)
        _step(f"Making {len(VIDEOS)} videos with numbered frames, and annotations of {len(ROWS)} clips")
        self._videos.mkdir()
        self._annotations = make_dataset(self._videos, find_ffmpeg(), lambda video: _say(f"{video}.mp4"))

    def host(self) -> None:
        """The site, as a process that lives as long as the mount."""
        with self._requests.open("wb") as log:
            self._host = subprocess.Popen(
                [sys.executable, "-m", "kinetics_fs.demo.host", str(self._videos), str(self._place)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._served():
            if self._host.poll() is not None:
                raise KineticsError(f"the demo's site did not start: {self._requests.read_text()}")
            time.sleep(0.02)
        self._video_url = self._served()[0]
        _step(f"Serving them at {self._video_url}")

    def mount(self) -> None:
        """The mount, by the command that anyone would use."""
        _step(f"kinetics-fs mount {self._place}")
        self._run(
            "mount",
            "--annotations", str(self._annotations),
            "--cache-dir", str(self._folder / "cache"),
            "--log-file", str(self._folder / "mount.log"),
            "--video-url", self._video_url,
            "--source", "youtube",
            "--min-free", "0",
            str(self._place),
        )  # fmt: skip
        self._mounted = True
        for path in sorted(self._place.rglob("*.mp4")):
            _say(str(path.relative_to(self._place)))

    def open_clips(self) -> None:
        """Every clip: first from the site, then from the cache."""
        from kinetics_fs.demo.dataset import GONE, ROWS, expected_frames
        from kinetics_fs.demo.media import frame_numbers

        paths = {row: self._path(row.split, row.label, row.clip.name) for row in ROWS}
        _step("Reading each clip for the first time: fetched, cut, verified")
        for row, path in paths.items():
            started = time.perf_counter()
            try:
                size = len(path.read_bytes())
            except OSError as error:
                if row.clip.youtube_id != GONE:
                    raise KineticsError(f"{path} could not be read: {_reason(path)}") from error
                _say(f"{row.clip.name}  {error.strerror}: {_reason(path)} (as it must be: there is no such video)")
                continue
            took = time.perf_counter() - started
            frames = frame_numbers(path)
            if frames != expected_frames(row.clip):
                raise KineticsError(f"{path} has other frames than it should: {frames[:3]} … {frames[-3:]}")
            _say(f"{row.clip.name}  {size:>9,} bytes in {took:5.2f} s, frames {frames[0]} to {frames[-1]}")
        asked = len(self._served())
        _step("And again: from the cache")
        for row, path in paths.items():
            if row.clip.youtube_id == GONE:
                continue
            started = time.perf_counter()
            size = len(path.read_bytes())
            _say(f"{row.clip.name}  {size:>9,} bytes in {(time.perf_counter() - started) * 1000:5.1f} ms")
        if len(self._served()) != asked:
            raise KineticsError("the site was asked for clips that are in the cache")
        _step("What the site was asked for")
        for line in self._served()[1:]:
            what, sent = line.split()
            _say(f"{what}  {int(sent):,} bytes")
        self._run("status", str(self._place))

    def take_down(self) -> None:
        """Ends mount and site, and removes all files."""
        if self._mounted:
            self._run("umount", str(self._place))
        if self._host is not None:
            self._host.terminate()
            self._host.wait()
        if self._made_place and self._place.is_dir():
            self._place.rmdir()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, split: str, label: str, name: str) -> Path:
        return self._place / {"validate": "validation"}.get(split, split) / label / name

    def _served(self) -> list[str]:
        return self._requests.read_text().splitlines()

    def _run(self, *arguments: str) -> None:
        # The demo is the same wherever it runs: no settings of the user's, and no proxy to our own machine.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *arguments]
        if subprocess.run(command, env=environment, check=False).returncode:
            raise SystemExit(1)  # it has said why


def _reason(path: Path) -> str:
    try:
        return os.getxattr(path, "user.kinetics.error").decode()
    except OSError as error:
        return f"{error.strerror}"


def _step(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _say(text: str) -> None:
    click.echo(f"  {text}")
