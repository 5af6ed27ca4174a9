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


_WORDS = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\x1b[31m", b"\r", b"\n", b"\r\n\r\n"),
    *(b'"', b"'", b",", b"\t", b"\\", b"{", b"}", b"[", b"]", b":", b"../", b"/", b"%00", b"=", b"#", b"\\ud800"),
    *(
        b"-1",
        b"0",
        b"1e309",
        b"NaN",
        b"Infinity",
        b"null",
        b"true",
        b"9" * 400,
        b"9" * 5_000,
        b"0x10",
        b"1_0",
        b"\xd9\xa3",
    ),
)
"""Text that parsers take for something else."""


def mutate_text(data: bytes, chance: random.Random, *, binary: bool = False) -> bytes:
    """Return text with one to four faults, mostly with one.

    Args:
        data: the text.
        chance: chooses the faults.
        binary: the text is followed by data that are no text, as in an answer by HTTP: leave most of these as they are.
    """
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        end = min(len(changed), 300) if binary and chance.random() < 0.9 else len(changed)
        at, word = chance.randrange(end + 1), chance.choice(_WORDS)
        match chance.randrange(8):
            case 0:
                del changed[at:]
            case 1:
                changed[at:at] = word
            case 2:
                changed[at : at + len(word)] = word
            case 3:
                changed[at:at] = (word * chance.choice((10, 1_000, 30_000)))[:100_000]
            case 4:  # a digit, a quote or a bracket becomes something else
                place = next((place for place in range(at, end) if changed[place] in b'0123456789"[]{},:'), at)
                changed[place : place + 1] = word
            case 5:
                del changed[at : at + chance.randint(1, 40)]
            case 6:
                begin = chance.randrange(end + 1)
                changed[at:at] = changed[begin : begin + chance.randint(1, 200)]
            case _:
                changed[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(changed)
