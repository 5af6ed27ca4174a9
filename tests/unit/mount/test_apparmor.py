"""Which mount points the AppArmor profile of fusermount3 refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinetics_fs.mount.apparmor import is_enabled, refuses, rules_for

PROFILE = """
@{kinds} = {fuse,fuse.*,fuseblk}
profile fusermount3 /usr/bin/fusermount3 {FLAGS{
  capability sys_admin,
  # mount fstype=fuse -> /commented/**/,
  mount fstype=@{kinds} options=(nosuid,nodev) options in (ro,rw) -> @{HOME}/**/,
  mount fstype=@{kinds} options=(nosuid,nodev,ro) -> /mnt/{,**/},
  mount fstype=@{kinds} options=(nosuid,nodev,ro) -> @{run}/user/@{uid}/**/,  # of the session
  audit mount fstype=fuse options=(nosuid,nodev,rw) /dev/fuse -> /var/tmp/cache-*/**/,
  deny mount fstype=fuse -> /denied/**/,
  umount /unmounted/**/,
  include if exists <local/fusermount3>
}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The files of a system with AppArmor and the profile."""
    for name, text in (
        ("sys/module/apparmor/parameters/enabled", "Y\n"),
        ("etc/apparmor.d/fusermount3", PROFILE.replace("{FLAGS", "")),
        ("etc/apparmor.d/tunables/home.d/site.local", "#@{HOMEDIRS}+=/no/\n@{HOMEDIRS}+=/srv/nfs/home/ /net/home\n"),
    ):
        write(tmp_path / name, text)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "path",
    [
        *("/home/someone/clips", "/home/someone/a/b c/d", "/root/clips", "/mnt", "/mnt/a", "/run/user/1000/clips"),
        *("/srv/nfs/home/someone/clips", "/net/home/someone/clips", "/var/tmp/cache-7/clips", "/home/jörg/Videos 🎬"),
    ],
)
def test_allowed(machine: Path, path: str) -> None:
    assert not refuses(Path(path), machine)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/data/clips",
            "/home",
            "/home/someone",
            "/root",
            "/srv/clips",
            "/mnt2/clips",
            "/run/user",
            "/no/someone/clips",
        ),
        *("/commented/clips", "/denied/clips", "/unmounted/clips", "/var/tmp/clips", "/", "/data/home/someone/clips"),
    ],
)
def test_refused(machine: Path, path: str) -> None:
    assert refuses(Path(path), machine)


@pytest.mark.parametrize("path", ["/data/clips", "/data/my clips", '/data/[a]{b,c}*?^"d"\\', "/data/ünïcode"])
def test_the_named_rules_allow_the_mount_point(machine: Path, path: str) -> None:
    assert refuses(Path(path), machine)
    mount, umount = rules_for(Path(path), "fuse.kinetics-fs")
    assert umount.startswith('umount "/data/')
    write(machine / "etc/apparmor.d/local/fusermount3", f"{mount}\n{umount}\n")
    assert not refuses(Path(path), machine)
    assert refuses(Path(path + "2"), machine)


@pytest.mark.parametrize(
    "rule", ["mount,", "mount fstype=fuse.*,", "  allow mount -> /data/*/,", "mount -> /data/@{x}/,"]
)
def test_rules_of_an_administrator(machine: Path, rule: str) -> None:
    write(machine / "etc/apparmor.d/local/fusermount3", f"{rule}\n")
    assert not refuses(Path("/data/clips"), machine)


def test_machines_that_do_not_enforce_the_profile(machine: Path) -> None:
    data = Path("/data/clips")
    profile = machine / "etc/apparmor.d/fusermount3"
    for flags in ("flags=(complain) ", "flags=(attach_disconnected, unconfined) "):
        write(profile, PROFILE.replace("{FLAGS", flags))
        assert not refuses(data, machine)
    write(profile, PROFILE.replace("{FLAGS", "flags=(attach_disconnected) "))
    assert refuses(data, machine)
    for folder in ("disable", "force-complain"):
        link = profile.parent / folder / "fusermount3"
        link.parent.mkdir()
        link.symlink_to(profile)
        assert not refuses(data, machine)
        link.unlink()
    assert is_enabled(machine)
    write(machine / "sys/module/apparmor/parameters/enabled", "N\n")
    assert not refuses(data, machine)
    write(machine / "sys/module/apparmor/parameters/enabled", "Y\n")
    profile.unlink()
    assert not refuses(data, machine)
