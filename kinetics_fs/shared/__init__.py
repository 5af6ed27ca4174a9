"""A store of clips that several machines use: a bucket, or a folder on a shared filesystem.

It stands between the cache of a machine and the sources. A machine that fetched a clip from a source writes it back,
and the others read it there. That is correct by content alone: an object is created once, is never changed, and is
compared with its size and digest when it is read. Leases and the common budget save work and requests, and may fail.

`Connection` is the use of a store by one process. Its `Node` answers what to do about a clip that is not cached. They
use `SharedStore`, which has the objects, `Leases`, which tell which machine fetches a clip, `WriteBack`, which uploads
in the background, and `SharedBudget`, the common budget and breaker of a source.
"""

from pathlib import Path

from kinetics_fs.errors import SettingError
from kinetics_fs.shared.backend import AccessRefused, Backend, Conflict, ObjectDamaged, StoreMissing, StoreUnreachable
from kinetics_fs.shared.bucket import SCHEMES, BucketBackend
from kinetics_fs.shared.budget import BudgetStatus, SharedBudget, node_id
from kinetics_fs.shared.connection import Connection
from kinetics_fs.shared.folder import FolderBackend
from kinetics_fs.shared.leases import ARCHIVE_TTL, CLIP_TTL, Lease, LeaseHeld, Leases
from kinetics_fs.shared.node import Node, NodeStatus, NoteGone, Wait, Work
from kinetics_fs.shared.outage import Outage
from kinetics_fs.shared.records import Records, StoreClock
from kinetics_fs.shared.store import (
    ALL_CLIPS,
    Capabilities,
    ClipFacts,
    CompletedFill,
    IndexKey,
    SharedClip,
    SharedStore,
    archive_lease,
    clip_lease,
)
from kinetics_fs.shared.upload_queue import QueueStatus, Upload, UploadQueue
from kinetics_fs.shared.write_back import CachedClips, LocalClip, LocalClips, WriteBack, WriteBackStatus

__all__ = [
    "ALL_CLIPS",
    "ARCHIVE_TTL",
    "CLIP_TTL",
    "AccessRefused",
    "Backend",
    "BucketBackend",
    "BudgetStatus",
    "CachedClips",
    "Capabilities",
    "ClipFacts",
    "CompletedFill",
    "Conflict",
    "Connection",
    "FolderBackend",
    "IndexKey",
    "Lease",
    "LeaseHeld",
    "Leases",
    "LocalClip",
    "LocalClips",
    "Node",
    "NodeStatus",
    "NoteGone",
    "ObjectDamaged",
    "Outage",
    "QueueStatus",
    "Records",
    "SharedBudget",
    "SharedClip",
    "SharedStore",
    "StoreClock",
    "StoreMissing",
    "StoreUnreachable",
    "Upload",
    "UploadQueue",
    "Wait",
    "Work",
    "WriteBack",
    "WriteBackStatus",
    "archive_lease",
    "clip_lease",
    "create_store",
    "node_id",
    "open_backend",
]


def open_backend(address: str) -> Backend:
    """Return the backend for an address: `s3://`, `gs://` or `az://` with bucket and prefix, or a folder.

    Raises:
        SettingError: the address is invalid, or its library is not installed.
    """
    scheme, separator, _ = address.partition("://")
    if separator and scheme in SCHEMES:
        return BucketBackend(address)
    if separator or not Path(address).is_absolute():
        raise SettingError(
            f"cannot use the shared store {address}: unknown scheme or relative path;"
            " write s3://BUCKET/PREFIX, gs://, az:// or the absolute path of a folder"
        )
    return FolderBackend(Path(address))


def create_store(address: str) -> tuple[SharedStore, bool]:
    """Create a shared store in a bucket or a folder that is empty; nothing happens if it is one already.

    Args:
        address: as for `open_backend`. The last folder of a path is created if it does not exist.

    Returns:
        The store, and whether it is new.

    Raises:
        SettingError: the address is invalid.
        SharedStoreError: the place has something else, or cannot be used.
    """
    backend = open_backend(address)
    if isinstance(backend, FolderBackend):
        backend.create_root()
    store = SharedStore(backend)
    is_new = not store.exists()
    store.open(create=True)
    return store, is_new
