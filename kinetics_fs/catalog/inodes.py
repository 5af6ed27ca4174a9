"""Inode numbers that never change.

A number is a hash of the canonical path (`split`, `split/label`, `split/label/clip.mp4`, with raw labels), so it does
not depend on the other entries of the catalog, on the order of rows, on a selection or on the names of class folders.
Ranges of the 63 bits distinguish the kinds of entries:

======================  =====================================================
below 2**32             never used here: free for the virtual nodes of a mount
2**32 … 2**62 - 1       clips
2**62 … 2**63 - 1       splits and classes
======================  =====================================================

Two paths of a catalog have the same hash about once in ten million catalogs of 650,000 clips. The later of the two is
then hashed again with a higher `attempt`.
"""

from __future__ import annotations

from hashlib import blake2b

_FIRST_CLIP = 1 << 32
_FIRST_DIRECTORY = 1 << 62


def directory_ino(path: str, attempt: int = 0) -> int:
    """Return the inode number of a split (`train`) or a class (`train/abseiling`)."""
    return _FIRST_DIRECTORY + _hash(path, attempt) % _FIRST_DIRECTORY


def clip_ino(path: str, attempt: int = 0) -> int:
    """Return the inode number of a clip (`train/abseiling/0wR5jVB-WPk_000417_000427.mp4`)."""
    return _FIRST_CLIP + _hash(path, attempt) % (_FIRST_DIRECTORY - _FIRST_CLIP)


def _hash(path: str, attempt: int) -> int:
    text = f"{path}\0{attempt}" if attempt else path
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
