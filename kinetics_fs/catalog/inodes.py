"""Inode numbers that stay the same for ever.

A number is a hash of the canonical path (`split`, `split/label`, `split/label/clip.mp4`, with raw labels), so it does
not depend on what else is in the catalog, on the order of rows, on a selection or on how classes are named. The
63 bits are shared out so that a number tells what it stands for:

======================  =====================================================
below 2**32             nothing here: free for the virtual nodes of the mount
2**32 … 2**62 - 1       clips
2**62 … 2**63 - 1       splits and classes
======================  =====================================================

Two paths of one catalog share a number about once in ten million catalogs of 650,000 clips; the later of the two is
then hashed again with a higher `attempt`.
"""

from __future__ import annotations

from hashlib import blake2b

_FIRST_CLIP = 1 << 32
_FIRST_DIRECTORY = 1 << 62


def directory_number(path: str, attempt: int = 0) -> int:
    """The inode number of a split (`train`) or a class (`train/abseiling`)."""
    return _FIRST_DIRECTORY + _hash(path, attempt) % _FIRST_DIRECTORY


def clip_number(path: str, attempt: int = 0) -> int:
    """The inode number of a clip (`train/abseiling/0wR5jVB-WPk_000417_000427.mp4`)."""
    return _FIRST_CLIP + _hash(path, attempt) % (_FIRST_DIRECTORY - _FIRST_CLIP)


def _hash(path: str, attempt: int) -> int:
    text = f"{path}\0{attempt}" if attempt else path
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
