"""The messages of the FUSE protocol, as far as a read-only filesystem meets them.

Every structure is that of the kernel's published header, `include/uapi/linux/fuse.h`, under its own name, with its
size asserted; numbers are in the machine's own byte order. Nothing outside this module knows a byte offset.

The kernel writes a request as `InHeader`, the opcode's structure, and what follows it (a name). A reply is `OutHeader`
with the request's `unique`, and the opcode's answer; an error is a reply of `OutHeader` alone with a negative errno. A
notification is a reply to nobody: `unique` is 0, and `error` is the code of the notification.
"""

from __future__ import annotations

import enum
import errno
import struct
from typing import Any, Generic, NamedTuple, TypeVar

VERSION = 7
MINOR = 40
"""The minor version that we speak: that of passthrough, Linux 6.9. Older kernels settle on their own."""
OLDEST_MINOR = 31
"""Linux 5.4."""

ROOT_ID = 1

T = TypeVar("T", bound=tuple[Any, ...])


class Malformed(Exception):
    """A request that is shorter than its structure."""


class Structure(Generic[T]):
    """A C structure: bytes to a named tuple and back.

    Args:
        type_: the named tuple; its fields are those of `layout`, in their order.
        layout: in the notation of `struct`; fields that say nothing are pad bytes (`x`).
        size: what `sizeof` says in C.
    """

    def __init__(self, type_: type[T], layout: str, size: int) -> None:
        self._struct = struct.Struct("=" + layout)
        self._make = type_._make  # type: ignore[attr-defined]  # a named tuple has it
        self.size = size
        assert self._struct.size == size, (type_, self._struct.size)

    def unpack(self, message: memoryview) -> T:
        """Reads it from the beginning of a message.

        Raises:
            Malformed: the message is too short.
        """
        try:
            found: T = self._make(self._struct.unpack_from(message))
        except struct.error as error:
            raise Malformed(str(error)) from error
        return found

    def pack(self, *values: int | bytes) -> bytes:
        return self._struct.pack(*values)


class Opcode(enum.IntEnum):
    """What the kernel may ask of a read-only filesystem, and a few that it may try."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51
    STATX = 52


NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests that the kernel does not wait for."""

CHANGES = frozenset(
    {
        *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME),
        *(Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE),
        *(Opcode.RENAME2, Opcode.TMPFILE),
    }
)
"""Requests to change something; the kernel refuses that itself unless root has remounted us for writing."""


class InitFlag(enum.IntFlag):
    """What kernel and filesystem agree on. Bits from 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    """Several reads of one file at the same time."""
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    """A read asks for the size first where that was taken back. Without it, two reads of which the further one ends
    first can leave zeros behind the end."""
    DO_READDIRPLUS = 1 << 13
    """Names, types and attributes of a directory in one message."""
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    """`max_pages` is meant: reads of more than 128 KiB."""
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    """OPENDIR may be refused for good, and directories are then cached."""
    INIT_EXT = 1 << 30
    """`flags2` is meant."""
    PASSTHROUGH = 1 << 37
    """An open file may be served by another file, without us (Linux 6.9)."""


class OpenFlag(enum.IntFlag):
    """How an open file is to be treated."""

    DIRECT_IO = 1 << 0
    """Not through the page cache."""
    KEEP_CACHE = 1 << 1
    """What the page cache has of it is still right."""
    NOFLUSH = 1 << 5
    """No FLUSH at each close."""
    PASSTHROUGH = 1 << 7
    """Served by the file behind `backing_id`."""


GETATTR_FH = 1 << 0

# Headers


class InHeader(NamedTuple):
    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int


IN_HEADER = Structure(InHeader, "IIQQIIIHxx", 40)


class OutHeader(NamedTuple):
    len: int
    error: int
    unique: int


OUT_HEADER = Structure(OutHeader, "IiQ", 16)


def reply_header(unique: int, length: int) -> bytes:
    """The header of a reply with `length` bytes of payload."""
    return OUT_HEADER.pack(OUT_HEADER.size + length, 0, unique)


def error_reply(unique: int, number: int) -> bytes:
    """A whole reply that says errno `number`."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


# INIT


class InitIn(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int


class InitInExt(NamedTuple):
    """`fuse_init_in` as it is since Linux 5.17, of which older kernels send the first 16 bytes."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int


INIT_IN = Structure(InitIn, "IIII", 16)
INIT_IN_EXT = Structure(InitInExt, "IIIII44x", 64)


def parse_init(body: memoryview) -> tuple[InitIn, InitFlag]:
    """INIT's structure and all flags that the kernel offers, from either form of it."""
    begin = INIT_IN.unpack(body)
    flags = InitFlag(begin.flags)
    if begin.flags & InitFlag.INIT_EXT and len(body) >= INIT_IN_EXT.size:
        flags |= InitFlag(INIT_IN_EXT.unpack(body).flags2 << 32)
    return begin, flags


class InitOut(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int
    max_stack_depth: int


INIT_OUT = Structure(InitOut, "IIIIHHIIHHII24x", 64)

# Nodes


class Attr(NamedTuple):
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


_ATTR = "QQQQQQIIIIIIIIII"
ATTR = Structure(Attr, _ATTR, 88)


class EntryOut(NamedTuple):
    """Also the head of a `fuse_direntplus`. Followed by `Attr`."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int


_ENTRY = "QQQQII"
ENTRY_OUT = Structure(EntryOut, _ENTRY, 40)


class AttrOut(NamedTuple):
    """Followed by `Attr`."""

    attr_valid: int
    attr_valid_nsec: int


ATTR_OUT = Structure(AttrOut, "QIxxxx", 16)


class GetattrIn(NamedTuple):
    getattr_flags: int
    fh: int


GETATTR_IN = Structure(GetattrIn, "IxxxxQ", 16)


class StatxIn(NamedTuple):
    getattr_flags: int
    fh: int
    sx_flags: int
    sx_mask: int


STATX_IN = Structure(StatxIn, "IxxxxQII", 24)


class StatxOut(NamedTuple):
    attr_valid: int
    attr_valid_nsec: int
    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    btime: int
    ctime: int
    mtime: int


# fuse_statx_out: 32 bytes of its own, then struct fuse_statx of 256 bytes; times are (s64, u32, s32).
STATX_OUT = Structure(StatxOut, "QI20x" + "IIQIIIHxxQQQQ" + "q8xq8xq8xq8x" + "16x" + "112x", 288)
STATX_BASIC = 0x7FF
STATX_BTIME = 0x800


# Directories


class Dirent(NamedTuple):
    """Followed by the name, and zeros up to a multiple of 8."""

    ino: int
    off: int
    namelen: int
    type: int


_DIRENT = "QQII"
DIRENT = Structure(Dirent, _DIRENT, 24)
DIRENTPLUS_SIZE = 40 + 88 + 24


def align(length: int) -> int:
    """The next multiple of 8."""
    return length + 7 & ~7


def direntplus_packer(name_length: int) -> struct.Struct:
    """`EntryOut`, `Attr`, `Dirent` and a name of that length in one stroke: what makes listing quick."""
    return struct.Struct(f"={_ENTRY}{_ATTR}{_DIRENT}{name_length}s{-name_length % 8}x")


def dirent_packer(name_length: int) -> struct.Struct:
    """`Dirent` and a name of that length in one stroke."""
    return struct.Struct(f"={_DIRENT}{name_length}s{-name_length % 8}x")


# Files


class OpenIn(NamedTuple):
    flags: int
    open_flags: int


OPEN_IN = Structure(OpenIn, "II", 8)


class OpenOut(NamedTuple):
    fh: int
    open_flags: int
    backing_id: int


OPEN_OUT = Structure(OpenOut, "QIi", 16)


class ReadIn(NamedTuple):
    """Of READ, READDIR and READDIRPLUS."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


READ_IN = Structure(ReadIn, "QQIIQIxxxx", 40)


class ReleaseIn(NamedTuple):
    fh: int
    flags: int
    release_flags: int
    lock_owner: int


RELEASE_IN = Structure(ReleaseIn, "QIIQ", 24)


class LseekIn(NamedTuple):
    fh: int
    offset: int
    whence: int


LSEEK_IN = Structure(LseekIn, "QQIxxxx", 24)


class LseekOut(NamedTuple):
    offset: int


LSEEK_OUT = Structure(LseekOut, "Q", 8)


class GetxattrIn(NamedTuple):
    """Of GETXATTR, where the name follows, and LISTXATTR."""

    size: int


GETXATTR_IN = Structure(GetxattrIn, "Ixxxx", 8)


class GetxattrOut(NamedTuple):
    size: int


GETXATTR_OUT = Structure(GetxattrOut, "Ixxxx", 8)


class StatfsOut(NamedTuple):
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


STATFS_OUT = Structure(StatfsOut, "QQQQQIII28x", 80)


class InterruptIn(NamedTuple):
    unique: int


INTERRUPT_IN = Structure(InterruptIn, "Q", 8)


def parse_name(body: memoryview) -> bytes:
    """A name at the end of a request, which the kernel ends with a zero byte."""
    name = bytes(body)
    if not name.endswith(b"\0") or b"\0" in name[:-1]:
        raise Malformed("a name without its end")
    return name[:-1]


# Notifications


class NotifyCode(enum.IntEnum):
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4


class InvalInodeOut(NamedTuple):
    ino: int
    off: int
    len: int


_INVAL_INODE_OUT = Structure(InvalInodeOut, "Qqq", 24)


class InvalEntryOut(NamedTuple):
    """Followed by the name and a zero byte, which `namelen` does not count."""

    parent: int
    namelen: int
    flags: int


_INVAL_ENTRY_OUT = Structure(InvalEntryOut, "QII", 16)


class StoreOut(NamedTuple):
    """Followed by the data."""

    nodeid: int
    offset: int
    size: int


_STORE_OUT = Structure(StoreOut, "QQIxxxx", 24)


def store_pages(ino: int, offset: int, data: bytes) -> bytes:
    """A notification: this is what the file has at `offset`; it is at least that long."""
    length = OUT_HEADER.size + _STORE_OUT.size + len(data)
    return OUT_HEADER.pack(length, NotifyCode.STORE, 0) + _STORE_OUT.pack(ino, offset, len(data)) + data


def forget_attributes(ino: int) -> bytes:
    """A notification: ask for the attributes of this inode again. Its cached pages stay."""
    payload = _INVAL_INODE_OUT.pack(ino, -1, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), NotifyCode.INVAL_INODE, 0) + payload


def forget_content(ino: int) -> bytes:
    """A notification: the cached pages of this inode are no longer right; those of a directory are its listing."""
    payload = _INVAL_INODE_OUT.pack(ino, 0, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), NotifyCode.INVAL_INODE, 0) + payload


def forget_name(directory: int, name: bytes) -> bytes:
    """A notification: look this name up again, whether it was there or not. What is open stays so.

    Writing it waits for the directory's lock, which a lookup or listing under way holds until it is answered: never
    to be written by the thread that answers. It fails with ENOENT if the kernel remembers nothing of the name.
    """
    payload = _INVAL_ENTRY_OUT.pack(directory, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), NotifyCode.INVAL_ENTRY, 0) + payload


# The device's ioctls


def _iow(number: int, size: int) -> int:
    """`_IOW(FUSE_DEV_IOC_MAGIC, number, a structure of that size)`, as asm-generic/ioctl.h has it."""
    return 1 << 30 | size << 16 | 229 << 8 | number


class BackingMap(NamedTuple):
    fd: int
    flags: int


BACKING_MAP = Structure(BackingMap, "iI8x", 16)
IOC_BACKING_OPEN = _iow(1, 16)
IOC_BACKING_CLOSE = _iow(2, 4)

SMALLEST_READ_BUFFER = 8192
REFUSED = frozenset({errno.ENOENT})
"""What writing a reply fails with when its request is gone, interrupted or aborted."""
