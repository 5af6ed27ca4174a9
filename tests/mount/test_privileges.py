"""Mounting without /dev/fuse and without privileges: proxies of fusermount3, and what it refuses."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kinetics_fs.mount import find_mounts
from tests.support.command_line import ENVIRONMENT
from tests.support.example_filesystem import FULL, content, write_rows
from tests.support.fusermount_proxy import MASKS, REPLACE, inside, proxy
from tests.support.namespaces import NO_SYS_ADMIN, in_namespace
from tests.support.native_mounts import HERE, NEEDS_FUSE, fill
from tests.support.store import fast_folder
from tests.support.user import User

pytestmark = NEEDS_FUSE

USE = """
set -e
"$PYTHON" -m kinetics_fs --config /dev/null mount "$@" "$ROOT"
findmnt -no FSTYPE,OPTIONS "$ROOT"
cat "$CLIP" > "$OUT"
pid=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$ROOT/.kinetics/status.json")
"$PYTHON" -m kinetics_fs umount "$ROOT"
! findmnt "$ROOT" > /dev/null
while kill -0 $pid 2> /dev/null; do sleep 0.1; done
"""


NEED_NO_MOUNT = "prefetch, fill, export and the Library of Python need no mount"


@pytest.fixture
def scratch() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


def run(
    scratch: Path, frontend: tuple[str, ...], *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Mount, read a clip and unmount, by a command that runs in `words`."""
    fill(scratch / "cache")
    options: list[str | Path] = [*frontend, "--annotations", write_rows(scratch), "--min-free", "0"]
    options += [
        "--cache-dir",
        scratch / "cache",
        "--video-url",
        "http://127.0.0.1:9/{id}",
        "--log-file",
        scratch / "log",
    ]
    root = scratch / "mount"
    return subprocess.run(
        [*words, "sh", "-c", USE, "sh", *options],
        env={
            **ENVIRONMENT,
            **(env or {}),
            "PYTHON": sys.executable,
            "ROOT": str(root),
            "CLIP": str(root / "train" / FULL / HERE[0].name),
            "OUT": str(scratch / "out"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("mask", MASKS)
def test_a_proxy_of_fusermount_mounts_where_the_device_is_hidden(
    scratch: Path, frontend: tuple[str, ...], mask: str
) -> None:
    with proxy(scratch) as program:
        done = run(scratch, frontend, *inside(scratch, mask, fusermount=program))
    assert done.returncode == 0, done.stderr + (scratch / "log").read_text()
    assert "fuse.kinetics-fs" in done.stdout
    assert (scratch / "out").read_bytes() == content(HERE[0])


def test_root_without_privileges_mounts_and_unmounts_by_a_proxy(scratch: Path, frontend: tuple[str, ...]) -> None:
    """As in a container that has neither the device nor CAP_SYS_ADMIN."""
    with proxy(scratch) as program:
        done = run(scratch, frontend, *inside(scratch, "missing", fusermount=program), *NO_SYS_ADMIN)
    assert done.returncode == 0, done.stderr
    assert "fuse.kinetics-fs" in done.stdout
    assert (scratch / "out").read_bytes() == content(HERE[0])


@pytest.mark.parametrize("mask", MASKS)
def test_doctor_where_the_device_is_hidden(scratch: Path, mask: str) -> None:
    def look(*words: str) -> dict[str, dict[str, str]]:
        command = [sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "doctor", "--offline", "--json"]
        done = subprocess.run([*words, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        return {one["name"]: one for one in json.loads(done.stdout)["findings"]}

    device = look(*inside(scratch, mask))["/dev/fuse"]
    assert device["state"] == "problem"
    assert "--device /dev/fuse" in device["fix"]
    if mask == "nodev":  # as on a machine where only the permissions of the device are wrong
        return
    (scratch / "again").mkdir()
    program = written(scratch / "proxy", "#!/bin/sh\n")
    found = look(*inside(scratch / "again", mask, fusermount=program), *NO_SYS_ADMIN)
    assert found["/dev/fuse"]["state"] == "warning"
    assert "is a proxy that opens it elsewhere" in found["/dev/fuse"]["found"]
    assert found["right to mount"]["state"] == "ok"


def test_root_without_the_right_to_mount(scratch: Path, frontend: tuple[str, ...]) -> None:
    done = run(scratch, frontend, *NO_SYS_ADMIN)
    [line] = done.stderr.splitlines()
    assert line.endswith(
        f"cannot mount on {scratch}/mount: this process and its children cannot have CAP_SYS_ADMIN; start the container"
        f" with --cap-add SYS_ADMIN --security-opt apparmor=unconfined; {NEED_NO_MOUNT}"
    )
    assert not (scratch / "log").exists(), "it fails before anything is downloaded"


@pytest.mark.parametrize(
    ("change", "options", "cause"),
    [
        ("", ["--no-new-privs"], "cannot gain the right to mount, because this process has no_new_privs set"),
        (
            "cp $(readlink -f $(which fusermount3)) $1/f; mount --bind $1/f $(readlink -f $(which fusermount3))",
            [],
            "is not setuid root",
        ),
        (
            "mount --bind /usr /usr; mount -o remount,bind,nosuid /usr",
            [],
            "is on a filesystem that is mounted with nosuid",
        ),
    ],
)
def test_a_user_without_the_right_to_mount_is_told_what_doctor_knows(
    user: User, frontend: tuple[str, ...], scratch: Path, change: str, options: list[str], cause: str
) -> None:
    annotations = write_rows(user.home)
    wrapper = [*in_namespace(change or "true", scratch), "setpriv", *(options or ["--clear-groups"])]
    done = user.kinetics_fs("mount", *frontend, "--annotations", annotations, user.home / "clips", wrapper=wrapper)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert cause in line and line.endswith(f"; {NEED_NO_MOUNT}")
    doctor = user.kinetics_fs("doctor", "--offline", "--json", wrapper=wrapper)
    [finding] = [one for one in json.loads(doctor.stdout)["findings"] if one["name"] == "right to mount"]
    assert finding["state"] == "problem"
    assert finding["found"] in line


def test_a_policy_that_forbids_the_system_call_is_named(
    user: User, mount_as: Callable[..., str], scratch: Path
) -> None:
    """As seccomp does it to a process that seems to have the right."""
    helper = written(scratch / "denied", DENIED.replace("Permission denied", "Operation not permitted"), 0o4755)
    said = mount_as(user.home / "clips", wrapper=in_namespace(REPLACE, scratch, helper))
    assert "a security policy, such as seccomp, forbids this process and fusermount3 to mount; start the" in said
    assert said.endswith(NEED_NO_MOUNT)


@pytest.mark.parametrize("mask", MASKS)
def test_without_device_the_error_names_both_failures_and_the_cure(
    scratch: Path, frontend: tuple[str, ...], mask: str
) -> None:
    done = run(scratch, frontend, *inside(scratch, mask))
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert f"cannot mount on {scratch}/mount: cannot open /dev/fuse: " in line
    assert ", and fusermount3 " in line
    assert "--device /dev/fuse" in line.partition("; ")[2]


@pytest.mark.parametrize("mask", MASKS)
def test_without_device_and_fusermount_the_mount_fails_before_anything_is_downloaded(
    scratch: Path, frontend: tuple[str, ...], mask: str
) -> None:
    tools = scratch / "bin"
    tools.mkdir()
    for name in ("sh", "findmnt", "cat"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    empty = ["env", f"PATH={tools}"]
    done = run(scratch, frontend, *inside(scratch, mask), *empty)
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert "cannot open /dev/fuse: " in line
    assert ", and fusermount3 is not installed; " in line
    assert "--device /dev/fuse" in line.partition("; ")[2]
    assert not (scratch / "log").exists()
    assert os.listdir(scratch / "mount") == []  # noqa: PTH208


# What fusermount3 refuses ------------------------------------------------------------------------------------------

DENIED = '#!/bin/sh\necho "$(basename $0): mount failed: Permission denied" >&2\nexit 1\n'
"""A fusermount3 as it answers under the profile of AppArmor; few kernels of test machines have AppArmor."""

PROFILE = """
@{kinds} = {fuse,fuse.*}
profile fusermount3 /usr/bin/fusermount3 {
  mount fstype=@{kinds} options=(nosuid,nodev,ro) -> @{HOME}/**/,
  mount fstype=@{kinds} options=(nosuid,nodev,ro) -> /mnt/{,**/},
  include if exists <local/fusermount3>
}
"""

CONFINED = """
mkdir "$1/etc" && cp -a /etc/. "$1/etc" && mount --bind "$1/etc" /etc
mkdir -p /etc/apparmor.d/local && cp "$1/profile" /etc/apparmor.d/fusermount3
mount -t tmpfs tmpfs /sys/module && mkdir -p /sys/module/apparmor/parameters
echo Y > /sys/module/apparmor/parameters/enabled
"""


@pytest.fixture
def mount_as(user: User, frontend: tuple[str, ...]) -> Callable[..., str]:
    """Try to mount as a user without privileges; return the one line of the error."""
    annotations = write_rows(user.home)

    def mount(root: Path, *options: str, wrapper: Sequence[str] = ()) -> str:
        done = user.kinetics_fs("mount", *frontend, "--annotations", annotations, *options, root, wrapper=wrapper)
        assert (done.returncode, done.stdout) == (1, ""), done
        [line] = done.stderr.splitlines()
        return line.removeprefix("kinetics-fs: ")

    return mount


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder of another user's outside of all homes and of /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="kinetics-fs test ") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def written(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_mount_point_that_apparmor_refuses(
    user: User, mount_as: Callable[..., str], outside: Path, scratch: Path
) -> None:
    root = outside / "clips"
    user.run("mkdir", root)
    helper = written(scratch / "denied", DENIED)
    written(scratch / "profile", PROFILE)
    for confined, cause in (
        ("", "a security policy, such as the AppArmor profile of fusermount3, does not allow this mount point"),
        (CONFINED, "the AppArmor profile of fusermount3 does not allow this mount point"),
    ):
        said = mount_as(root, wrapper=in_namespace(confined + REPLACE, scratch, helper))
        assert said.startswith(f"cannot mount on {root}: {cause}; as root, add the lines ")
        assert f'`mount fstype=fuse.kinetics-fs options=(ro,nosuid,nodev) -> "{root}/",`' in said
        assert f'`umount "{root}/",` to /etc/apparmor.d/local/fusermount3' in said
        assert "apparmor_parser -r /etc/apparmor.d/fusermount3" in said


def test_doctor_warns_of_a_mount_point_that_apparmor_refuses(user: User, outside: Path, scratch: Path) -> None:
    root = outside / "clips"
    user.run("mkdir", root)
    written(scratch / "profile", PROFILE)

    def look(path: Path, more: str = "") -> dict[str, str]:
        wrapper = in_namespace(CONFINED + more, scratch)
        done = user.kinetics_fs("doctor", "--offline", "--json", path, wrapper=wrapper)
        subprocess.run(["rm", "-r", scratch / "etc"], check=True)
        [finding] = [one for one in json.loads(done.stdout)["findings"] if one["name"] == "mount"]
        assert isinstance(finding, dict)
        return finding

    finding = look(root)
    assert finding["state"] == "problem"
    assert "the AppArmor profile of fusermount3 does not allow this mount point" in finding["found"]
    assert f'-> "{root}/",` and `umount "{root}/",` to /etc/apparmor.d/local/fusermount3' in finding["fix"]
    rule = finding["fix"].split("`")[1]
    assert look(root, f"cat > /etc/apparmor.d/local/fusermount3 <<'END'\n{rule}\nEND\n")["state"] == "ok"
    assert look(Path("/home/someone/kinetics"))["found"] == "/home/someone does not exist"


def test_flags_that_every_profile_of_apparmor_allows(user: User, frontend: tuple[str, ...], scratch: Path) -> None:
    """The first profiles allow `ro`, `nosuid` and `nodev` only: fusermount3 may be given no other flag."""
    scratch.chmod(0o711)
    words = scratch / "words"
    words.touch(0o666)
    words.chmod(0o666)
    spy = written(scratch / "spy", f'#!/bin/sh\nprintf "%s\\n" "$@" > {words}\nexit 1\n')
    command: list[str | Path] = ["mount", *frontend, "--annotations", write_rows(user.home), user.home / "clips"]
    user.kinetics_fs(*command, wrapper=in_namespace(REPLACE, scratch, spy))
    options = words.read_text().split("\n")[1].split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)
    assert not {"noatime", "nodiratime", "noexec", "sync", "dirsync"} & set(options)


def test_what_the_real_fusermount_refuses(
    user: User, mount_as: Callable[..., str], outside: Path, scratch: Path
) -> None:
    sticky = outside / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    assert mount_as(sticky) == (
        f"cannot mount on {sticky}: its sticky bit is set, and another user owns it; give a directory that you own"
    )
    locked = outside / "locked"
    locked.mkdir(0o755)
    assert mount_as(locked) == (
        f"cannot mount on {locked}: this user may not write to it; give a directory that you own"
    )
    memory = outside / "memory"
    memory.mkdir()
    wrapper = in_namespace('mount -t ramfs ramfs "$1"; chmod 777 "$1"', memory)
    assert mount_as(memory, wrapper=wrapper) == (
        f"cannot mount on {memory}: fusermount3 does not mount on filesystems of the type ramfs;"
        " give a directory on another disk, or mount as root"
    )
    full = written(scratch / "fuse.conf", "mount_max = 0\n", 0o644)
    wrapper = in_namespace('mount --bind "$1" /etc/fuse.conf', full)
    assert mount_as(user.home / "clips", wrapper=wrapper) == (
        f"cannot mount on {user.home}/clips: there are as many FUSE mounts as mount_max in /etc/fuse.conf allows;"
        " unmount one of them, or as root raise mount_max in /etc/fuse.conf"
    )
    refused = written(scratch / "fuse.conf", "", 0o644)
    wrapper = in_namespace('mount --bind "$1" /etc/fuse.conf', refused)
    assert mount_as(user.home / "clips", "--allow-other", wrapper=wrapper) == (
        f"cannot mount on {user.home}/clips: --allow-other is not allowed by /etc/fuse.conf;"
        " as root, add the line user_allow_other to /etc/fuse.conf"
    )


def test_fusermount_and_device_of_a_group(user: User, mount_as: Callable[..., str], scratch: Path) -> None:
    """As on systems where only members of the group fuse may mount."""
    group = grp.getgrnam("audio")
    helper = written(scratch / "fusermount3", "", 0o750)
    os.chown(helper, 0, group.gr_gid)
    said = mount_as(user.home / "clips", wrapper=in_namespace(REPLACE, scratch, helper))
    assert "this user may not run /usr/bin/fusermount" in said
    assert "; as root, add this user to the group audio, or mount as root; " in said

    device = 'mknod -m 660 "$1/fuse" c 10 229; chgrp audio "$1/fuse"; mount --bind "$1/fuse" /dev/fuse'
    with tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        said = mount_as(user.home / "clips", wrapper=in_namespace(device, disk))
    assert "cannot open /dev/fuse: Permission denied, and fusermount3 cannot open /dev/fuse: Permission denied" in said
    assert "as root, add this user to the group audio" in said


@pytest.mark.parametrize("answer", ["exit 1", "exit 0", "echo something odd >&2; exit 3"])
def test_fusermount_that_fails_without_a_known_reason(
    user: User, mount_as: Callable[..., str], scratch: Path, answer: str
) -> None:
    helper = written(scratch / "fusermount3", f"#!/bin/sh\n{answer}\n")
    said = mount_as(user.home / "my clips", wrapper=in_namespace(REPLACE, scratch, helper))
    assert said.startswith(f"cannot mount on {user.home}/my clips: ")
    assert said.endswith(f"; run kinetics-fs doctor '{user.home}/my clips'")


@pytest.mark.parametrize(
    "name",
    ["with blanks ", "día “ünïcode” 🎬", "trailing/", "back\\slash", "new\nline", "-dash", "comma,quote\"'", "%s"],
)
def test_odd_names_of_mount_points(user: User, frontend: tuple[str, ...], name: str) -> None:
    root = user.home / name
    given = f"{user.home}/{name}"
    done = user.kinetics_fs("mount", *frontend, "--annotations", write_rows(user.home), "--min-free", "0", given)
    assert (done.returncode, done.stderr) == (0, "")
    assert root in find_mounts()
    assert user.run("ls", root).stdout.split() == ["train", "val", "validation"]
    done = user.kinetics_fs("umount", given)
    assert (done.returncode, done.stderr) == (0, "")
    assert root not in find_mounts()
