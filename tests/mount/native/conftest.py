from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.example_filesystem import World, a_world
from tests.support.fake_kernel import Conversation, Kernel, a_conversation
from tests.support.store import quick_place


@pytest.fixture
def world() -> Iterator[World]:
    with quick_place() as folder, a_world(folder) as world:
        yield world


@pytest.fixture
def conversation(world: World) -> Iterator[Conversation]:
    """A server of the world, and a kernel that has said INIT; without passthrough."""
    with a_conversation(world.tree) as conversation:
        assert conversation.kernel.init().error == 0
        yield conversation


@pytest.fixture
def kernel(conversation: Conversation) -> Kernel:
    return conversation.kernel
