"""Damage to files, as disks, networks and attackers cause it."""

from __future__ import annotations

import random

_EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Return data with one to four faults, mostly in the first part, where headers and indexes are."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) if chance.random() < 0.4 else min(len(changed), 3000))
        match chance.randrange(6):
            case 0:
                del changed[max(at, 100) :]
            case 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                changed[at : at + 4] = chance.choice(_EXTREMES)
            case 3:
                changed[at : at + 500] = bytes(min(500, len(changed) - at))
            case 4:
                changed[at:at] = chance.randbytes(chance.randint(1, 40))
            case _:
                del changed[at : at + chance.randint(1, 40)]
        if len(changed) < 100:
            break
    return bytes(changed)
