"""Unpacking: all that is fed comes out at once, in pieces of limited size, and blocks can be entered again."""

from __future__ import annotations

import random
import zlib

import pytest

from kinetics_fs.errors import ArchiveError
from kinetics_fs.sources.archive import libz
from kinetics_fs.sources.archive.inflate import Block, Gzip
from kinetics_fs.sources.archive.libz import BlockInflater, Inflater, PlainInflater, lead_in
from tests.support.tarballs import by_zlib

INFLATERS = (PlainInflater, BlockInflater)


def inflate(inflater: Inflater, data: bytes, begin: int = 0) -> bytes:
    output = b""
    while True:
        step = inflater.step(data, begin)
        output += step.output
        begin += step.consumed
        if step.ended:
            return output


@pytest.mark.parametrize("make", INFLATERS)
@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("level", [0, 1, 9])
def test_entering_at_any_bit(make: type[PlainInflater | BlockInflater], bits: int, level: int) -> None:
    """Stored blocks keep to whole bytes, so shifting the data would not do."""
    content = random.Random(7).randbytes(2_000) * 2
    window = content[:500]
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=window)
    packed = packer.compress(content) + packer.flush()
    if level == 0 and bits:  # by hand: a header of 3 bits, padding, lengths, bytes; and it is the last block
        size = len(content).to_bytes(2, "little") + (len(content) ^ 0xFFFF).to_bytes(2, "little")
        padding = b"\0" if bits > 5 else b""
        data = (0x7F >> (7 - bits) | 1 << bits & 0xFF).to_bytes(1, "little") + padding + size + content
    else:
        data = ((int.from_bytes(packed, "little") << bits) | 0x7F >> (7 - bits)).to_bytes(len(packed) + 1, "little")
    lead = lead_in(bits, data[0]) if bits else b""

    assert inflate(make(window, lead), data, 1 if bits else 0) == content


@pytest.mark.parametrize("plain", [False, True])
def test_all_comes_out_at_once(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last byte of the input stands for more than fits into a piece of the output."""
    if plain:
        monkeypatch.setattr("kinetics_fs.sources.archive.libz.finds_block_boundaries", lambda: False)
    for more in range(0, 2_400, 50):
        size = libz.MAX_OUTPUT + more
        pieces = [len(piece) for piece in Gzip().feed(by_zlib(bytes(size))[:-8]) if not isinstance(piece, Block)]
        assert sum(pieces) == size
        assert max(pieces) <= libz.MAX_OUTPUT


def test_every_block_can_be_entered() -> None:
    chance = random.Random(8)
    content = b"".join(bytes(chance.choices(range(64), k=3_000)) + chance.randbytes(500) for _ in range(40))
    packed = by_zlib(content, memory=3)
    blocks: list[Block] = []
    for piece in Gzip().feed(packed):
        if isinstance(piece, Block):
            blocks.append(piece)
    assert len(blocks) > 20
    assert len({block.bit % 8 for block in blocks}) == 8
    for block in blocks:
        again = Gzip(block)
        output = b"".join(
            bytes(piece) for piece in again.feed(packed[block.bit // 8 :]) if not isinstance(piece, Block)
        )
        again.finish()
        assert output == content[block.position :]


def test_data_in_empty_parts_are_refused() -> None:
    """Each part takes as much time as a normal one, so a small archive would take hours."""
    empty_blocks = by_zlib(b"")[:10] + b"\0\0\0\xff\xff" * 100_000
    for data in (empty_blocks, by_zlib(b"") * 20_000):
        with pytest.raises(ArchiveError, match="far more parts"):
            list(Gzip().feed(data))
