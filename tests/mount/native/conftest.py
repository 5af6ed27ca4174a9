from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.example_filesystem import ExampleFilesystem, example_filesystem
from tests.support.fake_kernel import Conversation, Kernel, converse
from tests.support.store import fast_folder


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
