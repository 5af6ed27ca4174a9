"""Write-back in a simulation: a queue that survives crashes, and a store that is away or refuses."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kinetics_fs.catalog.clip import Clip
from kinetics_fs.errors import FailureKind, FetchError, StoreError
from kinetics_fs.shared.backend import AccessRefused
from kinetics_fs.shared.leases import Lease, Leases
from kinetics_fs.shared.records import StoreClock
from kinetics_fs.shared.store import ClipFacts, SharedStore, clip_lease
from kinetics_fs.shared.upload_queue import Upload, UploadQueue
from kinetics_fs.shared.write_back import LocalClip, WriteBack
from tests.support.memory_backend import MemoryBackend

CLIPS = [Clip("-a1B2c3D4e5", start, start + 10) for start in range(0, 80, 10)]


class RefusingBackend(MemoryBackend):
    """A store whose permission can be taken away."""

    refuses = False

    def _count(self, verb: str) -> None:
        super()._count(verb)
        if self.refuses and verb == "write":
            raise AccessRefused("cannot write memory: HTTP 403 (ExpiredToken); check the credentials")


class Cache:
    """The cached clips."""

    def __init__(self) -> None:
        self.clips: dict[Clip, LocalClip] = {}

    def put(self, clip: Clip, body: bytes | None = None) -> None:
        body = clip.key.encode() if body is None else body
        self.clips[clip] = LocalClip(body, ClipFacts.of(body, "youtube", 10.0))

    def read(self, clip: Clip, profile: str) -> LocalClip | None:
        assert profile == "source"
        return self.clips.get(clip)


class World:
    """A machine with a cache, and a store."""

    def __init__(self, folder: Path, limit: int = 100) -> None:
        self.time = 1_800_000_000.0
        self.backend = RefusingBackend(lambda: self.time)
        self.store = SharedStore(self.backend, StoreClock(lambda: self.time))
        self.leases = Leases(self.store.records, self.store.clock, "here", lambda: self.time)
        self.cache = Cache()
        self.folder = folder
        self.limit = limit
        self.start()

    def start(self) -> None:
        """Start the write-back, as after a crash of the one before."""
        self.queue = UploadQueue(self.folder / "uploads.sqlite", limit=self.limit, now=lambda: self.time)
        self.write_back = WriteBack(self.store, self.queue, self.cache, monotonic=lambda: self.time)

    def lease(self, clip: Clip) -> Lease:
        lease = self.leases.acquire(clip_lease(clip, "source"))
        assert isinstance(lease, Lease)
        return lease

    def stored(self) -> set[Clip]:
        return {clip for clip, _ in self.store.clips("source")}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_fetched_clips_arrive_and_their_leases_end(world: World) -> None:
    for clip in CLIPS[:3]:
        world.cache.put(clip)
        world.write_back.add(clip, "source", world.lease(clip))

    assert world.write_back.flush(30) == 0

    assert world.stored() == set(CLIPS[:3])
    assert world.leases.held() == []
    for clip in CLIPS[:3]:
        assert world.leases.look(clip_lease(clip, "source")) is None
        found = world.store.get_clip(clip, "source")
        assert found is not None and found.body == clip.key.encode()
    status = world.write_back.status()
    assert (status.uploaded, status.bytes, status.paused) == (3, 75, "")


def test_clips_that_others_wait_for_go_first(world: World) -> None:
    for clip in CLIPS:
        world.cache.put(clip)
    world.write_back.add(CLIPS[0], "source")
    world.write_back.add(CLIPS[1], "source")
    world.write_back.add(CLIPS[2], "source", world.lease(CLIPS[2]))
    world.write_back.add(CLIPS[1], "source", world.lease(CLIPS[1]))

    order = []
    while world.write_back.step():
        order += [clip for clip in world.stored() if clip not in order]
    assert order == [CLIPS[1], CLIPS[2], CLIPS[0]]


def test_the_queue_survives_a_restart(world: World) -> None:
    for clip in CLIPS[:4]:
        world.cache.put(clip)
        world.write_back.add(clip, "source")
    taken = world.queue.take()
    assert taken is not None
    world.start()  # the process that took it is dead

    assert world.write_back.flush(30) == 1
    world.time += 301
    assert world.write_back.flush(30) == 0
    assert world.stored() == set(CLIPS[:4])


def test_an_evicted_clip_is_dropped_and_counted(world: World) -> None:
    lease = world.lease(CLIPS[0])
    world.write_back.add(CLIPS[0], "source", lease)
    assert world.write_back.flush(30) == 0

    assert world.write_back.status().queue.evicted == 1
    assert isinstance(world.leases.acquire(clip_lease(CLIPS[0], "source")), Lease)


def test_a_damaged_cached_file_is_not_uploaded(world: World) -> None:
    world.cache.put(CLIPS[0])
    world.cache.clips[CLIPS[0]] = world.cache.clips[CLIPS[0]]._replace(body=b"bit rot")
    world.write_back.add(CLIPS[0], "source")
    assert world.write_back.flush(30) == 0
    assert (world.stored(), world.write_back.status().queue.refused) == (set(), 1)


def test_a_full_queue_drops_the_oldest(tmp_path: Path) -> None:
    world = World(tmp_path, limit=3)
    for clip in CLIPS:
        world.cache.put(clip)
        world.time += 1
        world.write_back.add(clip, "source")
    status = world.write_back.status().queue
    assert (status.clips, status.dropped, status.oldest) == (3, 5, 2.0)
    world.write_back.flush(30)
    assert world.stored() == set(CLIPS[-3:])


def test_a_refusal_pauses_visibly_and_frees_the_leases(world: World) -> None:
    world.backend.refuses = True
    for clip in CLIPS[:3]:
        world.cache.put(clip)
    world.backend.refuses = False
    leases = [world.lease(clip) for clip in CLIPS[:3]]
    world.backend.refuses = True
    world.write_back.add(CLIPS[0], "source", leases[0])
    world.write_back.add(CLIPS[1], "source", leases[1])

    assert world.write_back.flush(30) == 2
    status = world.write_back.status()
    assert "ExpiredToken" in status.paused and 0 < status.seconds <= 60
    assert world.write_back.is_paused
    world.write_back.add(CLIPS[2], "source", leases[2])
    assert world.leases.held() == []

    world.backend.refuses = False
    world.write_back.resume()
    assert world.write_back.flush(30) == 0
    assert world.stored() == set(CLIPS[:3])
    assert not world.write_back.is_paused


def test_the_pauses_grow(world: World) -> None:
    world.backend.refuses = True
    world.cache.put(CLIPS[0])
    world.write_back.add(CLIPS[0], "source")
    pauses = []
    for _ in range(7):
        world.write_back.step()
        pauses.append(world.write_back.status().seconds)
        world.time += pauses[-1]
    assert pauses == [60, 120, 240, 480, 960, 1800, 1800]


def test_a_cached_clip_that_cannot_be_read_now_stays_queued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cache.put(CLIPS[0])
    world.write_back.add(CLIPS[0], "source")

    def fail(clip: Clip, profile: str) -> LocalClip | None:
        raise FetchError(FailureKind.LOCAL, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(world.cache, "read", fail)
        with pytest.raises(StoreError, match="too many open files"):
            world.write_back.upload_next()
    assert world.write_back.flush(30) == 0
    assert world.stored() == {CLIPS[0]}


def test_threads_upload_in_the_background(world: World) -> None:
    world.write_back.start()
    for clip in CLIPS:
        world.cache.put(clip)
        world.write_back.add(clip, "source")
    world.write_back.flush(30)
    world.write_back.close()
    assert world.stored() == set(CLIPS)


def test_leases_end_when_another_process_uploads(world: World) -> None:
    other = WriteBack(world.store, world.queue, world.cache)
    for clip in CLIPS[:3]:
        world.cache.put(clip)
        world.write_back.add(clip, "source", world.lease(clip))
    assert other.flush(30) == 0
    assert len(world.leases.held()) == 3

    world.write_back.start()
    deadline = time.monotonic() + 30
    while world.leases.held() and time.monotonic() < deadline:
        time.sleep(0.01)
    world.write_back.close()
    assert world.leases.held() == []
    assert all(world.leases.look(clip_lease(clip, "source")) is None for clip in CLIPS[:3])


def test_a_strange_queue_entry_is_removed(world: World) -> None:
    with world.queue._database.exclusive() as db:
        db.execute("INSERT INTO upload VALUES ('../../etc', 'source', 1, 0, 0)")
        db.execute("INSERT INTO upload VALUES (?, '../x', 1, 0, 0)", (CLIPS[0].key,))
        db.execute("INSERT INTO upload VALUES (?, 'source', 1, 1, 1e15)", (CLIPS[0].key,))
    assert world.queue.take() == Upload(CLIPS[0], "source")
    assert world.queue.status().clips == 1


class Crashes(RuleBasedStateMachine):
    """Whatever happens, a cached clip that was enqueued gets to the store, once, and nothing else does."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self.folder.name))
        self.wanted: set[Clip] = set()

    clip = st.sampled_from(CLIPS)

    @rule(clip=clip, version=st.integers(0, 2))
    def fetch(self, clip: Clip, version: int) -> None:
        if clip not in self.world.cache.clips:
            self.world.cache.put(clip, b"%d" % version)
        self.world.write_back.add(clip, "source")
        self.wanted.add(clip)

    @rule()
    def step(self) -> None:
        self.world.write_back.step()

    @rule()
    def crash_while_uploading(self) -> None:
        self.world.queue.take()
        self.world.start()

    @rule(clip=clip)
    def evict(self, clip: Clip) -> None:
        self.world.cache.clips.pop(clip, None)
        self.wanted.discard(clip)

    @rule(down=st.booleans(), refuses=st.booleans())
    def change_the_store(self, down: bool, refuses: bool) -> None:
        self.world.backend.is_down, self.world.backend.refuses = down, refuses

    @rule()
    def lose_an_answer(self) -> None:
        self.world.backend.lose_answers = 1

    @rule(seconds=st.sampled_from([1, 100, 1000]))
    def wait(self, seconds: int) -> None:
        self.world.time += seconds

    @invariant()
    def objects_never_change(self) -> None:
        bodies = {key: found.body for key, found in self.world.backend.objects.items()}
        earlier: dict[str, bytes] = getattr(self, "bodies", {})
        assert earlier.items() <= bodies.items()
        self.bodies = bodies

    def teardown(self) -> None:
        self.world.backend.is_down = self.world.backend.refuses = False
        self.world.backend.lose_answers = 0
        self.world.time += 301
        self.world.write_back.resume()
        assert self.world.write_back.flush(30) == 0
        assert self.wanted <= self.world.stored()
        self.folder.cleanup()


Crashes.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestCrashes = Crashes.TestCase
