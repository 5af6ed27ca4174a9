"""The native front end with a fake kernel."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import re
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_fs.catalog import Entry
from kinetics_fs.errors import FailureKind, FetchError
from kinetics_fs.mount.native import device
from kinetics_fs.mount.native import protocol as p
from kinetics_fs.mount.native.operations import Operations
from kinetics_fs.mount.native.traced import TracedOperations
from kinetics_fs.vfs import ROOT, ClipHandle, FilesystemOptions, Handle, NodeType, OpenPhase
from tests.support.example_filesystem import (
    CLIPS,
    FULL,
    ODD,
    TWICE,
    ExampleFilesystem,
    content,
    descriptors,
    example_filesystem,
    put,
)
from tests.support.fake_kernel import (
    FLAGS_5_4,
    FLAGS_6_18,
    Conversation,
    Kernel,
    Reply,
    converse,
    opened,
)
from tests.support.mounts import mark_gone, wait_until
from tests.support.store import fast_folder

CLIP, OTHER = CLIPS[0], CLIPS[1]
DAY = 86400


# INIT -------------------------------------------------------------------------------------------------------------


def negotiated(reply: Reply) -> tuple[p.InitOut, p.InitFlag]:
    assert reply.error == 0
    assert len(reply.payload) == 64
    said = p.INIT_OUT.unpack(memoryview(reply.payload))
    return said, p.InitFlag(said.flags | said.flags2 << 32)


def test_init_of_linux_5_4(example: ExampleFilesystem) -> None:
    with converse(example.fs, passthrough=True) as (kernel, server, _):
        said, flags = negotiated(kernel.init(minor=31, flags=FLAGS_5_4, long=False))
        assert (said.major, said.minor) == (7, 31)
        assert not flags & ~p.InitFlag(FLAGS_5_4), "only what was offered"
        assert flags & p.InitFlag.DO_READDIRPLUS
        assert flags & p.InitFlag.MAX_PAGES
        assert said.max_pages == 256
        assert said.flags2 == said.max_stack_depth == 0
        assert said.time_gran == 1
        assert said.max_write >= 4096
        assert said.max_background >= said.congestion_threshold > 0
        assert server.status().mode == "page cache (passthrough needs Linux 6.9)"
        kernel.assert_alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="passthrough needs root")
def test_init_of_linux_6_18(example: ExampleFilesystem) -> None:
    with converse(example.fs, passthrough=True) as (kernel, server, _):
        said, flags = negotiated(kernel.init(minor=45, flags=FLAGS_6_18))
        assert (said.major, said.minor) == (7, 40)
        assert flags & p.InitFlag.INIT_EXT, "without it the kernel does not look at flags2"
        assert flags & p.InitFlag.PASSTHROUGH
        assert not flags & 1 << 16, "write-back excludes passthrough"
        assert said.max_stack_depth in (1, 2)
        assert server.status().mode == "passthrough"


def test_passthrough_that_is_not_wanted_is_not_taken(example: ExampleFilesystem) -> None:
    with converse(example.fs) as (kernel, server, _):
        said, flags = negotiated(kernel.init())
        assert not flags & p.InitFlag.PASSTHROUGH
        assert said.max_stack_depth == 0
        assert server.status().mode == "page cache (passthrough is turned off)"


@pytest.mark.parametrize("flags", [0, 1, FLAGS_5_4 & ~(1 << 22), FLAGS_5_4, FLAGS_6_18 & ~(1 << 30), FLAGS_6_18])
def test_only_what_is_offered_is_taken(example: ExampleFilesystem, flags: int) -> None:
    with converse(example.fs, passthrough=True) as (kernel, _, _):
        _, taken = negotiated(kernel.init(flags=flags))
        offered = flags if flags & 1 << 30 else flags & 0xFFFFFFFF
        assert not int(taken) & ~offered
        kernel.assert_alive()


@pytest.mark.parametrize("minor", range(31, 46))
def test_the_smaller_minor_version_is_taken(example: ExampleFilesystem, minor: int) -> None:
    with converse(example.fs) as (kernel, _, _):
        said, _ = negotiated(kernel.init(minor=minor, flags=FLAGS_5_4, long=minor >= 36))
        assert said.minor == min(minor, 40)


def test_newer_major_version_gets_version_7_and_sends_init_again(example: ExampleFilesystem) -> None:
    on_init = threading.Event()
    with converse(example.fs, on_init=on_init.set) as (kernel, _, _):
        reply = kernel.init(major=8, minor=0)
        assert reply.error == 0
        assert struct.unpack_from("=I", reply.payload) == (7,)
        assert not on_init.is_set()
        assert negotiated(kernel.init())[0].major == 7
        assert on_init.wait(10)


@pytest.mark.parametrize(("major", "minor"), [(6, 45), (7, 30), (7, 8)])
def test_server_ends_if_the_kernel_is_too_old(
    example: ExampleFilesystem, major: int, minor: int, caplog: pytest.LogCaptureFixture
) -> None:
    on_init = threading.Event()
    with converse(example.fs, on_init=on_init.set) as (kernel, _, thread):
        assert kernel.init(major=major, minor=minor).error == errno.EPROTO
        thread.join(10)
        assert not thread.is_alive()
    assert not on_init.is_set()
    assert "use Linux 5.4 or newer" in caplog.text


def test_truncated_init_does_not_end_the_server(example: ExampleFilesystem) -> None:
    with converse(example.fs) as (kernel, _, _):
        for length in range(16):
            assert kernel.fail(p.Opcode.INIT, 0, bytes(length)) == errno.EIO
        negotiated(kernel.init())


# Names and attributes ---------------------------------------------------------------------------------------------


def test_lookup_all_the_way_down(example: ExampleFilesystem, kernel: Kernel) -> None:
    entry, attr = kernel.lookup(ROOT, "train")
    assert (entry.nodeid, entry.entry_valid, entry.attr_valid) == (attr.ino, DAY, DAY)
    assert attr.mode == 0o040555
    entry, attr = kernel.lookup(entry.nodeid, ODD)
    assert attr.nlink == 2
    entry, attr = kernel.lookup(entry.nodeid, CLIP.name)
    assert (entry.nodeid, entry.generation) == (attr.ino, 0)
    assert attr.mode == 0o100444
    assert attr.size >= CLIP.duration * 2**20
    assert attr.blocks * 512 >= attr.size
    assert 0 < entry.attr_valid < DAY
    assert (attr.uid, attr.gid) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("name", [b"nothing", b"", b"TRAIN", b"\xff\xfe", b"x" * 255, b"..", b"a/b"])
def test_lookup_of_an_absent_name_can_be_cached(kernel: Kernel, name: bytes) -> None:
    entry, _ = kernel.lookup(ROOT, name)
    assert (entry.nodeid, entry.entry_valid) == (0, DAY)


def test_lookup_in_a_file(example: ExampleFilesystem, kernel: Kernel) -> None:
    assert kernel.fail(p.Opcode.LOOKUP, example.ino(CLIP), os.fsencode(CLIP.name) + b"\0") == errno.ENOTDIR


def test_attributes_of_a_stored_clip_are_exact_and_last(example: ExampleFilesystem, kernel: Kernel) -> None:
    put(example.store, CLIP, content(CLIP))
    entry, attr = kernel.lookup(example.directory(), CLIP.name)
    assert (attr.size, entry.attr_valid) == (10_000, DAY)
    out, again = kernel.getattr(entry.nodeid)
    assert again == attr
    assert out.attr_valid == DAY


def test_attributes_of_live_files_do_not_last(example: ExampleFilesystem, kernel: Kernel) -> None:
    out, attr = kernel.getattr(example.control("status.json"))
    assert out.attr_valid == out.attr_valid_nsec == 0
    assert attr.size > 0


def test_open_live_file_keeps_its_size(example: ExampleFilesystem, kernel: Kernel) -> None:
    ino = example.control("failures.csv")
    out = kernel.open(ino)
    assert out.open_flags == p.OpenFlag.DIRECT_IO
    _, before = kernel.getattr(ino, out.fh)
    example.store.failures.remember(CLIP, FetchError(FailureKind.GONE, "removed"))
    assert kernel.getattr(ino, out.fh)[1].size == before.size
    # Rendering can take long: the size is that of the last open.
    assert kernel.getattr(ino)[1].size == before.size
    again = kernel.open(ino)
    assert kernel.getattr(ino)[1].size > before.size
    assert len(kernel.read(out.fh, 0, 65536)) == before.size
    for handle in (out, again):
        kernel.release(handle.fh)


def test_statx_agrees_with_getattr(example: ExampleFilesystem, kernel: Kernel) -> None:
    put(example.store, CLIP, content(CLIP))
    for ino in (ROOT, example.ino(CLIP), example.ino(OTHER), example.control("classes.txt")):
        _, attr = kernel.getattr(ino)
        payload = kernel.ask(p.Opcode.STATX, ino, p.STATX_IN.pack(0, 0, 0, 0xFFF))
        statx = p.STATX_OUT.unpack(memoryview(payload))
        for name in ("ino", "size", "blocks", "mode", "nlink", "uid", "gid", "mtime", "atime", "ctime", "blksize"):
            assert getattr(statx, name) == getattr(attr, name), name
        assert statx.mask & 0x7FF == 0x7FF
        assert statx.btime == attr.mtime


@pytest.mark.parametrize("ino", [0, 4, 15, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_unknown_inodes_return_enoent(kernel: Kernel, ino: int) -> None:
    expected = {errno.ENOENT, errno.EIO}
    assert kernel.fail(p.Opcode.GETATTR, ino, p.GETATTR_IN.pack(0, 0)) in expected
    assert kernel.fail(p.Opcode.STATX, ino, p.STATX_IN.pack(0, 0, 0, 0)) in expected
    assert kernel.fail(p.Opcode.OPEN, ino, p.OPEN_IN.pack(0, 0)) in expected | {errno.EISDIR}
    assert kernel.fail(p.Opcode.READLINK, ino) in expected | {errno.EINVAL}
    assert kernel.fail(p.Opcode.READDIR, ino, p.READ_IN.pack(0, 0, 4096, 0, 0, 0)) in expected | {errno.ENOTDIR}
    assert kernel.fail(p.Opcode.READDIRPLUS, ino, p.READ_IN.pack(0, 0, 4096, 0, 0, 0)) in expected | {errno.ENOTDIR}
    kernel.assert_alive()


def test_readlink(example: ExampleFilesystem, kernel: Kernel) -> None:
    entry, attr = kernel.lookup(ROOT, "val")
    assert attr.mode & 0o170000 == 0o120000
    target = kernel.ask(p.Opcode.READLINK, entry.nodeid)
    assert (target, len(target)) == (b"validation", attr.size)
    assert kernel.fail(p.Opcode.READLINK, ROOT) == errno.EINVAL


def test_statfs(example: ExampleFilesystem, kernel: Kernel) -> None:
    put(example.store, CLIP, content(CLIP))
    said = p.STATFS_OUT.unpack(memoryview(kernel.ask(p.Opcode.STATFS)))
    assert said.blocks - said.bfree == 3
    assert said.bavail <= said.blocks
    assert said.bavail > 0
    assert said.files - said.ffree == len(CLIPS) + TWICE + 3
    assert said.ffree > 0
    assert said.namelen == 255
    assert said.bsize == said.frsize == 4096


# Extended attributes ----------------------------------------------------------------------------------------------


def getxattr(name: bytes, size: int) -> bytes:
    return p.GETXATTR_IN.pack(size) + name + b"\0"


def test_xattr_at_every_size(example: ExampleFilesystem, kernel: Kernel) -> None:
    ino = example.ino(CLIP)
    name = b"user.kinetics.label"
    assert struct.unpack("=I4x", kernel.ask(p.Opcode.GETXATTR, ino, getxattr(name, 0))) == (len(FULL),)
    for size in range(1, len(FULL) + 3):
        reply = kernel.call(p.Opcode.GETXATTR, ino, getxattr(name, size))
        if size < len(FULL):
            assert reply.error == errno.ERANGE
        else:
            assert reply.payload == FULL.encode()


def test_list_of_xattrs_at_every_size(example: ExampleFilesystem, kernel: Kernel) -> None:
    ino = example.ino(CLIP)
    [length] = struct.unpack("=I4x", kernel.ask(p.Opcode.LISTXATTR, ino, p.GETXATTR_IN.pack(0)))
    assert kernel.fail(p.Opcode.LISTXATTR, ino, p.GETXATTR_IN.pack(length - 1)) == errno.ERANGE
    names = kernel.ask(p.Opcode.LISTXATTR, ino, p.GETXATTR_IN.pack(length))
    assert len(names) == length
    assert b"user.kinetics.state" in names.split(b"\0")
    assert names.endswith(b"\0")
    for node in (ROOT, example.control("status.json")):
        assert kernel.ask(p.Opcode.LISTXATTR, node, p.GETXATTR_IN.pack(100)) == b""


@pytest.mark.parametrize("name", [b"user.other", b"security.capability", b"system.posix_acl_access", b"", b"\xff"])
def test_absent_xattr_returns_enodata(example: ExampleFilesystem, kernel: Kernel, name: bytes) -> None:
    for ino in (ROOT, example.ino(CLIP)):
        assert kernel.fail(p.Opcode.GETXATTR, ino, getxattr(name, 100)) == errno.ENODATA


# Directories ------------------------------------------------------------------------------------------------------


def dirents(payload: bytes, size: int, *, plus: bool) -> list[tuple[p.Dirent, bytes, int, p.Attr | None]]:
    """Parse the records of a page: each entry, its name, its node and its attributes."""
    assert len(payload) <= size, "the kernel refuses a page that is larger than it asked for"
    view, found = memoryview(payload), []
    while view:
        node, attr = 0, None
        begin = 0
        if plus:
            node = p.ENTRY_OUT.unpack(view).nodeid
            attr = p.ATTR.unpack(view[40:])
            begin = 128
        entry = p.DIRENT.unpack(view[begin:])
        end = begin + 24 + entry.namelen
        found.append((entry, bytes(view[begin + 24 : end]), node, attr))
        view = view[p.align(end) :]
    return found


def listing(kernel: Kernel, ino: int, size: int, *, plus: bool, offset: int = 0) -> list[tuple[bytes, int, int, int]]:
    """Read a whole directory, page after page."""
    found: list[tuple[bytes, int, int, int]] = []
    opcode = p.Opcode.READDIRPLUS if plus else p.Opcode.READDIR
    while page := dirents(kernel.ask(opcode, ino, p.READ_IN.pack(0, offset, size, 0, 0, 0)), size, plus=plus):
        for entry, name, node, attr in page:
            assert entry.off == offset + 1
            offset = entry.off
            if plus:
                dots = name in (b".", b"..")
                assert node == (0 if dots else entry.ino)
                assert attr is not None
                assert dots or (attr.ino, attr.mode >> 12) == (entry.ino, entry.type)
            found.append((name, entry.ino, entry.type, entry.off))
    return found


def directories(example: ExampleFilesystem) -> list[int]:
    top = [example.fs.lookup(ROOT, name) for name in (".kinetics", "train", "validation")]
    return [ROOT, *top, example.directory(), example.directory("validation"), example.directory("train", ODD)]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [4096, 4104, 5000, 8192, 32768, 131072])
def test_every_entry_is_listed_exactly_once(example: ExampleFilesystem, kernel: Kernel, size: int, plus: bool) -> None:
    for ino in directories(example):
        expected = [(b".", ino, 4), (b"..", example.fs.parent(ino), 4)]
        expected += [(os.fsencode(name), number, kind >> 12) for name, number, kind in example.fs.entries(ino)]
        found = listing(kernel, ino, size, plus=plus)
        assert [(name, number, kind) for name, number, kind, _ in found] == expected


@pytest.mark.parametrize("plus", [False, True])
def test_small_buffers(example: ExampleFilesystem, kernel: Kernel, plus: bool) -> None:
    """The kernel asks for a page of memory at least, but nothing may break below that."""
    ino = example.directory("validation")
    whole = listing(kernel, ino, 4096, plus=plus)
    record = 184 if plus else 56
    for size in [*range(record, 3 * record + 9), 1000]:
        assert listing(kernel, ino, size, plus=plus) == whole


@pytest.mark.parametrize("plus", [False, True])
def test_no_page_is_larger_than_asked_for(example: ExampleFilesystem, kernel: Kernel, plus: bool) -> None:
    opcode = p.Opcode.READDIRPLUS if plus else p.Opcode.READDIR
    for ino in directories(example):
        for size in range(0, 700, 4):
            payload = kernel.ask(opcode, ino, p.READ_IN.pack(0, 0, size, 0, 0, 0))
            assert len(payload) <= size


@pytest.mark.parametrize("plus", [False, True])
def test_listing_goes_on_from_every_offset(example: ExampleFilesystem, kernel: Kernel, plus: bool) -> None:
    for ino in directories(example):
        whole = listing(kernel, ino, 65536, plus=plus)
        for offset in [*range(0, len(whole) + 3, 1 if len(whole) < 50 else 37)]:
            assert listing(kernel, ino, 65536, plus=plus, offset=offset) == whole[offset:]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("offset", [2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_listing_from_far_beyond_the_end(example: ExampleFilesystem, kernel: Kernel, plus: bool, offset: int) -> None:
    """`lseek` of a directory takes any number."""
    opcode = p.Opcode.READDIRPLUS if plus else p.Opcode.READDIR
    for ino in directories(example):
        reply = kernel.call(opcode, ino, p.READ_IN.pack(0, offset, 4096, 0, 0, 0))
        assert (reply.error, reply.payload) in ((0, b""), (errno.EIO, b""), (errno.EINVAL, b""))


def test_attributes_in_a_listing_are_those_of_a_lookup(example: ExampleFilesystem, kernel: Kernel) -> None:
    put(example.store, CLIP, content(CLIP))
    for ino in [*directories(example)[:-3], example.directory("validation")]:
        payload = kernel.ask(p.Opcode.READDIRPLUS, ino, p.READ_IN.pack(0, 2, 65536, 0, 0, 0))
        for entry, name, _, attr in dirents(payload, 65536, plus=True):
            looked_up = kernel.lookup(ino, name)[1]
            if entry.type << 12 == NodeType.FILE and name.endswith((b".json", b"failures.csv")):
                continue  # they change
            assert attr == looked_up


def test_listing_in_progress_does_not_restore_an_estimated_size(example: ExampleFilesystem, kernel: Kernel) -> None:
    """The kernel takes the size in a listing as newer than a notification that came before the request."""
    folder, ino = example.directory(), example.ino(CLIPS[100])

    def listed(offset: int) -> dict[int, int]:
        asked = p.READ_IN.pack(0, offset, 4096, 0, 0, 0)
        page = dirents(kernel.ask(p.Opcode.READDIRPLUS, folder, asked), 4096, plus=True)
        return {entry.ino: attr.size for entry, _, _, attr in page if attr is not None}

    [offset] = [entry.off for entry, _, _, _ in whole(kernel, folder) if entry.ino == ino]
    assert listed(offset - 1)[ino] > 10_000
    waiting = kernel.send_open(ino)
    kernel.assert_alive()
    example.fetcher.deliver(CLIPS[100], content(CLIPS[100]))
    opened(kernel.reply(waiting))
    assert listed(offset - 1)[ino] == 10_000


def whole(kernel: Kernel, ino: int) -> list[tuple[p.Dirent, bytes, int, p.Attr | None]]:
    size = 1024 * 1024
    payload = kernel.ask(p.Opcode.READDIRPLUS, ino, p.READ_IN.pack(0, 0, size, 0, 0, 0))
    return dirents(payload, size, plus=True)


def test_directories_need_no_open(kernel: Kernel) -> None:
    assert kernel.fail(p.Opcode.OPENDIR, ROOT, p.OPEN_IN.pack(0, 0)) == errno.ENOSYS


# Files ------------------------------------------------------------------------------------------------------------


def test_stored_clip_is_opened_at_once(example: ExampleFilesystem) -> None:
    put(example.store, CLIP, content(CLIP))
    put(example.store, OTHER, b"x")
    with converse(example.fs) as (kernel, _, _):
        kernel.init()
        out = kernel.open(example.ino(CLIP))
        assert not out.open_flags & p.OpenFlag.DIRECT_IO
        assert kernel.read(out.fh, 0, 131072) == content(CLIP)
        assert kernel.read(out.fh, 9_999, 10) == content(CLIP)[-1:]
        for offset in (10_000, 10_001, 2**40, 2**62):
            assert kernel.read(out.fh, offset, 4096) == b""
        assert kernel.read(out.fh, 0, 0) == b""
        assert kernel.read(out.fh, 0, 2**32 - 1) == content(CLIP)
        reply = kernel.call(p.Opcode.READ, ROOT, p.READ_IN.pack(out.fh, 2**63, 10, 0, 0, 0))
        assert (reply.error, reply.payload) in ((0, b""), (errno.EIO, b""), (errno.EINVAL, b""))
        kernel.release(out.fh)
        again = kernel.open(example.ino(CLIP))
        assert again.open_flags == p.OpenFlag.KEEP_CACHE
        kernel.release(again.fh)


def test_open_waits_and_is_answered(example: ExampleFilesystem, conversation: Conversation) -> None:
    kernel, server, _ = conversation
    ino = example.ino(CLIP)
    waiting = kernel.send_open(ino)
    assert not kernel.is_answered(waiting)
    assert server.status().waiting_opens == 1
    example.fetcher.deliver(CLIP, content(CLIP))
    out = opened(kernel.reply(waiting))
    assert server.status().waiting_opens == 0
    # The estimate is taken back before the open returns.
    assert [(notice.code, notice.ino) for notice in kernel.notified] == [
        (p.NotifyCode.INVAL_INODE, ino),
        (p.NotifyCode.STORE, ino),
    ]
    offset, size = struct.unpack_from("=QI", kernel.notified[1].payload, 8)
    assert (offset, offset + size) == (8192, 10_000)
    assert kernel.notified[1].payload[24:] == content(CLIP)[8192:]
    assert out.open_flags == 0
    assert kernel.getattr(ino)[1].size == 10_000
    assert kernel.read(out.fh, 0, 131072) == content(CLIP)
    kernel.release(out.fh)
    again = kernel.open(ino)
    assert again.open_flags == p.OpenFlag.KEEP_CACHE
    kernel.release(again.fh)
    assert len(kernel.notified) == 2


def test_open_that_fails_at_once_or_late(example: ExampleFilesystem, kernel: Kernel) -> None:
    waiting = [kernel.send_open(example.ino(CLIP)) for _ in range(3)]
    kernel.assert_alive()
    example.fetcher.fail(CLIP, FetchError(FailureKind.CREDENTIALS, "private"))
    assert [kernel.reply(unique).error for unique in waiting] == [errno.EACCES] * 3
    kernel.assert_alive()
    assert example.open_clips() == 0


def test_interrupted_open(example: ExampleFilesystem, conversation: Conversation) -> None:
    kernel, server, _ = conversation
    first, second = (kernel.send_open(example.ino(CLIP)) for _ in range(2))
    kernel.interrupt(first)
    assert kernel.reply(first).error == errno.EINTR
    kernel.interrupt(first)  # too late
    kernel.interrupt(12345678)  # of what it never heard
    assert not kernel.is_answered(second)
    example.fetcher.deliver(CLIP, content(CLIP))
    out = opened(kernel.reply(second))
    kernel.interrupt(second)
    kernel.assert_alive()
    kernel.release(out.fh)
    assert server.status().open_files == 0
    assert example.open_clips() == 0


def test_twenty_opens_of_one_clip_share_a_descriptor(example: ExampleFilesystem, conversation: Conversation) -> None:
    kernel, server, _ = conversation
    waiting = [kernel.send_open(example.ino(CLIP)) for _ in range(20)]
    kernel.assert_alive()
    example.fetcher.deliver(CLIP, content(CLIP))
    handles = [opened(kernel.reply(unique)).fh for unique in waiting]
    assert len(set(handles)) == 20
    assert example.open_clips() == 1
    assert [notice.code for notice in kernel.notified] == [p.NotifyCode.INVAL_INODE, p.NotifyCode.STORE]
    for fh in handles:
        kernel.release(fh)
    assert example.open_clips() == 0
    assert server.status().open_files == 0


def test_empty_clip_is_invalidated_without_pages(example: ExampleFilesystem, kernel: Kernel) -> None:
    waiting = kernel.send_open(example.ino(CLIP))
    kernel.assert_alive()
    example.fetcher.deliver(CLIP, b"")
    out = opened(kernel.reply(waiting))
    assert [notice.code for notice in kernel.notified] == [p.NotifyCode.INVAL_INODE]
    assert kernel.read(out.fh, 0, 4096) == b""
    assert kernel.fail(p.Opcode.LSEEK, ROOT, p.LSEEK_IN.pack(out.fh, 0, os.SEEK_DATA)) == errno.ENXIO


def test_refetched_clip_is_invalidated_again(example: ExampleFilesystem, kernel: Kernel) -> None:
    ino = example.ino(CLIP)
    for version in (1, 2, 3):
        waiting = kernel.send_open(ino)
        kernel.assert_alive()
        example.fetcher.deliver(CLIP, content(CLIP, version=version))
        out = opened(kernel.reply(waiting))
        assert out.open_flags == 0, "its cached pages are of another version"
        assert kernel.read(out.fh, 0, 65536) == content(CLIP, version=version)
        kernel.release(out.fh)
        example.store.remove(CLIP)
    assert [notice.code for notice in kernel.notified].count(p.NotifyCode.INVAL_INODE) == 3


def test_readers_of_an_evicted_clip_keep_its_bytes(example: ExampleFilesystem, kernel: Kernel) -> None:
    ino, other = example.ino(CLIP), example.ino(CLIP, "validation")
    put(example.store, CLIP, content(CLIP))
    first = kernel.open(ino)
    example.store.remove(CLIP)
    put(example.store, CLIP, content(CLIP, version=2))
    # The same inode shows the same bytes; the clip in another directory is another inode.
    second, elsewhere = kernel.open(ino), kernel.open(other)
    assert kernel.read(first.fh, 0, 65536) == kernel.read(second.fh, 0, 65536) == content(CLIP)
    assert kernel.read(elsewhere.fh, 0, 65536) == content(CLIP, version=2)
    for out in (first, second, elsewhere):
        kernel.release(out.fh)
    last = kernel.open(ino)
    assert last.open_flags == 0
    assert kernel.read(last.fh, 0, 65536) == content(CLIP, version=2)
    kernel.release(last.fh)
    assert example.open_clips() == 0


def test_size_of_an_open_clip_stays_that_of_its_bytes(example: ExampleFilesystem, kernel: Kernel) -> None:
    """The kernel cuts the pages of a file off when it hears of a smaller size, open or not."""
    ino = example.ino(CLIP)
    put(example.store, CLIP, content(CLIP, 10_000))
    out = kernel.open(ino)
    example.store.remove(CLIP)
    put(example.store, CLIP, content(CLIP, 5_000, version=2))  # by another process, or through the clip's other path
    assert len(kernel.read(out.fh, 0, 65536)) == 10_000
    assert kernel.getattr(ino)[1].size == 10_000
    assert kernel.getattr(ino, out.fh)[1].size == 10_000
    assert kernel.lookup(example.directory(), CLIP.name)[1].size == 10_000


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_ACCMODE])
def test_open_for_writing(example: ExampleFilesystem, kernel: Kernel, flags: int) -> None:
    assert kernel.reply(kernel.send_open(example.ino(CLIP), flags)).error == errno.EROFS


def test_open_of_directories(example: ExampleFilesystem, kernel: Kernel) -> None:
    for ino in directories(example):
        assert kernel.reply(kernel.send_open(ino)).error == errno.EISDIR


def test_lseek(example: ExampleFilesystem, kernel: Kernel) -> None:
    put(example.store, CLIP, content(CLIP))
    fh = kernel.open(example.ino(CLIP)).fh

    def seek(offset: int, whence: int) -> int | str:
        reply = kernel.call(p.Opcode.LSEEK, example.ino(CLIP), p.LSEEK_IN.pack(fh, offset, whence))
        return errno.errorcode[reply.error] if reply.error else int(struct.unpack("=Q", reply.payload)[0])

    assert seek(0, os.SEEK_DATA) == 0
    assert seek(9_999, os.SEEK_DATA) == 9_999
    assert seek(0, os.SEEK_HOLE) == seek(9_999, os.SEEK_HOLE) == 10_000
    for offset in (10_000, 10_001, 2**63, 2**64 - 1):
        assert seek(offset, os.SEEK_DATA) == seek(offset, os.SEEK_HOLE) == "ENXIO"


def test_split_list_in_pieces(example: ExampleFilesystem, kernel: Kernel) -> None:
    out = kernel.open(example.control("train.csv"))
    size = kernel.getattr(example.control("train.csv"))[1].size
    assert out.open_flags == p.OpenFlag.KEEP_CACHE
    whole = b"".join(kernel.read(out.fh, offset, 4096) for offset in range(0, size + 4096, 4096))
    assert len(whole) == size
    assert len(whole.splitlines()) == len(CLIPS) + 3


@pytest.mark.parametrize("fh", [0, 1, 77, 2**63, 2**64 - 1])
def test_unknown_handles_return_ebadf(kernel: Kernel, fh: int) -> None:
    assert kernel.fail(p.Opcode.READ, ROOT, p.READ_IN.pack(fh, 0, 10, 0, 0, 0)) == errno.EBADF
    assert kernel.fail(p.Opcode.RELEASE, ROOT, p.RELEASE_IN.pack(fh, 0, 0, 0)) == errno.EBADF
    assert kernel.fail(p.Opcode.LSEEK, ROOT, p.LSEEK_IN.pack(fh, 0, os.SEEK_DATA)) == errno.EBADF
    kernel.getattr(ROOT, fh)


def test_released_handle_is_gone(example: ExampleFilesystem, kernel: Kernel) -> None:
    put(example.store, CLIP, content(CLIP))
    fh = kernel.open(example.ino(CLIP)).fh
    kernel.release(fh)
    assert kernel.fail(p.Opcode.RELEASE, ROOT, p.RELEASE_IN.pack(fh, 0, 0, 0)) == errno.EBADF
    assert kernel.open(example.ino(CLIP)).fh != fh


# Passthrough ------------------------------------------------------------------------------------------------------


class Backings:
    """The kernel's side of registrations."""

    def __init__(self) -> None:
        self.files: dict[int, os.stat_result] = {}
        self.closed: list[int] = []
        self.error: OSError | None = None

    def open(self, _device: int, fd: int) -> int:
        if self.error is not None:
            raise self.error
        number = len(self.files) + len(self.closed) + 1
        self.files[number] = os.fstat(fd)
        return number

    def close(self, _device: int, number: int) -> None:
        del self.files[number]
        self.closed.append(number)


@pytest.fixture
def backings(monkeypatch: pytest.MonkeyPatch) -> Backings:
    backings = Backings()
    monkeypatch.setattr(device, "open_backing", backings.open)
    monkeypatch.setattr(device, "close_backing", backings.close)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return backings


@pytest.fixture
def passing(example: ExampleFilesystem, backings: Backings) -> Iterator[Conversation]:
    """As `conversation`, with passthrough."""
    with converse(example.fs, passthrough=True) as conversation:
        conversation.kernel.init()
        yield conversation


def test_one_registration_per_inode(example: ExampleFilesystem, passing: Conversation, backings: Backings) -> None:
    kernel = passing.kernel
    put(example.store, CLIP, content(CLIP))
    outs = [kernel.open(example.ino(CLIP)) for _ in range(20)]
    assert {out.backing_id for out in outs} == set(backings.files)
    # The kernel refuses passthrough together with most other flags, KEEP_CACHE among them.
    assert {out.open_flags for out in outs} == {int(p.OpenFlag.PASSTHROUGH)}
    assert len(backings.files) == 1
    for out in outs[:-1]:
        kernel.release(out.fh)
    assert backings.closed == []
    kernel.release(outs[-1].fh)
    assert backings.files == {}
    assert len(backings.closed) == 1
    assert example.open_clips() == 0


def test_no_pages_are_stored_beside_passthrough(example: ExampleFilesystem, passing: Conversation) -> None:
    kernel = passing.kernel
    waiting = kernel.send_open(example.ino(CLIP))
    kernel.assert_alive()
    example.fetcher.deliver(CLIP, content(CLIP))
    assert opened(kernel.reply(waiting)).open_flags == p.OpenFlag.PASSTHROUGH
    assert [notice.code for notice in kernel.notified] == [p.NotifyCode.INVAL_INODE]


def test_virtual_files_do_not_pass_through(
    example: ExampleFilesystem, passing: Conversation, backings: Backings
) -> None:
    for name in ("status.json", "train.csv", "classes.txt"):
        assert not passing.kernel.open(example.control(name)).open_flags & p.OpenFlag.PASSTHROUGH
    assert backings.files == {}


def test_refused_registration_falls_back_to_the_page_cache(
    example: ExampleFilesystem, passing: Conversation, backings: Backings, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, server, _ = passing
    put(example.store, CLIP, content(CLIP))
    put(example.store, OTHER, content(OTHER))
    before = kernel.open(example.ino(CLIP))
    backings.error = OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    after = kernel.open(example.ino(OTHER))
    assert after.open_flags & p.OpenFlag.PASSTHROUGH == 0
    assert "passthrough failed" in str(server.status().mode)
    assert caplog.text.count("for passthrough: ") == 1
    # A file that is open in passthrough stays so: the kernel refuses to mix modes on one inode.
    assert kernel.open(example.ino(CLIP))[1:] == before[1:]


@pytest.mark.skipif(os.geteuid() != 0, reason="passthrough needs root")
def test_descriptor_without_passthrough_falls_back(example: ExampleFilesystem) -> None:
    put(example.store, CLIP, content(CLIP))
    with converse(example.fs, passthrough=True) as (kernel, server, _):
        kernel.init()
        out = kernel.open(example.ino(CLIP))
        assert kernel.read(out.fh, 0, 65536) == content(CLIP)
        assert str(server.status().mode).startswith("page cache (passthrough failed")


# At the same moment -----------------------------------------------------------------------------------------------


class Pause:
    """Stops the thread of a fetch when it has opened a clip, before the waiting open is answered."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def on_open(self, _entry: Entry, phase: OpenPhase) -> None:
        if phase is OpenPhase.OPEN and threading.current_thread().name == "delivery":
            self.reached.set()
            assert self.go_on.wait(20)


@pytest.fixture
def pausing() -> Iterator[tuple[ExampleFilesystem, Pause, Kernel]]:
    pause = Pause()
    with (
        fast_folder() as folder,
        example_filesystem(folder, FilesystemOptions(on_open=pause.on_open)) as example,
        converse(example.fs) as conversation,
    ):
        conversation.kernel.init()
        try:
            yield example, pause, conversation.kernel
        finally:
            pause.go_on.set()


def start_delivery(example: ExampleFilesystem) -> threading.Thread:
    thread = threading.Thread(target=example.fetcher.deliver, args=(CLIP, content(CLIP)), name="delivery", daemon=True)
    thread.start()
    return thread


def test_no_pages_are_stored_while_the_file_is_open(pausing: tuple[ExampleFilesystem, Pause, Kernel]) -> None:
    """A STORE waits for the page, and the page for a READ, which only the server can answer: a deadlock."""
    example, pause, kernel = pausing
    ino = example.ino(CLIP)
    first = kernel.send_open(ino)
    kernel.assert_alive()
    thread = start_delivery(example)
    assert pause.reached.wait(20)
    out = kernel.open(ino)  # finds the clip here, before the open that brought it was answered
    told = len(kernel.notified)
    assert [notice.code for notice in kernel.notified] == [p.NotifyCode.INVAL_INODE, p.NotifyCode.STORE], (
        "this reader, too, knows only an estimate of the size"
    )
    pause.go_on.set()
    thread.join(20)
    opened(kernel.reply(first))
    assert kernel.read(out.fh, 0, 65536) == content(CLIP)
    assert p.NotifyCode.STORE not in [notice.code for notice in kernel.notified[told:]]


def test_no_store_comes_after_the_first_handle(pausing: tuple[ExampleFilesystem, Pause, Kernel]) -> None:
    """No STORE is sent after the first handle, even if nothing else is requested."""
    example, pause, kernel = pausing
    first = kernel.send_open(example.ino(CLIP))
    kernel.assert_alive()
    thread = start_delivery(example)
    assert pause.reached.wait(20)
    kernel.open(example.ino(CLIP))
    told = len(kernel.notified)
    pause.go_on.set()
    thread.join(20)
    opened(kernel.reply(first))
    assert [notice for notice in kernel.notified[told:] if notice.code == p.NotifyCode.STORE] == []


def test_invalidation_of_an_interrupted_open_reaches_the_next_one(
    pausing: tuple[ExampleFilesystem, Pause, Kernel],
) -> None:
    example, pause, kernel = pausing
    ino = example.ino(CLIP)
    first = kernel.send_open(ino)
    kernel.assert_alive()
    thread = start_delivery(example)
    assert pause.reached.wait(20)
    kernel.interrupt(first)
    assert kernel.reply(first).error == errno.EINTR
    pause.go_on.set()
    thread.join(20)
    out = kernel.open(ino)
    assert kernel.notified, "the kernel still knows the estimated size"
    assert out.open_flags == 0
    kernel.release(out.fh)
    assert example.open_clips() == 0


def test_clock_that_was_set_back_hides_no_new_size(
    example: ExampleFilesystem, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    waiting = kernel.send_open(example.ino(CLIP))
    kernel.assert_alive()
    example.fetcher.deliver(CLIP, content(CLIP))
    opened(kernel.reply(waiting))
    assert p.NotifyCode.INVAL_INODE in [notice.code for notice in kernel.notified]


def test_open_that_fails_late_leaves_no_descriptor(
    example: ExampleFilesystem, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, server, _ = conversation

    def bad_disk(_handle: ClipHandle, _offset: int, _size: int) -> bytes:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(ClipHandle, "read", bad_disk)
    waiting = kernel.send_open(example.ino(CLIP))
    kernel.assert_alive()
    example.fetcher.deliver(CLIP, content(CLIP))
    reply = kernel.reply(waiting)
    if not reply.error:  # the page need not have been read for it
        kernel.release(opened(reply).fh)
    assert server.status().open_files == 0
    assert example.open_clips() == 0


def test_lock_of_another_process_does_not_delay_other_requests(example: ExampleFilesystem, kernel: Kernel) -> None:
    """As while another process evicts the clip: its file is gone, but the change is not yet committed."""
    put(example.store, CLIP, content(CLIP))
    [file] = example.store.layout.clips.glob(f"*/{CLIP.key}.*.mp4")
    with closing(sqlite3.connect(example.store.layout.state_database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        file.unlink()
        waiting = kernel.send_open(example.ino(CLIP))
        try:
            kernel.reply(kernel.send(p.Opcode.GETATTR, ROOT, p.GETATTR_IN.pack(0, 0)))
        except TimeoutError:
            pytest.fail("nothing is answered while the state database is locked")
        finally:
            other.execute("ROLLBACK")
    kernel.interrupt(waiting)
    kernel.reply(waiting)


@pytest.mark.parametrize("seed", range(3))
def test_interrupts_and_arrivals_at_the_same_time(
    example: ExampleFilesystem, conversation: Conversation, seed: int
) -> None:
    kernel, server, _ = conversation
    chance = random.Random(seed)
    clips = CLIPS[:120]
    waiting = {kernel.send_open(example.ino(clip)): clip for clip in clips for _ in range(2)}
    kernel.assert_alive()
    assert server.status().waiting_opens == len(waiting)

    def bring(some: list[int]) -> None:
        for number in some:
            if number % 5:
                example.fetcher.deliver(CLIPS[number], content(CLIPS[number], 100))
            else:
                example.fetcher.fail(CLIPS[number], FetchError(FailureKind.GONE, "removed"))

    order = chance.sample(range(len(clips)), len(clips))
    threads = [threading.Thread(target=bring, args=(order[half::2],)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for unique in chance.sample(list(waiting), len(waiting) * 2 // 3):
        kernel.interrupt(unique)
        if chance.random() < 0.3:
            time.sleep(0.002)
    for thread in threads:
        thread.join(30)
    replies = [kernel.reply(unique) for unique in waiting]
    counted = Counter(reply.error for reply in replies)
    assert set(counted) <= {0, errno.EINTR, errno.EIO}
    assert counted[0]
    assert counted[errno.EINTR]
    kernel.assert_alive()
    assert kernel._early == {}, "more replies than requests"
    for reply in replies:
        if not reply.error:
            fh = opened(reply).fh
            assert kernel.read(fh, 0, 4096) == content(waiting[reply.unique], 100)
            kernel.release(fh)
    assert server.status().open_files == server.status().waiting_opens == 0
    wait_until(lambda: example.open_clips() == 0, within=10)


def test_waiting_opens_are_interrupted_when_the_server_ends(example: ExampleFilesystem) -> None:
    with converse(example.fs) as (kernel, server, thread):
        kernel.init()
        waiting = [kernel.send_open(example.ino(clip)) for clip in CLIPS[:50]]
        kernel.assert_alive()
        server.stop()
        assert {kernel.reply(unique).error for unique in waiting} == {errno.EINTR}
        thread.join(10)
        assert not thread.is_alive()
        # Fetches that nobody could stop end later, into nothing.
        for clip in CLIPS[:10]:
            example.fetcher.deliver(clip, content(clip, 100))
    assert example.open_clips() == 0


def test_server_that_has_ended_holds_no_descriptors(example: ExampleFilesystem) -> None:
    def ours() -> list[str]:
        return sorted(
            link for link in descriptors() if "pipe:" in link or "event" in link or "socket" in link or ".mp4" in link
        )

    put(example.store, CLIP, content(CLIP))
    gc.collect()
    before = ours()
    with converse(example.fs) as (kernel, _, _):
        kernel.init()
        kernel.open(example.ino(CLIP))
    gc.collect()
    assert ours() == before


def test_clip_that_arrives_with_the_end_is_closed(example: ExampleFilesystem) -> None:
    """The future cannot be cancelled any more, and nobody will answer with it."""
    with converse(example.fs) as (kernel, server, thread):
        kernel.init()
        blocked = threading.Event()
        kernel.send_open(example.ino(OTHER))
        kernel.assert_alive()
        # The loop is busy while the clip arrives, and told to end before it looks.
        ready = threading.Event()

        def busy(_header: p.InHeader, _body: memoryview) -> bytes:
            ready.set()
            assert blocked.wait(20)
            return b""

        server.operations.handlers[p.Opcode.POLL] = busy
        kernel.send(p.Opcode.POLL)
        assert ready.wait(20)
        example.fetcher.deliver(OTHER, content(OTHER))
        server.stop()
        blocked.set()
        thread.join(20)
    assert example.open_clips() == 0


def test_clip_that_arrives_after_the_end_writes_into_no_other_file(
    example: ExampleFilesystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of descriptors are used again at once, for databases among others."""
    real_open, ended = example.fs.open, threading.Event()

    def slow_to_tell(ino: int) -> Future[Handle]:
        opened = real_open(ino)
        opened.add_done_callback(lambda _: ended.wait(5))
        return opened

    monkeypatch.setattr(example.fs, "open", slow_to_tell)
    with converse(example.fs) as (kernel, server, thread):
        kernel.init()
        kernel.send_open(example.ino(CLIP))
        kernel.assert_alive()
        before = set(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208
        fetch = threading.Thread(target=example.fetcher.deliver, args=(CLIP, content(CLIP)))
        fetch.start()
        wait_until(lambda: example.open_clips() == 1, within=10)
        server.stop()
        thread.join(10)
    # Every number that became free is taken by a file of somebody else.
    others = [(tmp_path / f"other {number}").open("w+b") for number in range(len(before))]
    ended.set()
    fetch.join(10)
    for other in others:
        other.seek(0)
        assert other.read() == b""
        other.close()


# Nonsense ---------------------------------------------------------------------------------------------------------

WANT_BODIES = {
    p.Opcode.LOOKUP: b"train\0",
    p.Opcode.GETATTR: p.GETATTR_IN.pack(0, 0),
    p.Opcode.STATX: p.STATX_IN.pack(0, 0, 0, 0),
    p.Opcode.OPEN: p.OPEN_IN.pack(0, 0),
    p.Opcode.READ: p.READ_IN.pack(1, 0, 4096, 0, 0, 0),
    p.Opcode.READDIR: p.READ_IN.pack(0, 0, 4096, 0, 0, 0),
    p.Opcode.READDIRPLUS: p.READ_IN.pack(0, 0, 4096, 0, 0, 0),
    p.Opcode.RELEASE: p.RELEASE_IN.pack(1, 0, 0, 0),
    p.Opcode.LSEEK: p.LSEEK_IN.pack(1, 0, 3),
    p.Opcode.GETXATTR: getxattr(b"user.x", 10),
    p.Opcode.LISTXATTR: p.GETXATTR_IN.pack(10),
}


@pytest.mark.parametrize("opcode", WANT_BODIES)
def test_request_truncated_at_every_length(kernel: Kernel, opcode: p.Opcode) -> None:
    for length in range(len(WANT_BODIES[opcode])):
        assert kernel.fail(opcode, ROOT, WANT_BODIES[opcode][:length]) == errno.EIO
    kernel.assert_alive()


def test_header_truncated_at_every_length(kernel: Kernel) -> None:
    for length in range(1, p.IN_HEADER.size):
        kernel.send_raw(b"\xff" * length)
    kernel.assert_alive()
    assert kernel._early == {}


@pytest.mark.parametrize("length", [0, 1, 39, 41, 2**31, 2**32 - 1])
def test_length_that_is_not_that_of_the_message(kernel: Kernel, length: int) -> None:
    kernel.send_raw(p.IN_HEADER.pack(length, p.Opcode.STATFS, 4, ROOT, 0, 0, 0, 0))
    kernel.reply(4)
    kernel.assert_alive()


@pytest.mark.parametrize("name", [b"train", b"", b"tr\0ain\0", b"train\0\0"])
def test_malformed_names_return_eio(example: ExampleFilesystem, kernel: Kernel, name: bytes) -> None:
    assert kernel.fail(p.Opcode.LOOKUP, ROOT, name) == errno.EIO
    assert kernel.fail(p.Opcode.GETXATTR, example.ino(CLIP), p.GETXATTR_IN.pack(10) + name) == errno.EIO


@pytest.mark.parametrize("opcode", [20, 25, 30, 37, 39, 40, 47, 50, 53, 4096, 0, 2**32 - 1])
def test_unknown_opcodes_return_enosys(kernel: Kernel, opcode: int) -> None:
    assert kernel.fail(opcode, ROOT, bytes(64)) == errno.ENOSYS


@pytest.mark.parametrize("opcode", [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 51])
def test_changes_return_erofs(kernel: Kernel, opcode: int) -> None:
    assert kernel.fail(opcode, ROOT, bytes(64)) == errno.EROFS


def test_requests_without_a_reply(kernel: Kernel) -> None:
    for body in (b"", bytes(8), bytes(1000), struct.pack("=II", 2**32 - 1, 0)):
        for opcode in p.NO_REPLY:
            kernel.send(opcode, ROOT, body)
    kernel.assert_alive()
    assert kernel._early == {}


def test_errors_of_the_kernel_do_not_end_the_server(kernel: Kernel) -> None:
    assert kernel.ask(p.Opcode.DESTROY) == b""
    assert kernel.ask(p.Opcode.ACCESS, ROOT, bytes(8)) == b""
    kernel.assert_alive()


NUMBERS = st.one_of(
    st.integers(0, 30),
    st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bytes with something like structures in them."""
    pieces = st.one_of(
        NUMBERS.map(lambda number: struct.pack("=Q", number)),
        NUMBERS.map(lambda number: struct.pack("=I", number & 0xFFFFFFFF)),
        st.binary(max_size=40),
        st.sampled_from([b"train\0", b"\0", b"user.kinetics.state\0", *WANT_BODIES.values()]),
    )
    return b"".join(draw(st.lists(pieces, max_size=6)))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[int, bytes]:
    """Return a valid request with some bytes changed."""
    opcode = draw(st.sampled_from(list(WANT_BODIES)))
    body = bytearray(WANT_BODIES[opcode])
    for _ in range(draw(st.integers(0, 3))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return opcode, bytes(body)


REQUESTS = st.one_of(
    st.tuples(st.sampled_from(sorted(set(p.Opcode) - {p.Opcode.INIT, p.Opcode.INTERRUPT})), bodies()),
    st.tuples(st.integers(0, 2**32 - 1).filter(lambda number: number not in (26, 36)), bodies()),
    mutated(),
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[tuple[ExampleFilesystem, Conversation]]:
    with fast_folder() as folder, example_filesystem(folder) as example, converse(example.fs) as conversation:
        conversation.kernel.init()
        put(example.store, CLIP, content(CLIP))
        yield example, conversation


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.tuples(REQUESTS, st.one_of(NUMBERS, st.integers(0, 20))), min_size=1, max_size=12),
    tails=st.booleans(),
)
def test_every_request_gets_one_reply(
    fuzzed: tuple[ExampleFilesystem, Conversation], requests: list[tuple[tuple[int, bytes], int]], tails: bool
) -> None:
    example, (kernel, server, _) = fuzzed
    nodeids = [ROOT, 2, 3, 16, 17, 19, example.directory(), example.ino(CLIP), example.ino(OTHER)]
    expected = set()
    for (opcode, body), chosen in requests:
        nodeid = nodeids[chosen] if chosen < len(nodeids) else chosen
        unique = kernel.send(opcode, nodeid, body + b"tail" if tails else body)
        if opcode not in p.NO_REPLY:
            expected.add(unique)
    kernel.assert_alive()
    for unique in expected - set(kernel._early):
        kernel.interrupt(unique)  # an open that waits
    for unique in expected:
        kernel.reply(unique)
    kernel.assert_alive()
    assert kernel._early == {}, "replies to nothing, or two to one"
    assert server.status().waiting_opens == 0


# Names that come and go -------------------------------------------------------------------------------------------


@pytest.fixture
def hiding() -> Iterator[ExampleFilesystem]:
    with fast_folder() as folder, example_filesystem(folder, FilesystemOptions(hide_unavailable=True)) as example:
        yield example


def records(kernel: Kernel, opcode: int, ino: int, offset: int, size: int = 4096) -> list[tuple[str, p.Dirent]]:
    """Return the names in a reply to READDIR or READDIRPLUS, with the offsets after them."""
    payload = memoryview(kernel.ask(opcode, ino, p.READ_IN.pack(0, offset, size, 0, 0, 0)))
    head = p.DIRENTPLUS_SIZE - p.DIRENT.size if opcode == p.Opcode.READDIRPLUS else 0
    found = []
    while payload:
        entry = p.DIRENT.unpack(payload[head:])
        begin = head + p.DIRENT.size
        found.append((os.fsdecode(bytes(payload[begin : begin + entry.namelen])), entry))
        payload = payload[p.align(begin + entry.namelen) :]
    return found


def wait_for_notifications(kernel: Kernel, number: int) -> None:
    while len(kernel.notified) < number:
        kernel.next_message()


@pytest.mark.parametrize("opcode", [p.Opcode.READDIR, p.Opcode.READDIRPLUS])
def test_listing_continues_at_its_position_whatever_is_hidden(hiding: ExampleFilesystem, opcode: int) -> None:
    ordered = sorted(CLIPS, key=lambda clip: clip.name)
    with converse(hiding.fs) as (kernel, _, _):
        kernel.init()
        directory = hiding.directory()
        seen = records(kernel, opcode, directory, 0)
        last = seen[-1][1].off
        mark_gone(
            hiding.store, [*ordered[last - 5 : last + 200], *ordered[-3:]]
        )  # the name just shown, and more than an answer
        wait_until(lambda: len(hiding.fs.hidden.in_directory(directory)) == 208)
        while page := records(kernel, opcode, directory, seen[-1][1].off):
            seen += page
    left = [clip.name for clip in ordered[: last - 2] + ordered[last + 200 : -3]]
    assert [name for name, _ in seen] == [".", "..", *left]
    for name, entry in seen[2:]:
        assert entry.off == [clip.name for clip in ordered].index(name) + 3


def test_kernel_is_notified_of_names_and_then_of_their_directory(hiding: ExampleFilesystem) -> None:
    with converse(hiding.fs) as (kernel, _, _):
        kernel.init()
        directory = hiding.directory()
        mark_gone(hiding.store, CLIPS[10:12])
        wait_for_notifications(kernel, 4)
        assert kernel.lookup(directory, CLIPS[10].name)[0] == (0, 0, DAY, 0, 0, 0)
        hiding.store.failures.forget()
        wait_for_notifications(kernel, 8)
        assert kernel.lookup(directory, CLIPS[10].name)[0].nodeid == hiding.ino(CLIPS[10])
    wanted = sorted(clip.name for clip in CLIPS[10:12])
    for notified, name in zip(
        [*zip(kernel.notified[::2], kernel.notified[1::2], strict=True)], wanted * 2, strict=True
    ):
        first, second = notified
        assert (first.code, first.ino) == (p.NotifyCode.INVAL_ENTRY, directory)
        assert first.payload[8:] == struct.pack("=II", len(name), 0) + name.encode() + b"\0"
        assert (second.code, second.payload) == (p.NotifyCode.INVAL_INODE, struct.pack("=Qqq", directory, 0, 0))


def test_opens_of_hidden_inodes_fail_as_before(hiding: ExampleFilesystem) -> None:
    with converse(hiding.fs) as (kernel, _, _):
        kernel.init()
        ino = hiding.ino(CLIP)
        mark_gone(hiding.store, [CLIP])
        wait_until(lambda: hiding.fs.hidden.total)
        assert kernel.getattr(ino)[1].ino == ino
        unique = kernel.send_open(ino)
        wait_until(lambda: hiding.fetcher.is_fetching(CLIP))
        hiding.fetcher.fail(CLIP, FetchError(FailureKind.GONE, "removed"))
        assert kernel.reply(unique).error == errno.EIO


# Tracing ----------------------------------------------------------------------------------------------------------


def test_operations_are_traced_only_if_debug_is_logged(
    example: ExampleFilesystem, caplog: pytest.LogCaptureFixture
) -> None:
    with converse(example.fs) as (kernel, server, _):
        kernel.init()
        assert type(server.operations) is Operations
    caplog.set_level(logging.DEBUG, "kinetics_fs.mount.trace")
    with converse(example.fs) as (kernel, server, _):
        kernel.init()
        assert type(server.operations) is TracedOperations


def test_each_operation_is_traced_with_its_result(example: ExampleFilesystem, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kinetics_fs.mount.trace")
    put(example.store, CLIP, content(CLIP))
    with converse(example.fs) as (kernel, _, _):
        kernel.init()
        directory, ino, other = example.directory(), example.ino(CLIP), example.ino(OTHER)
        kernel.ask(p.Opcode.LOOKUP, directory, CLIP.name.encode() + b"\0")
        kernel.ask(p.Opcode.LOOKUP, directory, b"no such name\0")
        kernel.open(ino)
        waiting = kernel.send_open(other)
        kernel.assert_alive()
        example.fetcher.fail(OTHER, FetchError(FailureKind.CREDENTIALS, "members only"))
        assert kernel.reply(waiting).error == errno.EACCES
        assert kernel.reply(kernel.send(p.Opcode.MKDIR, directory)).error == errno.EROFS
    lines = [re.sub(r"\d+ us$", "N us", record.getMessage()) for record in caplog.records]
    for line in (
        f"fuse LOOKUP {directory} {CLIP.name!r}: {p.ENTRY_OUT.size + p.ATTR.size} bytes, N us",
        f"fuse LOOKUP {directory} 'no such name': ENOENT, N us",
        f"fuse OPEN {ino}: {p.OPEN_OUT.size} bytes, N us",
        f"fuse OPEN {other}: waits, N us",
        f"fuse OPEN {other}: EACCES after waiting, N us",
        f"fuse MKDIR {directory}: EROFS, N us",
    ):
        assert line in lines, line
