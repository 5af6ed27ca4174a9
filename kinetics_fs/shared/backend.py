"""The interface of a place for objects that several machines use, and its errors.

Two implementations: `kinetics_fs.shared.bucket` for object storage and `kinetics_fs.shared.folder` for a folder on a
shared filesystem. Both pass the same tests (tests/integration/shared/test_backends.py).

Keys are paths such as `gone/v1/3f/KEY.json`. A key that ends in `.json` names a *record*: a small object without
metadata that is replaced often. All others are *files*, which have metadata and are only replaced if they are damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from kinetics_fs.errors import FailureKind, SharedStoreError

MAX_RECORD = 256 * 1024
"""Maximum size of a record in bytes."""
MAX_FILE = 128 * 1024**2
"""Maximum size of a file in bytes. An object is in memory as a whole while it is read or written."""
MAX_METADATA = 900
"""Maximum size of the metadata of a file in bytes, as JSON."""

_KEY = re.compile(r"(?:[A-Za-z0-9_~@=-][A-Za-z0-9._~@=-]{0,199}/){0,7}[A-Za-z0-9_~@=-][A-Za-z0-9._~@=-]{0,199}")


class Version(NamedTuple):
    """Tells one content of an object from another. Only the backend that returned it knows its meaning.

    A bucket compares an ETag, which is a digest of the content. Records that are replaced therefore have a nonce.
    """

    tag: str
    number: str = ""


class ObjectInfo(NamedTuple):
    """The facts about an object, without its content.

    Attributes:
        size: bytes.
        modified: when it was written, in seconds since the epoch by the clock of the store.
        version: its content.
        metadata: what its writer stored with it; empty if the backend was not asked for it.
    """

    size: int
    modified: float
    version: Version
    metadata: Mapping[str, str]


class StoredObject(NamedTuple):
    """An object with its content."""

    body: bytes
    info: ObjectInfo


class ListedObject(NamedTuple):
    """An entry of a listing."""

    key: str
    size: int
    """Bytes. In a folder, a file counts with its metadata."""
    modified: float
    """Seconds since the epoch by the clock of the store."""


class Conflict(Exception):
    """An object exists that was to be created, or was changed or deleted since its version was read.

    The cause may be the request itself: an answer was lost, and the library repeated it. Read the object to know.
    """


class StoreUnreachable(SharedStoreError):
    """The store does not answer, answers too late, or has a fault of its own. The same request may succeed later.

    The outcome of a write is unknown.
    """


class StoreMissing(StoreUnreachable):
    """The folder of the store does not exist, or is no folder: it is not mounted, or the path is misspelled."""


class AccessRefused(SharedStoreError):
    """The store refuses a request: permission, expired credentials, quota, or no such bucket.

    Attributes:
        kind: `CREDENTIALS`, or `LOCAL` if a quota is used up.
    """

    def __init__(self, text: str, kind: FailureKind = FailureKind.CREDENTIALS) -> None:
        super().__init__(text)
        self.kind = kind


class ObjectDamaged(SharedStoreError):
    """An object is not what its writer stored, or is none of this program.

    Attributes:
        version: the damaged content, to replace it; None if the object cannot be replaced.
    """

    def __init__(self, text: str, version: Version | None = None) -> None:
        super().__init__(text)
        self.version = version


class Backend(Protocol):
    """A place for objects. Safe for threads. Every call ends within three minutes, one for a record within half of one.

    Every method raises `StoreUnreachable` or `AccessRefused` if the store cannot serve it.
    """

    address: str
    """Names the store in messages. Has no passwords."""
    is_listed_cheaply: bool
    """Whether one request returns the sizes of a thousand objects."""

    def get(self, key: str, *, max_size: int) -> StoredObject | None:
        """Return an object with its content and metadata, by one request; None if it does not exist.

        Raises:
            ObjectDamaged: the object is larger than `max_size` bytes, or is no file.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Return the facts about an object without metadata, whatever was known before; None if it does not exist."""
        ...

    def create(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> Version:
        """Write an object that does not exist yet. No reader ever sees a part of it.

        Raises:
            Conflict: it exists.
        """
        ...

    def replace(self, key: str, body: bytes, version: Version, metadata: Mapping[str, str] | None = None) -> Version:
        """Write an object if it still has this version.

        Raises:
            Conflict: it has another version, or does not exist.
        """
        ...

    def delete(self, *keys: str) -> None:
        """Delete objects, whatever their versions are. Nothing happens if one does not exist."""
        ...

    def top_names(self) -> set[str]:
        """Return the first segments of keys, or of names of other programs, that the place has: all, or the first.

        Names with which filesystems begin a folder do not count.
        """
        ...

    def scan(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        """Yield the objects below a prefix in the order of their keys, page by page.

        Args:
            prefix: whole segments of keys, such as `gone/v1`.
            after: yield only greater keys.
        """
        ...


def is_record(key: str) -> bool:
    """Return whether a key names a record."""
    return key.endswith(".json")


def check_key(key: str) -> str:
    """Return a key that is valid in every backend: short, plain ASCII, and no segment begins with a dot."""
    if not is_key(key):
        raise ValueError(f"not the key of an object: {key!r}")
    return key


def is_key(key: str) -> bool:
    """Return whether a key is valid in every backend."""
    return bool(_KEY.fullmatch(key))


def max_size_of(key: str) -> int:
    """Return the maximum size of an object in bytes."""
    return MAX_RECORD if is_record(key) else MAX_FILE
