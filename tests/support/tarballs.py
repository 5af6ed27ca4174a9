"""Archives as they are found, made here: real layouts, compressed in many ways."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from kinetics_fs.catalog import Clip

Clips = Mapping[Clip, bytes]


def make_clips(count: int, *, seed: int = 1, size: tuple[int, int] = (20_000, 90_000)) -> dict[Clip, bytes]:
    """Clips as deflate sees them: mostly noise, with some of what their like begin and end with."""
    chance = random.Random(seed)
    common = chance.randbytes(3_000)
    clips: dict[Clip, bytes] = {}
    for number in range(count):
        clip = Clip(f"-vid_{number:06d}", number, number + 10)
        noise = chance.randbytes(chance.randint(*size))
        # A head and a tail that other clips have, too, so that deflate refers back over the clip's own start.
        head = common[: chance.choice((0, 40, 700, 3_000))]
        clips[clip] = b"\0\0\0\x20ftypisom" + head + noise + chance.choice((b"", common, bytes(2_000)))
    return clips


def flat(clip: Clip) -> str:
    return f"./{clip.name}"


def in_class(clip: Clip) -> str:
    return f"driving car (not drifting)/{clip.name}"


def deep(clip: Clip) -> str:
    return f"home/someone/Documents/projects/kinetics/v1-0/train/{clip.name}"


LAYOUTS = (flat, in_class, deep)


def make_tar(clips: Clips, layout: Callable[[Clip], str] = flat, format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar with the folder entries and the other files that real archives have."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        folder = tarfile.TarInfo(str(PurePosixPath(layout(Clip("x" * 11, 0, 1))).parent) + "/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for clip, content in clips.items():
            name = layout(clip)
            if layout is in_class:  # as macOS packs
                junk = tarfile.TarInfo(str(PurePosixPath(name).with_name("._" + clip.name)))
                junk.size = 163
                tar.addfile(junk, io.BytesIO(bytes(163)))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = 1_600_000_000
            member.uname = "someone"
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def by_zlib(
    data: bytes, level: int = 6, *, memory: int = 8, strategy: int = zlib.Z_DEFAULT_STRATEGY, flush_every: int = 0
) -> bytes:
    """One gzip member."""
    packer = zlib.compressobj(level, zlib.DEFLATED, 31, memory, strategy)
    step = flush_every or len(data) or 1
    packed = b"".join(
        packer.compress(data[offset : offset + step]) + (packer.flush(zlib.Z_SYNC_FLUSH) if flush_every else b"")
        for offset in range(0, len(data), step)
    )
    return packed + packer.flush()


def in_members(data: bytes, size: int) -> bytes:
    """Many gzip members, as bgzip and parallel packers make them: clips go across them."""
    return b"".join(by_zlib(data[offset : offset + size]) for offset in range(0, len(data), size))


def with_giant_block(data: bytes, at: int) -> bytes:
    """All from `at` on is one block with the fixed codes, whatever its size; of bytes below 144, which take 8 bits."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    before = packer.compress(data[:at]) + packer.flush(zlib.Z_FULL_FLUSH)
    codes = bytes(int(f"{0x30 + value:08b}"[::-1], 2) if value < 144 else 0 for value in range(256))
    literals = int.from_bytes(data[at:].translate(codes), "little")
    block = (literals << 3 | 0b011).to_bytes(len(data) - at + 2, "little")  # the last block; its end is 7 zero bits
    trailer = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(7) + before + block + trailer


def by_program(*command: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

    return pack


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "zlib -1": lambda data: by_zlib(data, 1),
    "zlib -6": by_zlib,
    "zlib -9, most memory": lambda data: by_zlib(data, 9, memory=9),
    "zlib, small blocks": lambda data: by_zlib(data, 9, memory=1),
    "stored": lambda data: by_zlib(data, 0),
    "fixed codes": lambda data: by_zlib(data, strategy=zlib.Z_FIXED),
    "huffman only": lambda data: by_zlib(data, strategy=zlib.Z_HUFFMAN_ONLY),
    "run lengths": lambda data: by_zlib(data, strategy=zlib.Z_RLE),
    "flushed": lambda data: by_zlib(data, flush_every=777),
    "members": lambda data: in_members(data, 50_000),
    "tiny members": lambda data: in_members(data, 5_000),
    "padded": lambda data: by_zlib(data) + bytes(10_240),
    "gzip -9": by_program("gzip", "-9"),
    "pigz": by_program("pigz", "-p", "2", "-b", "128"),
    "pigz -i": by_program("pigz", "-i", "-b", "128"),
    "pigz -11": by_program("pigz", "-11", "-I", "1"),
}
"""Ways to make a `.tar.gz`; the last of them is Zopfli's, which blocks by its own lights."""
