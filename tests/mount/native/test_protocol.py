"""The messages: against the kernel's own header, and there and back."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_fs.mount.native import protocol as p

HEADER = Path("/usr/include/linux/fuse.h")

C_NAMES: list[tuple[p.Structure[Any], str, str, int]] = [
    (p.IN_HEADER, "fuse_in_header", "", 38),
    (p.OUT_HEADER, "fuse_out_header", "", 0),
    (p.INIT_IN_EXT, "fuse_init_in", "", 36),
    (p.INIT_OUT, "fuse_init_out", "", 40),
    (p.ATTR, "fuse_attr", "", 0),
    (p.ENTRY_OUT, "fuse_entry_out", "attr", 0),
    (p.ATTR_OUT, "fuse_attr_out", "attr", 0),
    (p.GETATTR_IN, "fuse_getattr_in", "", 0),
    (p.STATX_IN, "fuse_statx_in", "", 39),
    (p.STATX_OUT, "fuse_statx_out", "", 39),
    (p.DIRENT, "fuse_dirent", "", 0),
    (p.OPEN_IN, "fuse_open_in", "", 32),
    (p.OPEN_OUT, "fuse_open_out", "", 40),
    (p.READ_IN, "fuse_read_in", "", 0),
    (p.RELEASE_IN, "fuse_release_in", "", 0),
    (p.LSEEK_IN, "fuse_lseek_in", "", 0),
    (p.LSEEK_OUT, "fuse_lseek_out", "", 0),
    (p.GETXATTR_IN, "fuse_getxattr_in", "", 0),
    (p.GETXATTR_OUT, "fuse_getxattr_out", "", 0),
    (p.STATFS_OUT, "fuse_statfs_out", "", 0),
    (p.INTERRUPT_IN, "fuse_interrupt_in", "", 0),
    (p._INVAL_INODE_OUT, "fuse_notify_inval_inode_out", "", 0),
    (p._INVAL_ENTRY_OUT, "fuse_notify_inval_entry_out", "", 38),
    (p._STORE_OUT, "fuse_notify_store_out", "", 0),
    (p.BACKING_MAP, "fuse_backing_map", "", 40),
]
"""The structure, its name in C, the member that it ends before, and the minor version that gave it its present form."""

LATER = """
#if FUSE_KERNEL_MINOR_VERSION < 39
struct fuse_statx_in { uint32_t getattr_flags; uint32_t reserved; uint64_t fh; uint32_t sx_flags; uint32_t sx_mask; };
struct fuse_sx_time { int64_t tv_sec; uint32_t tv_nsec; int32_t __reserved; };
struct fuse_statx {
    uint32_t mask; uint32_t blksize; uint64_t attributes; uint32_t nlink; uint32_t uid; uint32_t gid; uint16_t mode;
    uint16_t __spare0[1]; uint64_t ino; uint64_t size; uint64_t blocks; uint64_t attributes_mask;
    struct fuse_sx_time atime; struct fuse_sx_time btime; struct fuse_sx_time ctime; struct fuse_sx_time mtime;
    uint32_t rdev_major; uint32_t rdev_minor; uint32_t dev_major; uint32_t dev_minor; uint64_t __spare2[14];
};
struct fuse_statx_out {
    uint64_t attr_valid; uint32_t attr_valid_nsec; uint32_t flags; uint64_t spare[2]; struct fuse_statx stat;
};
#define FUSE_STATX 52
#endif
#if FUSE_KERNEL_MINOR_VERSION < 40
struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#define FUSE_PASSTHROUGH (1ULL << 37)
#define FOPEN_PASSTHROUGH (1 << 7)
#endif
"""
"""What younger headers than that of some distributions have: as Linux 6.18 has it."""


def fields(structure: p.Structure[Any]) -> Iterator[tuple[str, int, int]]:
    """Each field of a structure: its name, where it begins, and its bytes."""
    names = structure.unpack(memoryview(bytes(structure.size)))._fields
    for index, name in enumerate(names):
        for bits in (64, 32, 16):
            for value in (2**bits - 1, -1):
                values = [0] * len(names)
                values[index] = value
                try:
                    packed = structure.pack(*values)
                except struct.error:
                    continue
                begin = packed.index(0xFF)
                assert packed.count(0xFF) == packed.rindex(0xFF) + 1 - begin
                yield name, begin, packed.count(0xFF)
                break
            else:
                continue
            break
        else:
            raise AssertionError(f"{name} holds no number")


def c_member(structure: str, field: str) -> str:
    own = {"attr_valid", "attr_valid_nsec"}
    if structure == "fuse_statx_out" and field not in own:
        return f"stat.{field}.tv_sec" if field.endswith("time") else f"stat.{field}"
    return f"st.{field}" if structure == "fuse_statfs_out" else field


CONSTANTS = {
    **{f"FUSE_{opcode.name}": int(opcode) for opcode in p.Opcode},
    **{f"FUSE_{flag.name}": int(flag) for flag in p.InitFlag},
    **{f"FOPEN_{flag.name}": int(flag) for flag in p.OpenFlag},
    **{f"FUSE_NOTIFY_{code.name}": int(code) for code in p.NotifyCode},
    "FUSE_KERNEL_VERSION": p.VERSION,
    "FUSE_ROOT_ID": p.ROOT_ID,
    "FUSE_GETATTR_FH": p.GETATTR_FH,
    "FUSE_MIN_READ_BUFFER": p.SMALLEST_READ_BUFFER,
    "FUSE_DEV_IOC_BACKING_OPEN": p.IOC_BACKING_OPEN,
    "FUSE_DEV_IOC_BACKING_CLOSE": p.IOC_BACKING_CLOSE,
    "FUSE_NAME_OFFSET_DIRENTPLUS": p.DIRENTPLUS_SIZE,
}
ALIASES = {"fuse_open_out.backing_id": "padding"}
"""Members that had another name before 7.40."""


@pytest.fixture(scope="module")
def from_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """The sizes and offsets that the C compiler computes from the header."""
    if shutil.which("gcc") is None or not HEADER.exists():
        pytest.skip("NOT COMPARED WITH THE KERNEL'S HEADER: gcc or linux/fuse.h is not installed")
    minor = next(
        int(line.split()[2]) for line in HEADER.read_text().splitlines() if "FUSE_KERNEL_MINOR_VERSION " in line
    )
    lines = []
    for structure, name, end, _ in C_NAMES:
        size = f"offsetof(struct {name}, {end})" if end else f"sizeof(struct {name})"
        lines.append(f'printf("{name} %zu\\n", {size});')
        for field, _begin, _bytes in fields(structure):
            member = c_member(name, field)
            if minor < 40:
                member = ALIASES.get(f"{name}.{field}", member)
                if (name, field) == ("fuse_init_out", "max_stack_depth"):
                    member = "unused[0]"
            layout = f"offsetof(struct {name}, {member}), sizeof(((struct {name} *)0)->{member})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {layout});')
    lines += [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    folder = tmp_path_factory.mktemp("c")
    source = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/fuse.h>\n#include <linux/ioctl.h>\n"
    source += LATER + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    (folder / "sizes.c").write_text(source)
    done = subprocess.run(
        ["gcc", "-o", folder / "sizes", folder / "sizes.c"], capture_output=True, text=True, check=False
    )
    if minor < 38:
        pytest.skip(f"NOT COMPARED WITH THE KERNEL'S HEADER: it is of 7.{minor}, older than 7.38")
    assert done.returncode == 0, done.stderr
    said = subprocess.run([folder / "sizes"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0]: [int(word) for word in line.split()[1:]] for line in said.splitlines()}


@pytest.mark.parametrize(("structure", "name"), [(row[0], row[1]) for row in C_NAMES], ids=[row[1] for row in C_NAMES])
def test_structure_is_that_of_the_header(from_c: dict[str, list[int]], structure: p.Structure[Any], name: str) -> None:
    assert from_c[name] == [structure.size]
    ours = {f"{name}.{field}": [begin, size] for field, begin, size in fields(structure)}
    assert ours == {member: layout for member, layout in from_c.items() if member.startswith(f"{name}.")}


def test_numbers_are_those_of_the_header(from_c: dict[str, list[int]]) -> None:
    assert {name: from_c[name] for name in CONSTANTS} == {name: [value] for name, value in CONSTANTS.items()}


# There and back ---------------------------------------------------------------------------------------------------

STRUCTURES = [row[0] for row in C_NAMES] + [p.INIT_IN]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure._make.__self__.__name__)
def test_round_trip(structure: p.Structure[Any]) -> None:
    values = [index + 1 for index, _ in enumerate(fields(structure))]
    packed = structure.pack(*values)
    assert len(packed) == structure.size
    assert list(structure.unpack(memoryview(packed))) == values
    assert list(structure.unpack(memoryview(packed + b"what follows"))) == values


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure._make.__self__.__name__)
def test_every_shorter_message_is_malformed(structure: p.Structure[Any]) -> None:
    for length in range(structure.size):
        with pytest.raises(p.Malformed):
            structure.unpack(memoryview(bytes(length)))


def test_pad_bytes_are_zero() -> None:
    packed = p.STATX_OUT.pack(*[2**15 - 1] * 17)
    used = {begin + byte for _, begin, size in fields(p.STATX_OUT) for byte in range(size)}
    assert not any(packed[offset] for offset in range(p.STATX_OUT.size) if offset not in used)


def test_replies() -> None:
    assert p.OUT_HEADER.unpack(memoryview(p.reply_header(2**63, 10))) == (26, 0, 2**63)
    assert p.OUT_HEADER.unpack(memoryview(p.error_reply(7, 5))) == (16, -5, 7)


@given(st.binary(min_size=1, max_size=255))
def test_directory_records_are_aligned(name: bytes) -> None:
    for packer, head in ((p.dirent_packer(len(name)), 24), (p.direntplus_packer(len(name)), 152)):
        assert packer.size == p.align(head + len(name))
        assert packer.size % 8 == 0
        values = [0] * (26 if head == 152 else 4)
        record = packer.pack(*values, name)
        assert record[head:].rstrip(b"\0") == name.rstrip(b"\0")
        assert packer.unpack(record)[-1] == name


@pytest.mark.parametrize(("length", "aligned"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_align(length: int, aligned: int) -> None:
    assert p.align(length) == aligned


# Names ------------------------------------------------------------------------------------------------------------


@given(st.binary().filter(lambda name: b"\0" not in name))
def test_name(name: bytes) -> None:
    assert p.parse_name(memoryview(name + b"\0")) == name


@pytest.mark.parametrize("body", [b"", b"name", b"na\0me\0", b"\0name", b"name\0\0"])
def test_name_without_its_end(body: bytes) -> None:
    with pytest.raises(p.Malformed):
        p.parse_name(memoryview(body))


# INIT -------------------------------------------------------------------------------------------------------------


def init(flags: int, *, length: int = 64, flags2: int = 0) -> memoryview:
    return memoryview(struct.pack("=IIIII44x", 7, 45, 131072, flags, flags2)[:length])


def test_short_form_of_init() -> None:
    begin, flags = p.parse_init(init(p.InitFlag.ASYNC_READ | 1 << 31, length=16, flags2=0))
    assert begin == (7, 45, 131072, 1 | 1 << 31)
    assert flags == 1 | 1 << 31


def test_long_form_of_init() -> None:
    _, flags = p.parse_init(init(p.InitFlag.INIT_EXT, flags2=p.InitFlag.PASSTHROUGH >> 32))
    assert flags == p.InitFlag.INIT_EXT | p.InitFlag.PASSTHROUGH


def test_flags2_is_ignored_without_init_ext() -> None:
    assert p.parse_init(init(1, flags2=2**32 - 1))[1] == 1


def test_missing_flags2_counts_as_zero() -> None:
    for length in range(16, 64):
        assert p.parse_init(init(p.InitFlag.INIT_EXT, length=length, flags2=2**32 - 1))[1] == p.InitFlag.INIT_EXT


def test_init_that_is_cut_off() -> None:
    for length in range(16):
        with pytest.raises(p.Malformed):
            p.parse_init(init(0, length=length))


def test_unknown_flags_are_kept() -> None:
    flags = 2**32 - 1
    assert int(p.parse_init(init(flags, flags2=flags))[1]) == 2**64 - 1


# Notifications ----------------------------------------------------------------------------------------------------


def test_notifications_have_their_length_and_no_number() -> None:
    for message, code, length in (
        (p.notify_store(2**32, 4096, b"abc"), 4, 16 + 24 + 3),
        (p.notify_inval_attributes(2**32), 2, 16 + 24),
    ):
        assert p.OUT_HEADER.unpack(memoryview(message)) == (length, code, 0)
        assert len(message) == length
    assert struct.unpack_from("=QQI", p.notify_store(2**32, 4096, b"abc"), 16) == (2**32, 4096, 3)
    assert p.notify_store(2**32, 4096, b"abc").endswith(b"abc")


def test_forgetting_attributes_leaves_pages() -> None:
    # The kernel drops pages only from an offset that is not negative.
    assert struct.unpack_from("=Qqq", p.notify_inval_attributes(2**32), 16) == (2**32, -1, 0)
