"""The messages of the FUSE protocol that a read-only filesystem needs.

Every structure is one of the kernel's published header, `include/uapi/linux/fuse.h`, under its name there, with its
size asserted. Numbers are in the byte order of the machine. No other module knows a byte offset.

A request consists of an `InHeader`, the structure of its opcode, and for some opcodes a name. A reply consists of an
`OutHeader` with the `unique` of the request, and the structure of the answer; an error is an `OutHeader` alone, with a
negative errno. A notification has the form of a reply whose `unique` is 0; its `error` is a `NotifyCode`.
"""

from __future__ import annotations

import enum
import errno
import struct
from typing import Any, Generic, NamedTuple, TypeVar

VERSION = 7
MINOR = 40
"""The highest minor version that this module supports: that of passthrough, Linux 6.9. An older kernel uses its own."""
OLDEST_MINOR = 31
"""Linux 5.4."""

ROOT_ID = 1

T = TypeVar("T", bound=tuple[Any, ...])


class Malformed(Exception):
    """A request that is shorter than its structure."""


class Structure(Generic[T]):
    """A C structure: converts bytes to a named tuple and back.

    Args:
        type_: the named tuple; its fields are those of `layout`, in order.
        layout: in the notation of the module `struct`; unused fields are pad bytes (`x`).
        size: `sizeof` of the structure in C.
    """

    def __init__(self, type_: type[T], layout: str, size: int) -> None:
        self._struct = struct.Struct("=" + layout)
        self._make = type_._make  # type: ignore[attr-defined]  # a named tuple has it
        self.size = size
        assert self._struct.size == size, (type_, self._struct.size)

    def unpack(self, message: memoryview) -> T:
        """Read the structure from the beginning of a message.

        Raises:
            Malformed: the message is too short.
        """
        try:
            found: T = self._make(self._struct.unpack_from(message))
        except struct.error as error:
            raise Malformed(str(error)) from error
        return found

    def pack(self, *values: int | bytes) -> bytes:
        """Return the bytes of the structure with these values."""
        return self._struct.pack(*values)


class Opcode(enum.IntEnum):
    """The requests that a kernel sends to a read-only filesystem, and some that such a filesystem refuses."""

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
"""Requests without a reply."""

CHANGES = frozenset(
    {
        *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME),
        *(Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE),
        *(Opcode.RENAME2, Opcode.TMPFILE),
    }
)
"""Requests that change something. The kernel itself refuses them unless root has remounted the filesystem for writing.
"""


class InitFlag(enum.IntFlag):
    """The features that kernel and filesystem agree on. Bits from 32 on are sent in `flags2`."""

    ASYNC_READ = 1 << 0
    """Several reads of one file at the same time."""
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    """A read first asks for the size if that was invalidated. Without it, two concurrent reads can leave zeros after
    the end of the file: if the later part is answered first."""
    DO_READDIRPLUS = 1 << 13
    """Names, types and attributes of a directory in one message."""
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    """`max_pages` is valid: reads of more than 128 KiB."""
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    """OPENDIR may be refused once and for all; the kernel then caches listings."""
    INIT_EXT = 1 << 30
    """`flags2` is valid."""
    PASSTHROUGH = 1 << 37
    """The kernel may serve an open file from another file by itself (Linux 6.9)."""


class OpenFlag(enum.IntFlag):
    """How the kernel treats an open file."""

    DIRECT_IO = 1 << 0
    """Bypass the page cache."""
    KEEP_CACHE = 1 << 1
    """The cached pages of the file are still valid."""
    NOFLUSH = 1 << 5
    """Send no FLUSH at each close."""
    PASSTHROUGH = 1 << 7
    """Serve reads from the file registered as `backing_id`."""


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
    """Return the header of a reply with `length` bytes of payload."""
    return OUT_HEADER.pack(OUT_HEADER.size + length, 0, unique)


def error_reply(unique: int, code: int) -> bytes:
    """Return a complete reply with the errno `code`."""
    return OUT_HEADER.pack(OUT_HEADER.size, -code, unique)


# INIT


class InitIn(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int


class InitInExt(NamedTuple):
    """`fuse_init_in` since Linux 5.17. Older kernels send its first 16 bytes."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int


INIT_IN = Structure(InitIn, "IIII", 16)
INIT_IN_EXT = Structure(InitInExt, "IIIII44x", 64)


def parse_init(body: memoryview) -> tuple[InitIn, InitFlag]:
    """Parse either form of INIT; return its structure and all flags that the kernel offers."""
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
    """Followed by `Attr`. Also the beginning of a `fuse_direntplus`."""

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
    """Round up to a multiple of 8."""
    return length + 7 & ~7


def direntplus_packer(name_length: int) -> struct.Struct:
    """Return a packer for `EntryOut`, `Attr`, `Dirent` and a name of this length: one call per entry, for speed."""
    return struct.Struct(f"={_ENTRY}{_ATTR}{_DIRENT}{name_length}s{-name_length % 8}x")


def dirent_packer(name_length: int) -> struct.Struct:
    """Return a packer for `Dirent` and a name of this length."""
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
    """The structure of READ, READDIR and READDIRPLUS."""

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
    """The structure of GETXATTR, followed by the name, and of LISTXATTR."""

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
    """Return the name at the end of a request, without its zero byte.

    Raises:
        Malformed: the zero byte is missing or not the last one.
    """
    name = bytes(body)
    if not name.endswith(b"\0") or b"\0" in name[:-1]:
        raise Malformed("a name without a zero byte at its end")
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


def notify_store(ino: int, offset: int, data: bytes) -> bytes:
    """Return a notification that stores `data` in the page cache of a file, and extends its size if needed."""
    length = OUT_HEADER.size + _STORE_OUT.size + len(data)
    return OUT_HEADER.pack(length, NotifyCode.STORE, 0) + _STORE_OUT.pack(ino, offset, len(data)) + data


def notify_inval_attributes(ino: int) -> bytes:
    """Return a notification that invalidates the attributes of an inode, but not its cached pages."""
    payload = _INVAL_INODE_OUT.pack(ino, -1, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), NotifyCode.INVAL_INODE, 0) + payload


def notify_inval_content(ino: int) -> bytes:
    """Return a notification that invalidates the cached pages of an inode: of a directory, its listing."""
    payload = _INVAL_INODE_OUT.pack(ino, 0, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), NotifyCode.INVAL_INODE, 0) + payload


def notify_inval_entry(directory: int, name: bytes) -> bytes:
    """Return a notification that invalidates a name, or its absence; open files stay open.

    Writing it blocks on the lock of the directory, which a lookup or listing in progress holds until it is answered:
    the thread that answers must never write it. The write fails with ENOENT if the kernel has not cached the name.
    """
    payload = _INVAL_ENTRY_OUT.pack(directory, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), NotifyCode.INVAL_ENTRY, 0) + payload


# The ioctls of the device


def _iow(number: int, size: int) -> int:
    """Return `_IOW(FUSE_DEV_IOC_MAGIC, number, size)` as defined in asm-generic/ioctl.h."""
    return 1 << 30 | size << 16 | 229 << 8 | number


class BackingMap(NamedTuple):
    fd: int
    flags: int


BACKING_MAP = Structure(BackingMap, "iI8x", 16)
IOC_BACKING_OPEN = _iow(1, 16)
IOC_BACKING_CLOSE = _iow(2, 4)

SMALLEST_READ_BUFFER = 8192
REFUSED = frozenset({errno.ENOENT})
"""Errnos of writing a reply to a request that was interrupted or aborted."""
