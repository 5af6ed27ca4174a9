"""Fixtures of the tests of the native front end: a server with a simulated kernel, and real mounts."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import MountFactory
from tests.support.command_line import Mounted
from tests.support.example_filesystem import ExampleFilesystem, example_filesystem, write_rows
from tests.support.fake_kernel import Conversation, Kernel, converse
from tests.support.native_mounts import fill
from tests.support.store import fast_folder


@pytest.fixture(scope="module")
def silence() -> Iterator[str]:
    """Address of videos on a server that never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/{{id}}"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder; whatever is mounted below it in the end is unmounted."""
    with fast_folder() as folder:
        yield folder
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for below in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
            subprocess.run(["umount", "-l", below], check=False)


@pytest.fixture
def mount(scratch: Path, silence: str) -> Iterator[MountFactory]:
    """Make mounts whose cache has `HERE`; they use passthrough unless the arguments turn it off."""
    with ExitStack() as mounts:
        numbers = iter(range(1, 100))

        def make(
            *arguments: str, cache: Path = scratch / "cache", root: Path | None = None, wrapper: Sequence[str] = ()
        ) -> Mounted:
            if not cache.exists():
                fill(cache)
            return mounts.enter_context(
                Mounted(
                    root or scratch / f"mount {next(numbers)}",
                    *("--frontend", "native", "--annotations", write_rows(scratch), "--cache-dir", cache),
                    *("--min-free", "0", "--video-url", silence),
                    *arguments,
                    wrapper=wrapper,
                )
            )

        yield make


@pytest.fixture
def example() -> Iterator[ExampleFilesystem]:
    with fast_folder() as folder, example_filesystem(folder) as example:
        yield example


@pytest.fixture
def conversation(example: ExampleFilesystem) -> Iterator[Conversation]:
    """A server of the example without passthrough, and a kernel that has sent INIT."""
    with converse(example.fs) as conversation:
        assert conversation.kernel.init().error == 0
        yield conversation


@pytest.fixture
def kernel(conversation: Conversation) -> Kernel:
    return conversation.kernel
